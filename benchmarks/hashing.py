"""The hash of a whole state against one BLAKE3 over the same bytes in one piece."""

from __future__ import annotations

import torch
from blake3 import blake3

from benchmarks._measure import Row, compare, timed
from purestate.core._key import Key
from purestate.core._state import State
from purestate.core._tree import Leaves

__all__ = ["rows"]

_TOTAL = 64 << 20


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    total = _TOTAL // 4 if quick else _TOTAL
    blob = torch.rand(total // 4)
    data = memoryview(blob.numpy()).cast("B")
    found: list[Row] = []
    for size in (16 << 10, 64 << 10, 1 << 20):
        leaves = dict(zip((f"leaf{i}" for i in range(total // size)), blob.split(size // 4), strict=True))
        found += compare(
            "hashing",
            f"hash {total >> 20} MB in leaves of {size >> 10} KB",
            {
                "purestate": timed(lambda leaves=leaves: _state(leaves).hash),
                "blake3, one piece, all threads": timed(lambda: blake3(data, max_threads=blake3.AUTO).hexdigest()),
                "blake3, one piece, one thread": timed(lambda: blake3(data).hexdigest()),
            },
            5 if quick else 15,
        )
    return found


def _state(leaves: dict[str, torch.Tensor]) -> State:
    """A state that has hashed nothing yet."""
    return State(params=Leaves(leaves, "params"), frozen=Leaves(), buffers=Leaves(), key=Key.from_seed(0))
