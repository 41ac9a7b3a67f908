"""A store that is looked after: what is kept for whom, under which name, and what is offered where something is lost."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import purestate as ps
from purestate import errors
from purestate.core._hash import leaf_bytes
from purestate.run._ledger import Ledger
from purestate.run._lineage import ancestors, restore_parent
from purestate.run._maintain import items_of, named, roots, voided
from purestate.run._snapshot import items_of as items_of_snapshot
from purestate.store._disk import DiskBackend
from purestate.store._record import EMPTY_HEAD, encode
from tests.run.tiny import Ask, checkpoint, loader, start

VAL = loader(4, seed=1, shuffle=False)


def records(store: Any, id: str) -> Any:
    return store._backend.log(id).records


def items(store: Any) -> set[str]:
    return set(store._backend.items())


def damage(store: ps.Store, id: str, **which: Any) -> list[Path]:
    """Change a byte of the largest parameter wherever it is stored, and return the files."""
    largest = max(store.load(id, **which).params.values(), key=lambda leaf: leaf.nbytes)
    needle = bytes(leaf_bytes(largest))
    folder = store.path(id, **which)
    paths = [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data.replace(needle, needle[:-1] + bytes([needle[-1] ^ 1])))
    return paths


def two_trains(store: Any, id: str = "a") -> tuple[ps.State, ps.State]:
    ck = checkpoint(store, id)
    s1 = ck.train(start(), loader(), VAL, epochs=3)
    return s1, ck.train(s1, loader(), VAL, epochs=2)


# -------------------------------------------------------------------- what records name


def test_every_kind_of_record_says_what_it_needs(store):
    ck = checkpoint(store, "a")
    s0 = ck.root(start())
    s1 = ck.train(s0, loader(), VAL, epochs=2)
    ck.evaluate(s1, VAL)
    ck.predict(s1, VAL)
    ck.find_lr(s1, loader())
    ck.reset("evaluate")
    ck.accept(0)
    ck.train(ps.set_lr(s1, 0.2), loader(), epochs=1)
    found = {record.kind: items_of(record) for record in records(store, "a")}
    assert found.keys() == {"checkpoint", "root", "train", "epoch", "done", "evaluate", "predict", "find_lr", "reset", "accept"}
    assert {kind for kind, named in found.items() if named} == {"root", "done", "predict", "evaluate", "find_lr"}
    assert set(itertools.chain(*map(items_of, records(store, "a")))) == items(store)
    assert "params of the answer" in found["done"].values()


def test_a_state_names_what_it_is_made_of():
    from purestate.run._snapshot import snapshot

    json, held = snapshot(Ask(module=Many).of(checkpoint()))
    assert items_of_snapshot(json).keys() == held.keys()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("predict", {}),
        ("predict", {"item": 3}),
        ("root", {"state": 3}),
        ("root", {"state": {"hash": "b3:", "params": []}}),
        ("root", {"state": {"hash": "b3:", "params": {"item": 5}}}),
        ("done", {"out": {"hash": ""}, "kept": []}),
        ("done", {"kept": {}}),
    ],
)
def test_a_record_that_is_not_what_its_kind_says(kind, body):
    with pytest.raises(errors.CorruptLogError, match=f"record 0 does not hold what a record of the kind '{kind}' does"):
        items_of(encode(0, EMPTY_HEAD, kind, body))
    with pytest.raises(errors.CorruptLogError):
        voided([encode(0, EMPTY_HEAD, "reset", {"of": "all"})])


def test_a_record_of_a_newer_version_stops_a_collection(store):
    two_trains(store)
    log = store._backend.log("a")
    with log.lock():
        log.append("quantum", {"item": "0" * 64})
    told = "checkpoint 'a': record [0-9]+ is of the kind 'quantum'"
    for look in (store.gc, store.table, lambda: store.copy(ps.MemoryStore())):
        with pytest.raises(errors.FormatVersionError, match=told):
            look()
    report = store.check("records")
    assert [finding.kind for finding in report.findings] == ["damaged"]
    assert "quantum" in str(report)
    assert report.findings[0].remedy == "Update purestate."


@pytest.mark.parametrize("wrong", [{"metrics": "none"}, {"metrics": []}, {"lr": 0.1}, {"n": 7}])
def test_an_epoch_of_a_stranger_is_no_history(store, wrong):
    two_trains(store)
    log, other = store._backend.log("a"), ps.MemoryStore()
    with (there := other._backend.log("b")).lock():
        for record in log.records:
            there.append(record.kind, record.body | (wrong if record.kind == "epoch" and record.body["n"] == 2 else {}))
    for look in (lambda: other.open("b").history, lambda: other.open("b").plot_metrics()):
        with pytest.raises(errors.CorruptLogError, match=r"checkpoint 'b': record \d+ does not hold"):
            look()


# -------------------------------------------------------------------- check and repair


def test_a_store_in_use_is_ok(store):
    s1, _ = two_trains(store)
    checkpoint(store, "b").train(s1, loader(), epochs=1)
    for level in ("records", "items", "bytes"):
        report = store.check(level)
        assert report.ok
        assert report.findings == ()
        assert (report.checkpoints, report.items) == (2, len(items(store)))
    assert store.repair().done == ()
    with pytest.raises(errors.SetupError, match="level must be one of"):
        store.check("everything")


def test_reports_show_in_a_notebook_as_their_text(store):
    pretty = pytest.importorskip("IPython.lib.pretty").pretty
    two_trains(store)
    for report in (store.check(), store.repair(), store.gc(), store.copy(ps.MemoryStore()), store.inspect("a")):
        assert pretty(report) == str(report)


def test_a_resume_point_whose_op_is_done_is_told_and_removed(disk, monkeypatch):
    folder = disk._backend.path / "checkpoints" / "a" / "resume"
    with monkeypatch.context() as killed:  # before it could remove them
        killed.setattr(DiskBackend, "clear_resume", lambda self, id: None)
        checkpoint(disk, "a").train(start(), loader(), VAL, epochs=3, resume_every="epoch")
    assert folder.exists()
    report = disk.check("bytes")
    assert (report.ok, [(found.kind, found.place) for found in report.findings]) == (True, [("rubbish", "checkpoints/a/resume")])
    with checkpoint(disk, "a")._ledger.writing():
        assert folder.exists()
        assert ps.Store(disk._backend.path).repair().left == ("checkpoints/a",)
    [done] = disk.repair().done
    assert done.startswith("checkpoints/a/resume: removed")
    assert not folder.exists()
    assert disk.check("bytes").findings == ()


def test_a_resume_point_that_somebody_may_go_on_from_stays(disk):
    folder = disk._backend.path / "checkpoints" / "a" / "resume"

    def stop(epoch: ps.EpochView) -> None:
        if len([*folder.glob("0*")]) == 2:  # the second is of a later epoch than the first
            raise KeyboardInterrupt

    def ask(epochs: int, **options: Any) -> ps.State:
        return checkpoint(disk, "a").train(start(), loader(), VAL, epochs=epochs, resume_every="epoch", **options)

    with pytest.raises(KeyboardInterrupt):
        ask(100_000, on_epoch=stop)
    ran = sum(record.kind == "epoch" for record in records(disk, "a"))
    for _ in range(2):
        assert (disk.check().findings, disk.repair().done, folder.exists()) == ((), (), True)
        ask(1)  # less than the point holds
    ask(ran + 1)
    assert not folder.exists()
    assert disk.check("bytes").findings == ()


def test_the_golden_store_is_ok():
    golden = Path(__file__).parents[1] / "golden" / "v1"
    before = {path: path.stat().st_mtime_ns for path in golden.rglob("*")}
    assert ps.Store(golden).check("bytes").ok
    assert {path: path.stat().st_mtime_ns for path in golden.rglob("*")} == before


def test_a_damaged_leaf_is_found(disk):
    two_trains(disk)
    places = [path.relative_to(disk._disk.path).as_posix() for path in damage(disk, "a")]
    finding, *_ = [finding for finding in disk.check("bytes").findings if "leaf" in finding.place]
    assert finding.kind == "damaged"
    assert finding.place.partition(",")[0] in places
    assert "Params of" in finding.what
    assert "checkpoint 'a'" in finding.what


def test_a_damaged_answer_offers_the_nearest_that_is_whole(disk):
    s1, s2 = two_trains(disk)
    damage(disk, "a", op=1)
    with pytest.raises(errors.CorruptItemError) as caught:
        dict(disk.load("a").params)
    message = str(caught.value)
    assert "Params of the answer of record" in message
    assert "checkpoint 'a' is damaged at leaf" in message
    assert caught.value.leaf is not None
    assert caught.value.file is not None
    offer = message.rpartition("whole: ")[2].removesuffix(".")
    assert offer.startswith("store.load('a', op=")
    assert eval(offer, {"store": disk}).params == (s1.params if "op=0" in offer else disk.load("a", op=1, best=True).params)
    assert s2.hash == disk.load("a").hash


def test_what_was_damaged_is_computed_and_written_anew(disk):
    s1, _ = two_trains(disk)
    paths = damage(disk, "a", op=0)
    again = ps.Store(disk._disk.path)
    with pytest.raises(errors.CorruptItemError, match=r"ck\.reset\(op\)"):
        dict(again.load("a", op=0).params)
    ck = checkpoint(ps.Store(disk._disk.path))
    ck.reset(0)
    assert two_trains(ps.Store(disk._disk.path))[0] == s1
    assert not any(path.exists() for path in paths)
    assert ps.Store(disk._disk.path).check("bytes").ok


# -------------------------------------------------------------------- collection


def test_a_collection_keeps_every_answer(store):
    s1, s2 = two_trains(store)
    checkpoint(store, "b").train(ps.set_lr(s1, 0.5), loader(), epochs=1)
    before = items(store)
    assert store.gc(dry_run=True).items == store.gc().items == ()
    assert items(store) == before
    store.delete("b")
    report = store.gc()
    assert set(report.items) == before - items(store)
    assert len(report.items) > 0
    assert (store.load("a", op=0), store.load("a")) == (s1, s2)
    assert store.check("bytes").ok


def test_voided_answers_are_kept_until_somebody_says_otherwise(store):
    _, s2 = two_trains(store)
    lazy = store.load("a", op=1)
    checkpoint(store).reset(1)
    assert store.gc().items == ()
    report = store.gc(voided=True)
    assert len(report.items) > 0
    with pytest.raises(errors.MissingSnapshotError, match=r"store\.gc\(\) removed it at .*only voided ones") as caught:
        dict(lazy.params)
    assert "store.load('a', op=0)" in str(caught.value)
    assert store.check("bytes").ok, "nobody misses them"
    assert [record.kind for record in records(store, "a")].count("done") == 2
    assert two_trains(store)[1] == s2
    assert store.check("bytes").findings == ()


def test_what_a_fork_began_from_is_kept_although_it_was_voided(store):
    s1, _ = two_trains(store)
    fork = checkpoint(store, "b").train(s1, loader(), epochs=1)
    checkpoint(store).reset(0)
    store.gc(voided=True)
    assert restore_parent(store._backend, s1.origin.parent, s1.recipe).params == s1.params
    assert store.load("b") == fork
    checkpoint(store, "b").reset(0)
    store.gc(voided=True)
    assert items(store) == set()


def test_training_goes_on_beside_a_collection(disk):
    """The lock of the store is held from an item to the record that names it, not while an op computes."""
    ck = checkpoint(disk)
    for epoch in ck.epochs(start(), loader(), VAL, epochs=4):
        assert disk.gc(timeout=0).items == ()
        assert epoch.cached is False
    assert disk.check("bytes").ok
    assert disk.gc(timeout=0).items == ()


def test_a_reader_whose_answer_was_collected_says_so(store):
    ck = checkpoint(store)
    ck.predict(start(), VAL)
    assert named(records(store, "a")).popitem()[1] == ("the answer of predict of record 1", True)
    ck.reset("predict")
    assert roots(store._backend, with_voided=False) == set()
    assert len(store.gc(voided=True).items) == 1
    ck.predict(start(), VAL)
    assert store.check("bytes").ok


# -------------------------------------------------------------------- names


def test_lineage_follows_a_new_name(store):
    s1, _ = two_trains(store)
    s3 = checkpoint(store, "b").train(s1, loader(), epochs=1)
    store.rename("a", "first")
    store.rename("b", "second")
    assert [info.id for info in store.checkpoints()] == ["first", "second"]
    assert store.lineage().splitlines()[0].startswith("first: 2 trains")
    assert store.lineage().splitlines()[1].startswith("└─ second (from train 0)")
    assert "first:0" in store.table()
    parents = [parent["checkpoint"] for parent in ancestors(store._backend, s3.origin.parent)]
    assert parents == ["second", "first"]
    assert restore_parent(store._backend, s1.origin.parent, s1.recipe) == s1
    assert checkpoint(store, "second").train(s1, loader(), epochs=1) == s3
    ck = store.open("second", echo=None)
    ck.train(s1, loader(), epochs=1)
    assert ck.last.cached


def test_a_checkpoint_that_began_from_its_own_root_has_no_parent_under_another_name(store):
    ck = checkpoint(store)
    ck.train(ck.root(start()), loader(), epochs=1)
    store.rename("a", "b")
    assert [info.parent for info in store.checkpoints()] == [None]


# -------------------------------------------------------------------- copies


@pytest.mark.parametrize("kind", ["path", "store", "memory"])
def test_copies(store, tmp_path, kind):
    s1, s2 = two_trains(store)
    s3 = checkpoint(store, "b").train(s1, loader(), epochs=1)
    target = {"path": tmp_path / "c", "store": ps.Store(tmp_path / "c"), "memory": ps.MemoryStore()}[kind]
    report = store.copy(target, ids=["a"])
    other = ps.Store(target) if kind == "path" else target
    assert report.checkpoints == ("a",)
    assert (other.load("a", op=0), other.load("a")) == (s1, s2)
    assert store.copy(target).checkpoints == ("a", "b")
    assert other.load("b") == s3
    assert other.check("bytes").findings == ()
    assert other.lineage() == store.lineage()
    assert checkpoint(other).train(start(), loader(), VAL, epochs=3) == s1
    with pytest.raises(errors.SetupError, match="ids must be a list"):
        store.copy(target, ids="a")
    with pytest.raises(errors.CheckpointNotFoundError):
        store.copy(target, ids=["z"])


def test_a_copy_leaves_out_what_a_collection_took(store):
    two_trains(store)
    checkpoint(store).reset(1)
    gone = set(store.gc(voided=True).items)
    other = ps.MemoryStore()
    report = store.copy(other)
    assert set(report.lost) == gone
    assert len(gone) > 0
    assert other.load("a").hash == store.load("a").hash


# -------------------------------------------------------------------- inspection


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.fc.bias.requires_grad_(False)
        self.register_buffer("empty", torch.empty(0, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(x))


@pytest.mark.parametrize("size", [3, 300])
def test_inspection_says_what_loading_finds(store, size, monkeypatch):
    def module() -> nn.Module:
        return nn.Sequential(Many(), nn.Linear(3, size), nn.Linear(size, 2))

    ck = checkpoint(store)
    state = ck.train(start(module), loader(), VAL, epochs=3)
    expected = {
        f"{name}[{leaf!r}]": (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes)
        for name in ("params", "frozen", "buffers", "optimizer", "extra")
        for leaf, tensor in _leaves(getattr(state, name))
    }
    monkeypatch.setattr(type(store._backend), "get", None)
    info = store.inspect("a")
    assert {leaf.path: (leaf.shape, leaf.dtype, leaf.bytes) for leaf in info.leaves} == expected
    assert (info.id, info.op, info.epoch, info.hash) == ("a", 0, 3, state.hash)
    assert info.bytes == sum(size for *_, size in expected.values())
    assert info.metrics["val_loss"] == ck.history["val_loss"][-1]
    assert "params['0.fc.weight']  float32 (3, 3)" in str(info)
    assert store.inspect("a", best=True).epoch <= 3
    with pytest.raises(errors.MissingSnapshotError):
        store.inspect("a", op=4)


def _leaves(part: Any) -> list[tuple[str, torch.Tensor]]:
    return [] if part is None else list((part.leaves if hasattr(part, "leaves") else part).items())


# -------------------------------------------------------------------- export

READ = """
import json, logging, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
logging.disable(logging.WARNING)
import orbax.checkpoint as ocp
with ocp.CheckpointManager(sys.argv[1]) as manager:
    steps = {step: manager.restore(step) for step in manager.all_steps()}
print(json.dumps({step: {part: {name: [str(leaf.dtype), leaf.shape, leaf.tobytes().hex()] for name, leaf in leaves.items()}
      for part, leaves in tree.items()} for step, tree in steps.items()}))
"""


def test_an_export_is_what_orbax_reads(store, tmp_path, python):
    import json

    from purestate.core._hash import dtype_name, leaf_bytes
    from purestate.store._layout import escape

    ck = checkpoint(store)
    s1 = ck.train(start(), loader(), VAL, epochs=1)
    s2 = ck.train(s1, loader(), VAL, epochs=1)
    assert store.export_orbax("a", tmp_path / "export") == tmp_path / "export"
    done = python(READ, tmp_path / "export")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"0", "1"}
    for step, state in (("0", s1), ("1", s2)):
        expected = {
            name: {
                escape(leaf): [dtype_name(tensor.dtype), list(tensor.shape), bytes(leaf_bytes(tensor)).hex()]
                for leaf, tensor in _leaves(getattr(state, name))
                if tensor.numel()
            }
            for name in ("params", "frozen", "buffers", "optimizer")
        }
        assert found[step] == {name: leaves for name, leaves in expected.items() if leaves}
    with pytest.raises(errors.StoreWriteError, match="in which there is something"):
        store.export_orbax("a", tmp_path / "export")
    checkpoint(store, "b").evaluate(s1, VAL)
    with pytest.raises(errors.MissingSnapshotError, match="nothing to export"):
        store.export_orbax("b", tmp_path / "other")


def test_a_ledger_keeps_the_store_only_until_its_record(disk):
    from purestate.store._disk import DiskBackend
    from purestate.store._repair import _alone

    ledger = Ledger(disk._backend, "a")
    leaves = {"w": torch.ones(2)}
    from purestate.core._hash import leaf_hash, tree_hash

    digest = tree_hash({"w": leaf_hash(leaves["w"])})
    other = DiskBackend(disk._disk.path)

    def free() -> bool:
        try:
            with _alone(other._layout, 0):
                return True
        except errors.StoreLockedError:
            return False

    with ledger.writing():
        assert free()
        ledger.put({digest: leaves})
        assert not free()
        ledger.append("predict", {"question": {"digest": "q"}, "input": "b3:", "item": digest})
        assert free()
        ledger.put({digest: leaves})
    assert free()
