"""A step of the user's own in `train`: the bits of ours where it is ours, and the same care for all others."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import purestate as ps
from purestate.code._text import pieces, text_of
from purestate.errors import (
    FingerprintError,
    ImpurityError,
    MetricError,
    NonFiniteLossError,
    SetupError,
    StaleRecordError,
    TreeMismatchError,
)
from purestate.run._code import texts
from purestate.run._resume import ResumePoints
from tests.helpers import ConvNet, Mlp, batch
from tests.run.tiny import checkpoint, loader, start

VALIDATION = [batch(4, seed=1)]
Step = Callable[[ps.State, Any], tuple[ps.State, dict[str, Any]]]


def bare() -> ps.State:
    """A state without an optimizer, and with a loss only for validation."""
    return ps.setup(ps.init(lambda: nn.Linear(3, 2), seed=0), loss_cls=nn.CrossEntropyLoss)


def descend(rate: float = 0.1) -> Step:
    """Gradient descent by hand, with noise from the seeded generator and a count in ``extra``."""

    def step(state: ps.State, batch: Any) -> tuple[ps.State, dict[str, Any]]:
        gradients, loss = torch.func.grad_and_value(ps.make_loss(state))(dict(state.params), batch)
        params = {name: p - rate * gradients[name] + 0.01 * torch.randn(p.shape) for name, p in state.params.items()}
        count = torch.zeros(()) if state.extra is None else state.extra.leaves["count"] + 1
        return state.replace(params=params, extra={"count": count}), {"loss": loss, "rate": rate}

    return step


def train(ck: ps.Checkpoint, step: Step | None = None, **options: Any) -> ps.State:
    arguments: dict[str, Any] = dict(epochs=2, step=step or descend(), load_best=True, patience=5) | options
    return ck.train(bare(), loader(10), VALIDATION, **arguments)


def answer(ck: ps.Checkpoint, state: ps.State) -> list[Any]:
    epochs = [record.body for record in ck._ledger.log.records if record.kind == "epoch"]
    # before the first step nobody knows the rates of an optimizer that comes with it
    return [state.hash, *([body["n"], body["hash"], body["metrics"], body["n"] and body["lr"]] for body in epochs)]


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        dict(optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=0.01), clip_grad_norm=0.5, ema_decay=0.9),
        dict(step_scheduler_cls=torch.optim.lr_scheduler.StepLR, step_scheduler_args=dict(step_size=2, gamma=0.5)),
    ],
    ids=["momentum", "adam, clipped and averaged", "scheduled"],
)
@pytest.mark.parametrize("module", [Mlp, ConvNet])
def test_make_step_as_the_step_gives_the_bits_of_ours(module, recipe):
    """Dropout, running means and moments included: so keys, counters, order and validation are the same, too."""
    state = start(module, **recipe)
    shape = (3,) if module is Mlp else (1, 4, 4)
    x, y = batch(10, shape)
    data, held = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])], [(x[:4], y[:4])]
    options: dict[str, Any] = dict(epochs=3, load_best=True)
    ours, own = checkpoint(), checkpoint()
    expected = answer(ours, ours.train(state, data, held, **options))
    assert answer(own, own.train(state, data, held, step=ps.make_step(state), **options)) == expected


def test_make_step_inside_of_a_step_is_known_by_its_recipe():
    state = start()

    def wrapped(inner: Step) -> Step:
        def step(state: ps.State, batch: Any) -> tuple[ps.State, dict[str, Any]]:
            new, metrics = inner(state, batch)
            return new, {**metrics, "norm": torch.linalg.vector_norm(new.params["net.0.weight"])}

        return step

    ck = checkpoint()
    s1 = ck.train(state, loader(), epochs=1, step=wrapped(ps.make_step(state)))
    assert ck.train(state, loader(), epochs=1, step=wrapped(ps.make_step(state))) == s1
    assert ck.last is not None
    assert ck.last.cached
    assert [*ck.last.history] == ["epoch", "train_loss", "train_norm", "lr", "seconds"]
    other = ps.setup(state, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.5))
    with pytest.raises(StaleRecordError, match="code of step changed"):
        ck.train(state, loader(), epochs=1, step=wrapped(ps.make_step(other)))


def test_the_text_of_a_step_is_kept(memory):
    ck = checkpoint(memory)
    train(ck, epochs=1)
    (question,) = (record.body["question"] for record in ck._ledger.log.records if "question" in record.body)
    kept = texts(ck._ledger.log.records, memory._backend, pieces([question["parts"]["step.digest"]]))
    assert any("grad_and_value" in (text_of(piece) or "") for piece in kept.values())


def test_what_a_step_computes_with_is_asked_for():
    ck = checkpoint()
    s1 = train(ck)
    assert train(ck) == s1
    assert ck.last is not None
    assert ck.last.cached
    with pytest.raises(StaleRecordError, match="code of step changed"):
        train(ck, descend(0.2))
    with pytest.raises(StaleRecordError):
        ck.train(start(lambda: nn.Linear(3, 2)), loader(10), VALIDATION, epochs=2)
    with open(__file__) as file, pytest.raises(FingerprintError, match=r"step.*file"):
        train(checkpoint(), lambda state, batch: (state, {"size": len(file.name)}))


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Return a function that trains until batch ``n`` (of training or validation) and interrupts then, if it comes to that."""

    def until(ck: ps.Checkpoint, n: int, **options: Any) -> bool:
        behind = itertools.count(1)
        original = ResumePoints.between

        def between(self: ResumePoints, *args: Any, **options: Any) -> None:
            if next(behind) == n:
                signal.raise_signal(signal.SIGINT)
            original(self, *args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(ResumePoints, "between", between)
            try:
                train(ck, **options)
            except KeyboardInterrupt:
                return True
        return False

    return until


BATCHES = 1 + 2 * (3 + 1)


def test_cut_after_every_batch(cut):
    whole = checkpoint()
    expected = answer(whole, train(whole))
    for n in range(1, BATCHES + 1):
        store = ps.MemoryStore()
        assert cut(checkpoint(store), n)
        again = checkpoint(store)
        assert answer(again, train(again)) == expected, f"cut after batch {n}"
    assert not cut(checkpoint(), BATCHES + 1)


def test_an_epoch_that_was_not_kept_is_computed_again(disk):
    ck = checkpoint(disk)
    hashes, states = zip(*((epoch.hash, epoch.state) for epoch in epochs(ck)), strict=True)
    again = [epoch.state.own() for epoch in epochs(checkpoint(disk))]
    assert [state.hash for state in again] == list(hashes) == [state.hash for state in states]
    assert [int(state.extra.leaves["count"]) for state in again[1:]] == [2, 5, 8]
    for state in again:
        state.verify()


def epochs(ck: ps.Checkpoint) -> Any:
    return ck.epochs(bare(), loader(10), VALIDATION, epochs=3, step=descend())


def test_the_best_is_returned_with_its_optimizer_and_the_counters_of_the_last():
    state = start()
    ck = checkpoint()
    best = ck.train(state, loader(), VALIDATION, epochs=4, load_best=True, step=ps.make_step(state))
    ours = checkpoint().train(state, loader(), VALIDATION, epochs=4, load_best=True)
    assert (best, best.counters) == (ours, ours.counters)


def test_its_metrics_are_means_over_the_samples():
    sizes = itertools.cycle([4, 4, 2])

    def step(state: ps.State, batch: Any) -> tuple[ps.State, dict[str, Any]]:
        x, _ = batch
        return state, {"loss": float(len(x)), "square": torch.tensor(len(x) ** 2), "never": math.nan}

    ck = checkpoint()
    data = [batch(next(sizes), seed=i) for i in range(3)]
    state = ck.train(bare(), data, epochs=1, step=step)
    assert ck.last is not None
    assert ck.last.history["train_loss"] == [(16 + 16 + 4) / 10]
    assert ck.last.history["train_square"] == [(64 + 64 + 8) / 10]
    assert math.isnan(ck.last.history["train_never"][0])
    assert (state.counters.epoch, state.counters.step) == (1, 3)
    assert state.params == bare().params


def test_a_state_that_was_never_set_up_trains_without_validation():
    def step(state: ps.State, batch: Any) -> tuple[ps.State, dict[str, Any]]:
        return state.replace(params={name: p + batch[0].mean() for name, p in state.params.items()}), {}

    s0, ck = ps.init(lambda: nn.Linear(3, 2), seed=0), checkpoint()
    s1 = ck.train(s0, loader(), epochs=1, step=step)
    assert (s1.counters.step, s1.recipe) == (2, s0.recipe)
    assert ck.train(s0, loader(), epochs=1, step=step) == s1
    with pytest.raises(SetupError, match="the state has no loss"):
        ck.train(s0, loader(), VALIDATION, epochs=1, step=step)


def test_what_does_not_go_with_a_step_is_refused():
    ck, state, step = checkpoint(), bare(), descend()
    with pytest.raises(SetupError, match="warmup=1 was given together with step") as caught:
        ck.train(state, loader(), epochs=1, step=step, warmup=1)
    assert caught.value.argument == "warmup"
    decays = start(epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR, epoch_scheduler_args=dict(step_size=2))
    with pytest.raises(SetupError, match="epoch_scheduler, which nobody would step"):
        ck.train(decays, loader(), epochs=1, step=step)
    with pytest.raises(SetupError, match="metrics were given together with step"):
        ck.train(state, loader(), epochs=1, step=step, metrics=[ps.metric_accuracy])
    with pytest.raises(SetupError, match="expected step to be a function"):
        ck.train(state, loader(), epochs=1, step=nn.Linear)
    with pytest.raises(SetupError, match="expected a State first"):
        ck.train(None, loader(), epochs=1, step=step)
    assert not ck._ledger.log.records, "nothing was begun"


@pytest.mark.parametrize(
    ("returns", "error", "says"),
    [
        (lambda s: s, SetupError, r"expected the step to return \(state, metrics\), got a State"),
        (lambda s: (s, 1.0), SetupError, "its metrics as a dict, got a float"),
        (
            lambda s: (s, {"loss": torch.ones(2)}),
            MetricError,
            r"'loss' to be a number or a 0-d tensor, got a tensor of shape \(2,\)",
        ),
        (lambda s: (s, {"loss": "low"}), MetricError, "'loss' to be a number or a 0-d tensor, got a str"),
        (lambda s: (s, {str(s.counters.step): 1.0}), MetricError, "the metrics '1', and '0' before"),
        (lambda s: (s, {"loss": torch.tensor(math.inf)}), NonFiniteLossError, "the loss became inf in epoch 1, step 1"),
        (lambda s: (s.replace(params=s.params, extra={"a": [1.0]}).replace(key=ps.Key(0, 0)), {}), None, ""),
        (
            lambda s: (s._with(params=type(s.params)({"weight": s.params["weight"]}, "params")), {}),
            TreeMismatchError,
            r"params\['bias'\]",
        ),
        (lambda s: (wider(s), {}), TreeMismatchError, r"params\['weight'\]: expected float32\[2, 3\], got float64\[2, 3\]"),
        (
            lambda s: (s.replace(extra={"a": torch.ones(1 + s.counters.step)}), {}),
            TreeMismatchError,
            r"extra\['a'\]: expected float32\[1\]",
        ),
        (lambda s: (s if s.counters.step else s.replace(extra={"a": 1}), {}), None, ""),
        (lambda s: (s.replace(extra=None if s.counters.step else {"a": 1}), {}), TreeMismatchError, "nothing as its extra"),
    ],
    ids="bare number shape text names inf key fewer wider grown kept lost".split(),
)
def test_what_a_step_returns_is_looked_at(returns, error, says):
    ck = checkpoint()

    def step(state: ps.State, batch: Any) -> Any:
        return returns(state)

    if error is None:
        assert ck.train(bare(), loader(), epochs=1, step=step).key == checkpoint().train(start(), loader(), epochs=1).key
        return
    with pytest.raises(error, match=says):
        ck.train(bare(), loader(), epochs=1, step=step)


def test_gradients_are_gathered_in_extra_and_cut_anywhere():
    def gather(state: ps.State, batch: Any) -> Any:
        gradients, loss = torch.func.grad_and_value(ps.make_loss(state))(dict(state.params), batch)
        kept = {"n": 0, "sum": {name: torch.zeros_like(p) for name, p in state.params.items()}}
        kept = kept if state.extra is None else state.extra.value()
        n, total = kept["n"] + 1, {name: gradient + kept["sum"][name] for name, gradient in gradients.items()}
        params = dict(state.params)
        if n == 2:
            params = {name: p - 0.05 * total[name] for name, p in params.items()}
            n, total = 0, {name: torch.zeros_like(p) for name, p in params.items()}
        return state.replace(params=params, extra={"n": n, "sum": total}), {"loss": loss}

    whole = checkpoint().train(bare(), loader(), epochs=3, step=gather)
    ck = checkpoint()
    assert ck.train(bare(), loader(), epochs=1, step=gather).extra.value().keys() == {"n", "sum"}
    assert ck.train(bare(), loader(), epochs=3, step=gather).hash == whole.hash


def wider(state: ps.State) -> ps.State:
    return state._with(params=type(state.params)({name: p.double() for name, p in state.params.items()}, "params"))


class Impure:
    calls = 0.0

    def __init__(self, how: str) -> None:
        self.how = how

    def __purestate_fingerprint__(self) -> str:
        return self.how

    def __call__(self, state: ps.State, batch: Any) -> tuple[ps.State, dict[str, Any]]:
        if self.how == "counter":
            self.calls += 1
            return state.replace(params={name: p + self.calls for name, p in state.params.items()}), {}
        if self.how == "metric":
            self.calls += 1
            return state, {"calls": self.calls}
        if self.how == "in place":
            state.params["weight"].add_(1)
        else:
            state.params["weight"].numpy()[0, 0] += 1
        return state.replace(params=state.params), {}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("counter", r"other bits in params\['weight'\] when it ran again"),
        ("metric", "other bits in the metric 'calls' when it ran again"),
        ("in place", r"the step changed params\['weight'\] of the state that it was given"),
        ("past torch", r"the step changed params\['weight'\] of the state that it was given"),
    ],
)
def test_an_impure_step_is_refused(how, says):
    with pytest.raises(ImpurityError, match=says):
        checkpoint().train(bare(), loader(), epochs=1, step=Impure(how))


def test_the_guard_looks_at_the_first_steps_at_each_or_at_none():
    for guard, calls in (("off", 4), ("first", 4 + 3), ("always", 8)):
        step = Impure("counted")
        seen = list[int]()
        call = step.__call__

        def counted(state: ps.State, batch: Any, seen: list[int] = seen) -> Any:
            seen.append(state.counters.step)
            return state, {}

        vars(counted)["__purestate_fingerprint__"] = lambda: "counted"
        checkpoint().train(bare(), loader(), epochs=2, step=counted, guard=guard)
        assert len(seen) == calls, guard
        assert sorted(set(seen)) == [0, 1, 2, 3]
        assert call is not None


def test_what_a_step_draws_follows_from_key_and_counter():
    drawn = list[Any]()

    def step(state: ps.State, batch: Any) -> tuple[ps.State, dict[str, Any]]:
        drawn.append((state.key, state.counters.step, torch.rand(()).item(), np.random.rand()))
        return state, {}

    vars(step)["__purestate_fingerprint__"] = lambda: "draws"
    s0 = bare()
    s1 = checkpoint().train(s0, loader(), epochs=1, step=step, guard="off")
    first = drawn.copy()
    checkpoint().train(s1, loader(), epochs=1, step=step, guard="off")
    assert [(key, n) for key, n, *_ in drawn] == [(s0.key, 0), (s0.key, 1), (s1.key, 2), (s1.key, 3)]
    assert len({tuple(values) for _, _, *values in drawn}) == 4
    drawn.clear()
    checkpoint().train(s0, loader(), epochs=1, step=step, guard="off")
    assert drawn == first
