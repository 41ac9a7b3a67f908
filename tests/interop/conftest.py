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

_said: dict[str, dict[str, list[dict[str, Any]]]] = {}


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
    if item.config.pluginmanager.has_plugin("reporter") or not item.path.is_relative_to(HERE):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def reports(item: pytest.Item) -> list[Any]:
    """Return what was said of a test: in a process for all of them, or in one of two where xdist has several workers."""
    chosen = [other for other in item.session.items if other.path.is_relative_to(HERE)]
    files = sorted({other.path for other in chosen})
    base = item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    parallel = hasattr(item.config, "workerinput")
    base, halves = (base.parent, [files[::2], files[1::2]]) if parallel else (base, [files])
    mine = next(half for half in halves if item.path in half)
    if str(mine[0]) not in _said:
        # while another worker runs this half there is time for the other one
        for half, wait in [(mine, False), *((half, False) for half in halves if half is not mine), (mine, True)]:
            names = [other.nodeid for other in chosen if other.path in half]
            if half and run(item, names, base / f"interop-{halves.index(half)}", wait) and half is mine:
                break
        _said[str(mine[0])] = read(base / f"interop-{halves.index(mine)}")
    found = _said[str(mine[0])].get(item.nodeid)
    if not found or found[-1]["when"] != "teardown":
        said = (base / f"interop-{halves.index(mine)}.out").read_text()[-4000:]
        why = f"{item.nodeid} was not run to its end in the second process, which said:\n{said}"
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")]
    return [item.config.hook.pytest_report_from_serializable(config=item.config, data=data) for data in found]


def run(item: pytest.Item, names: list[str], path: Path, wait: bool) -> bool:
    """Run tests in a process of their own, which writes its reports to a file, unless some worker did; say whether it is done.

    Args:
        item: The test that needs it.
        names: The ids of the tests.
        path: Of the file.
        wait: Wait for a worker that is at it.
    """
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        if not path.exists():
            arguments = path.with_suffix(".chosen")
            arguments.write_text("\n".join(names))
            path.touch()
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", "slow or not slow", f"@{arguments}"]
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
            environment |= {REPORTS: os.fspath(path), "JAX_PLATFORMS": "cpu"}
            with path.with_suffix(".out").open("w") as out:
                subprocess.run(command, cwd=item.config.rootpath, env=environment, stdout=out, stderr=subprocess.STDOUT)
    return True


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        data = json.loads(line)
        if data["outcome"] == "skipped" and isinstance(data["longrepr"], list):
            data["longrepr"] = tuple(data["longrepr"])  # where pytest insists on one
        found[data["nodeid"]].append(data)
    return found


@pytest.fixture
def jax() -> Iterator[Any]:
    """JAX as it is when nobody configured it; what a test switches over is switched back."""
    import jax

    switches = ("jax_enable_x64", "jax_threefry_partitionable")
    before = {name: getattr(jax.config, name) for name in switches}
    yield jax
    for name, value in before.items():
        jax.config.update(name, value)
