"""What a step gave and what it wrote into, as digests by leaf: how a captured step is held against the uncaptured one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from purestate.core._hash import leaf_hash
from purestate.core._step import StepOutput

__all__ = ["digest", "outcome"]


def outcome(
    output: StepOutput, trees: tuple[Mapping[str, Tensor], ...], *, written: Collection[str], params: bool
) -> dict[str, Any]:
    """Return digests of what a step returned and of what it may have written into.

    Args:
        output: What it returned.
        trees: The parameters, frozen parameters and buffers that it was given.
        written: The names of those that it is known to write into.
        params: Whether it may write into any parameter.
    """
    found: dict[str, Any] = {"size": output.size, "loss": output.loss}
    found |= {f"gradients[{name!r}]": g for name, g in output.gradients.items()}
    found |= {f"buffers[{name!r}] (assigned)": b for name, b in output.buffers.items()}
    found |= {f"params[{name!r}]": t for name, t in trees[0].items() if params or name in written}
    found |= {f"frozen[{name!r}]": t for name, t in trees[1].items() if name in written}
    found |= {f"buffers[{name!r}]": t for name, t in trees[2].items()}
    found |= {f"metrics[{i}]": list(pair) for i, pair in enumerate(output.sums)}
    return {leaf: digest(value) for leaf, value in found.items()}


def digest(value: Any) -> Any:
    """Return what is equal for two values of the same type and bits. Strides of axes of length 1 mean nothing."""
    if isinstance(value, tuple):
        return value  # it is one
    if isinstance(value, list):
        return [digest(item) for item in cast("list[Any]", value)]
    if not isinstance(value, Tensor):
        return type(value), repr(value)
    if value.layout is torch.sparse_coo:
        return digest(value._indices()), digest(value._values()), value.shape
    strides = [stride for stride, n in zip(value.stride(), value.shape, strict=True) if n > 1]
    return strides, value.device, leaf_hash(value)
