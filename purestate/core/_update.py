"""One step of an optimizer on the working set: the class itself, over few long tensors instead of many short ones.

Most classes of `torch.optim` treat every element alike, so they may as well be given one long tensor that holds many short
parameters (a *bundle*), or the pieces of a long one that fit into the processor's cache: the same arithmetic with the same bits,
for a fraction of the calls, and without temporaries of the size of the model. `Update` does so where the class is known to
be of that kind, nothing about it is unusual, and a probe has found the bits equal on this machine. Otherwise the class
steps as it is. Gradients are let go after a step, as ``zero_grad()`` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from purestate.core._joined import Joined
from purestate.core._long import Long, lengthened
from purestate.core._recipe import Clip

__all__ = ["TAKEN", "Update"]

_ELEMENTWISE = frozenset({"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"})
"""Classes of `torch.optim` in which an element of a parameter depends on no other element."""
_MOST_TRIES = 4
"""How often tensors are laid out again because other parameters got a gradient."""
TAKEN: dict[str, Tensor | None] = {}
"""In the place of gradients: the step that gave them has updated the parameters, too. See `Update.joined`."""
_everywhere: Any = importlib.import_module("torch.optim.optimizer")  # where the hooks of all optimizers are


class Update:
    """Steps an optimizer with gradients that somebody else computed.

    Args:
        optimizer: Stepped in place; its state may move to other memory.
        parameters: What it was built on, by name.
        tensors: The same tensors without gradient. Those that move to other memory are exchanged in this dict.
        clip: How gradients are clipped before.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: dict[str, Tensor], clip: Clip
    ) -> None:
        self._optimizer, self._parameters, self._tensors, self._clip = optimizer, parameters, tensors, clip
        self._list = list(parameters.values())
        self._long: Long | None = None
        self._usual = _is_usual(optimizer)
        self._tries = _MOST_TRIES
        self._joined: Joined | None = None
        self._joins = self._usual and clip.norm is None and clip.value is None

    def __call__(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Take a step.

        Args:
            gradients: By parameter, in the order of the parameters; None where it had no part in the loss. Clipping
                changes them in place. `TAKEN` where nothing is left to do.
        """
        if gradients is TAKEN:
            return
        self._part()
        given = list(gradients.values())
        usual = self._usual and not _hooked(self._optimizer)
        if self._long is not None and not (usual and self._long.fits(given)):
            self._long.settle()
            self._long = None
            self._tries -= 1
        clips = self._clip.norm is not None or self._clip.value is not None
        if clips:
            self._lend(given)
            self._clipped()
        if self._long is not None:
            self._long.step(given)
            if not clips:
                return  # nothing was lent
        else:
            self._lend(given)
            self._optimizer.step()
            if usual and self._tries:
                self._long = lengthened(self._optimizer, self._parameters, self._tensors)
                if self._long is None:
                    self._usual = False
        for parameter in self._list:
            parameter.grad = None

    @property
    def plan(self) -> str:
        """What takes a step: ``'long'`` tensors, ``'joined'`` with the gradient, or the ``'class'``; and if it is ``'fused'``."""
        found = "joined" if self._joined is not None else "class" if self._long is None else "long"
        return f"{found} fused" if any(group.get("fused") for group in self._optimizer.param_groups) else found

    def joined(self) -> Joined | None:
        """Return the step of now as part of somebody else's graph, or None if it has to be taken here.

        Whoever takes it calls this object with `TAKEN` afterwards. It is the same as before as long as a graph made of it
        may be called again.
        """
        if not self._joins or _hooked(self._optimizer):
            return None
        if self._joined is not None and not self._joined.fits():
            self._part()
        if self._joined is None:
            if self._long is not None:
                self._long.settle()
                self._long = None
            try:
                self._joined = Joined(self._optimizer, self._parameters, self._tensors)
            except ValueError:
                return None
        return self._joined

    def _part(self) -> None:
        if self._joined is not None:
            self._joined.settle()
            self._joined = None

    def settle(self) -> None:
        """Make the optimizer's own state that of now, the counters of each parameter included."""
        if self._joined is not None:
            self._joined.settle()
        if self._long is not None:
            self._long.settle()

    def _lend(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._list, gradients, strict=True):
            parameter.grad = gradient

    def _clipped(self) -> None:
        if self._clip.norm is not None:
            nn.utils.clip_grad_norm_(self._list, self._clip.norm)
        if self._clip.value is not None:
            nn.utils.clip_grad_value_(self._list, self._clip.value)


def _is_usual(optimizer: Optimizer) -> bool:
    """Whether it is an elementwise class of torch, as it is, with numbers as options."""
    cls = type(optimizer)
    if cls.__name__ not in _ELEMENTWISE or cls is not getattr(torch.optim, cls.__name__):
        return False
    step = vars(optimizer).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return False
    if hasattr(optimizer, "grad_scale") or hasattr(optimizer, "found_inf"):
        return False
    return not any(
        isinstance(value, Tensor) or (name in ("capturable", "differentiable") and value)
        for group in optimizer.param_groups
        for name, value in group.items()
    )


def _hooked(optimizer: Any) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _everywhere._global_optimizer_pre_hooks
        or _everywhere._global_optimizer_post_hooks
    )
