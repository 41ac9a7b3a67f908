"""Looking after a store: what check finds, what repair mends and what it leaves, what a collection takes and what it may not."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
import torch

from purestate.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptItemError,
    CorruptLogError,
    InvalidIdError,
    MissingSnapshotError,
    StoreError,
    StoreLockedError,
)
from purestate.store._check import check
from purestate.store._copy import copy
from purestate.store._disk import DiskBackend
from purestate.store._memory import MemoryBackend
from purestate.store._record import Record
from tests.store.conftest import digest_of


def items_of(record: Record) -> dict[str, str]:
    return dict.fromkeys(record.body["items"], "params")


def leaves(value: float, size: int = 300) -> dict[str, torch.Tensor]:
    return {"w": torch.arange(float(size)) + value, "b": torch.tensor(value)}


def record(backend: Any, id: str, *values: float) -> list[str]:
    """Append a record that names an item for each value."""
    trees = {digest_of(leaves(value)): leaves(value) for value in values}
    log = backend.log(id)
    with backend.writing(), log.lock():
        backend.put(trees)
        log.append("done", {"items": list(trees)})
    return list(trees)


def named(backend: Any) -> Callable[[], set[str]]:
    return lambda: {digest for id in backend.ids() for record in backend.log(id).records for digest in items_of(record)}


def collect(backend: Any, *, dry_run: bool = False, timeout: float | None = 5.0) -> Any:
    return backend.collect(named(backend), dry_run=dry_run, timeout=timeout)


def found(backend: Any, level: Any = "bytes") -> list[tuple[str, str]]:
    return [(finding.kind, finding.place) for finding in check(backend, items_of, level).findings]


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(params=["disk", "memory"])
def any_backend(request: pytest.FixtureRequest, tmp_store_path: Path) -> Any:
    return DiskBackend(tmp_store_path) if request.param == "disk" else MemoryBackend()


# -------------------------------------------------------------------- check


@pytest.mark.parametrize("level", ["records", "items", "bytes"])
def test_a_whole_store_is_ok_and_untouched(any_backend, level):
    record(any_backend, "a", 1, 2)
    record(any_backend, "b", 2, 3)
    before = tree(any_backend.path) if isinstance(any_backend, DiskBackend) else None
    report = check(any_backend, items_of, level)
    assert report.ok
    assert (report.checkpoints, report.records, report.items, report.findings) == (2, 2, 3, ())
    assert str(report).startswith("ok: 2 checkpoints, 2 records, 3 items")
    if before is not None:
        assert tree(any_backend.path) == before


def test_a_store_that_is_not_there_is_empty(backend):
    assert check(backend, items_of, "bytes").findings == ()
    assert collect(backend) == collect(backend, dry_run=True).__class__((), 0, 0, False)
    assert backend.repair().done == ()
    assert not backend.path.exists()


def test_a_damaged_line_is_named(backend):
    for _ in range(3):
        record(backend, "a", 1)
    path = backend.log("a").path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"done", b"dona") + lines[2])
    report = check(backend, items_of, "records")
    assert not report.ok
    assert [(f.kind, f.place) for f in report.findings] == [("damaged", "checkpoints/a/log.jsonl, line 2")]
    assert "keep its first line, which is intact" in report.findings[0].remedy
    with pytest.raises(CorruptLogError):
        collect(backend)
    assert "damaged: checkpoints/a/log.jsonl, line 2" in str(report)


def test_a_torn_line_is_found_mended_and_noted(backend):
    record(backend, "a", 1)
    path = backend.log("a").path
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"digest":"12')
    assert found(backend) == [("torn", "checkpoints/a/log.jsonl")]
    assert check(backend, items_of, "bytes").ok
    report = backend.repair()
    assert path.read_bytes() == whole
    assert [file.read_bytes() for file in path.parent.glob("torn-*")] == [b'{"digest":"12']
    assert len(report.done) == 1
    assert [act["done"] for act in backend.acts() if act["act"] == "repair"] == [list(report.done)]
    assert found(backend) == []
    assert backend.repair().done == ()


def test_what_is_being_written_is_left_alone(backend):
    record(backend, "a", 1)
    path = backend.log("a").path
    path.write_bytes(path.read_bytes() + b'{"dig')
    (backend.path / "items" / ("tmp-" + "0" * 24)).mkdir()
    other = DiskBackend(backend.path)
    with other.log("a").lock(), other.writing():
        report = backend.repair()
    assert report.done == ()
    assert set(report.left) == {"checkpoints/a", "items/tmp-" + "0" * 24}
    assert path.read_bytes().endswith(b'{"dig')
    assert len(backend.repair().done) == 2


def test_rubbish_and_foreign_files_are_found_and_only_rubbish_is_removed(backend):
    [digest] = record(backend, "a", 1)
    tmp = "tmp-" + "ab" * 12
    rubbish = [f"items/{tmp}", f"checkpoints/a/{tmp}", f"checkpoints/a/resume/{tmp}", "trash/something", tmp]
    foreign = [
        "notes.txt",
        "items/zz",
        f"items/{digest[:2]}/x",
        "checkpoints/a/notes",
        "checkpoints/no log",
        "checkpoints/a/resume/x",
    ]
    for place in rubbish + foreign:
        path = backend.path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("something")
    report = check(backend, items_of, "items")
    assert report.ok
    assert {(f.kind, f.place) for f in report.findings} == {("rubbish", p) for p in rubbish} | {("foreign", p) for p in foreign}
    repaired = backend.repair()
    assert repaired.bytes == 9 * len(rubbish)
    assert {f.place for f in check(backend, items_of, "items").findings} == set(foreign)
    assert backend.has(digest)


def test_of_many_findings_that_say_the_same_the_first_are_printed(backend):
    record(backend, "a", 1)
    for i in range(40):
        (backend.path / f"note{i:02}").write_text("something")
    (backend.path / "checkpoints/a/torn").write_text("something")
    report = check(backend, items_of, "items")
    lines = str(report).splitlines()
    assert len(report.findings) == 41
    assert len(lines) == 1 + 2 * 5
    assert lines[0] == "ok: 1 checkpoint, 1 record, 1 item, their names and sizes"
    assert lines[-2] == "foreign: and 37 more: is not part of a store"


@pytest.mark.parametrize("place", ["items", "checkpoints"])
def test_a_folder_that_may_not_be_read_is_a_typed_error(backend, run, place):
    """Root may read everything, so the one who looks becomes nobody."""
    record(backend, "a", 1)
    for path in [parent for parent in backend.path.parents if Path(gettempdir()) in parent.parents]:
        path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    folder = backend.path / place
    folder.chmod(0o000)
    out = run(
        """
import os, sys
from purestate.errors import StoreError
from purestate.store._check import check
from purestate.store._disk import DiskBackend
import purestate.store._items, purestate.store._repair
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
backend = DiskBackend(sys.argv[1])
for look in (lambda: [*backend.ids(), *backend.items()], lambda: check(backend, lambda record: {}, "items")):
    try:
        look()
    except StoreError as error:
        print(error.problem)
""",
        backend.path,
    )
    folder.chmod(0o755)
    assert out == f"Cannot read {str(folder)!r}.\n" * 2


def test_what_cannot_be_removed_is_left_and_not_counted(backend, run):
    """Root may remove everything, so the one who repairs becomes nobody."""
    record(backend, "a", 1)
    trash = backend.path / "trash"
    for name, mode in (("gone", 0o777), ("half", 0o777), ("half/stays", 0o555)):
        (trash / name).mkdir(parents=True)
        (trash / name / "x").write_bytes(b"x" * 100)
        (trash / name).chmod(mode)
    for path in [backend.path, *(path for path in backend.path.rglob("*") if path.relative_to(backend.path).parts[0] != "trash")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    trash.chmod(0o777)
    for path in [parent for parent in backend.path.parents if Path(gettempdir()) in parent.parents]:
        path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    out = run(
        """
import os, sys
from purestate.store._disk import DiskBackend
import purestate.store._repair
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
report = DiskBackend(sys.argv[1]).repair()
print(report.done, report.left, report.bytes)
""",
        backend.path,
    )
    assert out == "('trash: what was being removed is gone',) ('trash/half',) 200\n"
    assert found(backend) == [("rubbish", "trash/half")]
    (trash / "half" / "stays").chmod(0o777)
    assert backend.repair().bytes == 100


def test_missing_and_unnamed_items_are_told_apart(any_backend):
    kept, gone = record(any_backend, "a", 1, 2)
    spare = digest_of(leaves(3))
    any_backend.put({spare: leaves(3)})
    any_backend.collect(lambda: {kept, spare}, dry_run=False, timeout=1)
    kinds = {finding.kind for finding in check(any_backend, items_of, "items").findings}
    assert kinds == {"rubbish"}, "what a collection took is not missed"
    assert not any_backend.has(gone)
    with pytest.raises(MissingSnapshotError, match=r"store\.gc\(\) removed it at \d{4}-"):
        any_backend.get(gone)


def test_a_missing_item_is_found(backend):
    [digest] = record(backend, "a", 1)
    backend.item_path(digest).rename(backend.path / "elsewhere")
    assert ("missing", f"items/{digest[:2]}/{digest}") in found(backend, "items")
    assert not check(backend, items_of, "items").ok
    assert check(backend, items_of, "records").ok


def test_a_damaged_leaf_is_named_with_its_file(backend):
    [digest] = record(backend, "a", 1)
    folder = backend.item_path(digest)
    needle = leaves(1)["w"].numpy().tobytes()[400:480]
    [path] = [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]
    path.write_bytes(path.read_bytes().replace(needle, bytes(80)))
    place, file = f"items/{digest[:2]}/{digest}", path.relative_to(folder).as_posix()
    assert set(found(backend)) == {("damaged", f"{place}/{file}"), ("damaged", f"{place}/{file}, leaf 'w'")}
    assert found(backend, "items") == []
    with pytest.raises(CorruptItemError) as caught:
        backend.get(digest)
    assert (caught.value.leaf, caught.value.file) == ("w", file)


def test_every_file_that_is_cut_lost_or_changed_is_named(backend):
    """Files too that no leaf is read from: others restore the folder with them."""
    [digest] = record(backend, "a", 1)
    folder = backend.item_path(digest)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        data, name = path.read_bytes(), path.relative_to(folder).as_posix()
        place = f"items/{digest[:2]}/{digest}/{name}"
        for damage, level in ((data[:-1], "items"), (None, "items"), (data[:-1] + bytes([data[-1] ^ 1]), "bytes")):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            if name != "purestate.json" or damage is None:
                assert any(where.startswith(place) for _, where in found(backend, level)), (name, level)
            else:
                assert level == "items" or found(backend, level) == [] or not check(backend, items_of, level).ok
            path.write_bytes(data)
    assert found(backend) == []


# -------------------------------------------------------------------- damaged items


def test_a_damaged_item_is_written_anew_and_a_whole_one_is_not(backend):
    [digest] = record(backend, "a", 1)
    folder = backend.item_path(digest)
    before = (folder / "purestate.json").stat().st_ino
    other = DiskBackend(backend.path)  # which has neither written nor read it
    other.put({digest: leaves(1)})
    assert (folder / "purestate.json").stat().st_ino == before
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "purestate.json":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptItemError):
        backend.get(digest)
    assert backend.has(digest)
    backend.put({digest: leaves(1)})
    assert torch.equal(backend.get(digest)["w"], leaves(1)["w"])
    assert (folder / "purestate.json").stat().st_ino != before
    assert list(backend.path.glob("items/tmp-*")) == []


def test_a_record_never_relies_on_an_item_that_nobody_looked_at(backend):
    [digest] = record(backend, "a", 1)
    (backend.item_path(digest) / "manifest.ocdbt").write_bytes(b"nonsense")
    other = DiskBackend(backend.path)
    record(other, "b", 1)
    assert found(other) == []


# -------------------------------------------------------------------- collection


def test_a_collection_takes_what_no_record_names(any_backend):
    kept = record(any_backend, "a", 1, 2)
    gone = record(any_backend, "b", 2, 3)
    any_backend.delete("b")
    dry = collect(any_backend, dry_run=True)
    assert (dry.items, dry.kept, dry.dry_run) == ((gone[1],), 2, True)
    assert dry.bytes > 1000
    assert any_backend.has(gone[1])
    report = collect(any_backend)
    assert (report.items, report.bytes, report.kept) == (dry.items, dry.bytes, 2)
    assert [any_backend.has(digest) for digest in [*kept, gone[1]]] == [True, True, False]
    assert [act["items"] for act in any_backend.acts() if act["act"] == "gc"] == [[gone[1]]]
    assert collect(any_backend).items == ()
    if isinstance(any_backend, DiskBackend):
        assert list(any_backend.path.glob("trash/*")) == []
    any_backend.put({gone[1]: leaves(3)})
    assert torch.equal(any_backend.get(gone[1])["w"], leaves(3)["w"])


def test_a_collection_waits_for_whoever_is_about_to_append(backend):
    record(backend, "a", 1)
    digest = digest_of(leaves(2))
    other = DiskBackend(backend.path)
    with other.writing():
        other.put({digest: leaves(2)})
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on ") as caught:
            collect(backend, timeout=0.05)
        assert caught.value.pid == os.getpid()
    assert collect(backend).items == (digest,)


def test_a_log_under_a_name_that_is_none_stops_the_collection(backend):
    record(backend, "a", 1)
    (backend.path / "checkpoints" / "a").rename(backend.path / "checkpoints" / "a (copy)")
    with pytest.raises(StoreError, match=r"'a \(copy\)' cannot name a checkpoint"):
        collect(backend)
    assert len(list(backend.items())) == 1


KILLS = """
import os, signal, sys
import torch
from pathlib import Path
from tempfile import gettempdir
from purestate.store._disk import DiskBackend
from tests.store.test_care import check, collect, items_of, leaves, record
from tests.store.conftest import digest_of

root, act = Path(sys.argv[1]), sys.argv[2]
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree", "os.truncate"}
backend = DiskBackend(root)
record(backend, "a", 1, 2)
backend.put({digest_of(leaves(v)): leaves(v) for v in (3, 4)})
backend.close()
folders = [backend.item_path(digest) for digest in items_of(backend.log("a").records[0])]
kept = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
(root / "items" / ("tmp-" + "0" * 24)).mkdir()
log = backend.log("a").path
log.write_bytes(log.read_bytes() + b'{"di')
k = 0
while True:
    k += 1
    child = os.fork()
    if child == 0:
        count = 0
        def hook(event, arguments):
            global count
            if event in EVENTS:
                count += 1
                if count == k:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        (collect if act == "gc" else DiskBackend.repair)(DiskBackend(root))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert all(path.read_bytes() == data for path, data in kept.items()), k
    assert DiskBackend(root).log("a").records[0].seq == 0
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
collect(DiskBackend(root)); DiskBackend(root).repair()
left = [(f.kind, f.place) for f in check(DiskBackend(root), items_of, "bytes").findings if f.place != "journal.jsonl"]
print(k > 10, [entry for entry in left if not entry[1].startswith("journal")])
"""


@pytest.mark.parametrize("act", ["gc", "repair"])
def test_killed_at_every_file_operation_it_loses_nothing(run, tmp_store_path, act):
    assert run(KILLS, tmp_store_path, act) == "True []\n"


# -------------------------------------------------------------------- rename and copy


def test_renaming(any_backend):
    record(any_backend, "a", 1)
    record(any_backend, "b", 2)
    any_backend.save_resume("a", {"n": 1}, {}).result()
    head = any_backend.log("a").head
    any_backend.rename("a", "c")
    assert any_backend.ids() == ["b", "c"]
    assert any_backend.log("c").head == head
    assert any_backend.load_resume("c")[0] == {"n": 1}
    assert {key: any_backend.acts()[-1][key] for key in ("act", "checkpoint", "to", "head")} == {
        "act": "rename",
        "checkpoint": "a",
        "to": "c",
        "head": head,
    }
    with pytest.raises(CheckpointNotFoundError):
        any_backend.rename("a", "d")
    for name in ("b", "c"):
        with pytest.raises(CheckpointExistsError) as caught:
            any_backend.rename("c", name)
        assert caught.value.id == name
    with pytest.raises(InvalidIdError):
        any_backend.rename("c", "../c")


def test_a_checkpoint_that_is_written_is_not_renamed(backend):
    record(backend, "a", 1)
    with DiskBackend(backend.path).log("a").lock(), pytest.raises(StoreLockedError):
        backend.rename("a", "b", timeout=0)


def needs(records: Any) -> dict[str, tuple[str, bool]]:
    return {digest: ("params", record.body.get("needed", True)) for record in records for digest in items_of(record)}


@pytest.mark.parametrize("target", ["disk", "memory"])
def test_copying(any_backend, tmp_path, target):
    other = DiskBackend(tmp_path / "other") if target == "disk" else MemoryBackend()
    record(any_backend, "a", 1, 2)
    record(any_backend, "b", 2)
    report = copy(any_backend, other, ["a"], needs)
    assert (report.checkpoints, report.records, len(report.items), report.lost) == (("a",), 1, 2, ())
    assert other.log("a").records == any_backend.log("a").records
    assert check(other, items_of, "bytes").ok
    record(any_backend, "a", 3)
    report = copy(any_backend, other, ["a", "b"], needs)
    assert (report.records, len(report.items)) == (2, 1)
    assert copy(any_backend, other, ["a", "b"], needs).records == 0
    record(other, "a", 4)
    assert copy(any_backend, other, ["a"], needs).records == 0, "it only went on there"
    record(any_backend, "a", 5)
    record(any_backend, "c", 6)
    with pytest.raises(CheckpointExistsError, match="they differ from record 2 on"):
        copy(any_backend, other, ["c", "a"], needs)
    assert other.ids() == ["a", "b"], "it is seen before anything is copied"
    assert check(other, items_of, "bytes").findings == ()


def test_a_copy_mends_what_is_damaged_there_and_refuses_what_is_damaged_here(backend, tmp_path):
    [digest] = record(backend, "a", 1)
    other = DiskBackend(tmp_path / "other")
    copy(backend, other, ["a"], needs)
    (other.item_path(digest) / "manifest.ocdbt").write_bytes(b"")
    assert copy(backend, other, ["a"], needs).items == (digest,)
    assert found(other) == []
    (backend.item_path(digest) / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CorruptItemError):
        copy(backend, DiskBackend(tmp_path / "third"), ["a"], needs)
    assert DiskBackend(tmp_path / "third").ids() == []


BUSY = """
import sys
from purestate.store._disk import DiskBackend
from tests.store.test_care import record
backend = DiskBackend(sys.argv[1])
record(backend, "a", 0)
print(flush=True)
for n in range(1, 1000):
    record(backend, "a", n)
"""


def test_a_folder_copied_by_others_while_somebody_writes_is_whole(started, tmp_store_path, tmp_path, wait_until):
    """Items, then logs, then again the items that came in between: as rsync does it. One pass would miss those."""
    import shutil

    def passed(source: Path, target: Path) -> None:
        # os.walk, which goes on where a folder is gone: `tmp-` folders get their final name meanwhile.
        for folder, folders, files in os.walk(source):
            folders[:] = [name for name in folders if not name.startswith("tmp-")]
            aim = target / Path(folder).relative_to(source)
            aim.mkdir(parents=True, exist_ok=True)
            for name in files:
                if not (aim / name).exists():
                    shutil.copyfile(Path(folder) / name, aim / name)

    with started(BUSY, tmp_store_path):
        lengths = list[int]()
        for n in range(3):
            source, target = DiskBackend(tmp_store_path), tmp_path / f"copy{n}"
            longer = (lengths or [0])[-1]
            wait_until(lambda source=source, longer=longer: len(source.log("a").records) > longer + 1)
            passed(tmp_store_path / "items", target / "items")
            for name in ("format.json", "checkpoints/a/log.jsonl"):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tmp_store_path / name, target / name)
            passed(tmp_store_path / "items", target / "items")
            report = check(DiskBackend(target), items_of, "bytes")
            assert report.ok, str(report)
            lengths.append(report.records)
    assert lengths == sorted(lengths)
    assert lengths[0] > 1


CHURN = """
import sys
from purestate.store._disk import DiskBackend
from tests.store.test_care import record
backend = DiskBackend(sys.argv[1])
print(flush=True)
for n in range(15):
    record(backend, f"c{n % 3}", n % 4, n % 7)
    if n % 5 == 4:
        backend.delete(f"c{n % 3}")
record(backend, "end", 1, 2)
"""


def test_collections_beside_writers_take_nothing_that_is_named(started, tmp_store_path):
    """The same few contents come and go: what one is about to name, another has just deleted."""
    backend = DiskBackend(tmp_store_path)
    taken = 0
    with started(CHURN, tmp_store_path) as writer:
        while writer.poll() is None:
            if tmp_store_path.exists():
                taken += len(collect(backend, timeout=None).items)
            time.sleep(0.005)  # who asks for a lock again and again must leave others a chance to get it
        assert writer.returncode == 0
    taken += len(collect(backend).items)  # one content is named by nothing at the end, so there is something in any case
    report = check(backend, items_of, "bytes")
    assert report.ok, str(report)
    assert len(backend.log("end").records) == 1
    assert taken > 0
