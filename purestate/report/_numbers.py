"""How two leaves differ: elements, largest difference, units in the last place, norms. Needs torch, so it is imported late."""

from __future__ import annotations

import numpy as np
import torch

from purestate.core._diff import diff_leaf
from purestate.core._hash import leaf_bytes
from purestate.report._leaf import LeafComparison

__all__ = ["compare_leaves", "largest_ulps"]

_UNSIGNED = {torch.float16: np.uint16, torch.bfloat16: np.uint16, torch.float32: np.uint32, torch.float64: np.uint64}
_INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}
"""The bits of inf: what is above, without the sign, is nan."""


def compare_leaves(path: str, a: torch.Tensor, b: torch.Tensor) -> LeafComparison:
    """Return how two leaves of other hashes differ.

    Args:
        path: What they are called.
        a: On the CPU. Not modified.
        b: Likewise.

    Example:
        >>> found = compare_leaves("w", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0000002384185791]))
        >>> found.changed, found.elements, found.ulps
        (1, 2, 1)
    """
    found = diff_leaf(path, a, b)
    norms = tuple(float(torch.linalg.vector_norm(tensor.to(_wide(tensor)))) for tensor in (a, b))
    comparable = found.changed is not None
    return LeafComparison(
        path=path,
        a=found.a,
        b=found.b,
        elements=a.numel() if comparable else None,
        changed=found.changed,
        largest=found.largest,
        ulps=largest_ulps(a, b) if comparable else None,
        norms=(norms[0], norms[1]),
    )


def largest_ulps(a: torch.Tensor, b: torch.Tensor) -> int | None:
    """Return how many numbers of their dtype lie between two elements, at most; 0.0 and -0.0 are neighbours.

    None for dtypes that are no IEEE floats, and where nan came or went.

    Example:
        >>> largest_ulps(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))
        1
    """
    dtype = a.dtype
    if dtype.is_complex:
        return largest_ulps(torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj()))
    if dtype not in _UNSIGNED:
        return None
    x, y = (np.frombuffer(leaf_bytes(tensor), _UNSIGNED[dtype]) for tensor in (a, b))
    differs = x != y
    x, y = x[differs], y[differs]
    magnitude = _UNSIGNED[dtype](np.iinfo(_UNSIGNED[dtype]).max >> 1)
    if not len(x):
        return 0
    if max(int((x & magnitude).max()), int((y & magnitude).max())) > _INFINITY[dtype]:
        return None
    # the bits of floats of one sign are in their order; negative ones run the other way
    sign = ~magnitude
    x, y = (np.where(bits & sign, ~bits, bits | sign) for bits in (x, y))
    return int((np.maximum(x, y) - np.minimum(x, y)).max())


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64
