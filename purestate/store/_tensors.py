"""What a leaf looks like at rest: its key, the dtype it is stored in, and the ways between torch and bytes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from purestate.core._hash import dtype_name
from purestate.store._layout import escape

__all__ = ["Array", "LeafMeta", "describe", "empty", "from_numpy", "place"]

# What Orbax stores as itself. Others are kept as their bytes, in an array with one more axis.
_NATIVE = frozenset(
    "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 bfloat16 float16 float32 float64 complex64 complex128 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz".split()
)
_ALIGNMENT = 64
_MOST_DIMENSIONS = 32


@dataclasses.dataclass(frozen=True, slots=True)
class LeafMeta:
    """What the file beside an item says of a leaf."""

    key: str
    """Its key in the Orbax folder."""
    dtype: str
    shape: list[int]
    stored: str
    """The dtype in the Orbax folder: ``dtype``, or ``uint8`` for its bytes."""
    hash: str

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> LeafMeta:
        """Return what `to_json` made plain; a TypeError, KeyError or ValueError says that it is something else."""
        shape = fields["shape"]
        if type(shape) is not list or len(shape) > _MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("there is a shape that is none")
        if any(type(fields[name]) is not str for name in ("key", "dtype", "stored", "hash")):
            raise ValueError("there is a leaf that is none")
        leaf = cls(**fields)
        if leaf.stored not in _NATIVE or (leaf.stored != leaf.dtype and leaf.stored != "uint8"):
            raise ValueError(f"{leaf.stored!r} is not stored")
        if math.prod(n or 1 for n in shape) * leaf.itemsize >= 1 << 63:
            raise ValueError("there is a shape of more bytes than an address has")
        return leaf

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return {"key": self.key, "dtype": self.dtype, "shape": self.shape, "stored": self.stored, "hash": self.hash}

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{self.dtype!r} is no dtype")
        return dtype.itemsize

    @property
    def size(self) -> int:
        """Bytes of the leaf."""
        size = self.itemsize
        for n in self.shape:
            size *= n
        return size

    @property
    def stored_shape(self) -> list[int]:
        """The shape in the Orbax folder."""
        return self.shape if self.stored == self.dtype else [*self.shape, self.itemsize]


def describe(name: str, tensor: torch.Tensor) -> LeafMeta:
    """Return how a tensor will be stored, its hash still open."""
    dtype = dtype_name(tensor.dtype)
    return LeafMeta(escape(name), dtype, list(tensor.shape), dtype if dtype in _NATIVE else "uint8", "")


Array = tuple[str, str, str, list[int], int]
"""Where a leaf lies in memory: name, key, stored dtype, stored shape, offset."""


def place(leaves: Mapping[str, LeafMeta], start: int) -> tuple[list[Array], int]:
    """Lay out, from byte ``start`` on, the leaves that have elements.

    Returns:
        ``(arrays, end)``: where each lies, and where the last one ends.
    """
    arrays: list[Array] = []
    for name, leaf in leaves.items():
        if leaf.size:
            arrays.append((name, leaf.key, leaf.stored, leaf.stored_shape, start))
            start += -(-leaf.size // _ALIGNMENT) * _ALIGNMENT
    return arrays, start


def from_numpy(array: np.ndarray[Any, Any], leaf: LeafMeta) -> torch.Tensor:
    """Return the tensor of what was stored; it shares the memory."""
    data = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return data.view(getattr(torch, leaf.dtype)).reshape(leaf.shape)


def empty(leaf: LeafMeta) -> torch.Tensor:
    """Return a leaf without elements."""
    return torch.empty(leaf.shape, dtype=getattr(torch, leaf.dtype))
