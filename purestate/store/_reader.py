"""Reads the arrays of an Orbax folder through TensorStore, without Orbax or JAX. The only file that imports TensorStore.

It returns what is there. Whether those are the right bytes is for `_items` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from purestate.store._tensors import LeafMeta, from_numpy

__all__ = ["UnreadableLeafError", "read_arrays"]


class UnreadableLeafError(Exception):
    """TensorStore cannot read a leaf, or it has another shape or dtype than expected."""

    def __init__(self, leaf: str, reason: str) -> None:
        super().__init__(reason.partition(" [")[0])
        self.leaf, self.detail = leaf, reason


def read_arrays(folder: Path, leaves: Mapping[str, LeafMeta]) -> dict[str, torch.Tensor]:
    """Return leaves of a folder as contiguous CPU tensors.

    Args:
        folder: What Orbax wrote.
        leaves: What to read, by name. None of them has size zero.

    Raises:
        UnreadableLeafError: A leaf is not there, or is not what ``leaves`` says.
    """
    import tensorstore as ts

    context = ts.Context()

    def spec(leaf: LeafMeta) -> dict[str, Any]:
        base = {"driver": "file", "path": f"{folder}/"}
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{leaf.key}/"}
        # not compressed, as Orbax was told: a few bytes must not become as many as somebody likes
        return {"driver": "zarr", "kvstore": kvstore, "metadata": {"compressor": None, "filters": None}}

    # All are opened, then all are read: TensorStore overlaps what is started and not yet asked for.
    opened = {name: ts.open(spec(leaf), open=True, context=context) for name, leaf in leaves.items()}
    started = {name: _start(name, future, leaves[name]) for name, future in opened.items()}
    return {name: from_numpy(_wait(name, future), leaves[name]) for name, future in started.items()}


def _start(name: str, future: Any, leaf: LeafMeta) -> Any:
    array = _wait(name, future)
    shape, dtype = list(array.shape), array.dtype.name
    if (shape, dtype) != (leaf.stored_shape, leaf.stored):
        raise UnreadableLeafError(name, f"expected {leaf.stored} of shape {leaf.stored_shape}, got {dtype} of shape {shape}")
    return array.read()


def _wait(name: str, future: Any) -> Any:
    try:
        return future.result()
    except (ValueError, OSError, NotImplementedError) as error:  # what TensorStore's statuses are in Python
        raise UnreadableLeafError(name, str(error)) from None
