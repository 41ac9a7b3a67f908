"""The difference of two states: which leaves differ, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from purestate.core._state import COMPONENTS, State
from purestate.core._tree import Leaves, spec_of

__all__ = ["LeafDiff", "diff"]


@dataclass(frozen=True)
class LeafDiff:
    """A leaf, or a part without tensors, that differs.

    Args:
        path: ``params['fc.weight']``, or the name of a part such as ``key``.
        a: What it is in the first state: shape and dtype, or the digest of the part.
        b: What it is in the second.
        changed: How many elements differ; None where they cannot be compared.
        largest: The largest absolute difference; None likewise.
    """

    path: str
    a: str
    b: str
    changed: int | None = None
    largest: float | None = None


def diff(a: State, b: State) -> list[LeafDiff]:
    """Return what differs between two states; nothing if their hashes are equal.

    Args:
        a: Not modified.
        b: Not modified.

    Example:
        >>> from torch import nn
        >>> from purestate.core._state import init
        >>> a, b = init(lambda: nn.Linear(1, 1), seed=0), init(lambda: nn.Linear(1, 1), seed=1)
        >>> [leaf.path for leaf in diff(a, b)]
        ["params['weight']", "params['bias']", 'key']
    """
    ours, theirs = a.digests, b.digests
    found: list[LeafDiff] = []
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) == theirs.get(name):
            continue
        leaves = _leaves(a, name), _leaves(b, name)
        inside = _diff_leaves(name, *leaves) if None not in leaves else []  # type: ignore[arg-type]
        found += inside or [LeafDiff(name, ours.get(name, "none"), theirs.get(name, "none"))]
    return found


def _leaves(state: State, name: str) -> Leaves | None:
    part = getattr(state, name)
    if name in (*COMPONENTS, "extra"):
        part = part and part.leaves
    return part if isinstance(part, Leaves) else None


def _diff_leaves(where: str, a: Leaves, b: Leaves) -> list[LeafDiff]:
    found: list[LeafDiff] = []
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            specs = [str(spec_of(leaves[name])) if name in leaves else "none" for leaves in (a, b)]
            found.append(LeafDiff(f"{where}[{name!r}]", *specs))
        elif a.hashes[name] != b.hashes[name]:
            found.append(_diff_leaf(f"{where}[{name!r}]", a[name], b[name]))
    return found


def _diff_leaf(path: str, a: torch.Tensor, b: torch.Tensor) -> LeafDiff:
    specs = str(spec_of(a)), str(spec_of(b))
    if a.shape != b.shape or a.dtype != b.dtype:
        return LeafDiff(path, *specs)
    wide = torch.complex128 if a.is_complex() else torch.float64
    difference = (a.detach().cpu().to(wide) - b.detach().cpu().to(wide)).abs()
    # elements with equal values may have other bits (-0.0, payloads of nan), which the hash saw
    same = a.detach().cpu().contiguous().reshape(-1).view(torch.uint8) == b.detach().cpu().contiguous().reshape(-1).view(
        torch.uint8
    )
    changed = int((~same.reshape(-1, a.element_size()).all(1)).sum())
    return LeafDiff(path, *specs, changed, float(difference.nan_to_num(nan=float("inf")).max()))
