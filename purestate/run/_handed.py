"""States and leaves that one process hands to another through files, for as long as both run. Nothing of this is kept.

A file of bytes, and beside it what they are. Nothing is hashed here: who reads a state compares its hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from purestate.core._component import Component
from purestate.core._hash import dtype_name, leaf_bytes
from purestate.core._key import Key
from purestate.core._recipe import Recipe
from purestate.core._state import COMPONENTS, SUBTREES, Counters, State
from purestate.core._tree import Leaves, in_order, stride_order

__all__ = ["read_leaves", "read_state", "write_leaves", "write_state"]


def write_leaves(path: Path, leaves: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write the bytes of leaves, one behind the other, and return what they are as JSON.

    Effects:
        The file at ``path``.
    """
    found: dict[str, Any] = {}
    with path.open("wb") as file:
        for name, leaf in leaves.items():
            order = stride_order(leaf)
            found[name] = [dtype_name(leaf.dtype), list(leaf.shape), None if order is None else list(order), file.tell()]
            file.write(leaf_bytes(leaf))
    return found


def read_leaves(path: Path, json: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the leaves that were written, on the CPU."""
    leaves: dict[str, torch.Tensor] = {}
    with path.open("rb") as file:
        for name, (dtype, shape, order, start) in json.items():
            leaf = torch.empty(shape, dtype=getattr(torch, dtype))
            if leaf.numel():
                file.seek(start)
                leaf = torch.frombuffer(bytearray(file.read(leaf.nbytes)), dtype=leaf.dtype).reshape(shape)
            leaves[name] = in_order(leaf, None if order is None else tuple(order))
    return leaves


def write_state(path: Path, state: State) -> None:
    """Write a state to ``path`` and a file beside it.

    Effects:
        Two files.
    """
    parts: dict[str, Any] = {}
    for name in (*SUBTREES, "ema"):
        if (leaves := getattr(state, name)) is not None:
            parts[name] = {"leaves": write_leaves(path.with_suffix(f".{name}"), leaves)}
    for name in (*COMPONENTS, "extra"):
        if (component := getattr(state, name)) is not None:
            parts[name] = {"leaves": write_leaves(path.with_suffix(f".{name}"), component.leaves), "skeleton": component.skeleton}
    key, counters = state.key, state.counters
    path.write_text(json.dumps({"parts": parts, "key": [key.hi, key.lo], "counters": [counters.epoch, counters.step]}))


def read_state(path: Path, recipe: Recipe | None, device: torch.device) -> State:
    """Return the state that was written, on a device."""
    found = json.loads(path.read_text())
    fields: dict[str, Any] = {}
    for name, part in found["parts"].items():
        read = read_leaves(path.with_suffix(f".{name}"), part["leaves"])
        leaves = Leaves({leaf: tensor.to(device) for leaf, tensor in read.items()}, name)
        fields[name] = Component(part["skeleton"], leaves) if "skeleton" in part else leaves
    return State(key=Key(*found["key"]), counters=Counters(*found["counters"]), recipe=recipe, **fields)
