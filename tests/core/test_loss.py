"""The objective: every way to say what the loss is, and words for every way in which it does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from purestate.core._loss import inputs_of, make_objective
from purestate.core._module import take_apart
from purestate.core._step import make_gradient_step
from purestate.errors import LossError, SetupError, UnsupportedError
from tests.helpers import Linear, batch, build


@pytest.mark.parametrize(
    "arguments",
    [
        dict(loss=nn.CrossEntropyLoss),
        dict(loss=nn.CrossEntropyLoss, loss_args=dict(reduction="mean")),
        dict(loss=nn.CrossEntropyLoss()),
        dict(loss=F.cross_entropy),
        dict(loss=lambda pred, target: F.cross_entropy(pred, target)),
        dict(loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1])),
        dict(loss_fn=lambda m, b: (F.cross_entropy(out := m(b[0]), b[1]), out)),
    ],
)
def test_all_forms_give_the_same_loss(arguments: dict[str, Any]) -> None:
    module, (x, y) = build(Linear), batch()
    loss, outputs, target = make_objective(**arguments)(module, (x, y))
    assert torch.equal(loss, F.cross_entropy(module(x), y))
    assert loss.shape == ()
    assert target is y
    assert outputs is None or torch.equal(outputs, module(x))


def test_all_but_the_last_are_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    loss, outputs, _ = make_objective(nn.MSELoss)(Sum(), [torch.ones(2), torch.ones(2), torch.zeros(2)])
    assert (loss.item(), outputs.tolist()) == (4.0, [2.0, 2.0])


def test_a_mapping_batch_is_the_target_of_a_loss_fn() -> None:
    data = {"x": torch.ones(2, 3)}
    _, outputs, target = make_objective(loss_fn=lambda m, b: (m(b["x"]).sum(), 5))(build(Linear), data)
    assert target is data
    assert outputs == 5


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"x": 1}, r"keys \['x'\], from which loss_cls cannot tell"),
        (torch.ones(2, 3), r"float32 of shape \(2, 3\), expected a tuple"),
        ((torch.ones(2, 3),), "a tuple of 1"),
    ],
)
def test_a_batch_without_target_is_told_how_to_go_on(data: Any, text: str) -> None:
    with pytest.raises(LossError, match=text) as caught:
        make_objective(nn.MSELoss)(build(Linear), data)
    assert "loss_fn=lambda module, batch" in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "target", "texts"),
    [
        (nn.CrossEntropyLoss, torch.zeros(4, dtype=torch.int32), ["CrossEntropyLoss", "int32 of shape (4,)", "must be int64"]),
        (nn.CrossEntropyLoss, torch.full((4,), 2), ["returns 2 classes"]),
        (nn.CrossEntropyLoss, torch.zeros(4, 1, dtype=torch.int64), ["squeeze(-1)"]),
        (nn.CrossEntropyLoss, torch.zeros(3, dtype=torch.int64), ["int64 of shape (3,)"]),
        (nn.BCEWithLogitsLoss, torch.zeros(4), ["should have the same shape"]),
        (nn.MSELoss, "a", ["target a str"]),
    ],
)
def test_what_does_not_fit_names_both_sides_and_chains_the_error(loss: Any, target: Any, texts: list[str]) -> None:
    with pytest.raises(LossError) as caught:
        make_objective(loss)(build(Linear), (torch.ones(4, 3), target))
    message = str(caught.value)
    assert all(text in message for text in [*texts, "output float32 of shape (4, 2)", "torch says"]), message
    assert caught.value.__cause__ is not None


def test_a_dtype_that_only_backward_notices_is_explained_too() -> None:
    template, *trees = take_apart(build(Linear))
    step = make_gradient_step(template, make_objective(nn.HuberLoss))
    with pytest.raises(LossError, match=r"output float32 .*, target int64 of shape \(4, 2\)") as caught:
        step(*trees, (torch.ones(4, 3), torch.zeros(4, 2, dtype=torch.int64)))
    assert "target.to(torch.float32)" in str(caught.value)


def test_an_error_in_forward_is_the_users_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_objective(nn.MSELoss)(build(Linear), (torch.ones(4, 5), torch.ones(4, 2)))


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (nn.MSELoss(reduction="none"), r"loss of shape \(4, 2\)[\s\S]*reduction='mean'"),
        (lambda pred, target: 1.0, r"returned a float[\s\S]*no gradient"),
    ],
)
def test_a_loss_is_a_scalar_tensor(loss: Any, text: str) -> None:
    with pytest.raises(LossError, match=text):
        make_objective(loss)(build(Linear), (torch.ones(4, 3), torch.ones(4, 2)))


def test_a_loss_of_one_element_is_taken_as_scalar() -> None:
    loss = make_objective(lambda pred, target: pred.sum().reshape(1))(build(Linear), (torch.ones(4, 3), torch.ones(4)))[0]
    assert loss.shape == ()


def test_a_loss_without_gradient_is_refused() -> None:
    template, *trees = take_apart(build(Linear))
    step = make_gradient_step(template, make_objective(loss_fn=lambda m, b: m(b[0]).detach().sum()))
    with pytest.raises(LossError, match="depends on no trainable parameter"):
        step(*trees, batch())


def test_a_loss_with_trainable_parameters_is_refused_and_a_frozen_one_is_not() -> None:
    class Perceptual(nn.Module):
        def __init__(self, trainable: bool) -> None:
            super().__init__()
            self.net = build(Linear).requires_grad_(trainable)

        def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (self.net(pred) - self.net(target)).square().mean()

    with pytest.raises(UnsupportedError, match=r"Perceptual has trainable parameters \['net.fc.weight', 'net.fc.bias'\]"):
        make_objective(Perceptual(True))
    assert make_objective(Perceptual(False))(nn.Identity(), (torch.ones(2, 3), torch.ones(2, 3)))[0].item() == 0


def test_a_loss_instance_is_copied_and_must_not_change_itself() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return pred.sum()

    loss = Counting()
    with pytest.raises(UnsupportedError, match="changes its own buffers"):
        make_objective(loss)(build(Linear), batch())
    assert loss.calls.item() == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "one of them"),
        (dict(loss=nn.MSELoss, loss_fn=print), "one of them"),
        (dict(loss=nn.MSELoss, loss_args=dict(bogus=1)), "loss_cls=MSELoss cannot be made of loss_args=.*bogus"),
        (dict(loss=nn.MSELoss(), loss_args=dict(reduction="sum")), "loss_args are for a class"),
        (dict(loss=3), "class or callable, got 3"),
    ],
)
def test_wrong_arguments_are_setup_errors(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(SetupError, match=text) as caught:
        make_objective(**arguments)
    assert caught.value.argument in ("loss_cls", "loss_args")


def test_autocast_is_around_forward_and_loss() -> None:
    _, outputs, _ = make_objective(nn.CrossEntropyLoss, autocast=torch.bfloat16)(build(Linear), batch())
    assert outputs.dtype == torch.bfloat16
    assert make_objective(nn.CrossEntropyLoss)(build(Linear), batch())[1].dtype == torch.float32


def test_inputs_of_a_batch() -> None:
    x, y = batch()
    assert inputs_of(x) == ((x,), {})
    assert inputs_of((x,))[0][0] is x
    assert inputs_of([x, y])[0] == (x,)
    assert inputs_of({"input": x}) == ((), {"input": x})
