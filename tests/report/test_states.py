"""Two states at rest: hashes decide, and bytes are read only of leaves whose hashes differ."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from purestate.errors import CorruptLogError, MissingSnapshotError
from purestate.report._diff import compare
from purestate.report._name import RunName
from purestate.store._disk import DiskBackend
from tests.report.planted import GOLDEN, plant_ulp

LEAF = "head.weight"


def damage_items(folder: Path) -> None:
    """Make every tensor unreadable, and leave what is noted beside the items."""
    for path in folder.glob("items/*/*/d/*"):
        path.write_bytes(b"")
    for path in folder.glob("items/*/*/ocdbt.process_0/d/*"):
        path.write_bytes(b"")


@pytest.fixture(scope="module")
def one_ulp(tmp_path_factory) -> Iterator[RunName]:
    """The golden store, in which one element of one leaf of the last answer is the next number."""
    folder = tmp_path_factory.mktemp("states") / "store"
    shutil.copytree(GOLDEN, folder)
    backend = DiskBackend(folder)
    plant_ulp(folder, backend, LEAF)
    yield RunName(folder, "adam")
    backend.close()


def test_one_ulp_in_one_leaf_is_named_and_nothing_else_is_read(golden, one_ulp):
    found = compare(golden, one_ulp).state
    assert found is not None
    assert not found.ok
    assert {part.name: part.verdict for part in found.parts if part.verdict != "equal"} == {"params": "changed"}
    [params] = [part for part in found.parts if part.name == "params"]
    [leaf] = params.changed
    assert params.equal == 5
    assert (leaf.path, leaf.changed, leaf.elements, leaf.ulps) == (f"params[{LEAF!r}]", 1, 24, 1)
    assert found.read == 2, "that leaf, of both"
    assert "1 of 24 elements" in str(found)


def test_of_equal_hashes_no_byte_is_read(golden, planted):
    other = planted()
    shutil.rmtree(other.store / "items")
    found = compare(golden, other)
    assert found.ok
    assert found.state is not None
    assert (found.state.read, found.state.parts) == (0, ())


def test_of_equal_parts_no_byte_is_read(golden, planted):
    def change(bodies):
        bodies[9][1]["out"] |= {"hash": "b3:" + "0" * 64, "key": [1, 2]}

    other = planted(change)
    damage_items(other.store)
    found = compare(golden, other).state
    assert found is not None
    assert found.read == 0
    [key] = [part for part in found.parts if part.verdict != "equal"]
    assert (key.name, key.changed[0].b) == ("key", "[1, 2]")


def test_optimizer_schedulers_key_and_counters_are_compared(golden):
    found = compare(RunName(golden.store, "adam", 0), RunName(golden.store, "adam", 1)).state
    assert found is not None
    told = {leaf.path: (leaf.a, leaf.b) for part in found.parts for leaf in part.changed}
    assert told["optimizer.param_groups[0]['lr']"] == ("0.0001", "0.001")
    assert told["epoch_scheduler.last_epoch"] == ("3", "4")
    assert told["counters"] == ("{'epoch': 3, 'step': 9}", "{'epoch': 4, 'step': 12}")
    assert "optimizer['state/conv.weight/exp_avg']" in told
    assert {part.name for part in found.parts if part.verdict == "equal"} == {"frozen", "extra"}


def test_a_moment_that_differs_is_named(golden, planted):
    def change(bodies):
        answer = bodies[9][1]["out"]
        answer["hash"] = "b3:" + "0" * 64
        optimizer = answer["optimizer"]
        written = optimizer["inline"]["state/conv.bias/exp_avg"]
        values = torch.frombuffer(bytearray(base64.b64decode(written[2])), dtype=torch.float32)
        values[1] *= 2
        written[2] = base64.b64encode(values.numpy().tobytes()).decode()
        optimizer["digest"] = optimizer["leaves"] = "1" * 64

    found = compare(golden, planted(change)).state
    assert found is not None
    [leaf] = [leaf for part in found.parts for leaf in part.changed]
    assert (leaf.path, leaf.changed, leaf.elements) == ("optimizer['state/conv.bias/exp_avg']", 1, 2)


def test_a_part_that_only_one_has(golden, planted):
    def change(bodies):
        answer = bodies[9][1]["out"]
        answer["hash"] = "b3:" + "0" * 64
        del answer["extra"]

    found = compare(golden, planted(change)).state
    assert found is not None
    assert [part.verdict for part in found.parts if part.name == "extra"] == ["only in a"]


def test_bytes_that_are_needed_and_gone_are_an_error(golden, one_ulp, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(one_ulp.store, folder)
    shutil.rmtree(folder / "items")
    with pytest.raises(MissingSnapshotError, match=f"^Params of {folder}:adam is not in the store"):
        compare(golden, RunName(folder, "adam"))


def test_a_snapshot_that_is_none_is_an_error(golden, planted):
    def change(bodies):
        bodies[9][1]["out"] |= {"hash": "b3:" + "0" * 64, "params": 3}

    with pytest.raises(CorruptLogError):
        compare(golden, planted(change))


def test_a_run_without_an_answer_has_no_state(golden, planted):
    found = compare(golden, planted(lambda bodies: bodies[:4]))
    assert found.state is None
    assert not found.ok
    assert "there is no answer" in str(found)
