"""The arithmetic of the most used optimizers, written out: one tensor, its gradient and its state, and no more Python than that.

What `torch.optim` does around the same operators, looking at options, collecting lists, choosing an implementation, takes
longer than the operators themselves where the model is small. `_long` uses a form in place of the class only after a probe
has found the bits equal on this machine, and only for a step whose options the form takes. Options are read in each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["FORMS", "Form", "Options", "Part"]

Options = Mapping[str, Any]
"""A parameter group."""
Part = tuple[Tensor, dict[str, Any]]
"""A tensor that holds parameters, with its gradient in ``grad``, and its state."""


class Form(NamedTuple):
    """What stands for a class."""

    takes: Callable[[Options], bool]
    """Whether these options are among those that are written out."""
    step: Callable[[Options, Sequence[Part], float], None]
    """Take step number so and so on all parts. The counters of their state are not touched."""


def _takes_adam(group: Options) -> bool:
    beta1, beta2 = group["betas"]
    return type(beta1) is type(beta2) is float and not (group["amsgrad"] or group["maximize"] or group["fused"])


def _adam(group: Options, parts: Sequence[Part], count: float) -> None:
    """As `torch.optim.adam._single_tensor_adam`."""
    beta1, beta2 = group["betas"]
    rate, decay, eps, decoupled = group["lr"], group["weight_decay"], group["eps"], group["decoupled_weight_decay"]
    new1, new2 = 1 - beta1, 1 - beta2
    size, root = -(rate / (1 - beta1**count)), (1 - beta2**count) ** 0.5
    for tensor, state in parts:
        gradient: Any = tensor.grad
        if decay != 0:
            if decoupled:
                tensor.mul_(1 - rate * decay)
            else:
                gradient = gradient.add(tensor, alpha=decay)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, new1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=new2)
        tensor.addcdiv_(mean, square.sqrt().div_(root).add_(eps), value=size)


def _takes_sgd(group: Options) -> bool:
    return not (group["maximize"] or group["fused"])


def _sgd(group: Options, parts: Sequence[Part], count: float) -> None:
    """As `torch.optim.sgd._single_tensor_sgd`."""
    momentum, nesterov, decay = group["momentum"], group["nesterov"], group["weight_decay"]
    rate, new = -group["lr"], 1 - group["dampening"]
    for tensor, state in parts:
        gradient: Any = tensor.grad
        if decay != 0:
            gradient = gradient.add(tensor, alpha=decay)
        if momentum != 0:
            average = state["momentum_buffer"].mul_(momentum).add_(gradient, alpha=new)
            gradient = gradient.add(average, alpha=momentum) if nesterov else average
        tensor.add_(gradient, alpha=rate)


FORMS: Mapping[str, Form] = {
    "Adam": Form(_takes_adam, _adam),
    "AdamW": Form(_takes_adam, _adam),
    "SGD": Form(_takes_sgd, _sgd),
}
"""By the name of the class in `torch.optim`."""
