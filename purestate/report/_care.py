"""Looking after a store, as reports: what was found, what was done, what would be."""

from __future__ import annotations

from dataclasses import dataclass

from purestate.core._digest import short
from purestate.errors import StoreError
from purestate.report._name import RunName
from purestate.report._opened import Run, open_run, open_store
from purestate.report._report import Report
from purestate.run._maintain import items_of, needed, outlived, roots
from purestate.store._check import check as check_store
from purestate.store._report import CheckReport, Finding, GcReport, Level, RepairReport

__all__ = ["Checked", "Cleaned", "Collected", "Done", "Head", "check", "clean", "collect"]


@dataclass(frozen=True)
class Head:
    """Whether a log still holds the record that somebody noted as its last.

    Args:
        run: The checkpoint.
        expected: The digest that was noted.
        actual: That of the last record now.
        since: How many records were appended since; None where the noted one is gone.
    """

    run: str
    expected: str
    actual: str
    since: int | None

    def __str__(self) -> str:
        if self.since is None:
            return (
                f"{self.run}: no record has the expected head {short(self.expected)}; the last one is {short(self.actual)}\n"
                "    Records were cut off or written anew since it was noted. Put back a copy of the log."
            )
        grown = f", and {self.since} records were appended since" if self.since else ""
        return f"{self.run}: the expected head {short(self.expected)} is there{grown}"


@dataclass(frozen=True)
class Checked(Report):
    """What a check found.

    Args:
        store: What is wrong in the store.
        head: Whether a noted head is there; None where none was given.
    """

    store: CheckReport
    head: Head | None

    @property
    def ok(self) -> bool:
        """Whether nothing is lost, and the head is there."""
        return self.store.ok and (self.head is None or self.head.since is not None)

    def __str__(self) -> str:
        return "\n".join(map(str, filter(None, [self.store, self.head])))


@dataclass(frozen=True)
class Cleaned(Report):
    """What a repair did. See `purestate.store._report.RepairReport`."""

    repair: RepairReport

    def __str__(self) -> str:
        return str(self.repair)


@dataclass(frozen=True)
class Collected(Report):
    """What a collection removed, or would remove. See `purestate.store._report.GcReport`."""

    gc: GcReport

    def __str__(self) -> str:
        return str(self.gc)


@dataclass(frozen=True)
class Done(Report):
    """An act on a store.

    Args:
        act: ``'rm'``, ``'reset'``, ``'accept'``, ``'export'``.
        run: On what.
        what: What was done, a sentence.
    """

    act: str
    run: str
    what: str

    def __str__(self) -> str:
        return self.what


def check(name: RunName, level: Level, expected_head: str | None) -> Checked:
    """Look for damage, and change nothing. See `purestate.run._store.Store.check`.

    Args:
        name: The store; with a checkpoint where a head is expected.
        level: How close to look.
        expected_head: The digest that the last record of the checkpoint had once, or its first digits.

    Raises:
        UsageError: There is no such store or checkpoint.
    """
    backend = open_store(name.store)
    head = None
    if name.checkpoint is not None and name.checkpoint not in backend.ids():
        open_run(name)  # says what there is
    if expected_head is not None:
        try:
            head = _head(open_run(name), expected_head.removeprefix("b3:"))
        except StoreError as error:  # a damaged log: its finding follows, and the head cannot be there
            finding = Finding("damaged", str(name), error.problem, error.fix or "")
            found = check_store(backend, items_of, level, needed, outlived)
            known = any(one.what == finding.what for one in found.findings)
            report = (
                found if known else CheckReport(level, found.checkpoints, found.records, found.items, (*found.findings, finding))
            )
            return Checked(report, None)
    return Checked(check_store(backend, items_of, level, needed, outlived), head)


def _head(run: Run, expected: str) -> Head:
    digests = [record.digest for record in run.records]
    at = next((i for i, digest in enumerate(digests) if digest.startswith(expected)), None) if expected else None
    return Head(str(run.name), expected, run.log.head, None if at is None else len(digests) - 1 - at)


def clean(name: RunName) -> Cleaned:
    """Mend what can be mended in one way only. See `purestate.run._store.Store.repair`.

    Effects:
        As there.
    """
    return Cleaned(open_store(name.store).repair(outlived))


def collect(name: RunName, *, dry_run: bool, voided: bool) -> Collected:
    """Remove the items that no record names. See `purestate.run._store.Store.gc`.

    Effects:
        As there, unless it is a dry run.
    """
    backend = open_store(name.store)
    report = backend.collect(lambda: roots(backend, with_voided=not voided), dry_run=dry_run, timeout=60.0, voided=voided)
    return Collected(report)
