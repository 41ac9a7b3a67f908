"""What is told of a leaf, and of two that differ. Plain: `_foreign` and `_numbers` compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from purestate.view import html_table

__all__ = ["LeafComparison", "LeafHash", "leaf_table"]


@dataclass(frozen=True)
class LeafHash:
    """A leaf.

    Args:
        name: ``'fc.weight'``.
        dtype: As torch calls it.
        shape: Its shape.
        hash: Its digest: see `purestate.core._hash.leaf_hash`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    hash: str


@dataclass(frozen=True)
class LeafComparison:
    """A leaf, or a plain value, that differs.

    Args:
        path: ``params['fc.weight']``, ``optimizer.param_groups[0]['lr']``.
        a: What it is in the first state: dtype and shape of a leaf, a value as JSON, ``'none'``.
        b: In the second.
        elements: How many elements it has; None where they cannot be compared, or for a value.
        changed: How many of them have other bits.
        largest: The largest absolute difference, inf where nan came or went.
        ulps: How many numbers of the dtype lie between two elements, at most; None where that means nothing.
        norms: The 2-norm of each.
    """

    path: str
    a: str
    b: str
    elements: int | None = None
    changed: int | None = None
    largest: float | None = None
    ulps: int | None = None
    norms: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.changed is None:
            return f"{self.path}: {_cut(self.a)} | {_cut(self.b)}"
        ulps = "" if self.ulps is None else f", {self.ulps} ulps"
        norms = "" if self.norms is None else f", norms {self.norms[0]:.6g} | {self.norms[1]:.6g}"
        return f"{self.path} {self.a}: {self.changed} of {self.elements} elements, by up to {self.largest:.3g}{ulps}{norms}"


def leaf_table(leaves: Sequence[LeafComparison]) -> list[tuple[str, str]]:
    """Return a titled HTML table of leaves that differ; nothing where none does."""
    rows = [
        [
            leaf.path,
            _cut(leaf.a),
            _cut(leaf.b),
            leaf.elements,
            leaf.changed,
            leaf.largest,
            leaf.ulps,
            *(leaf.norms or (None, None)),
        ]
        for leaf in leaves
    ]
    header = ["leaf", "a", "b", "elements", "changed", "largest", "ulps", "norm a", "norm b"]
    return [("leaves that differ", html_table(rows, header))] if rows else []


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
