"""Epochs that keep their bytes: while training, after a kill, asked for later, dropped, and computed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

import purestate as ps
from purestate import errors
from purestate.run._lineage import restore_parent
from purestate.run._maintain import items_of, named, needed
from purestate.run._retain import Retention
from tests.helpers import assert_trees_identical, batch
from tests.run.tiny import Ask, checkpoint, loader, start

keep = ps.keep


def train(ck: ps.Checkpoint, epochs: int = 6, **options: Any) -> ps.State:
    return Ask().of(ck, epochs=epochs, **options)


def stream(ck: ps.Checkpoint, epochs: int = 6, **options: Any) -> Iterator[ps.EpochView]:
    ask = Ask()
    return ck.epochs(ask.state(), ask.train_dl, ask.val_dl, **{**ask.options, "epochs": epochs, **options})


def kinds(store: Any, id: str = "a") -> list[str]:
    return [record.kind for record in store._backend.log(id).records]


def items(store: Any) -> set[str]:
    return set(store._backend.items())


@pytest.fixture(scope="module")
def states() -> list[ps.State]:
    """The state after each of six epochs, from a train of which nothing is kept."""
    return [epoch.state for epoch in stream(checkpoint())]


def best_of(ck: ps.Checkpoint) -> int:
    assert ck.last is not None
    assert ck.last.best_epoch is not None
    return ck.last.best_epoch


# -------------------------------------------------------------------- while training


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (keep.every(2), {2, 4, 6}),
        (keep.last(3), {4, 5, 6}),
        (keep.last(2) | keep.every(3), {3, 5, 6}),
        (keep.last(4) & keep.every(2), {4, 6}),
        (keep.seconds(1e-9), {1, 2, 3, 4, 5, 6}),
        (keep.seconds(1e9), set()),
    ],
)
def test_what_the_policy_keeps_can_be_loaded(store, states, policy, expected):
    ck = checkpoint(store)
    out = train(ck, keep=policy)
    assert out == train(checkpoint())
    assert set(ck.kept[0]) == expected | {6, best_of(ck)}, "the last and the best are kept in any case"
    for n in ck.kept[0]:
        loaded = store.load("a", epoch=n, like=out)
        assert loaded == states[n]
        assert_trees_identical(dict(loaded.params), dict(states[n].params))
        loaded.verify()
        assert store.inspect("a", epoch=n).epoch == n
        assert n == 0 or store.inspect("a", epoch=n).metrics["val_loss"] == ck.history["val_loss"][n - 1]
    assert store.check("bytes").findings == ()


def test_the_best_epochs_are_kept_by_the_metric_that_is_named(store):
    ck = checkpoint(store)
    train(ck, keep=keep.best(2) | keep.best(1, "accuracy"))
    seen = {epoch.n: epoch.metrics for epoch in stream(ck)}
    losses = {n: metrics["val_loss"] for n, metrics in seen.items()}
    most_accurate = min(seen, key=lambda n: (-seen[n]["val_accuracy"], n))
    assert set(ck.kept[0]) == {*sorted(losses, key=lambda n: (losses[n], n))[:2], most_accurate, 6}


def test_a_kept_epoch_is_there_while_the_train_goes_on(store, states):
    ck = checkpoint(store)
    for epoch in stream(ck, 4, keep=keep.every(2)):
        other = store.open("a", echo=None)
        assert other.kept.get(0, []) == [n for n in (2, 4) if n <= epoch.n]
        if epoch.n >= 2:
            assert store.load("a", epoch=2) == states[2]
        assert store.gc(timeout=0).items == (), "it is named as soon as it is there"


def test_what_is_kept_is_no_part_of_the_question(store):
    ck = checkpoint(store)
    out = train(ck, keep=keep.every(2))
    head, there = ck.head, items(store)
    for policy in (None, keep.every(2), keep.every(6), keep.last(1) | keep.every(2)):
        again = checkpoint(store)
        assert train(again, keep=policy) == out
        assert again.last is not None
        assert (again.last.cached, again.head) == (True, head)
    assert items(store) == there
    assert kinds(store).count("keep") == 3


def test_nothing_more_is_written_where_nobody_asks(store):
    train(checkpoint(store))
    assert set(kinds(store)) == {"checkpoint", "train", "epoch", "done"}


def test_without_validation_and_in_a_store_that_keeps_nothing():
    ck = checkpoint()
    ck.train(start(), loader(), epochs=4, keep=keep.last(2))
    assert ck.kept == {0: [3, 4]}
    null = checkpoint(ps.NullStore())
    seen = [epoch.state.hash for epoch in stream(null, 4, keep=keep.every(1))]
    assert len(set(seen)) == 5
    assert train(null, keep=keep.every(1)) == train(checkpoint())


# -------------------------------------------------------------------- dropped


def test_what_is_dropped_is_collected_and_computed_again(store, states):
    ck = checkpoint(store)
    train(ck, keep=keep.last(2))
    kept = {5, 6, best_of(ck)}
    assert set(ck.kept[0]) == kept
    taken = store.gc()
    assert len(taken.items) > 0
    assert taken.bytes > 0
    assert store.check("bytes").findings == ()
    dropped = min({1, 2, 3, 4} - kept)
    with pytest.raises(errors.MissingSnapshotError) as caught:
        store.load("a", epoch=dropped)
    start_at = max((n for n in kept if n < dropped), default=0)
    assert states[dropped].hash[:11] in str(caught.value)
    assert f"kept are {', '.join(map(str, sorted(kept)))}." in str(caught.value)
    assert f"epochs={dropped}) computes it again from {f'epoch {start_at}' if start_at else 'the input'}" in str(caught.value)
    views = list(stream(checkpoint(store)))
    assert [view.state for view in views] == states, "computed again and compared"
    for view, state in zip(views, states, strict=True):
        assert_trees_identical(dict(view.state.params), dict(state.params), f"epoch {view.n}")
    again = train(ck, dropped)
    assert again == states[dropped]
    assert store.load("a", epoch=dropped) == again
    assert store.check("bytes").findings == ()


def test_an_epoch_that_differs_when_it_is_computed_again_is_told(store, monkeypatch):
    monkeypatch.setattr(Shifted, "by", 0.0)
    ask = Ask(train_dl=DataLoader(Shifted(), batch_size=4), options=dict(epochs=4))
    ck = checkpoint(store)
    ask.of(ck, keep=keep.last(1))
    monkeypatch.setattr(Shifted, "by", 1.0)
    for policy in (keep.every(1), keep.every(3)):
        with pytest.raises(errors.ReplayError, match=r"epoch [123] was recorded as b3:"):
            ask.of(ck, keep=policy)
    with pytest.raises(errors.ReplayError, match=r"epoch [123] was recorded as b3:"):
        ask.of(ck, epochs=2)
    assert "keep" not in kinds(store)[kinds(store).index("done") :], "what differs is not kept"
    monkeypatch.setattr(Shifted, "by", 0.0)
    ask.of(ck, keep=keep.every(1))
    assert ck.kept[0][-4:] == [1, 2, 3, 4]


def test_what_is_kept_has_the_hash_that_was_recorded(store, states):
    ck = checkpoint(store)
    train(ck)
    before = ck.head
    with ck._ledger.writing() as chain:
        retention = Retention(ck._ledger, chain.trains[0], keep.every(1), "loss")
        with pytest.raises(errors.ReplayError, match="the state after epoch 3 was recorded as b3:"):
            retention.keep(3, states[2])
        assert ck.head == before
        retention.keep(3, states[3])
    assert store.load("a", epoch=3) == states[3]


def test_a_kept_epoch_that_is_damaged_is_written_anew(disk, states):
    ck = checkpoint(disk)
    train(ck, keep=keep.every(1))
    for path in disk.path("a", epoch=3).rglob("*"):
        if path.parent.name == "d":
            path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    other = ps.Store(disk._disk.path)
    with pytest.raises(errors.CorruptItemError, match="of epoch 3 of record"):
        dict(other.load("a", epoch=3).params)
    again = checkpoint(ps.Store(disk._disk.path))
    again.prune(keep.last(1))
    train(again, keep=keep.every(1))
    assert ps.Store(disk._disk.path).load("a", epoch=3) == states[3]
    assert ps.Store(disk._disk.path).check("bytes").ok


class Shifted(Dataset):
    """Says that it is always the same."""

    by = 0.0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        x, y = batch(8)
        return x[i] + Shifted.by, y[i]

    def __purestate_fingerprint__(self) -> str:
        return "shifted"


# -------------------------------------------------------------------- asked for later


def test_a_policy_that_keeps_more_computes_what_is_missing(store, states):
    ck = checkpoint(store)
    out = train(ck, keep=keep.every(4))
    before = kinds(store)
    again = checkpoint(store)
    assert train(again, keep=keep.every(2)) == out
    assert again.last is not None
    assert again.last.computed == (2 if best_of(again) != 2 else 0), "from the nearest, and no further than needed"
    assert kinds(store) == [*before, *["keep"] * (best_of(again) != 2)]
    assert {2, 4, 6} <= set(again.kept[0])
    assert [store.load("a", epoch=n) for n in (2, 4, 6)] == [states[n] for n in (2, 4, 6)]
    head = again.head
    train(again, keep=keep.every(2))
    assert (again.last.cached, again.head) == (True, head)


def test_of_a_train_that_kept_none_all_are_computed_once(store, states):
    train(checkpoint(store))
    ck = checkpoint(store)
    train(ck, keep=keep.every(1))
    assert ck.last is not None
    assert ck.last.computed <= 6
    assert {1, 2, 3, 4, 5, 6} <= set(ck.kept[0])
    assert [store.load("a", epoch=n) for n in range(1, 7)] == states[1:]


def test_a_policy_that_keeps_less_drops_nothing_and_prune_does(store, states):
    ck = checkpoint(store)
    train(ck, keep=keep.every(1))
    train(ck, keep=keep.last(1))
    assert {1, 2, 3, 4, 5, 6} <= set(ck.kept[0])
    before = items(store)
    best = best_of(ck)
    gone = ck.prune(keep.last(2) | keep.every(3))
    assert gone == {0: [1, 2, 4]} or best in (1, 2, 4)
    assert set(ck.kept[0]) == {3, 5, 6, best}
    assert items(store) == before, "the bytes go with a collection"
    assert set(store.gc().items) == before - items(store)
    assert len(before - items(store)) > 0
    assert ck.prune(keep.last(2) | keep.every(3)) == {}
    assert store.load("a") == states[6]
    assert store.load("a", best=True) == states[best]
    assert kinds(store).count("drop") == 1
    assert [act["act"] for act in store._backend.acts()].count("gc") == 1
    train(ck, keep=keep.every(1))
    assert [store.load("a", epoch=n) for n in range(1, 7)] == states[1:], "kept anew"
    assert store.check("bytes").ok


def test_a_longer_train_drops_what_its_own_policy_kept_and_an_answer_keeps_its_own(store):
    ck = checkpoint(store)
    train(ck, 3, keep=keep.last(2))
    train(ck, 6, keep=keep.last(2))
    own = {2, 3, 5, 6}
    assert own <= set(ck.kept[0]) <= own | {best_of(ck), 0, 1}
    head = ck.head
    for epochs in (3, 6, 3):
        train(ck, epochs, keep=keep.last(2))
        assert ck.last is not None
        assert ck.last.cached, "a script with both does not compute one for the other"
    assert ck.head == head
    other = checkpoint(store, "b")
    train(other, 3, keep=keep.every(1))
    train(other, 6, keep=keep.last(1))
    assert {1, 2, 3, 6} <= set(other.kept[0]), "what another policy kept, only prune drops"


def test_prune_of_one_train_of_several(store):
    ck = checkpoint(store)
    s1 = ck.train(start(), loader(), epochs=4, keep=keep.every(1))
    ck.train(s1, loader(), epochs=3, keep=keep.every(1))
    assert ck.kept == {0: [1, 2, 3, 4], 1: [1, 2, 3]}
    assert ck.prune(keep.every(2), op=1) == {1: [1]}
    assert ck.prune(keep.last(1)) == {0: [1, 2, 3], 1: [2]}
    assert ck.kept == {0: [4], 1: [3]}
    assert store.load("a", op=0, epoch=4) == s1
    with pytest.raises(errors.StateError, match="no train 2"):
        ck.prune(keep.last(1), op=2)
    with pytest.raises(errors.MetricError, match=r"prune: train 0: keep=best\(1\) ranks by 'loss'.*there is no validation"):
        ck.prune(keep.best(1))
    with pytest.raises(errors.SetupError, match=r"expected a policy such as ps\.keep\.last\(3\), got 3"):
        ck.prune(3)


def test_a_stream_that_is_left_keeps_what_it_computed(store, states):
    ck = checkpoint(store)
    for _ in range(2):
        for epoch in stream(ck, keep=keep.every(1)):
            if epoch.n == 3:
                break
        assert {1, 2, 3} <= set(ck.kept[0])
        assert kinds(store).count("done") == 1
    assert store.load("a", epoch=2) == states[2]


# -------------------------------------------------------------------- after a kill

KILLED = """
import json, os, signal, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
import purestate as ps

torch.set_num_threads(1)
path, at = sys.argv[1], int(sys.argv[2])
x = torch.arange(96.0).reshape(32, 3).sin()
y = (x.sum(1) > 0).long()


class Counted(Dataset):
    loaded = 0

    def __len__(self):
        return 32

    def __getitem__(self, i):
        Counted.loaded += 1
        return x[i], y[i]

    def __purestate_fingerprint__(self):
        return "counted"


def seen(epoch):
    hashes.append(epoch.hash)
    if epoch.n == at and not epoch.cached:
        os.kill(os.getpid(), signal.SIGKILL)


hashes = []
s0 = ps.setup(ps.init(lambda: nn.Linear(3, 2), seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam)
ck = (ps.Store(path) if path else ps.MemoryStore()).checkpoint("a", echo=None)
options = dict(epochs=7, keep=ps.keep.every(2), resume_every="1000 steps", on_epoch=seen)
s1 = ck.train(s0, DataLoader(Counted(), batch_size=8, shuffle=True), [(x, y)], **options)
print(json.dumps({"hash": s1.hash, "hashes": hashes, "kept": ck.kept[0], "loaded": Counted.loaded}))
"""


@pytest.mark.parametrize("at", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_train_that_was_killed_goes_on_from_the_furthest_epoch_that_is_kept(python, tmp_path, at):
    path = tmp_path / "store"
    killed = python(KILLED, path, at)
    assert killed.returncode == -9, killed.stderr
    shutil.rmtree(path / "checkpoints" / "a" / "resume", ignore_errors=True)
    furthest = max(ps.Store(path).open("a", echo=None).kept[0])
    assert furthest == at // 2 * 2
    again, undisturbed = (python(KILLED, where, 99) for where in (path, ""))
    assert again.returncode == undisturbed.returncode == 0, again.stderr + undisturbed.stderr
    found, expected = json.loads(again.stdout), json.loads(undisturbed.stdout)
    assert [found[name] for name in ("hash", "hashes", "kept")] == [expected[name] for name in ("hash", "hashes", "kept")]
    assert {2, 4, 6, 7} <= set(found["kept"])
    assert 0 <= found["loaded"] - 32 * (7 - furthest) < 32
    store = ps.Store(path)
    assert [store.load("a", epoch=n).hash for n in (2, 4, 6, 7)] == [expected["hashes"][n] for n in (2, 4, 6, 7)]
    assert store.check("bytes").findings == ()


def test_a_kill_between_the_bytes_and_their_record_leaves_what_a_collection_takes(disk, monkeypatch, states):
    """The bytes of an epoch are there, the record that names them is not: the epoch is not kept, and nothing else is lost."""
    from purestate.run._ledger import Ledger

    append = Ledger.append

    def killed(ledger: Ledger, kind: str, body: Any) -> Any:
        if kind == "keep" and body["n"] == 4:
            raise KeyboardInterrupt
        return append(ledger, kind, body)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint(disk), keep=keep.every(2))
    ck = checkpoint(disk)
    assert ck.kept == {0: [2]}
    assert len(disk.gc(timeout=0).items) > 0
    assert train(ck, keep=keep.every(2)) == states[6]
    assert {2, 4, 6} <= set(ck.kept[0])
    assert disk.check("bytes").findings == ()


# -------------------------------------------------------------------- looked after


def test_records_say_what_they_keep(store):
    ck = checkpoint(store)
    train(ck, keep=keep.last(1) | keep.every(4))
    records = store._backend.log("a").records
    keeps = {record.body["n"]: record for record in records if record.kind == "keep"}
    (drops,) = ({record.body["of"] for record in records if record.kind == "drop"},)
    assert drops == {next(record.seq for record in records if record.kind == "train")}
    assert set(keeps) == {1, 2, 3, 4, 5, 6}
    assert all(part.endswith(f"of epoch {n}") for n, record in keeps.items() for part in items_of(record).values())
    assert all("last(1) | every(4)" == record.body["policy"] for record in keeps.values())
    assert not any(items_of(record) for record in records if record.kind == "drop")
    unneeded = {digest for digest, (_, is_needed) in named(records).items() if not is_needed}
    assert needed(records) == named(records).keys() - unneeded
    assert set(store.gc().items) == unneeded
    assert len(unneeded) > 0


def test_a_copy_has_what_is_kept_and_misses_nothing(store, states):
    ck = checkpoint(store)
    train(ck, keep=keep.last(2) | keep.every(3))
    gone = set(store.gc().items)
    other = ps.MemoryStore()
    report = store.copy(other)
    assert set(report.lost) == gone
    assert len(gone) > 0
    assert other.open("a", echo=None).kept == ck.kept
    assert [other.load("a", epoch=n) for n in (3, 5, 6)] == [states[n] for n in (3, 5, 6)]
    assert other.check("bytes").findings == (), "nobody misses what was dropped, nor knows that it was collected elsewhere"
    copied = checkpoint(other)
    assert train(copied, keep=keep.last(2) | keep.every(3)) == states[6]
    assert copied.last is not None
    assert copied.last.cached


def test_what_a_fork_began_from_stays_when_it_is_dropped(store, states):
    ck = checkpoint(store)
    train(ck, keep=keep.every(1))
    middle = next(n for n in (2, 3, 4) if n != best_of(ck))
    state = store.load("a", epoch=middle, like=Ask().state())
    fork = checkpoint(store, "b").train(state, loader(), epochs=1)
    ck.prune(keep.last(1))
    store.gc()
    with pytest.raises(errors.MissingSnapshotError):
        store.load("a", epoch=middle)
    assert restore_parent(store._backend, state.origin.parent, state.recipe).params == states[middle].params
    assert store.check("bytes").ok
    assert "from train 0" in store.lineage()
    store.delete("b")
    assert len(store.gc().items) > 0
    assert fork.hash is not None


def test_a_reset_voids_what_was_kept(store):
    ck = checkpoint(store)
    train(ck, keep=keep.every(1))
    ck.reset(0)
    assert ck.kept == {}
    assert store.gc().items == ()
    there = items(store)
    assert set(store.gc(voided=True).items) == there
    assert store.check("bytes").ok
    train(ck, keep=keep.every(3))
    assert {3, 6} <= set(ck.kept[0])


def test_an_export_has_the_kept_epochs_as_steps(store, tmp_path):
    ck = checkpoint(store)
    train(ck, keep=keep.every(3))
    folder = store.export_orbax("a", tmp_path / "export", op=0)
    assert sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) == ck.kept[0]
    with pytest.raises(errors.MissingSnapshotError, match="no train 1 with an epoch"):
        store.export_orbax("a", tmp_path / "other", op=1)


def test_plain_orbax_finds_a_kept_epoch(disk, states):
    train(checkpoint(disk), keep=keep.every(2))
    assert disk.path("a", epoch=4) != disk.path("a", epoch=2)
    assert (disk.path("a", epoch=4) / "purestate.json").exists()
    assert disk.path("a", epoch=6) == disk.path("a")


# -------------------------------------------------------------------- mistakes


def test_what_cannot_be_kept(store):
    ck = checkpoint(store)
    for policy in (3, "best", [keep.last(1)], keep.last):
        with pytest.raises(errors.SetupError, match=r"expected a policy such as ps\.keep\.last\(3\), got keep="):
            train(ck, keep=policy)
    with pytest.raises(
        errors.MetricError, match=r"keep=best\(1, 'f1'\) ranks by 'f1', which is not computed; there is 'accuracy', 'loss'"
    ):
        train(ck, keep=keep.best(1, "f1"))
    with pytest.raises(errors.MetricError, match=r"keep=last\(1\) \| best\(1\) ranks by 'loss', .*there is no validation"):
        ck.train(start(), loader(), epochs=1, keep=keep.last(1) | keep.best(1))
    assert store.checkpoints() == [], "before anything is written"


def test_what_cannot_be_loaded(store):
    with pytest.raises(errors.CheckpointNotFoundError):
        store.load("a", epoch=1)
    ck = checkpoint(store)
    ck.root(Ask().state())
    with pytest.raises(errors.MissingSnapshotError, match="has no train with an epoch"):
        store.load("a", epoch=1)
    train(ck, 2, keep=keep.every(1))
    with pytest.raises(errors.SetupError, match="best=True and epoch=1 ask for two states"):
        store.load("a", epoch=1, best=True)
    with pytest.raises(errors.MissingSnapshotError, match="train 0 has no epoch 9; it has 2 finished ones"):
        store.load("a", epoch=9)
    with pytest.raises(errors.MissingSnapshotError, match="has no train 3 with an epoch"):
        store.load("a", epoch=1, op=3)
    assert store.load("a", epoch=1, op=0).counters.epoch == 1
