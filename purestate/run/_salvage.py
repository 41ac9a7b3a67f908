"""What can still be read where an item is damaged or gone: the nearest answer of the checkpoint whose bytes are whole."""

from __future__ import annotations

from collections.abc import Iterator

from purestate.errors import CorruptItemError, MissingSnapshotError, StoreError
from purestate.run._chain import RecordLike
from purestate.run._ledger import Ledger
from purestate.run._load import snapshot_of
from purestate.run._maintain import named
from purestate.run._snapshot import items_of

__all__ = ["explained", "nearest_good"]

Unreadable = CorruptItemError | MissingSnapshotError


def explained(ledger: Ledger, digest: str, error: Unreadable) -> Unreadable:
    """Return the error for an item that a state needs, with what the item is and what can be loaded in its place.

    Reads the items of other answers until some are found to be whole.
    """
    try:
        part, _ = named(ledger.log.records).get(digest, ("an item", False))
        ledger.refresh()
        offer = nearest_good(ledger, digest)
    except StoreError:  # the log is damaged too; what was asked for comes first
        return error
    problem = f"{part[0].upper()}{part[1:]} of checkpoint {ledger.id!r}{error.problem.removeprefix('An item')}"
    fix = error.fix if offer is None else f"{error.fix} The nearest that is whole: {offer}."
    where = {name: getattr(error, name) for name in ("path", "digest", "leaf", "file", "actual") if hasattr(error, name)}
    return type(error)(problem, cause=error.cause, fix=fix, **where)


def nearest_good(ledger: Ledger, digest: str) -> str | None:
    """Return the call that loads an answer without a damaged item: of the same train, else of the one before, and so on."""
    answers = [(op, record) for op, _, record in ledger.chain.finished()]
    hit = next((op for op, record in answers if any(digest in items for _, items in _snapshots(record))), len(answers))
    for op, record in sorted(answers, key=lambda answer: (abs(answer[0] - hit), answer[0])):
        for best, items in _snapshots(record):
            if digest not in items and _are_whole(ledger, items):
                return f"store.load({ledger.id!r}, op={op}{', best=True' if best else ''})"
    return None


def _snapshots(record: RecordLike) -> Iterator[tuple[bool, dict[str, str]]]:
    for best in (False, True):
        yield best, items_of(snapshot_of(record, best=best))


def _are_whole(ledger: Ledger, items: dict[str, str]) -> bool:
    faults: Iterator[StoreError] = (
        fault for digest, part in items.items() for fault in ledger.backend.faults(digest, part, hashed=True)
    )
    return next(faults, None) is None
