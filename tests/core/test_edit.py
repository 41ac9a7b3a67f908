"""freeze, unfreeze and set_lr: new states, and what training then does with them."""

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
from purestate.errors import SetupError, StateError
from tests.helpers import Linear, Mlp, assert_trees_identical, batch


def state(**setup: Any) -> State:
    setup = {"loss_cls": nn.CrossEntropyLoss, "optimizer_cls": Adam, "optimizer_args": dict(lr=0.1)} | setup
    return ps.setup(ps.init(Mlp), **setup)


def stepped(s: State, n: int = 1) -> State:
    for i in range(n):
        s, _ = ps.make_step(s)(s, batch(seed=i))
    return s


def test_freeze_moves_parameters_and_leaves_the_rest() -> None:
    s0 = state()
    s1 = ps.freeze(s0, "net.0.*")
    assert (list(s1.params), list(s1.frozen)) == (["net.3.weight", "net.3.bias"], ["net.0.weight", "net.0.bias"])
    assert (list(s0.params), list(s0.frozen)) == (list(ps.init(Mlp).params), [])
    assert s1.frozen["net.0.bias"] is s0.params["net.0.bias"]
    assert s1.origin.acts[-1] == {"freeze": ["net.0.*"]}
    assert s0.recipe is not None
    assert all(p.requires_grad for p in s0.recipe.template.parameters())
    assert s1.recipe is not None
    assert [p.requires_grad for p in s1.recipe.template.parameters()] == [False, False, True, True]


def test_frozen_parameters_stay_and_the_others_train() -> None:
    s0 = state()
    s1 = ps.freeze(s0, "net.0.*")
    s2 = stepped(s1, 3)
    assert s2.frozen.digest == s1.frozen.digest
    assert all(s2.params.hashes[name] != s1.params.hashes[name] for name in s1.params)
    assert {leaf.split("/")[1] for leaf in s2.optimizer.leaves} == {"net.3.weight", "net.3.bias"}
    s1.verify()


def test_freeze_after_training_starts_the_optimizer_afresh() -> None:
    s1 = stepped(state(epoch_scheduler_cls=StepLR, epoch_scheduler_args=dict(step_size=1)), 2)
    s2 = ps.freeze(s1, "*.bias")
    assert (s2.optimizer, s2.epoch_scheduler, s2.counters) == (None, None, s1.counters)
    assert s2.digests["optimizer"].startswith("fresh:")
    s3 = stepped(s2)
    assert s3.counters.step == 3
    assert all(s3.params.hashes[name] != s1.params.hashes[name] for name in s3.params)


def test_unfreeze_is_the_way_back() -> None:
    s0 = state()
    s1 = ps.unfreeze(ps.freeze(s0, "net.0.*"), "*")
    assert s1 == s0
    assert list(s1.params) == list(s0.params)
    assert stepped(s1, 2) == stepped(s0, 2)
    s2 = ps.unfreeze(ps.freeze(s0, "*.weight", "net.0.bias"), "net.3.weight")
    assert list(s2.params) == ["net.3.weight", "net.3.bias"]


def test_frozen_in_the_module_and_by_freeze_is_the_same() -> None:
    def build() -> nn.Module:
        module = Mlp()
        module.net[0].requires_grad_(False)
        return module

    a = ps.setup(ps.init(build), loss_cls=nn.CrossEntropyLoss, optimizer_cls=Adam, optimizer_args=dict(lr=0.1))
    b = ps.freeze(state(), "net.0.*")
    assert a == b
    assert stepped(a, 2) == stepped(b, 2)
    assert list(ps.unfreeze(a, "*").params) == list(state().params)


@pytest.mark.parametrize(
    ("act", "patterns", "message"),
    [
        (
            ps.freeze,
            ["net.9.*"],
            r"^freeze: 'net\.9\.\*' matches no leaf of params; there is net\.0\.weight, net\.0\.bias, net\.3",
        ),
        (ps.freeze, ["net.0.*", "x"], r"^freeze: 'x' matches no leaf of params"),
        (ps.freeze, ["*"], r"^freeze: no trainable parameter would be left"),
        (ps.freeze, [], r"^freeze: expected at least one name or pattern"),
        (ps.unfreeze, ["*"], r"^unfreeze: '\*' matches no leaf of frozen; there is none"),
        (ps.unfreeze, [], r"^unfreeze: expected at least one name or pattern"),
    ],
)
def test_what_freeze_refuses(act: Any, patterns: list[str], message: str) -> None:
    with pytest.raises(StateError, match=message):
        act(state(), *patterns)


def test_freeze_needs_the_module() -> None:
    with pytest.raises(SetupError, match=r"^freeze: the state does not know its module"):
        ps.freeze(state().replace(recipe=None), "*")


# -------------------------------------------------------------------- set_lr


def test_set_lr_is_the_rate_of_the_next_step() -> None:
    s1 = stepped(state(optimizer_cls=SGD), 1)
    s2 = ps.set_lr(s1, 0.0)
    assert stored_learning_rates(s1.optimizer) == [0.1]
    assert stored_learning_rates(s2.optimizer) == [0.0]
    assert_trees_identical(dict(stepped(s2).params), dict(s1.params))
    assert s2.params is s1.params
    assert s2.origin.acts[-1] == {"set_lr": [0.0]}
    assert ps.set_lr(s2, 0.1) == s1
    s1.verify()


def test_set_lr_after_training_with_a_scheduler() -> None:
    """As in torch: chainable schedulers multiply what is there, and the rate stays until they step."""
    s = stepped(state(step_scheduler_cls=StepLR, step_scheduler_args=dict(step_size=2, gamma=0.5)), 2)
    assert stored_learning_rates(s.optimizer) == [0.05]
    s = stepped(ps.set_lr(s, 0.4))
    assert stored_learning_rates(s.optimizer) == [0.4]
    assert stored_learning_rates(stepped(s).optimizer) == [0.2]


def groups(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return SGD([{"params": params[:2], "lr": torch.tensor(0.1)}, {"params": params[2:], "lr": 0.2}])


def test_set_lr_by_group_and_for_tensors() -> None:
    s = stepped(ps.setup(ps.init(Mlp), loss_cls=nn.CrossEntropyLoss, optimizer_fn=groups))
    s1 = ps.set_lr(s, (0.5, 0.25))
    assert stored_learning_rates(s1.optimizer) == [0.5, 0.25]
    assert list(s1.optimizer.leaves["optimizer.param_groups[0]['lr']"].shape) == []
    assert stored_learning_rates(ps.set_lr(s, torch.tensor(0.5)).optimizer) == [0.5, 0.5]
    assert stored_learning_rates(stepped(s1).optimizer) == [0.5, 0.25]
    assert stepped(s1) != stepped(s)


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ([0.1, 0.2], r"^set_lr: expected 1 rates, one for each parameter group, got 2"),
        ([], r"^set_lr: expected 1 rates, one for each parameter group, got 0"),
        (-0.1, r"^set_lr: expected finite rates of at least 0, got -0\.1"),
        (float("nan"), r"^set_lr: expected finite rates of at least 0, got nan"),
        (float("inf"), r"^set_lr: expected finite rates of at least 0, got inf"),
    ],
)
def test_what_set_lr_refuses(lr: Any, message: str) -> None:
    with pytest.raises(SetupError, match=message) as caught:
        ps.set_lr(stepped(state()), lr)
    assert caught.value.argument == "lr"


def test_set_lr_needs_a_built_optimizer() -> None:
    with pytest.raises(SetupError, match=r"^set_lr: the optimizer was not built yet"):
        ps.set_lr(state(), 0.1)
    with pytest.raises(SetupError, match=r"^set_lr: the state has no optimizer"):
        ps.set_lr(ps.init(Linear), 0.1)
