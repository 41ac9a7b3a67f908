"""What records need of a store: which items they name, and which of those nobody would miss.

The rooms below know records and items, and not what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from purestate.errors import FormatVersionError
from purestate.run._chain import READERS, RecordLike, as_recorded
from purestate.run._chain import named as named_record
from purestate.run._named import code_of
from purestate.run._named import items_of as items_of_snapshot
from purestate.store._backend import Backend

__all__ = ["items_of", "named", "needed", "outlived", "roots", "taken_back", "voided"]

_NOTHING = frozenset({"checkpoint", "train", "epoch", "drop", "reset", "accept", "alias"})
"""Kinds of records that name no item."""


def items_of(record: RecordLike) -> dict[str, str]:
    """Return the items that a record names, by digest, and what each is to it.

    Raises:
        FormatVersionError: This version does not know the kind of record, so it cannot tell.
        CorruptLogError: The record does not hold what its kind does.

    Example:
        >>> from purestate.store._record import EMPTY_HEAD, encode
        >>> items_of(encode(0, EMPTY_HEAD, "predict", {"item": "9f2c"}))
        {'9f2c': 'the answer of predict'}
    """
    items: dict[str, str] = {}
    for _, found in _states(record):
        for digest, part in found.items():
            items.setdefault(digest, part)  # the best epoch may be the answer, which says more
    return items


def voided(records: Iterable[RecordLike]) -> set[int]:
    """Return the numbers of the records that `Checkpoint.reset` voided: of trains their first, of readers the only one."""
    return {seq for record in records if record.kind == "reset" for seq in _sequence(record)}


def taken_back(records: Iterable[RecordLike]) -> set[int]:
    """Return the numbers of the records that kept an epoch which a later one drops."""
    kept: dict[tuple[int, int], list[int]] = {}
    gone: set[int] = set()
    for record in records:
        if record.kind in ("keep", "drop"):
            with as_recorded(record):
                of = record.body["of"]
                if record.kind == "keep":
                    kept.setdefault((of, record.body["n"]), []).append(record.seq)
                else:
                    gone |= {seq for n in record.body["epochs"] for seq in kept.pop((of, n), ())}
    return gone


def named(records: Sequence[RecordLike]) -> dict[str, tuple[str, bool]]:
    """Return the items that the records of a checkpoint name: what each is, and whether a record needs it.

    Those that were voided, or whose epoch was dropped, do not.
    """
    gone, back = voided(records), taken_back(records)
    found: dict[str, tuple[str, bool]] = {}
    for record in records:
        needed = _begun(record) not in gone and record.seq not in back
        for digest, part in items_of(record).items():
            if digest not in found or (needed and not found[digest][1]):
                found[digest] = (f"{part} of record {record.seq}", needed)
    return found


def needed(records: Sequence[RecordLike]) -> set[str]:
    """Return the items of which somebody would miss one."""
    return {digest for digest, (_, is_needed) in named(records).items() if is_needed}


def outlived(records: Sequence[RecordLike], point: Mapping[str, Any]) -> bool:
    """Return whether a resume point is of no use any more: its train has an answer as far as the point goes, or was voided.

    A point that is further on than what was asked for since stays: who asks for more goes on from it.
    """
    start = next((record for record in records if record.kind == "train" and record.digest == point.get("of")), None)
    if start is None or start.seq in voided(records):
        return True
    try:
        last = max((r.body["last"] for r in records if r.kind == "done" and r.body["of"] == start.seq), default=0)
        epochs = [*map(int, point["states"]), *([int(point["position"]["n"])] if "position" in point else [])]
        return max(epochs) <= last
    except (LookupError, TypeError, ValueError):  # of another version, or of a stranger
        return False


def roots(backend: Backend, *, with_voided: bool) -> set[str]:
    """Return the items that must stay.

    A resume point is not asked: it holds its tensors itself.

    Args:
        backend: The store's.
        with_voided: Whether voided answers keep their states. What another train began from is kept in any case, also the
            state of an epoch that was dropped.

    Raises:
        CorruptLogError: A log is damaged, so nobody knows what it named.
        FormatVersionError: A record is of a newer version, which may name items in another way.
    """
    logs = {id: list(backend.log(id).records) for id in backend.ids()}
    begun_from: set[str] = set()
    for records in logs.values():
        gone = voided(records)
        for record in records:
            if record.kind == "train" and record.seq not in gone:
                begun_from |= _inputs(record)
    keep: set[str] = set()
    for records in logs.values():
        gone, back = set[int]() if with_voided else voided(records), taken_back(records)
        for record in records:
            for state, found in _states(record):
                if (_begun(record) not in gone and record.seq not in back) or state in begun_from:
                    keep |= found.keys()
    return keep


def _states(record: RecordLike) -> Iterator[tuple[str | None, Mapping[str, str]]]:
    """Yield, for each state that a record keeps, its hash and its items; None for what is no state."""
    kind = record.kind
    with as_recorded(record):
        body = record.body
        if kind in READERS:
            item = body["item"]
            if item is not None and type(item) is not str:
                raise TypeError(f"{item!r} is no digest")
            answer = {} if item is None else {item: f"the answer of {kind}"}
            yield None, answer | _code(body, kind)
        elif kind == "root":
            yield _state(body["state"], "the initial state")
        elif kind == "done":
            yield _state(body["out"], "the answer")
            for n, kept in body["kept"].items():
                yield _state(kept, f"epoch {n}")
            if "input" in body:
                yield _state(body["input"], "the input")
            yield None, _code(body, "train")
        elif kind == "keep":
            yield _state(body["state"], f"epoch {body['n']}")
        elif kind not in _NOTHING:
            raise FormatVersionError(
                f"{named_record(record)} is of the kind {kind!r}, and this version does not know what such a record needs.",
                cause="The checkpoint was written by a newer version.",
                fix="Update purestate.",
                expected=sorted({*_NOTHING, *READERS, "root", "keep", "done"}),
                actual=kind,
            )


def _state(snapshot: Mapping[str, Any], whose: str) -> tuple[str, dict[str, str]]:
    if type(snapshot["hash"]) is not str:
        raise TypeError("there is a hash that is none")
    return snapshot["hash"], {digest: f"{part} of {whose}" for digest, part in items_of_snapshot(snapshot).items()}


def _code(body: Mapping[str, Any], whose: str) -> dict[str, str]:
    return dict.fromkeys(code_of(body), f"the source text of {whose}")


def _begun(record: RecordLike) -> int:
    """The number by which a reset voids a record."""
    with as_recorded(record):
        of = record.body["of"] if record.kind in ("keep", "done") else record.seq
        if type(of) is not int:
            raise TypeError(f"{of!r} is no number of a record")
        return of


def _inputs(record: RecordLike) -> set[str]:
    with as_recorded(record):
        body = record.body
        parent = body["parent"]
        return {body["input"], body["base"], *([parent["hash"]] if parent is not None else [])}


def _sequence(record: RecordLike) -> list[int]:
    with as_recorded(record):
        of = record.body["of"]
        if type(of) is not list or any(type(seq) is not int for seq in of):
            raise TypeError(f"{of!r} is no list of numbers")
        return of
