"""The working set: it owns what it writes, lends what it has, and knows how to combine two states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

import purestate as ps
from purestate.core._optim import stored_learning_rates
from purestate.core._state import State
from purestate.core._tree import Leaves
from purestate.core._work import Working, combine, isolated
from purestate.errors import UnsupportedError
from tests.core.loop import run
from tests.helpers import ConvNet, Mlp, assert_trees_identical, batch

SHAPE = (1, 4, 4)
TRAIN = [batch(4, SHAPE, seed=i) for i in range(3)]


def state(**setup: Any) -> State:
    setup = {"loss_cls": nn.CrossEntropyLoss, "optimizer_cls": Adam, "optimizer_args": dict(lr=0.05)} | setup
    return ps.setup(ps.init(ConvNet, seed=1), **setup)


def pointers(*trees: Any) -> set[int]:
    return {t.data_ptr() for tree in trees for t in tree.values() if t.numel()}


def test_nothing_of_the_state_is_written() -> None:
    s0 = run(state(epoch_scheduler_cls=StepLR, epoch_scheduler_args=dict(step_size=1)), TRAIN)[-1].state
    assert s0.optimizer is not None
    work = Working(s0)
    lent = work.lend()
    assert lent == s0
    assert lent.optimizer is not None
    theirs = pointers(s0.params, s0.buffers, s0.optimizer.leaves)
    assert theirs.isdisjoint(pointers(lent.params, lent.buffers, lent.optimizer.leaves))
    work.update({name: torch.ones_like(t) for name, t in work.params.items()}, work.buffers)
    work.epoch_scheduler(None)
    s0.verify()
    assert work.lend().digests["epoch_scheduler"] != s0.digests["epoch_scheduler"]


def test_what_is_lent_shares_memory_and_notices_steps() -> None:
    work = Working(state())
    lent = work.lend()
    assert pointers(lent.params) == pointers(work.params)
    lent.check()
    work.update({name: torch.ones_like(t) for name, t in work.params.items()}, work.buffers)
    with pytest.raises(ps.PureStateError, match="was changed in place"):
        lent.check()
    for steps in range(1, 4):
        lent = work.lend()
        assert lent.counters.step == steps
        assert lent.optimizer is not None
        lent.check()
        work.update({name: torch.ones_like(t) for name, t in work.params.items()}, work.buffers)
        for part in (lent.params, lent.optimizer.leaves):
            assert isinstance(part, Leaves)
            with pytest.raises(ps.PureStateError, match="was changed in place"):
                part.check()


def test_a_parameter_without_gradient_stays() -> None:
    s0 = state()
    work = Working(s0)
    work.update({name: None if "conv" in name else torch.ones_like(t) for name, t in work.params.items()}, work.buffers)
    lent = work.lend()
    moved = {name for name in lent.params if lent.params.hashes[name] != s0.params.hashes[name]}
    assert moved == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_assigned_buffers_are_taken_with_shape_and_strides() -> None:
    work = Working(state())
    mine = work.buffers["norm.running_mean"]
    new = torch.arange(4.0)
    work.update({}.fromkeys(work.params), {**work.buffers, "norm.running_mean": new})
    assert work.buffers["norm.running_mean"] is mine
    assert mine.tolist() == new.tolist()
    strided = torch.arange(8.0)[::2]
    longer = torch.arange(7.0)
    for value in (strided, longer):
        work.update({}.fromkeys(work.params), {**work.buffers, "norm.running_mean": value})
        held = work.buffers["norm.running_mean"]
        assert held.tolist() == value.tolist()
        assert held.data_ptr() != value.data_ptr()
        assert work.lend().buffers["norm.running_mean"] is held


def test_rates_are_put_back_as_the_very_objects() -> None:
    lr = torch.tensor(0.05)
    work = Working(state(optimizer_cls=SGD, optimizer_args=dict(lr=lr)))
    before = work.optimizer.param_groups[0]["lr"]
    work.set_rates(work.rates(), 0.5)
    assert work.rates() == [pytest.approx(0.025)]
    assert isinstance(work.optimizer.param_groups[0]["lr"], torch.Tensor)
    work.set_rates([float(before)], 0.25)
    work.restore_rates()
    assert work.optimizer.param_groups[0]["lr"] is before
    work.set_all_rates(3.0)
    assert work.rates() == [3.0]


def test_without_trainable_parameters() -> None:
    with pytest.raises(UnsupportedError, match=r"^train: the state has no trainable parameters\.\nUnfreeze some: ps\.unfreeze"):
        Working(ps.setup(ps.init(lambda: Mlp().requires_grad_(False)), optimizer_cls=SGD))


def test_combine_takes_tensors_of_the_best_and_the_rest_of_the_last() -> None:
    s0 = state(epoch_scheduler_cls=StepLR, epoch_scheduler_args=dict(step_size=1, gamma=0.5))
    best, last = (epoch.state for epoch in run(s0, TRAIN, epochs=2))
    out = combine(best, last)
    assert (out.params.digest, out.buffers.digest) == (best.params.digest, best.buffers.digest)
    assert out.digests["epoch_scheduler"] == last.digests["epoch_scheduler"]
    assert (out.key, out.counters) == (last.key, last.counters)
    assert out.optimizer is not None
    assert best.optimizer is not None
    assert last.optimizer is not None
    assert stored_learning_rates(out.optimizer) == stored_learning_rates(last.optimizer) == [0.0125]
    assert_trees_identical(dict(out.optimizer.leaves), dict(best.optimizer.leaves))
    assert run(out, TRAIN, epochs=1)[0].lr == [0.0125]
    assert combine(last, last) == last


def test_combine_with_the_state_before_the_first_step() -> None:
    s0 = state()
    (last,) = run(s0, TRAIN, epochs=1)
    out = combine(s0, last.state)
    assert out.params.digest == s0.params.digest
    assert out.counters == last.state.counters
    (again,) = run(out, TRAIN, epochs=1)
    fresh = s0.replace(key=out.key, counters=out.counters)
    (expected,) = run(fresh, TRAIN, epochs=1)
    assert again.state.params.digest == expected.state.params.digest


def _fail() -> None:
    with isolated(state()):
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (True, False)
        assert not torch.is_autocast_enabled("cpu")
        torch.rand(3)
        raise KeyError


def test_isolated_puts_everything_back() -> None:
    before = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(KeyError):
            _fail()
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (False, True)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), before)


class Watching:
    """A scheduler of the user's that looks at how many steps each parameter has taken."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.seen = optimizer, list[float]()

    def step(self) -> None:
        self.seen += [float(slots["step"]) for slots in self.optimizer.state.values()]


def test_a_scheduler_sees_the_counters_of_every_parameter() -> None:
    for name, each in (("step_scheduler", 3), ("epoch_scheduler", 1)):
        work = Working(state(**{f"{name}_fn": Watching}))
        for _ in range(3):
            work.update({n: torch.ones_like(t) for n, t in work.params.items()}, work.buffers)
            work.step_scheduler()
        work.epoch_scheduler(None)
        seen = work._schedulers[name].scheduler.seen
        counts = range(1, 4) if each == 3 else [3]
        assert seen == [float(n) for n in counts for _ in work.params]
