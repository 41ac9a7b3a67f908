"""The tests of this folder run in one process of their own: a process that imported JAX warns at every fork, and loaders fork.

pytest collects them here as ever, and when the first one's turn comes it starts a second pytest over those that were chosen.
What that says of each test is reported here in the test's turn. So `-k`, ids, markers, skips and failures are as usual.
`import jax` stands in functions or fixtures there, since this process imports the files to collect them.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REPORTS = "PURESTATE_TESTS_REPORTS"
"""Names the file that the second process writes its reports to. Where it is set, this is the second process."""

LIBRARIES = ("jax", "flax", "optax")

_reports: dict[str, list[dict[str, Any]]] | None = None


def pytest_configure(config: pytest.Config) -> None:
    if path := os.environ.pop(REPORTS, None):
        for name in filter(find_spec, LIBRARIES):
            import_module(name)  # which draws from global generators, as no test may
        config.pluginmanager.register(Reporter(config, Path(path)), "reporter")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what has not its libraries; and see that collecting imported none of them."""
    here = [item for item in items if item.path.is_relative_to(HERE)]
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"{' and '.join(missing)} not installed: the extra dev brings them"))
    if here and "jax" in sys.modules and not config.pluginmanager.has_plugin("reporter"):
        raise pytest.UsageError(f"a file in {HERE} imports JAX when it is collected: do it in a function")


class Reporter:
    """In the second process: writes each report as a line of JSON."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self.config, self.path = config, path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        with self.path.open("a") as file:
            file.write(json.dumps(data, default=str) + "\n")


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Report what the second process said of a test."""
    global _reports
    if item.config.pluginmanager.has_plugin("reporter") or not item.path.is_relative_to(HERE):
        return None
    if _reports is None:
        _reports = run(item.session)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in _reports[item.nodeid]:
        item.ihook.pytest_runtest_logreport(
            report=item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        )
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def run(session: pytest.Session) -> dict[str, list[dict[str, Any]]]:
    """Run the tests of this folder that were chosen; return the reports of each. Of several xdist workers one does."""
    chosen = [item.nodeid for item in session.items if item.path.is_relative_to(HERE)]
    folder = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    folder = folder.parent if hasattr(session.config, "workerinput") else folder
    path = folder / "interop-reports"
    with (folder / "interop-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker that comes second waits, and finds the reports
        said = "" if path.exists() else run_apart(session, chosen, path)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        data = json.loads(line)
        if data["outcome"] == "skipped" and isinstance(data["longrepr"], list):
            data["longrepr"] = tuple(data["longrepr"])  # where pytest insists on one
        found[data["nodeid"]].append(data)
    if missing := [name for name in chosen if name not in found]:
        pytest.exit(f"{missing[0]} was not run in the second process:\n{said}", returncode=3)
    return found


def run_apart(session: pytest.Session, chosen: list[str], path: Path) -> str:
    """Start the second process, which writes its reports to a file, and return what it printed."""
    arguments = path.with_name("interop-chosen")
    arguments.write_text("\n".join(chosen))
    path.touch()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", "slow or not slow", f"@{arguments}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment |= {REPORTS: os.fspath(path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=session.config.rootpath, env=environment, capture_output=True, text=True)
    return f"{done.stdout}\n{done.stderr}"


@pytest.fixture
def jax() -> Iterator[Any]:
    """JAX as it is when nobody configured it; what a test switches over is switched back."""
    import jax

    switches = ("jax_enable_x64", "jax_threefry_partitionable")
    before = {name: getattr(jax.config, name) for name in switches}
    yield jax
    for name, value in before.items():
        jax.config.update(name, value)
