"""The examples of the stateful face, as people run them: a script in fresh processes, a notebook in fresh kernels."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.fspath(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
HASH = re.compile(r"b3:[0-9a-f]+")
FEWER = re.compile(r"epochs=(\d)0\b")  # 10, 20 and 40 epochs become 1, 2 and 4: what is done stays, for a tenth of the time


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder."""
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- the script


@dataclass(frozen=True)
class Run:
    """One process of the script: what it printed, what it imported, and what was on disk afterwards."""

    lines: list[str]
    imported: set[str]
    files: dict[str, bytes]

    @property
    def seconds(self) -> float:
        [line] = [line for line in self.lines if line.startswith("All of it")]
        return float(line.split()[-2])

    @property
    def said(self) -> list[str]:
        return [line for line in self.lines if not line.startswith("All of it")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    """The script, again, and again with ``--delete``."""
    folder = tmp_path_factory.mktemp("synopsis")
    script = folder / "synopsis.py"
    script.write_text(FEWER.sub(r"epochs=\1", (EXAMPLES / "synopsis.py").read_text()))
    command = [sys.executable, "-W", "error", "-X", "importtime", os.fspath(script), "--root", "root", "--plots", "out"]
    found: list[Run] = []
    for more in ([], [], ["--delete"]):
        process = subprocess.run(
            [*command, *more], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=100
        )
        imports = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
        assert imports == process.stderr.splitlines()  # neither a warning nor a bar
        names = {line.rpartition("|")[2].strip() for line in imports}
        found.append(Run(process.stdout.splitlines(), names, files(folder / "root")))
    return found


def test_the_script_says_the_same_again(runs):
    first, second, _ = runs
    assert first.said == second.said
    assert [line for line in first.said if line.startswith("  000")] != []
    assert len({digest for line in first.said for digest in HASH.findall(line)}) == 3  # a state for each checkpoint
    assert any(line.startswith("Loaded synopsis from checkpoint 1") for line in first.said)


def test_the_second_run_computes_nothing(runs):
    first, second, _ = runs
    computing = {"purestate.run._compute", "purestate.core._ops", "torch._dynamo"}
    assert computing <= first.imported
    assert not computing & second.imported
    assert not {"orbax", "jax"} & {name.partition(".")[0] for name in first.imported | second.imported}
    assert {name for name in first.files if name.endswith("log.jsonl")} != set()
    assert first.files == second.files
    # a few milliseconds to answer, and half a second of charts; the first one also starts the writer and captures steps
    assert second.seconds < first.seconds


def test_the_script_writes_pictures(runs):
    assert runs[0].said[-1] == "Wrote out/1-adam.png, out/1-find_lr.png, out/2-sgd.png, out/3-adam.png."


def test_the_script_deletes_what_it_made(runs):
    *_, last = runs
    assert last.said[-2:] == [
        "Deleted checkpoint 3 of synopsis. The model is where it was before it.",
        "Deleted model 'synopsis' and 2 checkpoints.",
    ]
    assert [name for name in last.files if name.startswith(("runs/", "ckpts/checkpoints/"))] == []


# ---------------------------------------------------------------- the notebook

AGAIN = ("block-3", "block-1", "block-1")
"""Cells that are run once more behind the last one, each followed by `LOOK`."""

LOOK = """
import os, pathlib
print(os.getpid(), model.state.hash, sum(path.stat().st_size for path in pathlib.Path("ckpts").rglob("*.jsonl")))
"""


@dataclass(frozen=True)
class Session:
    """What a kernel returned for each cell, by its id; for those that were run again a list; and what was on disk afterwards."""

    cells: dict[str, Any]
    again: list[Any]
    looks: list[list[str]]
    log: str
    files: dict[str, bytes] = field(repr=False)


def text_of(cell: Any) -> str:
    """Return the lines that a cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def shown(cell: Any, kind: str) -> list[str]:
    """Return what a cell shows, of a MIME type."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


class _ThisPython(KernelSpecManager):
    """Knows one kernel: this interpreter. Others that are installed on the machine do not matter."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="this Python", language="python")


def execute(folder: Path) -> Session:
    """Run the notebook in a kernel of its own, in a folder where it may write; then `AGAIN`."""
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert [name for name, cell in cells.items() if cell.outputs or cell.execution_count] == []  # stored without outputs
    for cell in cells.values():
        cell.source = FEWER.sub(r"epochs=\1", cell.source)
    sources = [LOOK, *(source for name in AGAIN for source in (cells[name].source, LOOK))]
    extra = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook.cells += extra
    # sockets have short names, and no port can be taken; nothing is read or written in the home folder
    with tempfile.TemporaryDirectory() as place, (folder / "log.txt").open("w+") as log:
        manager = AsyncKernelManager(
            kernel_spec_manager=_ThisPython(), transport="ipc", connection_file=os.path.join(place, "kernel.json")
        )
        client = NotebookClient(notebook, timeout=60, startup_timeout=60)
        client.km = manager  # and not km=manager: then it would not end the kernel
        environment = ENVIRONMENT | {"IPYTHONDIR": place}
        asyncio.run(client.async_execute(cwd=os.fspath(folder), env=environment, stdout=log, stderr=log))
        log.seek(0)
        said = log.read()
    looks = [text_of(cell).split() for cell in extra[::2]]
    return Session(cells, extra[1::2], looks, said, files(folder) | {"log.txt": b""})


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> list[Session]:
    """The notebook in a kernel, and in another one with the same folder."""
    folder = tmp_path_factory.mktemp("notebook")
    return [execute(folder), execute(folder)]


def test_the_notebook_shows_tables(sessions):
    cells = sessions[0].cells
    for name, part in {
        "model": "<b>notebook</b>, epoch 0",
        "history": ">val_accuracy</th>",
        "checkpoint": "checkpoint 1, in the store",
        "compare-table": ">SGD from there</td>",
    }.items():
        [html] = shown(cells[name], "text/html")
        assert "<table>" in html
        assert part in html


@pytest.mark.parametrize("name", ["block-1", "find-lr", "block-2", "block-3"])
def test_the_notebook_shows_charts(sessions, name):
    [png] = shown(sessions[0].cells[name], "image/png")
    assert png.startswith("iVBORw0KGgo")  # what a PNG begins with, in base64


def test_the_notebook_prints_lines(sessions):
    cells = sessions[0].cells
    lines = text_of(cells["block-1"]).splitlines()
    assert [line.split("=")[0] for line in lines] == ["Initial val_loss", "Epoch 1/1: train_loss", lines[2].split("=")[0]]
    assert lines[2].startswith("Best: ")
    assert text_of(cells["again"]).splitlines()[:3] == lines
    assert text_of(cells["again"]).endswith("The same state, to the bit: True.\n")
    assert text_of(cells["load"]).startswith("Loaded notebook from checkpoint 1: epoch=1, step=45, ")
    assert re.fullmatch(r"(checkpoint [123]: loss \d\.\d{4}, accuracy \d\.\d{4}\n){3}", text_of(cells["compare"]))
    assert re.fullmatch(r"\d+ of 359 digits are right\n", text_of(cells["module"]))


@pytest.mark.parametrize("session", [0, 1])
def test_a_cell_may_be_run_again(sessions, session):
    end, third, first, once_more = sessions[session].looks
    assert end == third  # the same kernel, state and size of the logs: block 3 ended there, and ends there again
    assert first == once_more
    assert first[1] != third[1]
    assert first[2] == third[2]
    for name, cell in zip(AGAIN, sessions[session].again, strict=True):
        assert text_of(cell) == text_of(sessions[session].cells[name])


def test_the_notebook_computes_once(sessions):
    first, second = sessions
    assert first.files == second.files
    assert [look[1:] for look in first.looks] == [look[1:] for look in second.looks]
    assert text_of(first.cells["state"]) == text_of(second.cells["state"]) == f"{first.looks[0][1]}\n"
    differ = {name for name in first.cells if unnumbered(first.cells[name]) != unnumbered(second.cells[name])}
    # seconds; a model that has checkpoints already; a checkpoint that holds the answers which are asked for further down
    assert differ <= {"again", "model", "checkpoint"}


def unnumbered(cell: Any) -> Any:
    """Return what a cell printed and shows, whichever way the kernel cut the lines in pieces."""
    return text_of(cell), shown(cell, "text/html"), shown(cell, "image/png"), shown(cell, "text/plain")


@pytest.mark.parametrize("session", [0, 1])
def test_a_kernel_starts_without_warnings(sessions, session):
    assert sessions[session].log == ""


def test_nothing_is_red(sessions):
    """Without ipywidgets, too, which are in ``jupyter`` and not in the tests, and whose absence tqdm would tell."""
    cells = [cell for session in sessions for cell in (*session.cells.values(), *session.again)]
    assert [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("session", [0, 1])
def test_a_kernel_ends_with_all_that_it_started(sessions, session):
    group = int(sessions[session].looks[0][0])  # a kernel leads a process group; the writer is in it
    patience = time.monotonic() + 10
    while time.monotonic() < patience:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"the process group {group} of a kernel is still there")
