"""The arithmetic of the most used optimizers, written out: one tensor, its gradient and its state, and no more Python than that.

What `torch.optim` does around the same operators, looking at options, collecting lists, choosing an implementation, takes
longer than the operators themselves where the model is small. `_long` uses a form in place of the class only after a probe
has found the bits equal on this machine, and only for a step whose options the form takes. Options are read in each step.

For a compiler there is the same arithmetic once more, in which every option is an entry of a tensor: `Traceable`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["FORMS", "Form", "Options", "Part", "Traceable"]

Options = Mapping[str, Any]
"""A parameter group."""
Part = tuple[Tensor, dict[str, Any]]
"""A tensor that holds parameters, with its gradient in ``grad``, and its state."""


class Traceable(NamedTuple):
    """What a compiler is given."""

    burnt_in: tuple[Any, ...]
    """Everything about the options that `apply` depends on."""
    slots: tuple[str, ...]
    """The tensors of the state that a step changes, besides the counter."""
    begins: bool
    """Whether a step on slots of zeros is the first step of the class."""
    apply: Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], None]
    """``apply(parameter, gradient, slots, numbers)`` writes into the parameter and the slots."""
    numbers: Callable[[Options, float], list[float]]
    """``numbers(group, count)``: what step number ``count`` gives to ``apply``."""


class Form(NamedTuple):
    """What stands for a class."""

    takes: Callable[[Options], bool]
    """Whether these options are among those that are written out."""
    step: Callable[[Options, Sequence[Part], float], None]
    """Take step number so and so on all parts. The counters of their state are not touched."""
    counts: bool
    """Whether the state has a counter, ``step``."""
    traceable: Callable[[Options], Traceable]
    """The same for a compiler, under these options."""


def _takes_adam(group: Options) -> bool:
    beta1, beta2 = group["betas"]
    return type(beta1) is type(beta2) is float and not (group["amsgrad"] or group["maximize"])


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


def _traceable_adam(group: Options) -> Traceable:
    def apply(tensor: Tensor, gradient: Tensor, slots: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
        kept, decay, new1, beta2, new2, root, eps, size = numbers
        mean, square = slots
        before = tensor * kept
        gradient = gradient + tensor * decay
        mean.copy_(mean + (gradient - mean) * new1)
        square.copy_(square * beta2 + gradient * gradient * new2)
        tensor.copy_(before - mean / (square.sqrt() / root + eps) * size)

    return Traceable(("Adam",), ("exp_avg", "exp_avg_sq"), True, apply, _adam_numbers)


def _adam_numbers(group: Options, count: float) -> list[float]:
    beta1, beta2 = group["betas"]
    rate, decay, decoupled = group["lr"], group["weight_decay"], group["decoupled_weight_decay"]
    decays = (1 - rate * decay, 0.0) if decoupled else (1.0, decay)
    root, size = (1 - beta2**count) ** 0.5, rate / (1 - beta1**count)
    return [*decays, 1 - beta1, beta2, 1 - beta2, root, group["eps"], size]


def _takes_sgd(group: Options) -> bool:
    return not group["maximize"]


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


def _traceable_sgd(group: Options) -> Traceable:
    momentum, nesterov = bool(group["momentum"]), bool(group["nesterov"])

    def apply(tensor: Tensor, gradient: Tensor, slots: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
        decay, old, new, rate = numbers
        gradient = gradient + tensor * decay
        if momentum:
            slots[0].copy_(slots[0] * old + gradient * new)
            gradient = gradient + slots[0] * old if nesterov else slots[0]
        tensor.copy_(tensor - gradient * rate)

    slots = ("momentum_buffer",) if momentum else ()
    return Traceable(("SGD", momentum, nesterov), slots, not group["dampening"], apply, _sgd_numbers)


def _sgd_numbers(group: Options, count: float) -> list[float]:
    return [group["weight_decay"], group["momentum"], 1 - group["dampening"], group["lr"]]


FORMS: Mapping[str, Form] = {
    "Adam": Form(_takes_adam, _adam, True, _traceable_adam),
    "AdamW": Form(_takes_adam, _adam, True, _traceable_adam),
    "SGD": Form(_takes_sgd, _sgd, False, _traceable_sgd),
}
"""By the name of the class in `torch.optim`."""
