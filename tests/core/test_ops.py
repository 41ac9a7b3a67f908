"""The ops: what is lent, cut, watched, warmed up and refused; what they leave alone."""

from __future__ import annotations

import itertools
import random
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import purestate as ps
from purestate.core import _ops as ops
from purestate.core._capture import Runner
from purestate.core._key import Key
from purestate.core._seeds import preserved_generators
from purestate.core._state import State
from purestate.data._feed import feed
from purestate.errors import MutatedStateError, NonFiniteLossError, SetupError, UnsupportedError
from tests.core.loop import HandWritten, run
from tests.helpers import Linear, Mlp, assert_trees_identical, batch

TRAIN = [batch(4, seed=i) for i in range(4)] + [batch(2, seed=9)]
VAL = [batch(6, seed=20), batch(3, seed=21)]


def state(model: type[nn.Module] = Mlp, **setup: Any) -> State:
    setup = {"loss_cls": nn.CrossEntropyLoss, "optimizer_cls": Adam, "optimizer_args": dict(lr=0.05)} | setup
    return ps.setup(ps.init(model, seed=1), **setup)


# -------------------------------------------------------------------- lending


def test_states_are_lent_until_the_next_epoch() -> None:
    s0 = state()
    before = s0.own()
    stream = ops.train(s0, feed(TRAIN), feed(VAL))
    zero, one = next(stream), next(stream)
    kept, lent, digest = one.state.own(), one.state, one.state.params.digest
    assert kept == lent
    next(stream)
    kept.verify()
    assert kept.params.digest == digest
    with pytest.raises(MutatedStateError, match=r"What a train in progress lends is kept by epoch\.state\.own\(\)"):
        lent.check()
    for use in (lent.own, lambda: ops.evaluate(lent, feed(VAL)), lambda: ps.make_step(lent)(lent, TRAIN[0])):
        with pytest.raises(MutatedStateError):
            use()
    stream.close()
    assert (zero.n, zero.state.params.digest, zero.state.counters) == (0, s0.params.digest, s0.counters)
    s0.verify()
    assert s0 == before


def test_epochs_counters_and_keys() -> None:
    s0 = state()
    first = run(s0, TRAIN, VAL, epochs=2)
    assert [e.n for e in first] == [e.epoch for e in first] == [0, 1, 2]
    assert [e.state.counters.step for e in first] == [0, 5, 10]
    assert [e.state.key for e in first] == [ops.advanced(s0.key, n) for n in range(3)]
    second = run(first[-1].state, TRAIN, VAL, epochs=1)
    assert [(e.n, e.epoch, e.state.counters.epoch, e.state.counters.step) for e in second] == [(0, 2, 2, 10), (1, 3, 3, 15)]
    assert len({e.state.hash for e in (*first, *second)}) == 5  # the evaluation before an op advances the key, too
    assert [e.n for e in run(s0, TRAIN, epochs=2)] == [1, 2]


def test_metrics_are_means_over_samples() -> None:
    s0 = state(Linear)
    metric = ps.metric("first", higher_is_better=False)(lambda y_pred, y_true: y_pred[:, 0].sum())
    zero, one = run(s0, TRAIN, VAL, epochs=1, metrics=[ps.metric_accuracy, metric])
    assert list(one.metrics) == [f"{split}_{name}" for split in ("train", "val") for name in ("loss", "accuracy", "first")]
    assert list(zero.metrics) == ["val_loss", "val_accuracy", "val_first"]
    net = ps.to_module(s0, _quiet(Linear))
    with torch.no_grad():
        outputs, y = torch.cat([net(x) for x, _ in VAL]), torch.cat([y for _, y in VAL])
    assert zero.metrics["val_accuracy"] == float((outputs.argmax(-1) == y).sum()) / 9
    # sums of float32 in another order
    assert zero.metrics["val_first"] == pytest.approx(float(outputs[:, 0].mean()), rel=1e-5)
    assert zero.metrics["val_loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, y)), rel=1e-6)
    assert zero.metrics == {f"val_{k}": v for k, v in ops.evaluate(s0, feed(VAL), metrics=[ps.metric_accuracy, metric]).items()}
    assert all(type(value) is float for value in one.metrics.values())


def _quiet(cls: type[nn.Module]) -> nn.Module:
    with preserved_generators():
        return cls()


# -------------------------------------------------------------------- what must not matter


def _generators() -> list[Any]:
    kind, words, *rest = np.random.get_state()
    return [torch.get_rng_state().tolist(), kind, words.tolist(), rest, random.getstate()]


def test_generators_are_untouched_at_a_yield_and_after_an_exception() -> None:
    before = _generators()
    stream = ops.train(state(), feed(TRAIN), feed(VAL))
    for _ in range(3):
        next(stream)
        assert _generators() == before
    stream.close()
    assert _generators() == before
    bad = [*TRAIN[:2], (torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64))]
    for op in (lambda f: next(ops.train(state(), f)), lambda f: ops.evaluate(state(), f), lambda f: ops.find_lr(state(), f)):
        with pytest.raises((RuntimeError, ValueError)):
            op(feed(bad))
        assert _generators() == before


@pytest.mark.moves_generators
def test_what_the_caller_draws_between_epochs_does_not_count() -> None:
    s0 = state()
    quiet = [e.state.hash for e in run(s0, TRAIN, VAL, epochs=3)]
    hashes = []
    for i, epoch in enumerate(ops.train(s0, feed(TRAIN), feed(VAL))):
        hashes.append(epoch.state.hash)
        torch.rand(i + 1), np.random.rand(), random.random()
        ops.evaluate(epoch.state, feed(TRAIN))
        ops.find_lr(epoch.state, feed(TRAIN))
        ops.predict(epoch.state, feed(TRAIN))
        torch.manual_seed(i)
        if epoch.n == 3:
            break
    assert hashes == quiet


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16), nullcontext],
    ids=["no_grad", "inference_mode", "autocast", "nothing"],
)
def test_what_the_caller_switched_does_not_count(around: Any) -> None:
    s0 = state()
    expected = run(s0, TRAIN, VAL, epochs=2)
    reads = ops.evaluate(s0, feed(VAL)), ops.find_lr(s0, feed(TRAIN)), ops.predict(s0, feed(VAL))
    step, _ = ps.make_step(s0)(s0, TRAIN[0])
    context: AbstractContextManager[Any] = around()
    with context:
        assert [e.state.hash for e in run(s0, TRAIN, VAL, epochs=2)] == [e.state.hash for e in expected]
        assert_trees_identical([ops.evaluate(s0, feed(VAL)), ops.find_lr(s0, feed(TRAIN))], list(reads[:2]))
        assert_trees_identical(ops.predict(s0, feed(VAL)), reads[2])
        assert ps.make_step(s0)(s0, TRAIN[0])[0] == step
        stream = ops.train(s0, feed(TRAIN))
        next(stream)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")) == _modes(around)
        stream.close()


def _modes(around: Any) -> tuple[bool, bool, bool]:
    with around():
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


# -------------------------------------------------------------------- cuts and schedulers

SCHEDULES: dict[str, dict[str, Any]] = {
    "step": dict(epoch_scheduler_cls=StepLR, epoch_scheduler_args=dict(step_size=1, gamma=0.5)),
    "cycle": dict(
        optimizer_cls=SGD,
        optimizer_args=dict(lr=0.01, momentum=0.9),
        step_scheduler_cls=OneCycleLR,
        step_scheduler_args=dict(max_lr=0.2, total_steps=25),
    ),
    "both": dict(
        epoch_scheduler_cls=StepLR,
        epoch_scheduler_args=dict(step_size=2),
        step_scheduler_cls=StepLR,
        step_scheduler_args=dict(step_size=3, gamma=0.9),
    ),
    "plateau": dict(epoch_scheduler_cls=ReduceLROnPlateau, epoch_scheduler_args=dict(patience=0, factor=0.5, threshold=10.0)),
}


@pytest.mark.parametrize("warmup", [0, 1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cut_leaves_no_trace(schedule: str, warmup: int) -> None:
    s0 = state(**SCHEDULES[schedule])
    whole = run(s0, TRAIN, VAL, epochs=3, warmup=warmup)
    rest = run(whole[2].state, TRAIN, VAL, epochs=1, warmup=warmup, key=s0.key, done=2)
    assert [(e.n, e.epoch, e.metrics, e.lr, e.state.hash) for e in rest] == [
        (e.n, e.epoch, e.metrics, e.lr, e.state.hash) for e in whole[3:]
    ]
    again = run(whole[1].state, TRAIN, VAL, epochs=2, warmup=warmup, key=s0.key, done=1)
    assert [e.state.hash for e in again] == [e.state.hash for e in whole[2:]]


@pytest.mark.parametrize("warmup", [0, 1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_and_schedulers_are_those_of_the_hand_written_loop(schedule: str, warmup: int) -> None:
    setup = {"optimizer_cls": Adam, "optimizer_args": dict(lr=0.05)} | SCHEDULES[schedule]
    s0 = state(**setup)

    def make(kind: str) -> Any:
        cls, args = setup.get(f"{kind}_scheduler_cls"), setup.get(f"{kind}_scheduler_args", {})
        return cls and (lambda optimizer: cls(optimizer, **args))

    hand = HandWritten(
        s0,
        Mlp,
        lambda p: setup["optimizer_cls"](p, **setup["optimizer_args"]),
        epoch_scheduler=make("epoch"),
        step_scheduler=make("step"),
        warmup=warmup,
    ).train(TRAIN, VAL, epochs=3)
    _, *epochs = run(s0, TRAIN, VAL, epochs=3, warmup=warmup)
    assert [e.lr[0] for e in epochs] == hand.rates
    assert_trees_identical(epochs[-1].state.state_dict(), dict(hand.module.state_dict()))
    if warmup:
        assert epochs[warmup - 1].lr[0] == hand.optimizer.defaults["lr"] or schedule == "cycle"


def test_a_plateau_steps_on_what_is_watched() -> None:
    args = dict(patience=0, factor=0.5, mode="max", threshold=0.0)
    s0 = state(epoch_scheduler_cls=ReduceLROnPlateau, epoch_scheduler_args=args)
    metrics = [ps.metric_accuracy]
    _, *epochs = run(s0, TRAIN, VAL, epochs=5, metrics=metrics, watch="accuracy")
    scheduler = ReduceLROnPlateau(SGD([nn.Parameter(torch.zeros(1))], lr=0.05), **args)
    rates = []
    for epoch in epochs:
        rates.append(scheduler.get_last_lr())
        scheduler.step(epoch.metrics["val_accuracy"])
    assert [e.lr for e in epochs] == rates
    assert len({rate for (rate,) in rates}) > 1
    assert run(s0, TRAIN, VAL, epochs=5)[-1].state != epochs[-1].state  # there it was the loss


def test_a_plateau_needs_something_to_watch() -> None:
    s0 = state(epoch_scheduler_cls=ReduceLROnPlateau)
    with pytest.raises(SetupError, match=r"^train: the epoch_scheduler ReduceLROnPlateau steps on a validation metric") as caught:
        run(s0, TRAIN)
    assert caught.value.argument == "epoch_scheduler"
    with pytest.raises(SetupError, match="ReduceLROnPlateau"):
        run(s0, TRAIN, VAL, watch="accuracy")


# -------------------------------------------------------------------- clipping and precision


@pytest.mark.parametrize(
    ("setup", "clip"),
    [
        (dict(clip_grad_norm=0.1), lambda p: nn.utils.clip_grad_norm_(p, 0.1)),
        (dict(clip_grad_value=0.01), lambda p: nn.utils.clip_grad_value_(p, 0.01)),
        (
            dict(clip_grad_norm=0.1, clip_grad_value=0.01),
            lambda p: (nn.utils.clip_grad_norm_(p, 0.1), nn.utils.clip_grad_value_(p, 0.01)),
        ),
    ],
)
def test_clipping_is_that_of_torch(setup: dict[str, Any], clip: Any) -> None:
    s0 = state(optimizer_cls=SGD, **setup)
    hand = HandWritten(s0, Mlp, lambda p: SGD(p, lr=0.05), clip=clip).train(TRAIN)
    last = run(s0, TRAIN)[-1].state
    assert_trees_identical(last.state_dict(), dict(hand.module.state_dict()))
    assert last.params.digest != run(state(optimizer_cls=SGD), TRAIN)[-1].state.params.digest


def test_bfloat16_is_autocast() -> None:
    s0 = state(precision="bfloat16")
    hand = HandWritten(s0, Mlp, lambda p: Adam(p, lr=0.05), autocast=torch.bfloat16).train(TRAIN)
    last = run(s0, TRAIN)[-1].state
    assert_trees_identical(last.state_dict(), dict(hand.module.state_dict()))
    assert {t.dtype for t in last.params.values()} == {torch.float32}
    assert last.params.digest != run(state(), TRAIN)[-1].state.params.digest
    assert ops.evaluate(last, feed(VAL)) != ops.evaluate(ps.setup(last, precision="float32"), feed(VAL))


# -------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named(value: float) -> None:
    s0 = state()
    (one,) = run(s0, TRAIN, epochs=1)
    poisoned = [*TRAIN[:3], (torch.full((4, 3), value), TRAIN[3][1]), TRAIN[4]]
    with pytest.raises(NonFiniteLossError, match=r"^train: the loss became nan in epoch 2, step 4\.") as caught:
        run(one.state, poisoned, epochs=1)
    assert (caught.value.epoch, caught.value.step) == (2, 4)
    assert isinstance(caught.value, ArithmeticError)
    one.state.verify()


def test_what_ops_need() -> None:
    bare, loss = ps.init(Mlp), ps.setup(ps.init(Mlp), loss_cls=nn.CrossEntropyLoss)
    for op, name in ((ops.train, "train"), (ops.find_lr, "find_lr"), (ops.evaluate, "evaluate")):
        with pytest.raises(SetupError, match=rf"^{name}: the state has no loss\.\nGive it one"):
            _drain(op(bare, feed(TRAIN)))
    for op, name in ((ops.train, "train"), (ops.find_lr, "find_lr")):
        with pytest.raises(SetupError, match=rf"^{name}: the state has no optimizer"):
            _drain(op(loss, feed(TRAIN)))
    assert len(ops.predict(bare, feed(TRAIN))) == 5
    with pytest.raises(UnsupportedError, match=r"^train: the state has no trainable parameters"):
        run(state(lambda: Mlp().requires_grad_(False)), TRAIN)


def _drain(found: Any) -> None:
    next(found)


def test_changed_states_are_refused() -> None:
    s0 = state()
    s0.params["net.0.bias"].add_(1)
    for op in (ops.train, ops.evaluate, ops.find_lr, ops.predict):
        with pytest.raises(MutatedStateError):
            _drain(op(s0, feed(TRAIN)))


class Counting(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 if float(x.sum()) < 1e9 else 2)  # a branch that depends on data


def test_a_step_that_cannot_be_captured_is_told_once_and_gives_the_same() -> None:
    notices: list[str] = []
    epochs = run(state(Counting), TRAIN, VAL, epochs=3, notices=notices)
    assert len(notices) == 1
    assert "takes a value out of a tensor" in notices[0]
    assert_trees_identical(epochs[-1].state.state_dict(), run(state(), TRAIN, VAL, epochs=3)[-1].state.state_dict())


class Source:
    """A feed that knows whether it was closed."""

    batches, samples = 5, 18

    def __init__(self) -> None:
        self.open = 0

    def epoch(self, key: Key, start: int = 0, position: Any = None) -> Any:
        self.open += 1
        try:
            yield from TRAIN
        finally:
            self.open -= 1

    def close(self) -> None: ...


def test_feeds_are_closed() -> None:
    source = Source()
    stream = ops.train(state(), source, source)
    next(stream), next(stream)
    assert source.open == 0
    stream.close()

    def fail(y_pred: Any, y_true: Any) -> Any:
        raise KeyError("no")

    for op in (ops.train, ops.evaluate):
        with pytest.raises(KeyError):
            _drain(op(state(), source, metrics=[ps.metric("bad")(fail)]))
        assert source.open == 0


# -------------------------------------------------------------------- find_lr and predict


def test_find_lr_sweeps_and_suggests() -> None:
    s0 = state(optimizer_cls=SGD, epoch_scheduler_cls=StepLR, epoch_scheduler_args=dict(step_size=1))
    rates, losses, suggestion = ops.find_lr(s0, feed(TRAIN), min_rate=1e-4, max_rate=1.0, epochs=4)
    assert len(rates) == len(losses) == 20
    assert (rates[0], rates[-1]) == (1e-4, pytest.approx(1.0))
    assert all(b / a == pytest.approx(1e4 ** (1 / 19)) for a, b in itertools.pairwise(rates))
    assert suggestion in rates
    assert ops.find_lr(s0, feed(TRAIN), min_rate=1e-4, max_rate=1.0, epochs=4) == (rates, losses, suggestion)
    hand = ps.setup(s0, clear_epoch_scheduler=True)
    assert ops.find_lr(hand, feed(TRAIN), min_rate=1e-4, max_rate=1.0, epochs=4) == (rates, losses, suggestion)


def test_find_lr_ends_where_the_loss_is_not_finite() -> None:
    s0 = state(Linear, loss_cls=nn.CrossEntropyLoss, optimizer_cls=SGD)
    poisoned = [*TRAIN[:3], (torch.full((4, 3), float("inf")), TRAIN[3][1]), TRAIN[4]]
    rates, losses, _ = ops.find_lr(s0, feed(poisoned), epochs=2)
    assert len(rates) == len(losses) == 3
    assert losses == ops.find_lr(s0, feed(TRAIN), epochs=2)[1][:3]
    assert ops.find_lr(s0, feed(TRAIN[:1])) == ([1e-8], losses[:1], None)


@pytest.mark.parametrize(
    "bad",
    [
        dict(min_rate=0.0),
        dict(min_rate=2.0),
        dict(max_rate=1e-9),
        dict(epochs=0),
        dict(epochs=1.5),
        dict(min_rate="a"),
        dict(min_rate=float("nan")),
    ],
)
def test_what_find_lr_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=r"^find_lr: expected 0 < min_rate < max_rate and a whole number of epochs"):
        ops.find_lr(state(), feed(TRAIN), **bad)


def test_predict_is_the_module_in_eval_mode() -> None:
    s0 = state()
    net = ps.to_module(s0, _quiet(Mlp)).eval()
    with torch.no_grad():
        expected = [net(x) for x, _ in VAL]
    outputs = ops.predict(s0, feed(VAL))
    assert_trees_identical(outputs, expected)
    assert not any(t.requires_grad for t in outputs)
    for t in outputs:
        t.add_(1)
    s0.verify()
    assert_trees_identical(ops.predict(s0, feed(VAL)), expected)


def test_an_epoch_of_exactly_a_thousand_steps() -> None:
    """Losses are looked at once in a thousand steps, and none may be left over at the end."""
    (epoch,) = run(state(), [TRAIN[0]] * 1000, epochs=1)
    assert epoch.state.counters.step == 1000


def test_one_set_of_gradients_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    original = Runner.__call__

    def call(self: Runner, *arguments: Any) -> Any:
        assert [ref() for ref in alive if ref() is not None] == []
        out = original(self, *arguments)
        alive.extend(weakref.ref(g) for g in out.gradients.values() if g is not None)
        return out

    monkeypatch.setattr(Runner, "__call__", call)
    for clip in (None, 1.0):
        run(state(clip_grad_norm=clip), TRAIN, epochs=3)
    assert len(alive) > 20
