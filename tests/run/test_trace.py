"""``train(trace=)``: what is noted of epochs and steps, that it follows from the bits alone, and that nothing else changes."""

from __future__ import annotations

import copy
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps
from purestate import train as stateful
from purestate.core._hash import leaf_hash
from purestate.errors import CorruptLogError, SetupError
from purestate.run._again import Step, recompute
from purestate.run._resume import ResumePoints
from purestate.run._trace import trace_of, untraced
from purestate.run._training import Training
from purestate.store._record import Record, decode, encode
from purestate.train import _place
from tests.helpers import batch, build

BATCHES = 4


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))


def start() -> ps.State:
    return ps.setup(
        ps.init(net, seed=0),
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=torch.optim.Adam,
        step_scheduler_cls=torch.optim.lr_scheduler.ExponentialLR,
        step_scheduler_args=dict(gamma=0.9),
    )


def data(seed: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*batch(4 * BATCHES, seed=seed)), batch_size=4, shuffle=True)


def train(ck: ps.Checkpoint, **options: Any) -> ps.State:
    return ck.train(start(), data(), [batch(8, seed=1)], **{"epochs": 2, "warmup": 1, **options})


def epochs_of(ck: ps.Checkpoint) -> list[Record]:
    return [record for record in ck._ledger.log.records if record.kind == "epoch"]


def traces_of(ck: ps.Checkpoint) -> list[Any]:
    return [record.body.get("trace") for record in epochs_of(ck)]


@pytest.fixture(scope="module")
def runs() -> dict[str | None, ps.Checkpoint]:
    """The same training, traced as much as there is."""
    found: dict[str | None, ps.Checkpoint] = {}
    for level in (None, "epoch", "step"):
        found[level] = ps.MemoryStore().checkpoint("a", echo=None)
        train(found[level], trace=level)
    return found


def test_a_trace_changes_no_bit_and_no_question(runs):
    bodies = [
        [{name: value for name, value in record.body.items() if name not in ("trace", "seconds")} for record in epochs_of(ck)]
        for ck in runs.values()
    ]
    assert bodies[0] == bodies[1] == bodies[2]
    assert traces_of(runs[None]) == [None] * 3
    for ck in runs.values():
        for level in (None, "epoch", "step"):
            records = len(ck._ledger.log.records)
            train(ck, trace=level)
            assert ck.last.cached
            assert len(ck._ledger.log.records) == records


def test_the_leaves_of_an_epoch_are_those_of_its_state_and_give_its_hash(runs):
    for n, record in enumerate(epochs_of(runs["epoch"])):
        state = runs[None].epochs(start(), data(), [batch(8, seed=1)], epochs=2, warmup=1)
        with closing(state) as stream:
            state = next(itertools.islice(stream, n, None)).state
        leaves = trace_of(record).leaves  # which fails where they do not give the hash
        assert leaves["params['0.weight']"] == leaf_hash(state.params["0.weight"])
        assert leaves["buffers['1.running_mean']"] == leaf_hash(state.buffers["1.running_mean"])
        assert ("optimizer['state/0.weight/exp_avg']" in leaves) == (n > 0)


def test_the_batches_and_their_order_are_noted_with_the_steps(runs):
    noted = {level: [trace_of(record).data for record in epochs_of(runs[level])] for level in ("epoch", "step")}
    assert noted["epoch"] == [None] * 3
    first, *epochs = noted["step"]
    assert first is None
    assert len(set(epochs)) == 2


def test_every_step_is_noted(runs):
    taken: dict[tuple[int, int], str] = {}

    def on_step(step: Step) -> None:
        taken[step.n, step.batch] = step.state.hash

    for call, found in asked(runs["step"]):
        for _ in recompute(call, found, 2, on_step=on_step):
            pass
    noted = {(n, i): step for n in (1, 2) for i, step in trace_of(epochs_of(runs["step"])[n]).steps()}
    assert noted.keys() == taken.keys() == {(n, i) for n in (1, 2) for i in range(1, BATCHES + 1)}
    assert all(taken[place].startswith(f"b3:{step.state}") for place, step in noted.items())
    assert len({step.batch for step in noted.values()}) == 2 * BATCHES
    names = set(noted[2, BATCHES].leaves)
    assert {"params['0.weight']", "buffers['1.running_var']", "optimizer['state/4.bias/exp_avg']", "step_scheduler"} <= names
    assert not trace_of(epochs_of(runs["epoch"])[1]).segments


def asked(ck: ps.Checkpoint) -> Iterator[tuple[Training, Any]]:
    """Yield the call that asks for the train of a checkpoint, and its trajectory."""
    calls: list[Training] = []
    original = Training.run

    def run(self: Training) -> Any:
        calls.append(self)
        return original(self)

    with patch.object(Training, "run", run):
        train(ck)
    yield calls[0], ck._ledger.chain.trains[0]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that trains until batch ``n`` and interrupts then."""

    def until(ck: ps.Checkpoint, n: int, **options: Any) -> None:
        behind = itertools.count(1)

        def between(self: ResumePoints, *args: Any, **named: Any) -> None:
            if next(behind) == n:
                signal.raise_signal(signal.SIGINT)
            original(self, *args, **named)

        original = ResumePoints.between
        with monkeypatch.context() as patched:
            patched.setattr(ResumePoints, "between", between)
            with pytest.raises(KeyboardInterrupt):
                train(ck, **options)

    return until


@pytest.mark.parametrize("level", ["epoch", "step"])
def test_a_run_that_is_cut_anywhere_notes_what_it_would_have(cut, runs, level):
    for n in range(2, 2 + 2 * (BATCHES + 1)):  # the first is the evaluation before the first epoch
        store = ps.MemoryStore()
        cut(store.checkpoint("a", echo=None), n, trace=level)
        again = store.checkpoint("a", echo=None)
        train(again, trace=level)
        assert traces_of(again) == traces_of(runs[level]), f"cut after batch {n}"


def test_a_trace_that_begins_in_the_middle_says_where(cut, runs):
    store = ps.MemoryStore()
    cut(store.checkpoint("a", echo=None), 1 + 3)  # three batches of the first epoch, of a run that nobody traced
    again = store.checkpoint("a", echo=None)
    train(again, trace="step")
    first, second = (trace_of(record) for record in epochs_of(again)[1:])
    assert first.data is None
    assert (first.covers, second.covers) == (range(4, 5), range(1, 5))
    whole = trace_of(epochs_of(runs["step"])[1])
    assert dict(first.steps()) == {4: dict(whole.steps())[4]}
    assert second == trace_of(epochs_of(runs["step"])[2])


def test_a_point_of_a_traced_run_serves_one_that_is_not(cut, runs):
    store = ps.MemoryStore()
    cut(store.checkpoint("a", echo=None), 1 + 3, trace="step")
    again = store.checkpoint("a", echo=None)
    train(again)
    assert traces_of(again)[1:] == [None, None]
    assert [record.body["hash"] for record in epochs_of(again)] == [record.body["hash"] for record in epochs_of(runs[None])]


def test_of_what_is_recorded_without_a_trace_it_is_said_and_nothing_is_computed():
    told: list[str] = []
    ck = ps.MemoryStore().checkpoint("a", echo=None, notify=told.append)
    train(ck)
    told.clear()
    train(ck, trace="step")
    assert ck.last.cached
    assert told == ["a: 2 epochs of 2 recorded without trace='step'. Nothing was computed again for it."]
    told.clear()
    train(ck, epochs=3, trace="epoch")
    assert ck.last.computed == 1
    assert told == ["a: 2 epochs of 3 recorded without trace='epoch'. Nothing was computed again for it."]
    assert untraced(ck._ledger.chain.trains[0], "epoch", 3) == [1, 2]
    assert untraced(ck._ledger.chain.trains[0], "step", 3) == [1, 2, 3]


def test_another_word_is_refused():
    with pytest.raises(SetupError, match=r"expected trace to be 'epoch', 'step' or None, got 'batch'") as caught:
        train(ps.MemoryStore().checkpoint("a", echo=None), trace="batch")
    assert caught.value.argument == "trace"


@pytest.mark.parametrize(
    "change",
    [
        lambda trace: trace["leaves"]["params"].update({"0.weight": "0" * 64}),
        lambda trace: trace["plain"].update(key="0" * 64),
        lambda trace: trace.pop("data"),
        lambda trace: trace.update(leaves=3),
        lambda trace: trace["steps"][0].update(rows="AAAA"),
        lambda trace: trace["steps"][0].update(rows="?"),
        lambda trace: trace["steps"][0].update({"from": -1}),
        lambda trace: trace["steps"].append({**trace["steps"][0], "from": 9}),
    ],
)
def test_a_trace_that_is_none_is_told(runs, change):
    record = epochs_of(runs["step"])[1]
    body = copy.deepcopy(record.body)
    change(body["trace"])
    with pytest.raises(CorruptLogError, match="does not hold what a record of the kind 'epoch' does"):
        trace_of(encode(1, "0" * 64, "epoch", body))


def test_a_copied_store_has_the_traces_and_is_whole(tmp_store_path):
    store = ps.Store(tmp_store_path / "one")
    ck = store.checkpoint("a", echo=None)
    train(ck, epochs=1, trace="step")
    store.copy(tmp_store_path / "two")
    other = ps.Store(tmp_store_path / "two")
    assert traces_of(other.open("a")) == traces_of(ck)
    assert other.check("bytes").ok
    assert not store.gc(dry_run=True).items


def test_a_model_is_traced_too(tmp_path, monkeypatch):
    monkeypatch.setattr(_place, "_place", _place.Place(root=tmp_path))
    model = stateful.Model("m", build(nn.Linear, in_features=3, out_features=2))
    with model.checkpoint(id=1) as cp:
        cp.setup(loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
        cp.train(data(), epochs=1, load_best=False, trace="step")
    records = [record for log in tmp_path.rglob("log.jsonl") for record in decode(log.read_bytes())]
    assert [trace_of(record).covers for record in records if record.kind == "epoch"] == [range(1, BATCHES + 1)]
