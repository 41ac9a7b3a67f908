"""The difference of two states: which leaves differ, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from purestate.core._component import Component
from purestate.core._hash import canonical_json, leaf_bytes
from purestate.core._key import Key
from purestate.core._state import Counters, State
from purestate.core._tree import Leaves, spec_of

__all__ = ["LeafDiff", "diff", "diff_leaf", "diff_skeletons"]

_NOTHING = object()


@dataclass(frozen=True)
class LeafDiff:
    """A leaf, a plain value or a whole part that differs.

    Args:
        path: ``params['fc.weight']``, ``optimizer.param_groups[0]['lr']``, or the name of a part such as ``key``.
        a: What it is in the first state: shape and dtype of a leaf, a value as JSON, or the digest of a part.
        b: What it is in the second.
        changed: How many elements have other bits; None where they cannot be compared.
        largest: The largest absolute difference, inf where nan came or went; None likewise.
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
        >>> from purestate.core._init import init
        >>> a, b = init(lambda: nn.Linear(1, 1), seed=0), init(lambda: nn.Linear(1, 1), seed=1)
        >>> [leaf.path for leaf in diff(a, b)]
        ["params['weight']", "params['bias']", 'key']
    """
    ours, theirs = a.digests, b.digests
    found: list[LeafDiff] = []
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) == theirs.get(name):
            continue
        before, after = _leaves(a, name), _leaves(b, name)
        inside = _diff_leaves(name, before, after) if before is not None and after is not None else []
        inside += _diff_plain(a, b, name)
        found += inside or [LeafDiff(name, ours.get(name, "none"), theirs.get(name, "none"))]
    return found


def _leaves(state: State, name: str) -> Leaves | None:
    part = getattr(state, name)
    if isinstance(part, Component):
        part = part.leaves
    return part if isinstance(part, Leaves) else None


def _diff_leaves(where: str, a: Leaves, b: Leaves) -> list[LeafDiff]:
    found: list[LeafDiff] = []
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            ours, theirs = (str(spec_of(leaves[name])) if name in leaves else "none" for leaves in (a, b))
            found.append(LeafDiff(f"{where}[{name!r}]", ours, theirs))
        elif a.hashes[name] != b.hashes[name]:
            found.append(diff_leaf(f"{where}[{name!r}]", a[name], b[name]))
    return found


def diff_leaf(path: str, a: torch.Tensor, b: torch.Tensor) -> LeafDiff:
    """Return how two leaves differ."""
    specs = str(spec_of(a)), str(spec_of(b))
    if a.shape != b.shape or a.dtype != b.dtype:
        return LeafDiff(path, *specs)
    # bits decide: equal values may have others (-0.0), and a nan may be the same nan
    ours, theirs = (np.frombuffer(leaf_bytes(tensor), np.uint8).reshape(-1, tensor.element_size()) for tensor in (a, b))
    changed = torch.from_numpy((ours != theirs).any(1))
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = (tensor.detach().cpu().to(wide).reshape(-1)[changed] for tensor in (a, b))
    distance = torch.where(x == y, 0.0, (x - y).abs())
    return LeafDiff(path, *specs, len(x), float(torch.where(distance.isnan(), torch.inf, distance).max()))


def _diff_plain(state: State, other: State, name: str) -> Iterator[LeafDiff]:
    """What differs between the plain values of a part."""
    a, b = getattr(state, name), getattr(other, name)
    if isinstance(a, Component) and isinstance(b, Component):
        yield from diff_skeletons(name, a.skeleton, b.skeleton)
    elif isinstance(a, (Key, Counters)):
        yield LeafDiff(name, repr(a), repr(b))


def diff_skeletons(name: str, a: Any, b: Any) -> Iterator[LeafDiff]:
    """Yield what differs between the plain values of two components.

    Args:
        name: ``'optimizer'``, ``'epoch_scheduler'``, ``'step_scheduler'`` or ``'extra'``.
        a: The skeleton of one.
        b: Of the other.
    """
    ours, theirs = _objects(name, a), _objects(name, b)
    for path in dict.fromkeys([*ours, *theirs]):
        yield from _diff_json(path, ours.get(path, _NOTHING), theirs.get(path, _NOTHING))


def _objects(name: str, skeleton: Any) -> dict[str, Any]:
    """The plain values of a component by the expression that reaches them: ``optimizer.param_groups``."""
    if name == "extra":
        return {"extra": skeleton}
    found: dict[str, Any] = {f"{name}.{key}": value for key, value in skeleton.items() if key != "objects"}
    for place, attributes in skeleton["objects"].items():
        where = place.removeprefix("optimizer").removeprefix("scheduler")
        found |= {f"{name}{where}.{attribute}": value for attribute, value in attributes.items()}
    return found


def _diff_json(path: str, a: Any, b: Any) -> Iterator[LeafDiff]:
    if isinstance(a, dict) and isinstance(b, dict) and "~" not in a and "~" not in b:
        for key in dict.fromkeys([*a, *b]):
            yield from _diff_json(f"{path}[{key!r}]", a.get(key, _NOTHING), b.get(key, _NOTHING))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _diff_json(f"{path}[{i}]", x, y)
    else:
        ours, theirs = ("none" if value is _NOTHING else canonical_json(value).decode() for value in (a, b))
        if ours != theirs:
            yield LeafDiff(path, ours, theirs)
