"""Looking at a whole store, closely or less so, and changing nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from purestate.errors import CorruptItemError, CorruptLogError, FormatVersionError, MissingSnapshotError, StoreError
from purestate.store._record import Record
from purestate.store._report import CheckReport, Finding, Level
from purestate.store._taken import begun, taken

if TYPE_CHECKING:
    from purestate.store._backend import Backend, Outlived

__all__ = ["ItemsOf", "Needed", "check"]

ItemsOf = Callable[[Record], Mapping[str, str]]
"""Returns the digests of the items that a record names, and what each is to it: ``{'9f2c…': 'params'}``."""

Needed = Callable[[Sequence[Record]], Collection[str]]
"""Returns the digests of the items that the records of a checkpoint need: of voided answers none, for example."""

_ORDER = ("damaged", "missing", "gone", "torn", "foreign", "rubbish")


def check(
    backend: Backend, items_of: ItemsOf, level: Level, needed: Needed | None = None, outlived: Outlived | None = None
) -> CheckReport:
    """Return what is wrong in a store. See `purestate.run._store.Store.check`.

    Args:
        backend: Not modified.
        items_of: Says what a record names.
        level: How close to look.
        needed: Says which of what the records of a checkpoint name nobody may miss; all of it if left out.
        outlived: Says which resume points are of no use any more; none is looked at if left out.
    """
    findings: list[Finding] = []
    named: dict[str, str] = {}
    missed: set[str] = set()
    records = 0
    empty: set[str] = set()
    ids = backend.ids()
    for id in ids:
        try:
            log = backend.log(id)
        except StoreError as error:
            findings.append(_of_log(id, error))
            continue
        records += len(log.records)
        if not log.records:
            empty.add(id)
        if log.torn:
            what = f"the last line ends after {log.torn} bytes: a crash cut it short, and it was never acknowledged"
            findings.append(
                Finding("torn", _place(id), what, "The next record, or store.repair(), cuts it off and keeps a copy.")
            )
        here: set[str] = set()
        before = len(findings)
        for record in log.records:
            try:
                found = items_of(record)
            except StoreError as error:
                remedy = (error.fix if isinstance(error, FormatVersionError) else None) or _REWRITTEN
                findings.append(Finding("damaged", f"{_place(id)}, line {record.seq + 1}", error.problem, remedy))
                continue
            here.update(found)
            for digest, part in found.items():
                named.setdefault(digest, f"{part} of record {record.seq} of checkpoint {id!r}")
        try:
            missed.update(here if needed is None else needed(log.records))
        except StoreError as error:
            missed.update(here)
            findings += [_of_log(id, error)] if len(findings) == before else []
    findings += backend.oddities()
    there = {*ids, *backend.ids()}  # some may have been begun meanwhile
    for id in begun(backend.acts()):  # which is noted behind the first record
        if id not in there:
            findings.append(Finding("gone", f"checkpoints/{id}", _GONE, _BEFORE_GC))
        elif id in empty and not backend.log(id).records:
            findings.append(Finding("gone", _place(id), _EMPTY, _BEFORE_GC))
    if level != "records":
        gone = taken(backend.acts())
        for digest, what in named.items():
            faults = backend.faults(digest, what, hashed=level == "bytes")
            spared = digest in gone or digest not in missed
            findings += (_of_item(digest, error) for error in faults if not (spared and _is_missing(error)))
        known = None if any(finding.kind == "damaged" for finding in findings) else named.keys()
        findings += backend.strays(known, outlived)
    return CheckReport(level, len(ids), records, len(named), tuple(sorted(findings, key=lambda found: _ORDER.index(found.kind))))


_GONE = "the journal says that it was begun, and not that it was deleted"
_EMPTY = "it holds no record, and the journal says that it was begun"
_BEFORE_GC = "If nobody removed it on purpose, put back a copy of it before store.gc(), which removes its states."
_REWRITTEN = "Put back a copy of the log: whoever wrote this line also wrote its digest, and nothing can be told from it."


def _place(id: str) -> str:
    return f"checkpoints/{id}/log.jsonl"


def _is_missing(error: StoreError) -> bool:
    return isinstance(error, MissingSnapshotError)


def _of_log(id: str, error: StoreError) -> Finding:
    line = f", line {error.line}" if isinstance(error, CorruptLogError) and error.line is not None else ""
    return Finding("damaged", f"{_place(id)}{line}", error.problem, error.fix or "")


def _of_item(digest: str, error: StoreError) -> Finding:
    place = f"items/{digest[:2]}/{digest}"
    if isinstance(error, CorruptItemError):
        place += "".join([f"/{error.file}" if error.file else "", f", leaf {error.leaf!r}" if error.leaf is not None else ""])
    return Finding("missing" if _is_missing(error) else "damaged", place, error.problem, error.fix or "")
