"""Every scheduler of torch, nested, with functions, of users, and two at once: taken to plain data and back at every step.

Learning rates and all other options of the groups must equal those of the run that is not cut, at every step, and torch
must have nothing to warn about. Run as a program, this file is the other process.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs
from torch.optim import swa_utils

from purestate.core import _factory, _optim, _sched
from purestate.core._factory import Factory
from purestate.errors import SetupError, TreeMismatchError, UnsupportedError
from tests.contracts.test_optimizers import from_plain, plain, run_again

STEPS, CUT = 9, 4


class Decay:
    """A callable object with state of its own."""

    def __init__(self, rate):
        self.rate, self.calls = rate, 0

    def __call__(self, epoch):
        self.calls += 1
        return self.rate**self.calls

    def method(self, epoch):
        return self(epoch)


class Listed(lrs.LRScheduler):
    """A subclass with a lambda, a list that grows, a tensor and a dict with integer keys."""

    def __init__(self, optimizer, power=2):
        self.function = lambda x: x**power
        self.seen, self.total, self.table = [], torch.zeros(()), {1: 0.5, "1": math.inf}
        super().__init__(optimizer)

    def get_lr(self):
        self.seen.append(self.last_epoch)
        self.total += self.last_epoch
        factor = self.table.get(len(self.seen) % 3, 1.0) / self.function(1 + float(self.total))
        return [base * factor for base in self.base_lrs]


class Duck:
    """Not a torch scheduler: an object with ``step``, which holds the groups themselves."""

    def __init__(self, optimizer, factor=0.9):
        self.groups, self.factor, self.n = optimizer.param_groups, factor, 0

    def step(self):
        self.n += 1
        for group in self.groups:
            group["lr"] = group["lr"] * self.factor**self.n


class MetricDuck(Duck):
    def step(self, loss):
        super().step()
        self.last = loss


class Plateau(lrs.ReduceLROnPlateau):
    def __init__(self, optimizer, **arguments):
        super().__init__(optimizer, **arguments)
        self.history = []

    def step(self, metrics, epoch=None):
        self.history.append(metrics)
        super().step(metrics)


def sequential(optimizer):
    warm, main = lrs.LinearLR(optimizer, 0.1, total_iters=3), lrs.CosineAnnealingLR(optimizer, 6)
    return lrs.SequentialLR(optimizer, [warm, main], milestones=[3])


def chained(optimizer):
    return lrs.ChainedScheduler([lrs.ConstantLR(optimizer, 0.1, 2), lrs.ExponentialLR(optimizer, 0.9)], optimizer)


def nested(optimizer):
    inner = lrs.SequentialLR(
        optimizer, [lrs.LambdaLR(optimizer, lambda e: 0.1 * (e + 1)), lrs.StepLR(optimizer, 2)], milestones=[4]
    )
    return lrs.ChainedScheduler([inner, lrs.MultiplicativeLR(optimizer, lambda e: 0.9)], optimizer)


def rate_at_building(optimizer):
    base = float(optimizer.param_groups[0]["lr"])  # a function of the optimizer as it is now
    return lrs.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch * base))


def power(base, epoch):
    return base**epoch


Made = type | Callable[..., Any]
TABLE: dict[str, tuple[Made, dict[str, Any]]] = {
    "ChainedScheduler": (chained, {}),
    "ConstantLR": (lrs.ConstantLR, {"total_iters": 3}),
    "CosineAnnealingLR": (lrs.CosineAnnealingLR, {"T_max": 4}),
    "CosineAnnealingWarmRestarts": (lrs.CosineAnnealingWarmRestarts, {"T_0": 2, "T_mult": 2}),
    "CyclicLR": (lrs.CyclicLR, {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3}),
    "CyclicLR exp_range": (lrs.CyclicLR, {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "mode": "exp_range", "gamma": 0.9}),
    "CyclicLR scale_fn": (lrs.CyclicLR, {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "scale_fn": lambda x: 0.5**x}),
    "ExponentialLR": (lrs.ExponentialLR, {"gamma": 0.9}),
    "LambdaLR": (lrs.LambdaLR, {"lr_lambda": lambda epoch: 0.9**epoch}),
    "LambdaLR list": (lrs.LambdaLR, {"lr_lambda": [lambda epoch: 0.9**epoch, lambda epoch: 1 / (1 + epoch)]}),
    "LambdaLR object": (lrs.LambdaLR, {"lr_lambda": Decay(0.9)}),
    "LambdaLR method": (lrs.LambdaLR, {"lr_lambda": Decay(0.9).method}),
    "LambdaLR partial": (lrs.LambdaLR, {"lr_lambda": functools.partial(power, 0.9)}),
    "LambdaLR partial object": (lrs.LambdaLR, {"lr_lambda": functools.partial(Decay(0.9).method)}),
    "LinearLR": (lrs.LinearLR, {}),
    "MultiplicativeLR": (lrs.MultiplicativeLR, {"lr_lambda": lambda epoch: 0.95}),
    "MultiStepLR": (lrs.MultiStepLR, {"milestones": [2, 5, 5]}),
    "OneCycleLR": (lrs.OneCycleLR, {"max_lr": 0.5, "total_steps": 20}),
    "OneCycleLR three_phase": (lrs.OneCycleLR, {"max_lr": [0.5, 0.2], "epochs": 5, "steps_per_epoch": 4, "three_phase": True}),
    "PolynomialLR": (lrs.PolynomialLR, {"total_iters": 6, "power": 2.0}),
    "ReduceLROnPlateau": (lrs.ReduceLROnPlateau, {"patience": 1, "cooldown": 1}),
    "SequentialLR": (sequential, {}),
    "ChainedScheduler nested": (nested, {}),
    "StepLR": (lrs.StepLR, {"step_size": 2}),
    "SWALR": (swa_utils.SWALR, {"swa_lr": 0.01, "anneal_epochs": 4}),
    "user Listed": (Listed, {}),
    "user Plateau": (Plateau, {"patience": 0, "mode": "max"}),
    "duck": (Duck, {}),
    "duck with metric": (MetricDuck, {}),
    "fn rate at building": (rate_at_building, {}),
}
TOGETHER = {"epoch": "StepLR", "step": "OneCycleLR"}


def made(name: str, kind: str = "epoch_scheduler") -> Factory:
    how, args = TABLE[name]
    if isinstance(how, type):
        return Factory.make(kind, how, args, describe=str)
    return Factory.make(kind, fn=how, describe=str)


def optimizers() -> dict[str, Factory]:
    def two(cls, **options):
        return lambda params: cls([{"params": params[:1]}, {"params": params[1:], "lr": 0.05}], lr=0.1, **options)

    def tensor(params):
        return torch.optim.Adam([{"params": params[:1]}, {"params": params[1:], "lr": torch.tensor(0.05)}], lr=torch.tensor(0.1))

    functions = {"sgd": two(torch.optim.SGD, momentum=0.9), "adam": two(torch.optim.AdamW), "tensor lr": tensor}
    return {name: Factory.make("optimizer", fn=fn, describe=str) for name, fn in functions.items()}


OPTIMIZERS = optimizers()


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2)) for name in ("a", "b")}


class Run:
    """Training with one optimizer and any schedulers; `cut` takes it to plain data and back."""

    def __init__(self, optimizer: str, names: dict[str, str], kept: Any = None):
        self.factories = {role: made(name) for role, name in names.items()}
        self.made, self.params = OPTIMIZERS[optimizer], parameters()
        if kept is None:
            kept = [None, None, {}]
        else:
            self.params = {name: nn.Parameter(value) for name, value in from_plain(kept[0]).leaves.items()}
        held = {role: from_plain(component) for role, component in kept[2].items()}
        component = kept[1] and from_plain(kept[1])
        self.optimizer, self.schedulers = _sched.start(self.made, component, self.factories, held, self.params)

    def step(self, i: int) -> None:
        for param in self.params.values():
            param.grad = torch.full_like(param, 0.1)
        self.optimizer.step()
        for role, live in self.schedulers.items():
            if role == "step" or i % 2 or len(self.schedulers) == 1:
                _sched.step_scheduler(live, 1.0 / (i + 1) if i < 3 else 0.5)

    def observed(self) -> Any:
        schedulers = {role: plain(_sched.export_scheduler(live)) for role, live in self.schedulers.items()}
        optimizer = plain(_optim.export_optimizer(self.optimizer, self.params))
        return [plain(SimpleNamespace(skeleton=None, leaves=self.params)), optimizer, schedulers]


@functools.cache
def uninterrupted(optimizer: str, *names: tuple[str, str]) -> list[Any]:
    run = Run(optimizer, dict(names))
    seen = [run.observed()]
    for i in range(STEPS):
        run.step(i)
        seen.append(run.observed())
    return seen


def cases() -> list[tuple[str, dict[str, str]]]:
    alone = [(optimizer, {"epoch": name}) for optimizer in OPTIMIZERS for name in TABLE]
    fits = [(optimizer, names) for optimizer, names in alone if not (optimizer == "tensor lr" and "Cycl" in names["epoch"])]
    return [*fits, ("sgd", TOGETHER), ("adam", {"epoch": "ReduceLROnPlateau", "step": "SequentialLR"})]


CASES = {" ".join([optimizer, *names.values()]): (optimizer, names) for optimizer, names in cases()}


def test_every_class_of_torch_is_in_the_table():
    classes = {
        cls.__name__
        for module in (lrs, swa_utils)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, lrs.LRScheduler)
    }
    assert classes - {"LRScheduler", "_LRScheduler"} <= TABLE.keys()
    assert len(TABLE) >= 27


@pytest.mark.parametrize("case", CASES)
def test_a_cut_at_every_step_changes_nothing(case):
    optimizer, names = CASES[case]
    whole = uninterrupted(optimizer, *names.items())
    assert len({json.dumps(seen[1][0]["objects"]["optimizer"]["param_groups"]) + str(seen[1][1]) for seen in whole}) > 2
    run = Run(optimizer, names)
    for i in range(STEPS):
        run = Run(optimizer, names, run.observed())
        assert run.observed() == whole[i]
        run.step(i)
        assert run.observed() == whole[i + 1]


@pytest.mark.parametrize("name", TABLE)
def test_equal_to_plain_torch(name):
    """The run that is not cut is torch's own: nothing of ours changes a rate."""
    how, args = TABLE[name]
    if "object" in name or "method" in name:
        args = {"lr_lambda": Decay(0.9)}
    params = parameters()
    optimizer = OPTIMIZERS["sgd"].build(list(params.values()))
    scheduler = how(optimizer, **args)
    for i in range(STEPS):
        for param in params.values():
            param.grad = torch.full_like(param, 0.1)
        optimizer.step()
        scheduler.step(*([1.0 / (i + 1) if i < 3 else 0.5] if _factory.needs_metric(scheduler) else []))
        seen = uninterrupted("sgd", ("epoch", name))[i + 1][1][0]["objects"]["optimizer"]["param_groups"]
        assert [group["lr"] for group in seen] == [group["lr"] for group in optimizer.param_groups]
        assert [group["momentum"] for group in seen] == [group["momentum"] for group in optimizer.param_groups]


def test_another_process_goes_on(tmp_path):
    half = {case: uninterrupted(optimizer, *names.items())[CUT] for case, (optimizer, names) in CASES.items()}
    (tmp_path / "half.json").write_text(json.dumps(half))
    run_again(__file__, tmp_path / "half.json", tmp_path / "whole.json")
    whole = json.loads((tmp_path / "whole.json").read_text())
    for case, (optimizer, names) in CASES.items():
        assert whole[case] == uninterrupted(optimizer, *names.items())[STEPS], case


STEPPED = [name for name in TABLE if name not in ("ReduceLROnPlateau", "user Plateau", "duck with metric")]


@pytest.mark.parametrize("name", STEPPED)
def test_a_kept_scheduler_follows_a_new_optimizer(name):
    """As if it had been on the new optimizer from the start."""
    kept = {"epoch": from_plain(uninterrupted("sgd", ("epoch", name))[CUT][2]["epoch"])}
    other = (
        OPTIMIZERS["adam"]
        if "Cycl" not in name
        else Factory.make(
            "optimizer", fn=lambda p: torch.optim.SGD([{"params": p[:1]}, {"params": p[1:]}], lr=0.3, momentum=0.5), describe=str
        )
    )
    optimizer, live = _sched.start(other, None, {"epoch": made(name)}, kept, parameters())
    assert "_opt_called" not in vars(optimizer) or vars(optimizer)["_opt_called"] is False
    assert live["epoch"].count == CUT
    expected = other.build(list(parameters().values()))
    scheduler = made(name).build(expected)
    expected.step()
    for _ in range(CUT):
        scheduler.step()
    assert _optim.learning_rates(optimizer) == _optim.learning_rates(expected)
    optimizer.step()
    _sched.step_scheduler(live["epoch"])
    scheduler.step()
    assert _optim.learning_rates(optimizer) == _optim.learning_rates(expected)


def test_a_kept_plateau_keeps_its_counters_on_a_new_optimizer():
    kept = {"epoch": from_plain(uninterrupted("sgd", ("epoch", "ReduceLROnPlateau"))[CUT][2]["epoch"])}
    one = Factory.make("optimizer", torch.optim.SGD, {"lr": 0.3}, describe=str)
    optimizer, live = _sched.start(one, None, {"epoch": made("ReduceLROnPlateau")}, kept, parameters())
    scheduler = live["epoch"].scheduler
    assert (scheduler.best, scheduler.num_bad_epochs, scheduler.last_epoch) == (1 / 3, 1, CUT)
    assert scheduler.min_lrs == [0]
    assert _optim.learning_rates(optimizer) == [0.3]
    optimizer.step()
    _sched.step_scheduler(live["epoch"], 1.0)
    assert _optim.learning_rates(optimizer) == [0.3 * 0.1]


def test_a_schedule_that_has_ended_cannot_be_replayed():
    short = Factory.make("step_scheduler", lrs.OneCycleLR, {"max_lr": 0.1, "total_steps": 3}, describe=str)
    component = from_plain(uninterrupted("sgd", ("epoch", "StepLR"))[CUT][2]["epoch"])
    with pytest.raises(SetupError, match=r"step_scheduler .*OneCycleLR cannot be stepped 4 times on the new optimizer: Tried"):
        _sched.start(OPTIMIZERS["sgd"], None, {"step": short}, {"step": component}, parameters())


def test_a_fresh_scheduler_on_a_kept_optimizer_starts_from_its_rates():
    component = from_plain(uninterrupted("sgd", ("epoch", "fn rate at building"))[CUT][1])
    optimizer, live = _sched.start(
        OPTIMIZERS["sgd"], component, {"epoch": made("fn rate at building"), "step": None}, {}, parameters()
    )
    base = json.loads(json.dumps(live["epoch"].origin.skeleton))[0]["lr"]
    assert base == _optim.stored_learning_rates(component)[0] != 0.1
    # and its function still knows that rate after it was kept and built again
    params = parameters()
    kept = {"epoch": _sched.export_scheduler(live["epoch"])}
    held = dict(zip("ab", [group["params"][0] for group in optimizer.param_groups], strict=True))
    groups = _optim.export_optimizer(optimizer, held)
    again, lives = _sched.start(OPTIMIZERS["sgd"], groups, {"epoch": made("fn rate at building")}, kept, params)
    assert lives["epoch"].scheduler.lr_lambdas[0](1) == 1 / (1 + base)
    assert _optim.learning_rates(again) == _optim.learning_rates(optimizer)


def test_needs_metric_is_known_without_building():
    names = {name for name in TABLE if _factory.is_plateau_factory(made(name))}
    assert names == {"ReduceLROnPlateau", "user Plateau", "duck with metric"}
    assert _factory.is_plateau_factory(made("SequentialLR")) is None


def test_a_metric_that_is_not_there():
    run = Run("sgd", {"step": "ReduceLROnPlateau"})
    with pytest.raises(SetupError, match="ReduceLROnPlateau steps on a metric, and there is none here"):
        _sched.step_scheduler(run.schedulers["step"])


def test_a_step_that_needs_more_is_refused():
    class Greedy(Duck):
        def step(self, loss, accuracy):
            pass

    with pytest.raises(UnsupportedError, match="needs 'loss', 'accuracy'"):
        _factory.is_plateau_factory(Factory.make("epoch_scheduler", Greedy, describe=str))


def test_a_function_must_return_a_scheduler():
    for fn in (lambda optimizer: None, lambda optimizer: lrs.StepLR):
        with pytest.raises(SetupError, match="which has no method step"):
            _sched.start(
                OPTIMIZERS["sgd"], None, {"epoch": Factory.make("epoch_scheduler", fn=fn, describe=str)}, {}, parameters()
            )


def test_a_factory_that_makes_something_else_is_an_error():
    component = from_plain(uninterrupted("sgd", ("epoch", "SequentialLR"))[CUT][2]["epoch"])
    optimizer = from_plain(uninterrupted("sgd", ("epoch", "SequentialLR"))[CUT][1])
    with pytest.raises(TreeMismatchError, match=r"scheduler\._schedulers\[0\] was kept and is not made"):
        _sched.start(OPTIMIZERS["sgd"], optimizer, {"epoch": made("StepLR")}, {"epoch": component}, parameters())


def main(source: str, target: str) -> None:
    """Finish the runs that are in ``source``, and write what is observed to ``target``."""
    warnings.simplefilter("error")
    done = {}
    for case, kept in json.loads(Path(source).read_text()).items():
        run = Run(*CASES[case], kept)
        for i in range(CUT, STEPS):
            run.step(i)
        done[case] = run.observed()
    Path(target).write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
