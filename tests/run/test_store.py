"""`Store`, `MemoryStore`, `NullStore`: what can be asked of them, loading, locks, folders that cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import purestate as ps
from purestate import errors
from tests.helpers import ConvNet, Linear, Mlp, assert_trees_identical, batch, build
from tests.run.tiny import Ask, checkpoint, loader, start


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ps.Store, ps.State, ps.State, ps.State]:
    """A store on disk with two trains, a fork of the first, and their states. Only read."""
    store = ps.Store(tmp_path_factory.mktemp("trained") / "store")
    ask = Ask(lr=0.5)
    ck = store.checkpoint("a", description="the first", echo=None)
    s1 = ask.of(ck, epochs=3)
    s2 = ck.train(s1, ask.train_dl, ask.val_dl, epochs=2)
    fork = store.checkpoint("fork", echo=None)
    f1 = fork.train(ps.setup(s1, optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=1e-3)), ask.train_dl, epochs=1)
    return store, s1, s2, f1


# -------------------------------------------------------------------- loading


def test_load_selects_an_op(trained):
    store, s1, s2, f1 = trained
    assert store.load("a") == s2
    assert store.load("a", op=0) == s1
    assert store.load("a", op=1) == s2
    assert store.load("fork") == f1
    for loaded, state in ((store.load("a", op=0), s1), (store.load("fork"), f1)):
        for name in ("params", "buffers", "frozen"):
            assert_trees_identical(dict(getattr(loaded, name)), dict(getattr(state, name)))
        assert loaded.state_dict().keys() == state.state_dict().keys()
        loaded.verify()


def test_load_the_best(trained):
    store, *_ = trained
    best = store.load("a", op=0, best=True)
    own = Ask(lr=0.5).of(checkpoint(), epochs=3, load_best=True)
    assert_trees_identical(dict(best.params), dict(own.params))


@pytest.mark.parametrize("like", ["state", "module"])
def test_loaded_like_something_goes_on(trained, like):
    store, _, s2, _ = trained
    ask = Ask(lr=0.5)
    if like == "state":
        state = store.load("a", like=ask.state())
        copy = ps.MemoryStore().checkpoint("x", echo=None)
        assert copy.train(state, ask.train_dl, ask.val_dl, epochs=1) == copy.train(s2, ask.train_dl, ask.val_dl, epochs=1)
        assert copy.last is not None
        assert copy.last.cached
    else:
        state = store.load("a", like=build(Mlp, 3))
        assert_trees_identical(dict(ps.to_module(state, build(Mlp, 4)).state_dict()), dict(s2.state_dict()))
        predicted = checkpoint().predict(state, ask.val_dl)
        assert_trees_identical(predicted, checkpoint().predict(s2, ask.val_dl))


def test_loaded_without_a_module_says_what_it_needs(trained):
    store, *_ = trained
    state = store.load("a")
    with pytest.raises(errors.SetupError, match=r"train: the state does not know its module") as caught:
        checkpoint().train(state, loader(), epochs=1)
    assert "store.load(id, like=" in str(caught.value)
    with pytest.raises(errors.SetupError, match=r"setup: the state does not know its module"):
        ps.setup(state, loss_cls=nn.CrossEntropyLoss)
    with pytest.raises(errors.SetupError, match=r"evaluate: the state does not know its module"):
        checkpoint().evaluate(state, loader())


@pytest.mark.parametrize("like", [ConvNet, Linear])
def test_load_like_another_model(trained, like):
    store, *_ = trained
    with pytest.raises(
        errors.TreeMismatchError, match=r"load: (like|the checkpoint) has no leaf '.*' where checkpoint 'a' and like"
    ):
        store.load("a", like=build(like))


def test_load_like_another_width(trained):
    store, *_ = trained
    with pytest.raises(errors.TreeMismatchError, match=r"params\['net\.0\.weight'\].* \(8, 3\).* \(4, 3\)"):
        checkpoint().train(store.load("a", like=start(lambda: Mlp(hidden=4))), loader(), epochs=1)


def test_load_like_something_else(trained):
    store, *_ = trained
    with pytest.raises(errors.StateError, match="like must be a module or a state, got str"):
        store.load("a", like="Mlp")


def test_load_to_a_device(trained):
    store, s1, *_ = trained
    state = store.load("a", op=0, device="cpu")
    assert state.device == torch.device("cpu")
    assert state == s1


@pytest.mark.parametrize("ask", ["load", "open", "delete", "path"])
def test_a_missing_id_lists_what_there_is(trained, ask):
    store, *_ = trained
    with pytest.raises(errors.CheckpointNotFoundError, match="There is no checkpoint 'b' in ") as caught:
        getattr(store, ask)("b")
    assert caught.value.available == ("a", "fork")
    assert "It has 'a', 'fork'." in str(caught.value)


@pytest.mark.parametrize("op", [2, -1, 7])
def test_a_missing_op(trained, op):
    store, *_ = trained
    with pytest.raises(errors.MissingSnapshotError, match=rf"checkpoint 'a' has no finished train {op}; it has \[0, 1\]"):
        store.load("a", op=op)


def test_an_item_as_plain_orbax_restores_it(trained, python):
    store, _, s2, _ = trained
    folder = store.path("a", "params")
    code = """
import json, sys
import orbax.checkpoint as ocp
tree = ocp.PyTreeCheckpointer().restore(sys.argv[1])
print(json.dumps({name: value.ravel().tolist() for name, value in tree.items()}))
"""
    done = python(code, folder)
    assert done.returncode == 0, done.stderr
    restored = json.loads(done.stdout.splitlines()[-1])
    assert restored == {name: tensor.flatten().tolist() for name, tensor in s2.params.items()}
    with pytest.raises(errors.MissingSnapshotError, match="has no item 'ema'") as caught:
        store.path("a", "ema")
    assert "'params'" in str(caught.value)
    with pytest.raises(errors.MissingSnapshotError, match="has no item 'gradients'"):
        store.path("a", "gradients")
    assert store.path("a", "params", op=0) != folder


# -------------------------------------------------------------------- what there is


def test_what_there_is(trained):
    store, s1, s2, f1 = trained
    first, fork = store.checkpoints()
    assert (first.id, first.description, first.trains, first.epochs, first.state) == ("a", "the first", 2, 5, s2.hash)
    assert (fork.id, fork.description, fork.trains, fork.epochs, fork.state) == ("fork", None, 1, 1, f1.hash)
    assert fork.parent is not None
    assert fork.parent["hash"] == s1.hash
    assert first.metrics == {name: values[-1] for name, values in store.open("a").history.items() if name.endswith("loss")}
    head, *rows = store.table().splitlines()
    assert "description" in head
    assert sum("the first" in row for row in rows) == 1
    assert any(row.rstrip().endswith("a:0") for row in rows)
    assert store.lineage().splitlines() == [
        f"a: 2 trains, 5 epochs, {s2.hash[:11]}",
        f"└─ fork (from train 0): 1 train, 1 epoch, {f1.hash[:11]}",
    ]
    assert "train 1: 2 epochs" in repr(store.open("a"))


def test_an_empty_store(store):
    assert store.checkpoints() == []
    assert store.lineage() == ""
    assert "description" in store.table()
    with pytest.raises(errors.CheckpointNotFoundError, match="It has no checkpoint"):
        store.open("a")
    checkpoint(store)
    assert store.checkpoints() == [], "a checkpoint is there from its first record on"


def test_head_moves_with_every_record_and_is_the_same_for_all(store):
    ck = checkpoint(store)
    heads = [ck.head]
    s1 = Ask().of(ck)
    heads.append(ck.head)
    ck.evaluate(s1, loader(4))
    heads.append(ck.head)
    assert len(set(heads)) == 3
    assert store.open("a").head == ck.head


def test_deleting(disk):
    ask, ck = Ask(), checkpoint(disk)
    s1 = ask.of(ck)
    fork = checkpoint(disk, "fork")
    f1 = fork.train(s1, ask.train_dl, epochs=1)
    disk.delete("a")
    assert [info.id for info in disk.checkpoints()] == ["fork"]
    assert disk.load("fork") == f1
    assert_trees_identical(dict(disk.load("fork").params), dict(f1.params))
    assert disk.lineage().startswith("fork: 1 train,"), "a parent may dangle"
    assert ask.of(ck) == s1, "the object begins anew"
    assert ck.last is not None
    assert ck.last.computed == 2


def test_deleted_and_begun_anew_by_somebody_else(store):
    ask, ck = Ask(), checkpoint(store)
    s1 = ask.of(ck, epochs=1)
    store.delete("a")
    other = checkpoint(store)
    Ask(lr=0.2).of(other, epochs=4)
    with pytest.raises(ps.StaleRecordError, match=r"optimizer lr was 0\.2 when this was recorded, now 0\.05"):
        ask.of(ck, epochs=1)
    assert len(ck.history["epoch"]) == 4
    ck.reset(0)
    assert ask.of(other, epochs=1) == s1
    assert ask.of(ck, epochs=1) == s1
    assert ck.last is not None
    assert ck.last.cached


def test_bytes_that_were_deleted(disk):
    ask = Ask(train_dl=loader(8), val_dl=None)
    ask.of(checkpoint(disk), metrics=())
    shutil.rmtree(disk._backend.path / "items")
    ck = checkpoint(disk)
    s1 = ask.of(ck, metrics=())
    assert ck.last is not None
    assert ck.last.cached
    assert len(s1.hash) == 67, "known without the bytes"
    head = ck.head
    for use in (
        lambda: s1.params["net.0.weight"],
        lambda: ck.train(s1, ask.train_dl, epochs=1),
        lambda: ck.evaluate(s1, ask.train_dl),
    ):
        with pytest.raises(errors.MissingSnapshotError) as caught:
            use()
        assert caught.value.digest is not None
    assert ck.head == head or ck._ledger.log.records[-1].kind == "train"


def test_a_newer_format(disk):
    Ask().of(checkpoint(disk))
    (disk._backend.path / "format.json").write_text('{"purestate": 99}')
    with pytest.raises(errors.FormatVersionError, match="has format 99, and this version reads up to") as caught:
        ps.Store(disk._backend.path)
    assert "Upgrade purestate" in str(caught.value)


# -------------------------------------------------------------------- what cannot be written


@pytest.mark.parametrize(
    "where",
    [
        "file",
        "below a file",
        "proc",
    ],
)
def test_a_folder_that_cannot_be_written(tmp_path, where):
    (tmp_path / "file").write_text("mine")
    path = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "store", "proc": Path("/proc/store")}[where]
    ask = Ask()
    with pytest.raises(errors.StoreWriteError) as caught:
        ask.of(checkpoint(ps.Store(path)))
    assert os.fspath(path) in str(caught.value).splitlines()[0]
    assert (tmp_path / "file").read_text() == "mine"


FULL = """
import os, resource, sys
import torch
from torch import nn
import purestate as ps

s0 = ps.init(lambda: nn.Linear(256, 256), seed=0)
s0 = ps.setup(s0, loss_cls=nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
data = [(torch.ones(4, 256), torch.zeros(4, 256))]
ck = ps.Store(sys.argv[1]).checkpoint("a", echo=None)
s1 = ck.train(s0, data, epochs=1)
with open(f"/proc/self/task/{os.getpid()}/children") as children:
    processes = [os.getpid(), *map(int, children.read().split())]
for size in (100, 100_000, resource.RLIM_INFINITY):
    for process in processes:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        print("trained", ck.train(s1, data, epochs=2).hash)
    except ps.PureStateError as error:
        print(type(error).__name__, str(error).splitlines()[0])
    ck = ps.Store(sys.argv[1]).checkpoint("a", echo=None)
    print(ck.train(s0, data, epochs=1) == s1, ck.last.cached)
print("trained", ps.MemoryStore().checkpoint("a", echo=None).train(s1, data, epochs=2).hash)
"""


def test_a_full_disk_loses_nothing(python, tmp_path):
    """A limit on the size of files fails where a full disk does: first the log cannot grow, then an item is too big."""
    done = python(FULL, tmp_path / "store")
    assert done.returncode == 0, done.stderr
    log_failed, kept, item_failed, kept_too, trained, kept_still, expected = done.stdout.splitlines()
    assert log_failed.startswith("StoreWriteError Cannot write"), log_failed
    assert item_failed.startswith("StoreWriteError Cannot write"), item_failed
    assert "log" in log_failed
    assert "resume point" in item_failed or "item" in item_failed
    assert [kept, kept_too, kept_still] == ["True True"] * 3
    assert trained == expected


# -------------------------------------------------------------------- two at once


def test_two_threads_on_one_checkpoint_compute_once(disk):
    """The second waits for the first, and then finds its answer."""
    ask = Ask()
    states = [ask.state(), ask.state()]
    answers: list[tuple[str, int]] = []
    barrier = threading.Barrier(2)

    def work(s0: ps.State) -> None:
        ck = checkpoint(disk)
        barrier.wait()
        state = None
        while state is None:
            with contextlib.suppress(errors.StoreLockedError):  # how long the first one computes depends on the machine
                state = ck.train(s0, ask.train_dl, ask.val_dl, epochs=5, metrics=[ps.metric_accuracy])
        assert ck.last is not None
        answers.append((state.hash, ck.last.computed))

    threads = [threading.Thread(target=work, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    expected = Ask().of(checkpoint(), epochs=5).hash
    assert sorted(answers) == [(expected, 0), (expected, 5)]


def test_two_threads_on_two_checkpoints_do_not_disturb_each_other(memory):
    states, data = [start(), start()], loader(64)
    expected = checkpoint().train(states[0], data, epochs=20)
    found: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda i: found.append(checkpoint(memory, str(i)).train(states[i], data, epochs=20) == expected), args=(i,)
        )
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert found == [True, True]


HOLDS = """
import sys, torch
from torch import nn
import purestate as ps
s0 = ps.setup(ps.init(lambda: nn.Linear(3, 2), seed=0), loss_cls=nn.MSELoss, optimizer_cls=torch.optim.SGD)
ck = ps.Store(sys.argv[1]).checkpoint("a", echo=None)
for epoch in ck.epochs(s0, [(torch.ones(2, 3), torch.ones(2, 2))], epochs=3):
    print("holding", flush=True)
    sys.stdin.read()
    sys.exit(0)
"""


def test_a_second_writer_is_told_who_the_first_is(disk, monkeypatch):
    ask = Ask()
    environment = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDS, os.fspath(disk._backend.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "holding"
        ck = checkpoint(disk)
        lock = ck._ledger.log.lock
        monkeypatch.setattr(ck._ledger.log, "lock", lambda timeout=10.0: lock(0.1), raising=False)
        with pytest.raises(errors.StoreLockedError, match=f"is being written by process {process.pid}") as caught:
            ck.evaluate(ask.state(), ask.val_dl)
        assert caught.value.pid == process.pid
        other = checkpoint(disk, "b")
        assert ask.of(other) == ask.of(checkpoint()), "another checkpoint is free"
        process.kill()


# -------------------------------------------------------------------- states


def test_a_state_that_was_changed_in_place(store):
    ask, ck = Ask(), checkpoint(store)
    s1 = ask.of(ck)
    loaded = store.load("a", like=ask.state())
    for state in (ask.state(), s1, loaded):
        state.hash  # noqa: B018
        state.params["net.0.weight"].add_(1.0)
        for op in (
            lambda s: ck.train(s, ask.train_dl, epochs=1),
            lambda s: ck.evaluate(s, ask.val_dl),
            lambda s: ck.find_lr(s, ask.train_dl),
        ):
            with pytest.raises(errors.MutatedStateError, match=r"params\['net\.0\.weight'\]"):
                op(state)
    again = checkpoint(store)
    fresh = ask.of(again)
    assert fresh.hash == s1.hash
    fresh.verify()


def test_null_computes_each_time():
    ck = ps.NullStore().checkpoint("a", echo=None)
    first, second = Ask().of(ck), Ask().of(ck)
    assert first == second == Ask().of(checkpoint())
    assert ck.last is not None
    assert (ck.last.cached, ck.last.computed) == (False, 2)
    assert ck.train(first, loader(), epochs=1) == checkpoint().train(first, loader(), epochs=1)
    assert ck.evaluate(first, loader(4)) == checkpoint().evaluate(first, loader(4))


def test_values(memory: Any) -> None:
    """Batches of other structures than a pair."""
    x, y = batch(4)
    ck = checkpoint(memory)
    state = start(loss_cls=None, loss_fn=mapped)
    s1 = ck.train(state, [{"x": x, "y": y}], epochs=1)
    assert ck.train(state, [{"x": x.clone(), "y": y}], epochs=1) == s1
    assert ck.last is not None
    assert ck.last.cached


def mapped(module: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(module(batch["x"]), batch["y"])


def test_a_parent_that_was_begun_anew_is_no_parent(memory):
    ask, a = Ask(), checkpoint(memory)
    s1 = ask.of(a)
    f1 = checkpoint(memory, "b").train(s1, ask.train_dl, epochs=1)
    memory.delete("a")
    checkpoint(memory).train(f1, ask.train_dl, epochs=1)
    assert [line.split(":")[0] for line in memory.lineage().splitlines()] == ["b", "└─ a (from train 0)"]
