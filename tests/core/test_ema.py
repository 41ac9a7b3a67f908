"""The average of the parameters: bit for bit that of `torch.optim.swa_utils.AveragedModel`, owned, and asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import purestate as ps
from purestate.core._state import State
from purestate.core._tree import Leaves
from purestate.core._work import Working, combine
from purestate.errors import SetupError, StateError, TreeMismatchError
from tests.core.loop import HandWritten, run
from tests.helpers import ConvNet, Mlp, assert_trees_identical, batch, build

IMAGES = [batch(4, (1, 4, 4), seed=i) for i in range(3)]
POINTS = [batch(4, seed=i) for i in range(3)]


class Wide(Mlp):
    """Long enough for an optimizer to be given pieces of it, and with a parameter of another dtype."""

    def __init__(self) -> None:
        super().__init__(hidden=9001)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale.float()


Plain = partial(Mlp, dropout=0.0)
"""Draws nothing: two ops in a row compute what one loop does."""


def channels_last() -> nn.Module:
    return ConvNet().to(memory_format=torch.channels_last)


def state(module: Callable[[], nn.Module] = Mlp, **setup: Any) -> State:
    setup = {"loss_cls": nn.CrossEntropyLoss, "optimizer_cls": torch.optim.Adam, "optimizer_args": dict(lr=0.05)} | setup
    return ps.setup(ps.init(module, seed=1), **setup)


class Torch(HandWritten):
    """The loop of everybody, with torch's average in it."""

    def __init__(self, state: State, build: Callable[[], nn.Module] = Plain) -> None:
        super().__init__(state, build, partial(torch.optim.Adam, lr=0.05))
        self.average: AveragedModel | None = None

    def begin(self, decay: float) -> Torch:
        """Average from now on; the first update is a copy."""
        self.average = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.average.update_parameters(self.module)
        return self._follow()

    def freeze(self, prefix: str) -> Torch:
        """Take parameters out of training, and go on with a new optimizer and the same average."""
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not name.startswith(prefix))
        self.optimizer = torch.optim.Adam([p for p in self.module.parameters() if p.requires_grad], lr=0.05)
        return self._follow()

    def _follow(self) -> Torch:
        if (average := self.average) is not None:
            self.optimizer.register_step_post_hook(lambda *_: average.update_parameters(self.module))
        return self

    @property
    def ema(self) -> dict[str, torch.Tensor]:
        """The average of what is in training."""
        assert self.average is not None
        trained = {name for name, p in self.module.named_parameters() if p.requires_grad}
        return {name: p.detach() for name, p in self.average.module.named_parameters() if name in trained}


def ema(state: State) -> dict[str, torch.Tensor]:
    assert state.ema is not None
    return dict(state.ema)


@pytest.mark.parametrize(
    ("module", "batches", "decay"),
    [(Mlp, POINTS, 0.999), (ConvNet, IMAGES, 0.9), (channels_last, IMAGES, 0.3), (Wide, POINTS, 0.99), (Mlp, POINTS, 0)],
    ids=["mlp", "conv", "channels_last", "wide", "none of it stays"],
)
def test_it_is_the_average_of_torch(module, batches, decay):
    s0 = state(module, ema_decay=decay)
    last = run(s0, batches, epochs=3)[-1].state
    theirs = Torch(s0, module).begin(decay).train(batches, epochs=3)
    assert_trees_identical(dict(last.params), {name: p.detach() for name, p in theirs.module.named_parameters()})
    assert_trees_identical(ema(last), theirs.ema, strides=True)
    assert (last.ema != last.params) == (decay != 0)
    without = run(state(module), batches, epochs=3)[-1].state
    assert ps.setup(last, clear_ema=True) == without, "it moves nothing else"


def test_begun_late_it_is_the_average_of_torch():
    s0 = state(Plain)
    s1 = run(s0, POINTS)[-1].state
    theirs = Torch(s0).train(POINTS).begin(0.9).train(POINTS)
    s2 = run(ps.setup(s1, ema_decay=0.9), POINTS)[-1].state
    assert_trees_identical(ema(s2), theirs.ema)
    again = run(ps.setup(s2, ema_decay=0.5), POINTS)[-1].state
    assert again.ema != run(ps.setup(ps.setup(s2, clear_ema=True), ema_decay=0.5), POINTS)[-1].state.ema, "it went on"


def test_after_freeze_it_is_the_average_of_torch():
    s0 = state(Plain, ema_decay=0.9)
    s1 = run(s0, POINTS)[-1].state
    frozen = ps.freeze(s1, "net.0.*")
    s2 = run(frozen, POINTS)[-1].state
    theirs = Torch(s0).begin(0.9).train(POINTS).freeze("net.0.").train(POINTS)
    assert list(ema(s2)) == list(s2.params) == ["net.3.weight", "net.3.bias"]
    assert_trees_identical(ema(s2), theirs.ema)
    back = ps.unfreeze(s2, "*")
    assert_trees_identical(ema(back), {name: {**s2.frozen, **ema(s2)}[name] for name in back.params})


@pytest.fixture(scope="module")
def compiled() -> tuple[State, list[State]]:
    """A compiled train with epochs of one batch, which are steps. Compiling leaves a variable in the environment."""
    s0 = state(Plain, ema_decay=0.9, compile="inductor")
    return s0, [epoch.state for epoch in run(s0, POINTS[:1], epochs=4)]


def test_a_compiled_step_is_followed_too(compiled):
    s0, states = compiled
    module = ps.to_module(s0, build(Plain))
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(module)
    for after in states:
        average.update_parameters(ps.to_module(after, module))
        assert_trees_identical(ema(after), {name: p.detach() for name, p in average.module.named_parameters()})
    assert len({after.params.digest for after in states}) == len(states)


def test_make_step_takes_it_along():
    s0 = state(ema_decay=0.9)
    s1, _ = ps.make_step(s0)(s0, POINTS[0])
    assert_trees_identical(ema(s1), {name: t.lerp(s1.params[name], 1 - 0.9) for name, t in s0.params.items()})


def test_it_is_owned_and_lent():
    s0 = run(state(ema_decay=0.5), POINTS)[-1].state
    work = Working(s0)
    lent = work.lend()
    assert lent == s0
    held = lent.own()
    gradients = {name: torch.ones_like(t) for name, t in work.params.items()}
    for _ in range(3):
        lent = work.lend()
        work.update(gradients, work.buffers)
        assert lent.ema is not None
        with pytest.raises(ps.PureStateError, match=r"^ema\['net.0.weight'\] was changed in place"):
            lent.ema.check()
    s0.verify()
    held.verify()


def test_the_best_comes_with_its_average():
    best, last = (epoch.state for epoch in run(state(ema_decay=0.9), POINTS))
    out = combine(best, last)
    assert (out.params, out.ema) == (best.params, best.ema) != (last.params, last.ema)


def test_averaged_has_it_in_the_place_of_the_parameters():
    s1 = run(state(ConvNet, ema_decay=0.9), IMAGES)[-1].state
    average = ps.averaged(s1)
    assert [leaf.path for leaf in ps.diff(s1, average)] == [f"params[{name!r}]" for name in s1.params]
    assert average.origin.acts[-1] == {"averaged": True}
    module = ps.to_module(average, build(ConvNet))
    assert_trees_identical({name: p.detach() for name, p in module.named_parameters()}, ema(s1))
    assert ps.averaged(average) == average
    head = ps.freeze(average, "conv.*")
    assert_trees_identical(dict(head.frozen), {name: t for name, t in ema(s1).items() if name.startswith("conv")})


def test_find_lr_has_none():
    from purestate.core._find_lr import find_lr
    from purestate.data._feed import feed

    assert find_lr(state(ema_decay=0.9), feed(POINTS)) == find_lr(state(), feed(POINTS))


def test_setup_decides():
    s0 = state()
    on = ps.setup(s0, ema_decay=1)
    assert on.recipe is not None
    assert (on.recipe.ema_decay, type(on.recipe.ema_decay)) == (1.0, float)
    assert "ema" in repr(on)
    assert "ema" not in repr(s0)
    assert on.ema is s0.params, "no copy before it differs"
    assert ps.setup(on, clear_ema=True) == s0
    assert ps.setup(on, precision="bfloat16").ema is on.ema
    for wrong in (-0.1, 1.1, math.nan, True, "0.9"):
        with pytest.raises(SetupError, match=r"^setup: ema_decay must be a number from 0 to 1, got ") as caught:
            ps.setup(s0, ema_decay=wrong)
        assert caught.value.argument == "ema_decay"
    with pytest.raises(SetupError, match=r"^setup: clear_ema and ema_decay were both given\.\nGive one of them\.$"):
        ps.setup(s0, ema_decay=0.9, clear_ema=True)


def test_no_average_is_left_behind_and_none_is_made_up():
    s0 = state()
    with pytest.raises(StateError, match=r"^averaged: the state has no average of its parameters\.\nHave one kept: ps\.setup"):
        ps.averaged(s0)
    with pytest.raises(StateError, match=r"^averaged: expected a State, got Mlp\."):
        ps.averaged(build(Mlp))
    with pytest.raises(SetupError, match=r"^train: the state has an average .* does not say how to keep it\.") as caught:
        run(s0.replace(ema=dict(s0.params)), POINTS)
    assert caught.value.argument == "ema_decay"
    on = state(ema_decay=0.9)
    with pytest.raises(TreeMismatchError, match=r"^ema\['net\.0\.weight'\]: expected float32\[8, 3\], got no such leaf"):
        run(on.based(ema=Leaves({})), POINTS)


def test_where_there_is_none_yet_it_begins_with_the_parameters():
    on = state(ema_decay=0.9)
    assert run(on.replace(ema=None, origin=on.origin), POINTS)[-1].state == run(on, POINTS)[-1].state
