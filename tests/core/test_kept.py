"""Captures that outlive an op: used again, compared again, let go with the recipe, and private to nobody's tensors."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

import purestate as ps
from purestate.core import _kept as kept
from purestate.core import _ops as ops
from purestate.core import _runners
from purestate.core._metrics import metric_accuracy
from purestate.core._state import State
from purestate.data._feed import feed
from tests.core.loop import run
from tests.helpers import ConvNet, Linear, Mlp, batch

TRAIN = [batch(4, seed=i) for i in range(3)]
SCALE = {"scale": 1.0}


def state(module: Any = Mlp, **setup: Any) -> State:
    loss = {} if "loss" in setup else {"loss_cls": nn.CrossEntropyLoss}
    setup = loss | {"optimizer_cls": Adam, "optimizer_args": dict(lr=0.05)} | setup
    return ps.setup(ps.init(module, seed=1), **setup)


def scaled(pred: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(pred * SCALE["scale"], target)


class Traces:
    """Counts captures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from purestate.core import _capture

        self.count = 0
        original = _capture.written_out

        def written_out(*arguments: Any) -> Any:
            self.count += 1
            return original(*arguments)

        monkeypatch.setattr(_capture, "written_out", written_out)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    return Traces(monkeypatch)


def fresh(s: State, *arguments: Any, **more: Any) -> list[ops.Epoch]:
    """Run an op that finds nothing captured."""
    held = dict(kept._templates)
    kept._templates.clear()
    try:
        return run(s, *arguments, **more)
    finally:
        kept._templates.clear()
        kept._templates.update(held)


def test_a_second_train_of_a_recipe_captures_nothing(traces: Traces) -> None:
    s0 = state()
    s1 = run(s0, TRAIN)[-1].state
    assert traces.count == 1
    again = run(s1, TRAIN)[-1].state
    other = ps.set_lr(s1, 0.01)
    run(other, TRAIN)
    run(ps.setup(s1, optimizer_cls=SGD, optimizer_args=dict(lr=0.1)), TRAIN)
    assert traces.count == 1
    assert again == fresh(s1, TRAIN)[-1].state


@pytest.mark.parametrize(
    "change", [dict(loss_cls=nn.MultiMarginLoss), dict(precision="bfloat16"), dict(loss=nn.CrossEntropyLoss(label_smoothing=0.1))]
)
def test_what_the_step_is_made_of_is_captured_by_itself(traces: Traces, change: dict[str, Any]) -> None:
    s0 = state()
    run(s0, TRAIN)
    s1 = ps.setup(s0, **change)
    found = run(s1, TRAIN)[-1].state
    assert traces.count == 2
    assert found == fresh(s1, TRAIN)[-1].state
    run(s0, TRAIN, metrics=[metric_accuracy])
    assert traces.count == 4


def test_a_global_that_changed_between_ops_is_captured_anew(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    s0 = state(loss=scaled)
    first = run(s0, TRAIN)[-1].state
    monkeypatch.setitem(SCALE, "scale", 2.0)
    second = run(s0, TRAIN)[-1].state
    assert traces.count == 2
    assert second == fresh(s0, TRAIN)[-1].state
    assert second != first


def test_an_attribute_of_the_loss_that_shows_in_no_first_batch_is_noticed(traces: Traces) -> None:
    s0 = state(loss=nn.CrossEntropyLoss())
    only = [(x, torch.zeros_like(y)) for x, y in TRAIN]
    run(s0, only)
    assert s0.recipe is not None
    s0.recipe.loss.ignore_index = 1
    data = [*only, *TRAIN]
    assert run(s0, data)[-1].state == fresh(s0, data)[-1].state
    assert traces.count == 3  # the last in `fresh`


def test_a_tensor_that_is_no_argument_is_not_kept(traces: Traces) -> None:
    weight = torch.tensor([1.0, 1.0])
    s0 = state(loss=nn.CrossEntropyLoss(weight=weight))
    run(s0, TRAIN)
    run(s0, TRAIN)
    assert traces.count == 2


def test_what_cannot_be_captured_is_not_tried_again(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    from purestate.core._capture import Runner

    tried: list[Runner] = []
    original = Runner._trace
    monkeypatch.setattr(Runner, "_trace", lambda self, *rest: (tried.append(self), original(self, *rest))[1])
    s0 = state(loss=lambda pred, target: nn.functional.cross_entropy(pred, target) * float(pred.detach().abs().max()))
    told: list[list[str]] = []
    for _ in range(2):
        told.append([])
        run(s0, TRAIN, notices=told[-1])
    assert len(tried) == 1
    assert told[0] == told[1]
    assert "takes a value out of a tensor" in told[0][0]


def test_evaluations_add_up_over_ops(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runners, "_CAPTURE_EVALUATION", 4)
    s0 = state()
    values = [ops.evaluate(s0, feed(TRAIN)) for _ in range(4)]
    assert traces.count == 1
    assert values == values[:1] * 4


def test_nothing_is_kept_alive_by_what_is_kept() -> None:
    s0 = state(ConvNet)
    data = [batch(4, (1, 4, 4), seed=i) for i in range(3)]
    s1 = run(s0, data)[-1].state
    assert s0.recipe is not None
    template = weakref.ref(s0.recipe.template)
    tensors = [weakref.ref(t) for s in (s0, s1) for leaves in (s.params, s.buffers) for t in leaves.values()]
    tensors += [weakref.ref(t) for pair in data for t in pair]
    assert s1.optimizer is not None
    tensors += [weakref.ref(t) for t in s1.optimizer.leaves.values()]
    number = id(s0.recipe.template)
    assert number in kept._templates
    s0 = ps.init(Linear)
    data.clear()
    gc.collect()
    assert template() is not None, "s1 has it"
    del s1
    gc.collect()
    assert [t() for t in tensors if t() is not None] == []
    assert template() is None
    assert number not in kept._templates


def test_only_so_many_are_kept() -> None:
    states = [state(Linear, loss=scaled) for _ in range(12)]
    for s in states:
        run(s, TRAIN, epochs=1)
    assert len(kept._templates) <= 8


def test_two_trains_of_a_recipe_at_once_are_two_trains() -> None:
    s0 = state(optimizer_cls=SGD, optimizer_args=dict(lr=0.1, momentum=0.9))
    s1 = s0.replace(key=s0.key.fold_in(1))
    expected = [fresh(s, TRAIN, epochs=3)[-1].state for s in (s0, s1)]
    streams = [ops.train(s, feed(TRAIN)) for s in (s0, s1)]
    last: list[State] = []
    for _ in range(3):
        last = [next(stream).state.own() for stream in streams]
    for stream in streams:
        stream.close()
    assert last == expected


def test_threads_share_what_is_kept() -> None:
    s0 = state()
    starts = [s0.replace(key=s0.key.fold_in(i)) for i in range(4)]
    expected = [fresh(s, TRAIN, epochs=3)[-1].state for s in starts]
    found: dict[int, State] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: run(starts[i], TRAIN, epochs=3)[-1].state})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == expected
