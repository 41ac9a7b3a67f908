"""`ps.compare`: whatever somebody has in a notebook, and the report as tables."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import torch
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import purestate as ps
from purestate.errors import CorruptLogError, UsageError
from purestate.report._act import remove
from purestate.report._care import check, clean, collect
from purestate.report._code import show_code
from purestate.report._detail import show
from purestate.report._diff import RunComparison, compare
from purestate.report._hashed import hashes
from purestate.report._history import history
from purestate.report._listing import list_store
from purestate.report._name import RunName
from purestate.report._report import Report
from tests.cli.test_cli import STRANGE
from tests.report.planted import GOLDEN, asked, rewrite
from tests.run.tiny import Ask
from tests.train.test_examples import ENVIRONMENT, _ThisPython

VOID = {"br", "hr", "img", "input", "link", "meta"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ps.Store, ps.MemoryStore, ps.MemoryStore]:
    """The same run in a folder and in memory, and one with another learning rate in memory."""
    stores = ps.Store(tmp_path_factory.mktemp("compare") / "store"), ps.MemoryStore(), ps.MemoryStore()
    for store, lr in zip(stores, (0.05, 0.05, 0.06), strict=True):
        Ask(lr=lr).of(store.checkpoint("a", echo=None), epochs=1)
    stores[0].close()
    return stores


def test_stores_checkpoints_and_texts_are_the_same_run(trained):
    disk, memory, _ = trained
    sides = [disk, memory, disk.open("a", echo=None), memory.open("a", echo=None)]
    for a in sides:
        for b in sides:
            found = ps.compare(a, b)
            assert isinstance(found, RunComparison)
            assert (found.ok, found.log.verdict, found.state.read) == (True, "equal", 0)


def test_memory_against_memory_says_what_differs(trained):
    _, ours, theirs = trained
    found = ps.compare(ours, theirs)
    assert (found.ok, found.log.verdict, found.log.because) == (False, "expected", ("optimizer lr (arguments)",))
    params = next(part for part in found.state.parts if part.name == "params")
    assert (params.verdict, len(params.changed), found.a) == ("changed", 4, "memory:a")
    assert all(leaf.changed for leaf in params.changed)


def test_a_memory_run_against_a_file(trained, tmp_path):
    _, memory, _ = trained
    state = memory.load("a")
    torch.save(state.state_dict(), tmp_path / "f.pt")
    assert ps.compare(memory, tmp_path / "f.pt").ok
    assert ps.compare(str(tmp_path / "f.pt"), memory.open("a", echo=None)).equal == 4


def test_up_to_which_train_can_be_said():
    found = ps.compare(GOLDEN, str(GOLDEN), op=0)
    assert (found.ok, found.a) == (True, f"{GOLDEN}:adam@0")
    assert ps.compare(f"{GOLDEN}:adam@1", GOLDEN, op=0).log is None, "two trains of one checkpoint have no two logs"


def test_what_is_no_run_is_told(trained, tmp_path):
    disk, *_ = trained
    for given, said in (
        (3, "expected a checkpoint, a store, or a text"),
        (ps.MemoryStore(), "got one with 0"),
        (ps.NullStore().checkpoint("x"), "has no record"),
        (tmp_path / "nothing", "There is no store at"),
        ("no/such/folder/f.pt", "neither a store nor a file"),
        ("", "got an empty text"),
    ):
        with pytest.raises(UsageError, match=said):
            ps.compare(disk, given)


def test_what_computes_again_takes_checkpoints_as_compare_does(trained):
    disk, memory, _ = trained
    ck = disk.open("a", echo=None)
    assert ps.bisect(ck, disk).ok
    for call in (lambda run: ps.bisect(ck, run), lambda run: ps.audit(run, "script.py")):
        with pytest.raises(UsageError, match="expected a run of a store on the disk, got checkpoint 'a' in memory"):
            call(memory)
        with pytest.raises(UsageError, match="expected a checkpoint, a store, or a text that names a run, got 3"):
            call(3)


# -------------------------------------------------------------------- as tables


class Fragment(HTMLParser):
    """A fragment that was read: its tables as rows of texts. Fails where tags do not close, and on whatever loads or runs."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"div", "p", "b", "pre", "table", "thead", "tbody", "tr", "th", "td"}, tag
        assert {name for name, _ in attrs} <= {"style"}
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """A report of every kind, on the golden store and on it under hostile names, with other results and without an item."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("tables") / "<script>alert(1)<" / "store"))

    def change(bodies):
        bodies[0][1]["description"] = '<b>bold</b> & "more"'
        asked(bodies, 1, args__epochs="<i>")
        bodies[3][1]["metrics"]["<x>"] = 1.0
        bodies[9][1]["out"]["hash"] = "b3:" + "0" * 64
        bodies[9][1]["out"]["key"] = [1, 2]

    rewrite(folder / "checkpoints/adam/log.jsonl", change)
    shutil.rmtree(next(folder.glob("items/a8")))
    return reports(folder)


def reports(folder: Path) -> dict[str, Report]:
    golden, other = RunName(GOLDEN, "adam"), RunName(folder, "adam")
    both = compare(golden, other)
    return {
        "ls": list_store(folder),
        "log": history(other),
        "show": show(other),
        "show an op": show(RunName(folder, "adam", 0)),
        "show code": show_code(other),
        "diff": both,
        "diff of equal runs": compare(golden, golden),
        "diff of logs": both.log or pytest.fail("no logs"),
        "diff of states": both.state or pytest.fail("no states"),
        "diff with a file": ps.compare(next(GOLDEN.glob("items/12/*")), next(GOLDEN.glob("items/31/*"))),
        "hash": hashes(str(golden)),
        "check": check(other, "items", "0" * 64),
        "repair": clean(other),
        "gc": collect(RunName(folder), dry_run=True, voided=False),
        "rm": remove(RunName(Path(shutil.copytree(GOLDEN, folder.parent / "removed")), "adam"), lambda question: None),
    }


def test_every_report_is_a_fragment_of_tables(found):
    for name, report in found.items():
        html = report.to_html()
        assert report._repr_html_() == html
        page = Fragment(html)
        assert page.tables or name == "diff of equal runs", name
        for table in page.tables:
            assert len({len(row) for row in table}) == 1, name
    homes = {"_care", "_code", "_compared", "_detail", "_diff", "_hashed", "_history", "_listing", "_states", "_weights"}
    kinds = {kind for kind in Report.__subclasses__() if kind.__module__.rpartition(".")[2] in homes}
    assert {type(report) for report in found.values()} == kinds


def test_the_tables_say_what_the_text_says(found):
    tables = {name: Fragment(report.to_html()).tables for name, report in found.items()}
    assert ["epoch", "what", "hash"] == tables["log"][0][0][2:5]
    assert len(tables["log"][0]) == 1 + 11
    assert "<x> 1" in str(tables["log"])
    assert '<b>bold</b> & "more"' in str(tables["ls"]).replace("\\'", "'")
    assert "missing" in [row[0] for table in tables["check"] if table[0][-1] == "remedy" for row in table]
    assert [["ok", "no"]] == [row for row in tables["check"][0] if row[0] == "ok"]
    assert {"key", "arguments", "<i>"} <= {cell for table in tables["diff"] for row in table for cell in row}
    assert "head.weight" in {row[0] for table in tables["diff with a file"] for row in table}
    assert ["epochs", "<i>"] in [row for table in tables["show"] for row in table]
    assert ["val_loss", "val_accuracy"] == next(table[0][:2] for table in tables["show"] if table[0][0] == "val_loss")
    assert [row[0] for row in tables["hash"][0][1:]] == [leaf.name for leaf in found["hash"].leaves]


@pytest.mark.parametrize(("seq", "field", "value"), STRANGE)
def test_records_of_a_stranger_are_tables_or_errors(seq, field, value, planted):
    other = planted(lambda bodies: bodies[seq][1].update({field: value}))
    for report in (list_store, history, show):
        with contextlib.suppress(CorruptLogError):
            Fragment(report(other.store if report is list_store else other).to_html())
    with contextlib.suppress(CorruptLogError):
        Fragment(ps.compare(GOLDEN, other.store).to_html())


def test_reports_are_frozen():
    found = history(RunName(GOLDEN, "adam"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.run = "x"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_notebook_shows_a_comparison_as_tables(tmp_path):
    sources = [
        "import purestate as ps",
        f"ps.compare({os.fspath(GOLDEN)!r}, {os.fspath(GOLDEN)!r}, op=0)",
        f"ps.compare({f'{GOLDEN}:adam@0'!r}, {f'{GOLDEN}:adam@1'!r})",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    with tempfile.TemporaryDirectory() as place:
        manager = AsyncKernelManager(
            kernel_spec_manager=_ThisPython(), transport="ipc", connection_file=os.path.join(place, "kernel.json")
        )
        client = NotebookClient(notebook, timeout=60, startup_timeout=60)
        client.km = manager
        asyncio.run(client.async_execute(cwd=os.fspath(tmp_path), env=ENVIRONMENT | {"IPYTHONDIR": place}))
    shown = [cell.outputs[0].data for cell in notebook.cells[1:]]
    equal, changed = (Fragment(data["text/html"]) for data in shown)
    assert len(equal.tables) == 1
    assert any("params['head.weight']" in row for table in changed.tables for row in table)
