"""The folder as a whole: format, ids, reading without writing, the journal, deleting."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from tempfile import gettempdir

import pytest
import torch

from purestate.errors import (
    CheckpointNotFoundError,
    FormatVersionError,
    InvalidIdError,
    StoreError,
    StoreLockedError,
    StoreWriteError,
)
from purestate.store._check import check
from purestate.store._disk import DiskBackend
from purestate.store._layout import FORMAT_VERSION, check_id
from tests.store.conftest import digest_of


def record(backend: DiskBackend, id: str = "a") -> None:
    log = backend.log(id)
    with log.lock():
        log.append("train", {"n": len(log.records)})


def tree(folder) -> dict[str, tuple]:
    """Return what is in a folder, with times."""
    return {str(path): path.lstat()[:8] for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("id", ["a", "adam-lr_0.01", "A.b-C_9", "1", "-", "_", "x" * 128])
def test_ids(id):
    assert check_id(id) == id


@pytest.mark.parametrize("id", ["", ".", "..", ".a", "a/b", "a\\b", "a b", "é", "a\n", "a\0", "x" * 129, "%2e", "../a", 1, None])
def test_an_id_that_is_a_path_or_worse_is_refused(backend, id):
    for act in (backend.log, backend.delete, backend.load_resume, backend.clear_resume):
        with pytest.raises(InvalidIdError, match="cannot name a checkpoint") as caught:
            act(id)
        assert caught.value.id == id
        assert isinstance(caught.value, ValueError)
    assert not backend.path.exists()


def test_the_first_write_makes_the_store(backend):
    assert not backend.path.exists()
    assert (backend.ids(), backend.acts(), backend.load_resume("a"), backend.has("0" * 64)) == ([], [], None, False)
    assert not backend.path.exists()
    record(backend)
    assert json.loads((backend.path / "format.json").read_text()) == {"purestate": FORMAT_VERSION}
    assert backend.ids() == DiskBackend(backend.path).ids() == ["a"]


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_was_removed_while_it_was_open_becomes_a_whole_store_again(tmp_store_path, anonymous, again):
    backend = DiskBackend(tmp_store_path, anonymous=anonymous)
    record(backend)
    if again:  # one that knew the file when it was opened
        backend = DiskBackend(tmp_store_path)
        record(backend)
    before = (tmp_store_path / "format.json").read_bytes()
    shutil.rmtree(tmp_store_path)
    record(backend)
    assert (tmp_store_path / "format.json").read_bytes() == before
    assert DiskBackend(tmp_store_path).anonymous == anonymous
    assert check(backend, lambda record: {}, "items").findings == ()


def test_a_store_that_lost_its_version_is_told_and_gets_it_back(backend):
    record(backend)
    (backend.path / "format.json").unlink()
    report = check(DiskBackend(backend.path), lambda record: {}, "records")
    assert [(found.kind, found.place) for found in report.findings] == [("missing", "format.json")]
    assert not report.ok
    assert 'write {"purestate": 1} into it' in str(report)
    record(DiskBackend(backend.path))
    assert check(backend, lambda record: {}, "items").findings == ()


def test_a_newer_format_is_refused(tmp_store_path):
    tmp_store_path.mkdir()
    (tmp_store_path / "format.json").write_text('{"purestate": 2}')
    with pytest.raises(FormatVersionError, match="has format 2, and this version reads up to 1") as caught:
        DiskBackend(tmp_store_path)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert "format.json" in str(caught.value)
    assert caught.value.path == str(tmp_store_path / "format.json")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "purestate"])
def test_another_format_file_is_refused(tmp_store_path, text):
    tmp_store_path.mkdir()
    (tmp_store_path / "format.json").write_text(text)
    with pytest.raises(StoreError, match="Expected the version of a store"):
        DiskBackend(tmp_store_path)


def test_a_file_is_no_store(tmp_store_path):
    tmp_store_path.write_text("")
    with pytest.raises(StoreWriteError, match=r"Expected a folder as a store.*is a file"):
        DiskBackend(tmp_store_path)


@pytest.mark.parametrize("place", ["items", "checkpoints"])
def test_a_file_in_the_place_of_a_folder_is_a_typed_error(backend, place):
    record(backend)
    shutil.rmtree(backend.path / place, ignore_errors=True)
    (backend.path / place).write_text("")
    with pytest.raises(StoreError, match=f"Expected a folder, got '.*{place}', which is none"):
        [*backend.ids(), *backend.items()]


def test_a_checkpoint_that_must_exist(backend):
    record(backend, "a")
    record(backend, "b")
    assert backend.log("a", must_exist=True).exists()
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint 'c' in the store") as caught:
        backend.log("c", must_exist=True)
    assert caught.value.available == ("a", "b")
    assert "It has 'a', 'b'." in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


READ = """
import sys
from purestate.store._check import check
from purestate.store._disk import DiskBackend
backend = DiskBackend(sys.argv[1])
log = backend.log("a", must_exist=True)
leaves = backend.get(log.records[0].body["params"])
heavy = [name for name in ("jax", "orbax") if name in sys.modules]
print(log.records[0].kind, leaves["w"].tolist(), backend.ids(), backend.load_resume("a")[0], heavy)
"""


def test_reading_writes_nothing(backend, run):
    leaves = {"w": torch.ones(2)}
    log = backend.log("a")
    with log.lock(), backend.writing():
        backend.put({digest_of(leaves): leaves})
        log.append("train", {"params": digest_of(leaves)})
    backend.save_resume("a", {"n": 1}, {}).result()
    before = tree(backend.path)
    out = run(READ, backend.path)
    assert out == "train [1.0, 1.0] ['a'] {'n': 1} []\n"
    access = {path: [*entry[:7]] for path, entry in tree(backend.path).items()}
    assert access == {path: [*entry[:7]] for path, entry in before.items()}


def test_a_read_only_store_can_be_read_and_says_why_it_cannot_be_written(backend, run):
    """Root may write everywhere, so the reader becomes nobody."""
    leaves = {"w": torch.ones(2)}
    backend.put({digest_of(leaves): leaves})
    log = backend.log("a")
    with log.lock():
        log.append("train", {"params": digest_of(leaves)})
    backend.save_resume("a", {"n": 1}, {}).result()
    for path in [backend.path, *backend.path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in [parent for parent in backend.path.parents if Path(gettempdir()) in parent.parents]:
        path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    become = """
import os
import shutil
import torch
import purestate.store._reader
import tensorstore
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""
    write = """
from purestate.errors import StoreWriteError
def attempt(act):
    try:
        act()
    except StoreWriteError as error:
        print(str(error).splitlines()[-1])
def append():
    with log.lock():
        log.append("train", {})
attempt(append)
attempt(lambda: backend.put({"0" * 64: leaves}))
attempt(lambda: backend.save_resume("a", {}, {}))
attempt(lambda: backend.journal("test"))
"""
    first, *others = run(become + READ + write, backend.path).splitlines()
    assert first == "train [1.0, 1.0] ['a'] {'n': 1} []"
    assert others == ["This user may not write there. Change the folder's mode, or give another folder."] * 4


def test_a_deleted_checkpoint_is_gone_and_the_journal_says_so(backend):
    record(backend, "a")
    record(backend, "b")
    head = backend.log("a").head
    backend.save_resume("a", {}, {}).result()
    backend.delete("a")
    assert backend.ids() == ["b"]
    assert backend.load_resume("a") is None
    assert list(backend.path.glob("trash/*")) == []
    [act] = backend.acts()
    assert (act["act"], act["checkpoint"], act["head"], act["records"], act["pid"]) == ("delete", "a", head, 1, os.getpid())
    assert act.keys() == {"act", "checkpoint", "head", "records", "pid", "host", "user", "time"}
    with pytest.raises(CheckpointNotFoundError):
        backend.delete("a")


def test_a_damaged_checkpoint_can_be_deleted(backend):
    record(backend)
    backend.log("a").path.write_text("not a log\n")
    backend.delete("a")
    assert (backend.ids(), backend.acts()[0]["head"]) == ([], None)


def test_a_checkpoint_that_is_written_is_not_deleted(backend):
    record(backend)
    with backend.log("a").lock(), pytest.raises(StoreLockedError):
        DiskBackend(backend.path).delete("a", timeout=0)
    assert backend.ids() == ["a"]


def test_the_journal_goes_on_behind_a_line_that_a_crash_cut_short(backend):
    backend.journal("one", n=1)
    path = backend.path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"act":"tw')
    backend.journal("three", n=3)
    assert [(act["act"], act["n"]) for act in backend.acts()] == [("one", 1), ("three", 3)]


def test_a_line_of_the_journal_that_was_damaged_is_left_out_and_found(backend):
    for n in range(3):
        backend.journal("act", n=n)
    path = backend.path / "journal.jsonl"
    data = path.read_bytes()
    start, end = data.index(b"\n") + 1, data.index(b"\n", data.index(b"\n") + 1)
    for at in range(start, end):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert [act["n"] for act in backend.acts()] == [0, 2]
        [finding] = backend.oddities()
        assert finding.place.startswith("journal.jsonl, line 2")


def test_a_line_of_the_journal_from_before_they_were_sealed_is_read(backend):
    backend.journal("new")
    path = backend.path / "journal.jsonl"
    path.write_bytes(b'{"act":"old","time":"2026-01-01T00:00:00Z","pid":1}\n' + path.read_bytes())
    assert [act["act"] for act in backend.acts()] == ["old", "new"]
    assert list(backend.oddities()) == []


def test_a_collection_waits_for_writers_and_writers_for_it(backend):
    from purestate.store._locks import FileLock

    alone = FileLock(backend._layout.store_lock, "the store")
    with backend.writing(), backend.writing(), DiskBackend(backend.path).writing():
        with pytest.raises(StoreLockedError), alone.hold(0):
            pass
    with alone.hold(0):
        with pytest.raises(StoreLockedError, match="The store"), backend.writing(0):
            pass
