"""Looking after the folder of a store: repairs that can be done in one way only, and the collection of items.

Both can be killed at any point: what they remove goes to ``trash/`` in one step each, and what is in the trash is rubbish. The
journal is written before: it may name something that is still there, and never misses what is gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from purestate.errors import StoreError, StoreLockedError
from purestate.store._layout import Layout
from purestate.store._locks import FileLock
from purestate.store._report import Finding, GcReport, RepairReport
from purestate.store._sweep import (
    Leftover,
    empty_trash,
    leftovers,
    must_know_every_log,
    points,
    size_of,
    throw_away,
    trash,
)

if TYPE_CHECKING:
    from purestate.store._backend import Outlived
    from purestate.store._disk import DiskBackend
    from purestate.store._log import DiskLog

__all__ = ["collect", "odd_lines", "outlived_points", "repair"]

_PATIENCE = 1.0
"""Seconds to wait for a lock: what is locked is being written, and needs no repair now."""


def repair(backend: DiskBackend, layout: Layout, outlived: Outlived | None) -> RepairReport:
    """Cut off torn last lines, and remove what killed writers left. See `purestate.run._store.Store.repair`.

    Args:
        backend: The store's.
        layout: Its layout.
        outlived: See `purestate.store._backend.Backend.repair`.

    Effects:
        A file ``torn-…`` beside each log that is cut, fewer files, and a line in the journal that says what was done.
    """
    done: list[str] = []
    left: list[str] = []
    before = trash(layout)
    by_lock: dict[str | None, list[Leftover]] = {None: []}
    for leftover in leftovers(layout):
        by_lock.setdefault(leftover.id, []).append(leftover)
    logs: dict[str, DiskLog] = {}
    for id in backend.ids():
        try:
            logs[id] = backend.log(id)
        except StoreError as error:  # which is for people to decide
            left.append(error.problem)
    over = set(outlived_points(backend, layout, outlived))
    for id, log in logs.items():
        if not log.torn and id not in by_lock and id not in over:
            continue
        try:
            with log.lock(_PATIENCE):
                if cut := log.mend():
                    done.append(f"checkpoints/{id}/log.jsonl: a torn last line of {cut} bytes was cut off; a copy is beside it")
                _throw(layout, by_lock.get(id, []), done)
                if id in outlived_points(backend, layout, outlived, [id]):  # nobody has begun an op since
                    throw_away(layout, [layout.resume(id)])
                    done.append(f"checkpoints/{id}/resume: removed; its op was done, and its writer was killed")
        except StoreLockedError:
            left.append(f"checkpoints/{id}")
    if by_lock[None]:
        try:
            with _alone(layout, _PATIENCE):
                _throw(layout, by_lock[None], done)
        except StoreLockedError:
            left += [_below(layout, leftover) for leftover in by_lock[None]]
    emptied = empty_trash(layout)
    if not frozenset(before).isdisjoint(emptied.gone):
        done.append("trash: what was being removed is gone")
    left += [f"trash/{name}" for name in emptied.left]
    if done:
        backend.journal("repair", done=done, bytes=emptied.bytes)
    return RepairReport(tuple(done), tuple(left), emptied.bytes)


def collect(
    backend: DiskBackend,
    layout: Layout,
    named: Callable[[], Collection[str]],
    *,
    dry_run: bool,
    timeout: float | None,
    details: dict[str, Any],
) -> GcReport:
    """Remove the items that are not named. See `purestate.store._backend.Backend.collect`.

    Effects:
        A line in the journal with their digests, then fewer items.
    """
    if not layout.items.exists():
        return GcReport((), 0, 0, dry_run)
    if dry_run:
        return _choose(backend, layout, named, dry_run=True)
    with _alone(layout, timeout):
        report = _choose(backend, layout, named, dry_run=False)
        if report.items:
            backend.journal("gc", items=list(report.items), bytes=report.bytes, **details)
            throw_away(layout, [layout.item(digest) for digest in report.items])
    empty_trash(layout)
    return report


def outlived_points(
    backend: DiskBackend, layout: Layout, outlived: Outlived | None, ids: Iterable[str] | None = None
) -> Iterator[str]:
    """Yield the checkpoints whose resume points have all outlived their op."""
    if outlived is None:
        return
    for id in backend.ids() if ids is None else ids:
        # before the log: an op that has begun since has a record in it
        if bodies := points(layout, id):
            with contextlib.suppress(StoreError):  # of a damaged log `check` says more
                records = backend.log(id).records
                if all(outlived(records, body) for body in bodies):
                    yield id


def odd_lines(numbers: Iterable[int]) -> Iterator[Finding]:
    """Yield a finding for each line of the journal that holds no act."""
    for number in numbers:
        what = "the line holds no act: a crash cut it short, or it was damaged"
        yield Finding("torn", f"journal.jsonl, line {number}", what, "Nothing depends on it, and the lines behind it are read.")


def _choose(backend: DiskBackend, layout: Layout, named: Callable[[], Collection[str]], *, dry_run: bool) -> GcReport:
    must_know_every_log(layout)
    keep = frozenset(named())
    there = set(backend.items())
    doomed = sorted(there - keep)
    size = sum(size_of(layout.item(digest)) for digest in doomed)
    return GcReport(tuple(doomed), size, len(there) - len(doomed), dry_run)


def _alone(layout: Layout, timeout: float | None) -> AbstractContextManager[None]:
    return FileLock(layout.store_lock, f"the store {os.fspath(layout.root)!r}", anonymous=layout.anonymous).hold(timeout)


def _throw(layout: Layout, found: list[Leftover], done: list[str]) -> None:
    there = [leftover for leftover in found if os.path.lexists(leftover.path)]
    throw_away(layout, [leftover.path for leftover in there])
    done += [f"{_below(layout, leftover)}: removed; a killed writer had left it" for leftover in there]


def _below(layout: Layout, leftover: Leftover) -> str:
    return leftover.path.relative_to(layout.root).as_posix()
