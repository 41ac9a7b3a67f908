"""One step of a train once more, uncaptured, with the hash of what every operator of torch was given and gave.

Of two runs that part in a step it tells in which operator, as far as torch dispatches it: what a module does to a tensor
outside of operators is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from purestate.core._batch import Batch
from purestate.core._digest import scalar_hash
from purestate.core._hash import leaf_hash
from purestate.core._key import Tag
from purestate.core._seeds import seed_all
from purestate.core._state import State
from purestate.core._step import make_gradient_step
from purestate.core._work import Working, isolated
from purestate.errors import UnsupportedError
from purestate.run._training import Training

__all__ = ["Retraced", "retrace"]

_UNINITIALIZED = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)
_SHORT = 16
"""Hexadecimal digits that are kept of a hash."""


@dataclass(frozen=True)
class Retraced:
    """A step, taken apart.

    Args:
        hash: The hash of the state behind it.
        loss: The hash of the loss.
        gradients: Of the gradient of each parameter; empty where there is none.
        operators: ``[name, hash of what it was given, hash of what it gave or wrote to]``, in their order.
        update: How many of them came before the optimizer.
    """

    hash: str
    loss: str
    gradients: dict[str, str]
    operators: list[list[str]]
    update: int

    def json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return vars(self)


def retrace(call: Training, before: State, batch: Batch, n: int, number: int, batches: int) -> Retraced:
    """Take a step again.

    Args:
        call: The call of `train`, whose recipe, metrics, warm-up and key count.
        before: The state before it. Not modified.
        batch: What it was given. Forward may write to it.
        n: The number of its epoch within the op, from 1.
        number: Its number within the epoch, from 1.
        batches: How many the epoch has.
    """
    recipe = before.recipe
    assert recipe is not None
    work, behind = Working(before), (n - 1) * batches + number
    step = make_gradient_step(recipe.template, recipe.objective(), call.metrics)
    [seed] = call.state.key.fold_in(Tag.STEP).seeds(behind - 1, behind).tolist()
    log = _Log()
    with isolated(before):
        if warming := n <= call.warmup:
            work.set_rates(work.rates(), behind / (call.warmup * batches))
        seed_all(seed)
        with log:
            out = step(work.params, work.frozen, work.buffers, batch)
        update, gradients = len(log.found), {name: "" if g is None else _hash([g]) for name, g in out.gradients.items()}
        with log:
            work.update(out.gradients, out.buffers)
        if not warming:
            work.step_scheduler()
        work.restore_rates()
        state = work.lend(key=call.state.key)
    return Retraced(state.hash, _hash([out.loss]), gradients, log.found, update)


class _Log(TorchDispatchMode):
    """Hashes what operators are given, and what they give or write to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _hash([*args, *kwargs.values()])
        result = func(*args, **kwargs)
        if func.overloadpacket in _UNINITIALIZED and isinstance(result, torch.Tensor) and result.numel():
            result.zero_()  # whatever lies there, nothing may depend on it
        if func.namespace != "profiler":
            self.found.append([str(func), given, _hash([result, *_written(func, args, kwargs)])])
        return result


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield kwargs[argument.name] if argument.name in kwargs else args[i] if i < len(args) else None


def _hash(values: Iterable[Any]) -> str:
    return scalar_hash([_told(value) for value in values])[:_SHORT]


def _told(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        try:
            return leaf_hash(value)
        except UnsupportedError:  # sparse or without elements
            return [str(value.dtype), str(value.layout)]
    if isinstance(value, list | tuple):
        return [_told(inner) for inner in value]
    return repr(value) if isinstance(value, int | float | complex | str | None) else type(value).__qualname__
