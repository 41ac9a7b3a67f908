"""Answers of a checkpoint written for others: the layout that Orbax's CheckpointManager reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from purestate.core._component import Component
from purestate.core._state import COMPONENTS, SUBTREES, State
from purestate.errors import MissingSnapshotError
from purestate.run._ledger import Ledger
from purestate.run._load import load, train_of
from purestate.store._export import export

__all__ = ["export_orbax"]


def export_orbax(ledger: Ledger, path: Path, op: int | None = None) -> Path:
    """Write one step an op, or an epoch of one. See `purestate.run._store.Store.export_orbax`."""
    if op is not None:
        epochs = sorted(train_of(ledger, op).kept_epochs())
        export(path, ((n, _subtrees(load(ledger, None, "cpu", op=op, epoch=n))) for n in epochs))
        return path
    ops = [op for op, _, _ in ledger.chain.finished()]
    if not ops:
        raise MissingSnapshotError(f"checkpoint {ledger.id!r} has no finished train, so there is nothing to export.")
    export(path, ((op, _subtrees(load(ledger, None, "cpu", op=op))) for op in ops))
    return path


def _subtrees(state: State) -> dict[str, Mapping[str, torch.Tensor]]:
    found: dict[str, Mapping[str, torch.Tensor]] = {}
    for name in SUBTREES:
        if (leaves := getattr(state, name)) is not None:
            found[name] = dict(leaves)
    for name in (*COMPONENTS, "extra"):
        component: Component | None = getattr(state, name)
        if component is not None:
            found[name] = dict(component.leaves)
    return found
