"""Two runs, compared: their logs, then the states that they ended on. What ``purestate diff`` prints."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from purestate.report._code import CodeDifference, code_differences
from purestate.report._compared import LogComparison, compare_logs
from purestate.report._name import RunName
from purestate.report._opened import Run, open_run
from purestate.report._provenance import by, provenance_of
from purestate.report._report import Report, fragment
from purestate.report._states import StateComparison, compare_states
from purestate.store._disk import DiskBackend

__all__ = ["RunComparison", "compare", "compare_runs"]

_TRAIN = re.compile(r"train \d+")


@dataclass(frozen=True)
class RunComparison(Report):
    """Two runs, compared.

    Args:
        a: The name of the first.
        b: Of the second.
        log: Their logs; None for two ops of one checkpoint.
        state: The answers of the trains that are named, or of the last that are finished; None where one has no answer.
        code: The code that differs in the first train whose code does, as far as its text is kept.
        recorded: Who recorded the last train of each that counts, when and from what: shown, and no part of the comparison.
    """

    a: str
    b: str
    log: LogComparison | None
    state: StateComparison | None
    code: tuple[CodeDifference, ...] = ()
    recorded: tuple[Mapping[str, Any], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all that could be compared is equal, and something could."""
        found = [one.ok for one in (self.log, self.state) if one is not None]
        return bool(found) and all(found)

    def __str__(self) -> str:
        states = "states: there is no answer to compare" if self.state is None else str(self.state)
        logs = [] if self.log is None else [str(self.log)]
        return "\n".join([*self._sides(), *logs, *map(str, self.code), states])

    def to_html(self) -> str:
        """Return what differs as tables: a fragment for a page."""
        states = fragment("states: there is no answer to compare") if self.state is None else self.state.to_html()
        logs = [] if self.log is None else [self.log.to_html()]
        code = [f"<pre>{html.escape(str(one))}</pre>" for one in self.code]
        return "\n".join([fragment(*self._sides()), *logs, *code, states])

    def _sides(self) -> Iterator[str]:
        for side, name, recorded in zip("ab", (self.a, self.b), self.recorded or ({}, {}), strict=True):
            yield ", ".join([f"{side}: {name}", *by(recorded)])


def compare(a: RunName, b: RunName) -> RunComparison:
    """Compare two runs. See `compare_runs`.

    Args:
        a: A checkpoint, or a train of it.
        b: Another, of any store.

    Raises:
        UsageError: There is no such run.
        CorruptLogError: A log is damaged.
        MissingSnapshotError: The bytes of a leaf that differs are not in the store.
    """
    ours = open_run(a)
    return compare_runs(ours, ours if a == b else open_run(b))  # of one that is being written, as it is now


def compare_runs(a: Run, b: Run) -> RunComparison:
    """Compare two runs, of folders or of memory.

    Args:
        a: A checkpoint, or a train of it. Not modified.
        b: Another, of any store. Not modified.

    Raises:
        UsageError: A train that was named is not there, or not finished.
        CorruptLogError: A record does not hold what its kind does.
        MissingSnapshotError: The bytes of a leaf that differs are not in the store.
    """
    one = a.id == b.id and _place(a) == _place(b)
    if one:
        b = replace(b, log=a.log)  # it may be growing: what was read once is one run
    log = None if one and a.name.op != b.name.op else compare_logs(a, b)
    return RunComparison(str(a.name), str(b.name), log, _states(a, b), _code(a, b, log), (_recorded(a), _recorded(b)))


def _recorded(run: Run) -> dict[str, Any]:
    trains = run.chain.binding()[: None if run.name.op is None else run.name.op + 1]
    return provenance_of([trains[-1].start, *trains[-1].done][-1]) if trains else {}


def _code(a: Run, b: Run, log: LogComparison | None) -> tuple[CodeDifference, ...]:
    """Compare the code of the first train whose code differs, if one does. Logs that agree cost no look at it."""
    if log is None or log.first is None or not _TRAIN.fullmatch(log.first.place):
        return ()
    if not any(one.part == "code" for one in log.first.differences):
        return ()
    return code_differences(a, b, int(log.first.place.removeprefix("train ")))


def _place(run: Run) -> object:
    return run.backend.path if isinstance(run.backend, DiskBackend) else run.backend


def _states(a: Run, b: Run) -> StateComparison | None:
    if not all(any(True for _ in run.chain.finished()) for run in (a, b)):
        return None
    snapshots = a.answer()[3], b.answer()[3]
    return compare_states(*snapshots, (a.backend, b.backend), (str(a.name), str(b.name)))
