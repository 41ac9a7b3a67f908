"""Where a state came from: the records above it, and the states that they hold.

A parent is data (checkpoint, sequence number, digest, state hash) and may dangle: the checkpoint can be gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from purestate.core._recipe import Recipe
from purestate.core._state import State
from purestate.errors import CorruptLogError, MissingSnapshotError, StoreError
from purestate.run._ledger import Ledger
from purestate.store._backend import Backend

__all__ = ["Parent", "ancestors", "begun_from", "first_input", "foreign_parent", "forks", "home", "restore_parent"]

Parent = Mapping[str, Any]


def home(backend: Backend, parent: Parent) -> Ledger | None:
    """Return the checkpoint that the record of a parent is in: of the name that it had then, else of another since.

    Names change (`Store.rename`, a copy in another store); a record is known by its digest.
    """
    seq, digest = parent["seq"], parent["record"]
    for id in dict.fromkeys((parent["checkpoint"], *backend.ids())):
        try:
            records = backend.log(id).records
        except CorruptLogError:
            if id == parent["checkpoint"]:
                raise
            continue  # of one that may have nothing to do with it
        if seq < len(records) and records[seq].digest == digest:
            return Ledger(backend, id)
    return None


def ancestors(backend: Backend, parent: Parent | None) -> Iterator[Parent]:
    """Yield a parent, the parent of the checkpoint that it is in, and so on, as far as the logs are there.

    They have the names that their checkpoints have now.
    """
    seen: set[str] = set()
    while parent is not None:
        ledger = home(backend, parent)
        name = parent["checkpoint"] if ledger is None else ledger.id
        if name in seen:
            return
        seen.add(name)
        yield {**parent, "checkpoint": name}
        trains = ledger.chain.trains if ledger is not None else []
        parent = trains[0].start.body["parent"] if trains else None


def foreign_parent(ledger: Ledger) -> dict[str, Any] | None:
    """Return the parent of a checkpoint's first train, if another checkpoint has it."""
    if not ledger.chain.trains:
        return None
    parent, records = ledger.chain.trains[0].start.body["parent"], ledger.log.records
    if parent is None:
        return None
    # by the record, not by the name, which may be another since
    own = parent["seq"] < len(records) and records[parent["seq"]].digest == parent["record"]
    return None if own else parent


def begun_from(ledger: Ledger) -> Iterator[tuple[str, Parent]]:
    """Yield the other checkpoints of a store with the record of any checkpoint that each began from."""
    for id in ledger.backend.ids():
        if id != ledger.id:
            with suppress(StoreError):  # one whose log is damaged: where it began nobody knows
                trains = Ledger(ledger.backend, id).chain.trains
                parent = trains[0].start.body["parent"] if trains else None
                if parent is not None:
                    yield id, parent


def forks(ledger: Ledger, first: int) -> tuple[str, ...]:
    """Return the other checkpoints that began from a train of this one.

    Args:
        ledger: The checkpoint.
        first: The number of the train from which on they count.
    """
    trains = ledger.chain.binding()[first:]
    records = {record.digest for train in trains for record in (train.start, *train.epochs.values(), *train.done)}
    return tuple(id for id, parent in begun_from(ledger) if parent["record"] in records)


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
    ledger = home(backend, parent)
    kept: Any = None
    if ledger is not None:
        record = ledger.log.records[parent["seq"]]
        if record.kind == "epoch":
            train = next((train for train in ledger.chain.trains if train.start.seq == record.body["of"]), None)
            kept = train.snapshot(record.body["n"]) if train else None
        else:
            # an answer keeps its best epoch beside what it returned, and a state may be either
            states = [record.body["state"]] if record.kind == "root" else [record.body["out"], *record.body["kept"].values()]
            kept = next((state for state in states if state["hash"] == parent["hash"]), None)
    if ledger is None or kept is None:
        raise MissingSnapshotError(
            f"checkpoint {parent['checkpoint']!r}: the state {parent['hash'][:11]} of record {parent['seq']} is not there.",
            cause="The checkpoint was deleted or begun anew, or the epoch is one whose state was not kept.",
            fix="Run the script that made it again.",
        )
    return ledger.restore(kept, recipe, device).answered({**parent, "checkpoint": ledger.id})


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
