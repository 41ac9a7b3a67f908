"""Every Store answers the same: the same calls, the same hashes and numbers, on disk, in memory and without a memory.

Something new that keeps records joins by a row in `STORES`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps
from purestate import errors
from purestate.core import _runners
from purestate.core._capture import Runner
from purestate.run._store import _Store
from tests.helpers import ConvNet, assert_trees_identical, batch

STORES: dict[str, Callable[[Path], Any]] = {
    "Store": ps.Store,
    "MemoryStore": lambda path: ps.MemoryStore(),
    "NullStore": lambda path: ps.NullStore(),
}
REMEMBERS = {"Store", "MemoryStore"}


@pytest.fixture(autouse=True)
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capturing changes no bit, and is another table's matter."""
    monkeypatch.setattr(_runners, "Runner", functools.partial(Runner, capture_after=1_000_000))


@pytest.fixture(params=STORES)
def named(request: pytest.FixtureRequest, tmp_store_path: Path) -> Iterator[tuple[str, Any]]:
    with STORES[request.param](tmp_store_path) as store:
        yield request.param, store


def data(size: int, seed: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*batch(size, (1, 4, 4), seed=seed)), batch_size=4, shuffle=True)


def everything(store: Any) -> dict[str, Any]:
    """Use each op, with buffers, frozen parameters, moments and both schedulers; return all that it told."""
    train_dl, val_dl = data(8, 0), data(4, 1)
    s0 = ps.setup(
        ps.init(ConvNet, seed=0),
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=torch.optim.Adam,
        optimizer_args=dict(lr=0.05),
        epoch_scheduler_cls=torch.optim.lr_scheduler.ReduceLROnPlateau,
        epoch_scheduler_args=dict(patience=0),
        step_scheduler_cls=torch.optim.lr_scheduler.ExponentialLR,
        step_scheduler_args=dict(gamma=0.9),
    )
    ck = store.checkpoint("a", description="all", echo=None)
    told: dict[str, Any] = {"s0": s0.hash}
    s1 = ck.train(s0, train_dl, val_dl, epochs=3, watch="accuracy", load_best=True, metrics=[ps.metric_accuracy], warmup=1)
    told["s1"] = s1.hash
    told["history"] = {name: values for name, values in ck.last.history.items() if name != "seconds"}
    s2 = ck.train(ps.freeze(s1, "conv.*"), train_dl, val_dl, epochs=1)
    told["s2"] = s2.hash
    told["frozen"] = dict(s2.frozen)
    told["state_dict"] = dict(s2.state_dict())
    stream = ck.epochs(ps.set_lr(s2, 0.01), train_dl, val_dl, epochs=2)
    told["stream"] = [(epoch.n, epoch.metrics, epoch.lr, epoch.state.hash) for epoch in stream]
    told["evaluate"] = ck.evaluate(s1, val_dl, metrics=[ps.metric_accuracy])
    told["find_lr"] = ck.find_lr(s1, train_dl, optimizer_cls=torch.optim.SGD, epochs=3)
    told["predict"] = ck.predict(s1, val_dl)
    return told


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_runners, "Runner", functools.partial(Runner, capture_after=1_000_000))
        return everything(ps.MemoryStore())


def test_all_tell_the_same(named, expected):
    _, store = named
    assert_trees_identical({**everything(store), "find_lr": None}, {**expected, "find_lr": None})
    assert everything(store)["find_lr"] == expected["find_lr"], "asked again, from the log or not"


def test_who_remembers(named):
    name, store = named
    everything(store)
    ck = store.checkpoint("a", echo=None)
    before = ck.head
    everything(store)
    assert (ck.head == before) is True
    assert [info.id for info in store.checkpoints()] == (["a"] if name in REMEMBERS else [])
    if name in REMEMBERS:
        state = store.load("a")
        (info,) = store.checkpoints()
        assert (info.description, info.trains, info.epochs, info.state) == ("all", 3, 6, state.hash)
        assert len(ck.history["epoch"]) == 6
        store.delete("a")
    assert store.checkpoints() == []


def test_what_all_refuse(named):
    _, store = named
    for id in ("", "a/b", "..", ".hidden", "a b", "ä", "x" * 129, 3, None):
        with pytest.raises(errors.InvalidIdError, match="cannot name a checkpoint"):
            store.checkpoint(id)
    for ask in (store.open, store.load, store.delete):
        with pytest.raises(errors.CheckpointNotFoundError, match="There is no checkpoint 'b'") as caught:
            ask("b")
        assert caught.value.id == "b"
        assert caught.value.available == ()
    with pytest.raises(errors.StateError, match="no train"):
        store.checkpoint("b").reset(0)
    with pytest.raises(errors.StateError, match="no train"):
        store.checkpoint("b").accept(0)
    assert store.checkpoints() == []


def test_all_share_one_surface():
    public = {name for name, _ in inspect.getmembers(_Store, callable) if not name.startswith("_")}
    asked = {"checkpoints", "table", "lineage", "load", "inspect", "check"}
    assert public == {"checkpoint", "open", *asked, "repair", "gc", "copy", "rename", "export_orbax", "delete", "close"}
    for cls in (ps.Store, ps.MemoryStore, ps.NullStore):
        assert {name for name in public if name in vars(cls)} == set(), f"{cls.__name__} does it in another way"
