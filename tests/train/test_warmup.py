from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

import purestate as ps
from purestate.core import _optim, _sched
from purestate.core._factory import Factory
from purestate.errors import SetupError
from purestate.train._warmup import WarmUpLR
from tests.contracts.test_optimizers import from_plain, plain
from tests.run.tiny import checkpoint, loader, start

TOTAL, STEPS, LR = 5, 9, 0.3


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2)) for name in ("a", "b")}


def ramp(optimizer: torch.optim.Optimizer, steps: int = STEPS, total: int = TOTAL) -> list[list[float]]:
    """Return the rates at which so many steps are taken."""
    scheduler, rates = WarmUpLR(optimizer, total), []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("lr", [0.3, 5e-4, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("total", [1, 3, 5, 7, 49])
def test_it_rises_from_zero_and_is_the_rate_itself_from_the_last_step_on(lr, total):
    rates = [rate for (rate,) in ramp(torch.optim.SGD(parameters().values(), lr=lr), total + 4, total)]
    assert rates[:total] == [lr * (i / total) for i in range(total)]
    assert rates[total:] == [lr] * 4


def test_each_group_has_its_own_rate_and_a_tensor_stays_the_tensor_it_was():
    a, b = parameters().values()
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam([{"params": [a], "lr": rate}, {"params": [b], "lr": torch.tensor(2.0)}])
    assert ramp(optimizer, 4, 2) == [[0.0, 0.0], [0.25, 1.0], [0.5, 2.0], [0.5, 2.0]]
    assert optimizer.param_groups[0]["lr"] is rate


def test_it_is_a_scheduler_of_torch_that_can_be_nested():
    optimizer = torch.optim.SGD(parameters().values(), lr=LR)
    warm, after = WarmUpLR(optimizer, 2), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, after], milestones=[2])
    assert isinstance(warm, LRScheduler)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [0.0, LR / 2, LR, LR / 2]


@pytest.mark.parametrize("total", [0, -1, 2.5, 10.0, True, "3", None])
def test_another_number_of_steps_is_refused(total):
    with pytest.raises(SetupError, match=r"^WarmUpLR: total_iters must be an integer of at least 1, got ") as caught:
        WarmUpLR(torch.optim.SGD(parameters().values(), lr=LR), total)
    assert caught.value.argument == "total_iters"


class Run:
    """Training by hand; `cut` gives what a state holds of it, and a new one goes on from there."""

    def __init__(self, optimizer: Factory, kept=None):
        self.params = parameters()
        if kept is not None:
            self.params = {name: nn.Parameter(value.clone()) for name, value in kept[0].items()}
        component, held = (None, {}) if kept is None else (from_plain(kept[1]), {"step": from_plain(kept[2])})
        factories = {"step": Factory.make("step_scheduler", WarmUpLR, {"total_iters": TOTAL}, describe=str)}
        self.optimizer, self.schedulers = _sched.start(optimizer, component, factories, held, self.params)

    def step(self) -> None:
        for param in self.params.values():
            param.grad = torch.full_like(param, 0.1)
        self.optimizer.step()
        _sched.step_scheduler(self.schedulers["step"])

    def cut(self):
        params = {name: param.detach().clone() for name, param in self.params.items()}
        exported = _optim.export_optimizer(self.optimizer, self.params)
        return params, plain(exported), plain(_sched.export_scheduler(self.schedulers["step"]))


def groups(params):
    return [{"params": params[:1]}, {"params": params[1:], "lr": 0.05}]


OPTIMIZERS = {
    "sgd": Factory.make("optimizer", fn=lambda params: torch.optim.SGD(groups(params), lr=LR, momentum=0.9), describe=str),
    "adam": Factory.make("optimizer", fn=lambda params: torch.optim.AdamW(groups(params), lr=LR), describe=str),
    "tensor": Factory.make("optimizer", fn=lambda params: torch.optim.Adam(params, lr=torch.tensor(LR)), describe=str),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_cut_at_every_step_changes_nothing(name):
    whole, run = Run(OPTIMIZERS[name]), Run(OPTIMIZERS[name])
    rates = set()
    for _ in range(STEPS):
        run = Run(OPTIMIZERS[name], run.cut())
        run.step()
        whole.step()
        (params, *rest), (expected, *others) = run.cut(), whole.cut()
        assert rest == others
        assert all(torch.equal(params[name], expected[name]) for name in expected)
        rates.add(_optim.learning_rates(whole.optimizer)[0])
    assert len(rates) == TOTAL


def warming(**recipe) -> ps.State:
    return start(step_scheduler_cls=WarmUpLR, step_scheduler_args=dict(total_iters=TOTAL), lr=LR, **recipe)


def test_in_a_train_it_is_answered_from_the_log_and_goes_on():
    train_dl, memory = loader(8, batch_size=2), ps.MemoryStore()  # 4 steps an epoch: the ramp ends in the second
    one = checkpoint(memory, "one").train(warming(), train_dl, epochs=3)
    again = checkpoint(memory, "one")
    assert again.train(warming(), train_dl, epochs=3) == one
    assert again.last.cached
    ck = checkpoint(memory, "two")
    ck.train(warming(), train_dl, epochs=1)
    assert ck.train(warming(), train_dl, epochs=3) == one
    assert ck.last.computed == 2
    assert ck.history["lr"] == [LR * (3 / TOTAL), LR, LR]


def trained_rates(*, warmup: int = 0, **recipe) -> list[float]:
    """Return the rate of every step of two epochs of four steps."""
    rates: list[float] = []

    class Noting(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    state = start(optimizer_cls=Noting, optimizer_args=dict(lr=LR), **recipe)
    ps.NullStore().checkpoint("x", echo=None).train(state, loader(8, batch_size=2), epochs=2, warmup=warmup)
    return rates


def test_the_warm_up_of_train_has_the_same_rates_a_step_earlier():
    theirs = trained_rates(warmup=1)
    assert theirs == [LR * (i / 4) for i in (1, 2, 3)] + [LR] * 5
    assert trained_rates(step_scheduler_cls=WarmUpLR, step_scheduler_args=dict(total_iters=4)) == [0.0, *theirs[:-1]]
