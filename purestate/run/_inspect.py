"""What a snapshot holds, told from its record and from what is noted beside its items. Reads no tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from purestate.core._hash import short
from purestate.run._chain import as_recorded
from purestate.run._ledger import Ledger
from purestate.run._load import select
from purestate.store._backend import Leaf
from purestate.store._report import in_bytes, in_notebook

__all__ = ["LeafInfo", "SnapshotInfo", "inspect"]


@dataclass(frozen=True)
class LeafInfo:
    """What is known of a leaf without reading it.

    Args:
        path: ``params['fc.weight']``.
        shape: Its shape.
        dtype: ``'float32'``.
        bytes: Its size.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class SnapshotInfo:
    """What a snapshot holds.

    Args:
        id: The checkpoint.
        op: The number of the train.
        epoch: The epoch of that train whose parameters it has.
        hash: Of the state.
        metrics: Of that epoch.
        leaves: All leaves, by subtree. What was set up and not yet built has none.
    """

    id: str
    op: int
    epoch: int
    hash: str
    metrics: dict[str, float]
    leaves: tuple[LeafInfo, ...]

    @property
    def bytes(self) -> int:
        """The size of all leaves."""
        return sum(leaf.bytes for leaf in self.leaves)

    _repr_pretty_ = in_notebook

    def __str__(self) -> str:
        told = "".join(f", {name} {value:.4g}" for name, value in self.metrics.items())
        head = f"{self.id} train {self.op}, epoch {self.epoch}: {short(self.hash)}, {in_bytes(self.bytes)}{told}"
        return "\n".join([head, *(f"  {leaf.path}  {leaf.dtype} {leaf.shape}  {in_bytes(leaf.bytes)}" for leaf in self.leaves)])


def inspect(ledger: Ledger, *, op: int | None, best: bool, epoch: int | None = None) -> SnapshotInfo:
    """Return what a snapshot holds. See `purestate.run._store.Store.inspect`."""
    found = select(ledger, op=op, best=best, epoch=epoch)
    described: dict[str, dict[str, Leaf]] = {}

    def item(digest: str, what: str) -> dict[str, Leaf]:
        if digest not in described:
            described[digest] = ledger.backend.describe(digest, what=f"{what} of checkpoint {ledger.id!r}")
        return described[digest]

    leaves: list[LeafInfo] = []
    with as_recorded(found.record):
        for name, part in found.snapshot.items():
            if name not in ("hash", "key", "counters"):
                leaves += _leaves(name, part, lambda digest, name=name: item(digest, name))
    return SnapshotInfo(
        id=ledger.id,
        op=ledger.chain.index(found.train),
        epoch=found.epoch,
        hash=found.snapshot["hash"],
        metrics=found.metrics,
        leaves=tuple(leaves),
    )


def _leaves(name: str, part: Mapping[str, Any], item: Any) -> Iterator[LeafInfo]:
    if "names" in part:
        yield from _named(name, part["names"], part, item)
        if "beside" in part:
            yield from _named("buffers", part["beside"]["names"], part, item)
    for path, written in part.get("inline", {}).items():
        yield _info(f"{name}[{path!r}]", written[1], written[0])
    for vector, entries in part.get("layout", {}).items():
        for path, shape, *_ in entries:
            yield _info(f"{name}[{path!r}]", shape, vector.rsplit(".", 1)[-1])


def _named(subtree: str, names: list[str], part: Mapping[str, Any], item: Any) -> Iterator[LeafInfo]:
    for leaf in names:
        found = item(part["item"])[leaf]
        yield LeafInfo(f"{subtree}[{leaf!r}]", found.shape, found.dtype, found.size)


def _info(path: str, shape: list[int], dtype: str) -> LeafInfo:
    return LeafInfo(path, tuple(shape), dtype, math.prod(shape) * getattr(torch, dtype).itemsize)
