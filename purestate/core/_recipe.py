"""The Recipe: the half of training that is decided once and does not move with the steps.

It says which module, loss, optimizer and schedulers there are, with which arguments. It holds no weights (the module in
it is a template on the meta device) and is never modified. A State carries its Recipe along. What it says is described
where a question is asked, not here: the functions in it may read globals that change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from purestate.core._factory import Factory
from purestate.core._loss import Objective, make_objective

__all__ = ["COMPILERS", "PRECISIONS", "Clip", "Recipe"]

PRECISIONS = {"bfloat16": torch.bfloat16}
"""What ``setup(precision=)`` takes: the dtype of `torch.autocast` around the forward pass and the loss.

float16 is not among them: it needs a loss scale that moves with the steps, which would be state outside of the state.
"""


COMPILERS = ("inductor",)
"""What ``setup(compile=)`` takes, beside ``'none'``."""


@dataclass(frozen=True)
class Clip:
    """How gradients are clipped before a step of the optimizer.

    Args:
        norm: The largest 2-norm of all gradients together, as `torch.nn.utils.clip_grad_norm_` takes it.
        value: The largest absolute value of an element, as `torch.nn.utils.clip_grad_value_` takes it.
    """

    norm: float | None = None
    value: float | None = None


@dataclass(frozen=True, eq=False)
class Recipe:
    """What `setup` decided.

    Args:
        template: The module without weights: parameters and buffers are on the meta device.
        loss: A class, an instance, or a function of ``(output, target)``.
        loss_args: Arguments of the class.
        loss_fn: In its place, ``(module, batch) -> loss`` or ``(loss, outputs)``.
        optimizer: How the optimizer is made.
        epoch_scheduler: How the scheduler that steps once an epoch is made.
        step_scheduler: How the scheduler that steps after every step of the optimizer is made.
        clip: How gradients are clipped.
        precision: A name in `PRECISIONS`, or None for none.
        deterministic: Whether accelerators have to use deterministic algorithms.
        compile: Who compiles the gradient step: ``'inductor'``, or None for nobody.
        ema_decay: How much of the average of the parameters stays with each step; None where there is no average.
    """

    template: nn.Module
    loss: Any = None
    loss_args: Mapping[str, Any] | None = None
    loss_fn: Callable[..., Any] | None = None
    optimizer: Factory | None = None
    epoch_scheduler: Factory | None = None
    step_scheduler: Factory | None = None
    clip: Clip = Clip()
    precision: str | None = None
    deterministic: bool = True
    compile: str | None = None
    ema_decay: float | None = None

    @property
    def has_loss(self) -> bool:
        """Whether `setup` was told a loss."""
        return self.loss is not None or self.loss_fn is not None

    def objective(self) -> Objective:
        """Return the function that computes the loss, with an instance of the loss of its own."""
        autocast = PRECISIONS[self.precision] if self.precision else None
        return make_objective(self.loss, self.loss_args, loss_fn=self.loss_fn, autocast=autocast)

    def replace(self, **changes: Any) -> Recipe:
        """Return a recipe with some parts exchanged."""
        return replace(self, **changes)
