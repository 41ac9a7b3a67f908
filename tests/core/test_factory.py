"""Factories: what they accept, what they refuse and how they say it, and that making one builds nothing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler

from purestate.core._factory import Factory
from purestate.errors import SetupError, UnsupportedError

ROOT = Path(__file__).parents[2]


def describe(thing):
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def optimizer(cls=Adam, **args):
    return Factory.make("optimizer", cls, args, describe=describe)


def scheduler(cls, **args):
    return Factory.make("epoch_scheduler", cls, args, describe=describe)


def parameters():
    return [nn.Parameter(torch.ones(2))]


def test_an_explicit_default_is_left_out():
    assert optimizer() == optimizer(lr=1e-3, betas=(0.9, 0.999), foreach=None)
    assert optimizer(lr=1e-3).args == {}
    assert optimizer(lr=0.1).description == {"class": "Adam", "args": {"lr": 0.1}}


def test_what_differs_has_another_digest():
    factories = [
        optimizer(),
        optimizer(SGD),
        *(
            optimizer(lr=lr)
            for lr in (1, 1.0, True, torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0))
        ),
        optimizer(betas=[0.9, 0.999]),
        scheduler(lr_scheduler.StepLR, step_size=1),
        scheduler(lr_scheduler.MultiStepLR, milestones=[1, 2]),
        scheduler(lr_scheduler.MultiStepLR, milestones=[2, 1]),
        scheduler(lr_scheduler.MultiStepLR, milestones=(1, 2)),
    ]
    assert len({factory.digest for factory in factories}) == len(set(factories)) == len(factories)


def test_the_order_of_arguments_does_not_count():
    assert optimizer(lr=0.1, eps=0.5).digest == optimizer(eps=0.5, lr=0.1).digest


def test_zero_has_a_sign_and_a_type():
    assert optimizer(weight_decay=0).args == {}
    assert optimizer(weight_decay=0.0).args == {"weight_decay": 0.0}
    assert optimizer(weight_decay=0.0) != optimizer(weight_decay=-0.0)


def test_code_among_the_arguments_is_described_where_it_is():
    seen = []

    def note(thing):
        seen.append(thing)
        return "code"

    first, second = (lambda e: 1.0), functools.partial(max, 1)
    made = Factory.make("epoch_scheduler", lr_scheduler.LambdaLR, {"lr_lambda": [first, second]}, describe=note)
    assert seen[0] is lr_scheduler.LambdaLR
    assert seen[1] is first
    assert isinstance(seen[2], functools.partial)
    assert made.description["args"]["lr_lambda"] == [{"~": "described", "v": "code"}] * 2


def test_arguments_are_remembered_as_they_were():
    milestones, rate = [2, 4], torch.tensor(0.5)
    made, tensor = scheduler(lr_scheduler.MultiStepLR, milestones=milestones), optimizer(SGD, lr=rate)
    milestones.append(6)
    rate.zero_()
    assert made.args["milestones"] == [2, 4]
    assert tensor.args["lr"] == 0.5
    with pytest.raises(TypeError):
        made.args["milestones"] = []


def test_what_one_component_does_to_its_arguments_does_not_reach_the_next():
    made = optimizer(SGD, lr=torch.tensor(0.5))
    made.build(parameters()).param_groups[0]["lr"].zero_()
    assert made.build(parameters()).param_groups[0]["lr"] == 0.5


def test_a_function_is_called_with_what_the_component_is_built_on():
    made = Factory.make("optimizer", fn=lambda params: SGD(params, lr=0.5), describe=describe)
    assert made.build(parameters()).param_groups[0]["lr"] == 0.5
    assert list(made.description) == ["function"]
    assert made.name.endswith("<lambda>")


def test_a_loss_is_built_on_nothing():
    made = Factory.make("loss", nn.CrossEntropyLoss, {"label_smoothing": 0.1}, describe=describe)
    assert made.build().label_smoothing == 0.1
    assert Factory.make("loss", fn=nn.MSELoss, describe=describe).build().reduction == "mean"


class Open(SGD):
    def __init__(self, params, *, momentum, **rest):
        super().__init__(params, momentum=momentum, **rest)


def test_a_class_may_take_anything():
    assert optimizer(Open, momentum=0.5, nesterov=True).build(parameters()).param_groups[0]["nesterov"] is True


BUILT = SGD(parameters())
REFUSED = {
    "unknown argument": (
        lambda: optimizer(learning_rate=0.1),
        "optimizer Adam takes no argument 'learning_rate'.",
        "It takes lr, betas, eps, weight_decay, amsgrad, foreach, maximize, capturable, differentiable, fused",
        "learning_rate",
    ),
    "misspelt argument": (lambda: optimizer(weight_decai=0.1), "Did you mean 'weight_decay'?", "It takes lr", "weight_decai"),
    "missing argument": (
        lambda: scheduler(lr_scheduler.StepLR, gamma=0.5),
        "epoch_scheduler StepLR needs 'step_size'.",
        "epoch_scheduler_args has 'gamma'.",
        "step_size",
    ),
    "missing keyword": (lambda: optimizer(Open), "optimizer Open needs 'momentum'.", "optimizer_args has nothing", "momentum"),
    "params given": (lambda: optimizer(params=[]), "optimizer_args has 'params'", "Leave it out", "params"),
    "both": (
        lambda: Factory.make("optimizer", Adam, fn=Adam, describe=describe),
        "optimizer needs either optimizer_cls or optimizer_fn; both were given.",
        "",
        "optimizer_cls",
    ),
    "neither": (lambda: Factory.make("loss", describe=describe), "neither was given", "", "loss_cls"),
    "only arguments": (
        lambda: Factory.make("optimizer", args={"lr": 1}, describe=describe),
        "only optimizer_args={'lr': 1} was given",
        "",
        "optimizer_cls",
    ),
    "function with arguments": (
        lambda: Factory.make("optimizer", args={"lr": 1}, fn=Adam, describe=describe),
        "optimizer_args={'lr': 1} was given together with optimizer_fn.",
        "A function has its arguments inside",
        "optimizer_args",
    ),
    "instance of an optimizer": (
        lambda: Factory.make("optimizer", BUILT, describe=describe),
        "optimizer_cls must be a class, not an instance of SGD.",
        "Give optimizer_cls=SGD, and its arguments as optimizer_args.",
        "optimizer_cls",
    ),
    "instance of a scheduler": (
        lambda: Factory.make("step_scheduler", lr_scheduler.StepLR(BUILT, 1), describe=describe),
        "step_scheduler_cls must be a class, not an instance of StepLR.",
        "Give step_scheduler_cls=StepLR",
        "step_scheduler_cls",
    ),
    "instance of a loss": (
        lambda: Factory.make("loss", nn.MSELoss(), describe=describe),
        "loss_cls must be a class, not an instance of MSELoss.",
        "Give loss_cls=MSELoss",
        "loss_cls",
    ),
    "function as class": (
        lambda: Factory.make("optimizer", lambda params: None, describe=describe),
        "optimizer_cls must be a class, not <function",
        "Give a function as optimizer_fn.",
        "optimizer_cls",
    ),
    "instance as function": (
        lambda: Factory.make("optimizer", fn=BUILT, describe=describe),
        "optimizer_fn must be a function that makes the optimizer, not a SGD.",
        "optimizer_fn=lambda params: ...",
        "optimizer_fn",
    ),
    "no optimizer": (
        lambda: optimizer(nn.Linear),
        "optimizer_cls must be a subclass of torch.optim.Optimizer, not Linear.",
        "",
        "optimizer_cls",
    ),
    "no scheduler": (
        lambda: scheduler(Adam),
        "epoch_scheduler_cls must be a class of schedulers, with a method step, not Adam.",
        "",
        "epoch_scheduler_cls",
    ),
    "cannot be copied": (
        lambda: optimizer(Open, momentum=0.5, source=(i for i in range(3))),
        "optimizer_args['source'] cannot be copied",
        "Make the component in a function",
        "source",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_before_anything_is_built(case):
    make, first, more, argument = REFUSED[case]
    with pytest.raises(SetupError) as caught:
        make()
    assert first in str(caught.value).splitlines()[0]
    assert more in str(caught.value)
    assert caught.value.argument == argument


def test_an_optimizer_that_needs_a_closure_is_refused():
    with pytest.raises(UnsupportedError, match="step needs 'closure'"):
        optimizer(torch.optim.LBFGS)


def test_a_value_that_the_class_refuses_is_named():
    with pytest.raises(SetupError) as caught:
        optimizer(lr=-1.0, eps=0.5).build(parameters())
    assert str(caught.value) == "optimizer torch.optim.adam.Adam(lr=-1.0) cannot be built: Invalid learning rate: -1.0"
    assert caught.value.argument == "lr"
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


def test_a_bug_in_the_users_function_keeps_its_traceback():
    def broken(params):
        raise KeyError("head")

    with pytest.raises(SetupError, match=r"broken\(\.\.\.\) cannot be built: 'head'") as caught:
        Factory.make("optimizer", fn=broken, describe=describe).build(parameters())
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.argument == "optimizer_fn"


def test_making_builds_nothing_and_does_not_import_dynamo():
    program = """
import sys
import torch
from purestate.core._factory import Factory
for cls in (torch.optim.Adam, torch.optim.SGD, torch.optim.Muon):
    Factory.make("optimizer", cls, {"lr": 0.1}, describe=str).digest
Factory.make("step_scheduler", torch.optim.lr_scheduler.OneCycleLR, {"max_lr": 0.1, "total_steps": 5}, describe=str).digest
Factory.make("loss", torch.nn.CrossEntropyLoss, describe=str).digest
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
