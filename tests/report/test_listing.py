"""The checkpoints of a store: lineage, sizes, and what cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from purestate.errors import FormatVersionError, UsageError
from purestate.report._listing import list_store
from purestate.report._name import RunName
from purestate.store._files import files_below
from tests.report.planted import GOLDEN, records_of, write


def fork(store: Path, id: str, of: str = "adam") -> Path:
    """Write a checkpoint whose train began from the first answer of another."""
    lines = (store / f"checkpoints/{of}/log.jsonl").read_bytes().splitlines()
    at = next(i for i, line in enumerate(lines) if b'"kind":"done"' in line)
    golden = records_of(GOLDEN / "checkpoints/adam/log.jsonl")
    parent = {**golden[7][1]["parent"], "checkpoint": of, "seq": at, "record": json.loads(lines[at])["digest"]}
    train = ("train", {**golden[7][1], "parent": parent})
    rest = [(kind, {**body, "of": 1}) for kind, body in golden[8:10]]
    made = store / f"checkpoints/{id}/log.jsonl"
    write(made, [("checkpoint", {"description": f"from {of}"}), train, *rest])
    return made


def size(store: Path, *begin: str) -> int:
    return sum(bytes for two in begin for path in (store / "items" / two).iterdir() for _, bytes in files_below(path))


def test_what_is_told_of_a_checkpoint(golden):
    [found] = list_store(golden.store).checkpoints
    assert (found.id, found.description, found.trains, found.unfinished, found.epochs) == ("adam", "format 1", 2, 0, 4)
    assert found.state == "b3:a0d4d8b559d820088494ea7023325dedcc0a9e6a50c2b0700ae665e096e33ed3"
    assert found.metrics == {"train_loss": 1.1170308192571003}
    assert (found.own, found.shared) == (size(golden.store, "a8", "31", "12"), 0)
    assert (found.records, found.torn, found.problem, found.parent) == (11, 0, None, None)
    assert 1.0 < found.seconds < 1.1


def test_items_that_others_name_too_are_shared(planted):
    store = planted().store
    fork(store, "sgd")
    adam, sgd = list_store(store).checkpoints
    assert (sgd.own, sgd.shared) == (0, size(store, "12"))
    assert (adam.own, adam.shared) == (size(store, "a8", "31"), size(store, "12"))


def test_lineage_is_a_tree(planted):
    store = planted().store
    for id, of in (("b", "adam"), ("c", "b"), ("d", "adam")):
        fork(store, id, of)
    found = list_store(store)
    assert [(one.id, one.parent and one.parent.checkpoint) for one in found.checkpoints] == [
        ("adam", None), ("b", "adam"), ("c", "b"), ("d", "adam")
    ]  # fmt: skip
    assert [line[:10].rstrip() for line in str(found).splitlines()[2:6]] == ["adam", "├─ b", "│  └─ c", "└─ d"]


def test_a_parent_is_found_by_its_record_when_its_name_changed(planted):
    store = planted().store
    fork(store, "sgd")
    (store / "checkpoints/adam").rename(store / "checkpoints/other")
    found = {one.id: one for one in list_store(store).checkpoints}
    assert found["sgd"].parent.checkpoint == "other"


def test_a_parent_that_is_gone_keeps_its_name(planted):
    store = planted().store
    fork(store, "sgd")
    shutil.rmtree(store / "checkpoints/adam")
    [found] = list_store(store).checkpoints
    assert found.parent.checkpoint == "adam"
    assert "sgd" in str(list_store(store))


def test_a_damaged_log_is_told_and_the_others_are_listed(planted):
    store = planted().store
    log = fork(store, "sgd")
    log.write_bytes(log.read_bytes().replace(b"from adam", b"from adum"))
    found = list_store(store)
    assert not found.ok
    assert [(one.id, one.problem is None) for one in found.checkpoints] == [("adam", True), ("sgd", False)]
    assert "sgd: The log of checkpoint 'sgd' is damaged at line 1" in str(found)


def test_records_of_a_newer_version_are_told(planted):
    found = list_store(planted(lambda bodies: [*bodies, ("hologram", {})]).store)
    assert not found.ok
    assert "'hologram', which this version does not know" in str(found)


@pytest.mark.parametrize("kind", ["epoch", "train", "done"])
def test_records_that_are_none_are_told(planted, kind):
    def change(bodies):
        next(body for found, body in bodies if found == kind).pop(
            "hash" if kind == "epoch" else "input" if kind == "train" else "out"
        )
        next(body for found, body in bodies if found == kind).pop("seconds", None)

    found = list_store(planted(change).store)
    assert not found.ok
    assert "does not hold what a record of the kind" in str(found)


def test_a_line_that_is_being_written_is_no_finding(planted):
    name = planted()
    log = name.store / "checkpoints/adam/log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"digest":"9f')
    found = list_store(name.store)
    assert found.ok
    assert found.checkpoints[0].torn == 13


def test_half_deleted_checkpoints_are_not_there(planted):
    store = planted().store
    (store / "checkpoints/gone/resume").mkdir(parents=True)
    shutil.rmtree(store / "items")
    found = list_store(store)
    assert [one.id for one in found.checkpoints] == ["adam"]
    assert found.checkpoints[0].own == 0, "`check` says that they are missing"


def test_a_newer_format_is_refused(planted):
    store = planted().store
    (store / "format.json").write_text('{"purestate": 2}')
    with pytest.raises(FormatVersionError):
        list_store(store)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(UsageError, match="There is no store"):
        list_store(tmp_path)


def test_json_and_html(planted):
    store = planted().store
    fork(store, "sgd")
    told = json.loads(list_store(store).to_json())
    assert told["ok"] is True
    assert told["checkpoints"][1]["parent"]["checkpoint"] == "adam"
    assert "<table>" in list_store(store)._repr_html_()


def test_the_golden_store_is_as_it_was(golden):
    assert RunName.parse(str(golden)) == golden
    assert not (golden.store / "locks").exists()
