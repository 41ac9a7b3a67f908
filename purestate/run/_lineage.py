"""Where a state came from: the records above it, and the states that they hold.

A parent is data (checkpoint, sequence number, digest, state hash) and may dangle: the checkpoint can be gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from purestate.core._recipe import Recipe
from purestate.core._state import State
from purestate.errors import MissingSnapshotError
from purestate.run._ledger import Ledger
from purestate.store._backend import Backend

__all__ = ["Parent", "ancestors", "first_input", "restore_parent"]

Parent = Mapping[str, Any]


def ancestors(backend: Backend, parent: Parent | None) -> Iterator[Parent]:
    """Yield a parent, the parent of the checkpoint that it is in, and so on, as far as the logs are there."""
    seen: set[str] = set()
    while parent is not None and parent["checkpoint"] not in seen:
        yield parent
        seen.add(parent["checkpoint"])
        trains = Ledger(backend, parent["checkpoint"]).chain.trains
        parent = trains[0].start.body["parent"] if trains else None


def restore_parent(backend: Backend, parent: Parent, recipe: Recipe | None, device: torch.device | str = "cpu") -> State:
    """Return the lazy state of a record, as the answer that it is.

    Args:
        backend: Where the records are.
        parent: What `State.origin` says of it.
        recipe: The static half.
        device: Where the tensors go.

    Raises:
        MissingSnapshotError: The record is gone, or keeps no snapshot.
    """
    ledger = Ledger(backend, parent["checkpoint"])
    records = ledger.log.records
    record = records[parent["seq"]] if parent["seq"] < len(records) else None
    kept: Any = None
    if record is not None and record.digest == parent["record"]:
        if record.kind == "epoch":
            train = next((train for train in ledger.chain.trains if train.start.seq == record.body["of"]), None)
            kept = train.kept().get(record.body["n"]) if train else None
        else:
            # an answer keeps its best epoch beside what it returned, and a state may be either
            states = [record.body["state"]] if record.kind == "root" else [record.body["out"], *record.body["kept"].values()]
            kept = next((state for state in states if state["hash"] == parent["hash"]), None)
    if kept is None:
        raise MissingSnapshotError(
            f"checkpoint {parent['checkpoint']!r}: the state {parent['hash'][:11]} of record {parent['seq']} is not there.",
            cause="The checkpoint was deleted or begun anew, or the epoch is one whose state was not kept.",
            fix="Run the script that made it again.",
        )
    return ledger.restore(kept, recipe, device).answered(parent)


def first_input(ledger: Ledger, recipe: Recipe | None, device: torch.device | str = "cpu") -> State:
    """Return the state that the first train of a checkpoint began from, before `setup` where that is known.

    Raises:
        MissingSnapshotError: There is no train, or its input is not kept.
    """
    trains = ledger.chain.trains
    start = trains[0].start.body if trains else None
    if start is not None and start["parent"] is not None:
        return restore_parent(ledger.backend, start["parent"], recipe, device)
    kept = next((record.body["input"] for record in trains[0].done if "input" in record.body), None) if trains else None
    if kept is None:
        raise MissingSnapshotError(
            f"checkpoint {ledger.id!r}: the state that it began from is not kept.",
            cause="No train of it was finished." if trains else "It has no train.",
            fix="Give that state again: it is what the script has before the checkpoint.",
        )
    return ledger.restore(kept, recipe, device)
