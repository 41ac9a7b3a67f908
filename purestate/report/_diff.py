"""Two runs, compared: their logs, then the states that they ended on. What ``purestate diff`` prints."""

from __future__ import annotations

from dataclasses import dataclass

from purestate.report._compared import LogComparison, compare_logs
from purestate.report._name import RunName
from purestate.report._opened import Run, open_run
from purestate.report._report import Report
from purestate.report._states import StateComparison, compare_states

__all__ = ["RunComparison", "compare"]


@dataclass(frozen=True)
class RunComparison(Report):
    """Two runs, compared.

    Args:
        a: The name of the first.
        b: Of the second.
        log: Their logs; None for two ops of one checkpoint.
        state: The answers of the trains that are named, or of the last that are finished; None where one has no answer.
    """

    a: str
    b: str
    log: LogComparison | None
    state: StateComparison | None

    @property
    def ok(self) -> bool:
        """Whether all that could be compared is equal, and something could."""
        found = [one.ok for one in (self.log, self.state) if one is not None]
        return bool(found) and all(found)

    def __str__(self) -> str:
        states = "states: there is no answer to compare" if self.state is None else str(self.state)
        return "\n".join([f"a: {self.a}", f"b: {self.b}", *([] if self.log is None else [str(self.log)]), states])


def compare(a: RunName, b: RunName) -> RunComparison:
    """Compare two runs.

    Args:
        a: A checkpoint, or a train of it.
        b: Another, of any store.

    Raises:
        UsageError: There is no such run.
        CorruptLogError: A log is damaged.
        MissingSnapshotError: The bytes of a leaf that differs are not in the store.
    """
    runs = open_run(a), open_run(b)
    same = runs[0].backend.path == runs[1].backend.path and runs[0].id == runs[1].id
    log = None if same and a.op != b.op else compare_logs(*runs)
    return RunComparison(str(runs[0].name), str(runs[1].name), log, _states(*runs))


def _states(a: Run, b: Run) -> StateComparison | None:
    if not all(any(True for _ in run.chain.finished()) for run in (a, b)):
        return None
    snapshots = a.answer()[3], b.answer()[3]
    return compare_states(*snapshots, (a.backend, b.backend), (str(a.name), str(b.name)))
