"""Copying checkpoints from one store into another, whatever keeps their bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from purestate.errors import CheckpointExistsError, MissingSnapshotError
from purestate.store._backend import Backend, Log
from purestate.store._record import Record
from purestate.store._report import CopyReport

__all__ = ["Named", "copy"]

Named = Callable[[Sequence[Record]], Mapping[str, tuple[str, bool]]]
"""Returns the items that records name, by digest: what each is for people, and whether the records need it."""


def copy(source: Backend, target: Backend, ids: Sequence[str], named: Named) -> CopyReport:
    """Copy checkpoints: the items that are not there, each verified on the way, then the records.

    The records are read first, so that what somebody appends meanwhile is left out whole.

    Args:
        source: Not modified.
        target: Where they go. What it has stays as it is.
        ids: Which ones.
        named: Says what the records name.

    Raises:
        CheckpointExistsError: The target has another checkpoint of one of these names. Nothing was copied.
        MissingSnapshotError: An item that records need is not there.
        CorruptItemError: An item is damaged; what was copied before stays.

    Effects:
        Items and records in ``target``, durable on return, and a line in its journal for each checkpoint that changed.
    """
    records, items, lost = 0, list[str](), list[str]()
    logs = {id: list(source.log(id, must_exist=True).records) for id in ids}
    for id, taken in logs.items():  # before anything is copied
        _must_begin_alike(target.log(id), taken)
    for id, taken in logs.items():
        wanted = named(taken)
        there = target.log(id)
        with target.writing():
            for digest, (what, needed) in wanted.items():
                if not _copied(source, target, digest, f"{what} of checkpoint {id!r}", needed, items):
                    lost.append(digest)
            with there.lock():
                there.refresh()
                _must_begin_alike(there, taken)
                rest = taken[len(there.records) :]
                if rest:
                    there.extend(rest)
        if rest:
            target.journal("copy", checkpoint=id, records=len(rest), head=rest[-1].digest)
        records += len(rest)
    return CopyReport(tuple(logs), records, tuple(items), tuple(lost))


def _copied(source: Backend, target: Backend, digest: str, what: str, needed: bool, items: list[str]) -> bool:
    """Copy one item if it is not there; False if it is nowhere, and not needed."""
    fresh = not target.has(digest)
    try:
        # of one that is there the target makes sure itself that it is whole
        if fresh or next(target.faults(digest, what, hashed=True), None) is not None:
            target.put({digest: source.get(digest, what=what)})
            items.append(digest)
        else:  # written again it is not, but its name is made durable: who wrote it may have been killed before
            target.put({digest: target.get(digest, what=what)})
    except MissingSnapshotError:
        if needed:
            raise
        return False
    return True


def _must_begin_alike(there: Log, records: Sequence[Record]) -> None:
    both = min(len(there.records), len(records))
    if both and there.records[both - 1].digest != records[both - 1].digest:
        n = next(i for i in range(both) if there.records[i].digest != records[i].digest)
        raise CheckpointExistsError(
            f"The other store has another checkpoint {there.id!r}: they differ from record {n} on.",
            cause="A log is copied as it is, and two logs cannot be made one.",
            fix=f"Rename one of them first: store.rename({there.id!r}, ...).",
            id=there.id,
        )
