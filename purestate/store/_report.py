"""What looking after a store found and did, as plain frozen data that prints as a text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

__all__ = ["CheckReport", "CopyReport", "Finding", "GcReport", "Level", "RepairReport", "counted", "in_bytes", "in_notebook"]

Level = Literal["records", "items", "bytes"]
"""How closely a store is looked at."""


def in_notebook(report: object, printer: Any, cycle: bool) -> None:
    """Show a report in a notebook as the text that it prints as: its ``_repr_pretty_``, which IPython asks each class for."""
    del cycle
    printer.text(str(report))


@dataclass(frozen=True)
class Finding:
    """Something in a store that is not as it should be.

    Args:
        kind: ``'damaged'`` or ``'missing'``, which lose something; ``'gone'``, which somebody removed or emptied by hand;
            ``'torn'``, ``'rubbish'`` or ``'foreign'``, which lose nothing.
        place: Where, as a path below the store, with the line or the leaf.
        what: What is wrong.
        remedy: What mends it.
    """

    kind: Literal["damaged", "missing", "gone", "torn", "rubbish", "foreign"]
    place: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.place}: {self.what}\n    {self.remedy}"


@dataclass(frozen=True)
class CheckReport:
    """What `Store.check` found.

    Args:
        level: How closely was looked.
        checkpoints: How many there are.
        records: How many of their records verify.
        items: How many items these name.
        findings: What is not as it should be, what loses something first.
    """

    level: Level
    checkpoints: int
    records: int
    items: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing. What a crash leaves behind does no harm."""
        return not any(finding.kind in ("damaged", "missing") for finding in self.findings)

    _repr_pretty_ = in_notebook

    def __str__(self) -> str:
        looked = {"records": "", "items": ", their names and sizes", "bytes": ", every byte of them"}[self.level]
        size = ", ".join([counted(self.checkpoints, "checkpoint"), counted(self.records, "record"), counted(self.items, "item")])
        return "\n".join([f"{'ok' if self.ok else 'NOT ok'}: {size}{looked}", *_told(self.findings)])


def _told(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield findings as texts; of many of which the same is said the first ones, and how many more there are."""
    for (kind, what, remedy), group in groupby(findings, lambda found: (found.kind, found.what, found.remedy)):
        alike = list(group)
        told = alike if len(alike) <= _ALIKE else alike[: _ALIKE - 1]
        yield from map(str, told)
        if rest := len(alike) - len(told):
            yield f"{kind}: and {rest} more: {what}\n    {remedy}"


_ALIKE = 5
"""How many findings of which the same is said are printed. The report has all of them."""


@dataclass(frozen=True)
class RepairReport:
    """What `Store.repair` did.

    Args:
        done: What it mended, a sentence each.
        left: What it left alone, since a process may be writing it now, or the system did not let it be removed.
        bytes: How many bytes it freed.
    """

    done: tuple[str, ...]
    left: tuple[str, ...]
    bytes: int

    _repr_pretty_ = in_notebook

    def __str__(self) -> str:
        left = [f"left alone: {what}" for what in self.left]
        return "\n".join([f"{counted(len(self.done), 'thing')} mended, {in_bytes(self.bytes)} freed", *self.done, *left])


@dataclass(frozen=True)
class GcReport:
    """What `Store.gc` removed, or would remove.

    Args:
        items: The digests of the items.
        bytes: How many bytes their files have.
        kept: How many items stay.
        dry_run: Whether they are still there.
    """

    items: tuple[str, ...]
    bytes: int
    kept: int
    dry_run: bool

    _repr_pretty_ = in_notebook

    def __str__(self) -> str:
        did = "would be removed" if self.dry_run else "removed"
        return f"{counted(len(self.items), 'item')}, {in_bytes(self.bytes)}, {did}; {self.kept} stay"


@dataclass(frozen=True)
class CopyReport:
    """What `Store.copy` copied.

    Args:
        checkpoints: The ids of those that the other store now has as this one.
        records: How many records were appended there.
        items: The digests of the items that it did not have.
        lost: The digests of items of voided records that are not in this store either.
    """

    checkpoints: tuple[str, ...]
    records: int
    items: tuple[str, ...]
    lost: tuple[str, ...]

    _repr_pretty_ = in_notebook

    def __str__(self) -> str:
        lost = f"; {counted(len(self.lost), 'item')} of voided records gone" if self.lost else ""
        copied = f"{counted(self.records, 'record')} and {counted(len(self.items), 'item')} copied"
        return f"{counted(len(self.checkpoints), 'checkpoint')}: {copied}{lost}"


def counted(number: int, noun: str) -> str:
    """Return ``'1 epoch'``, ``'2 epochs'``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_bytes(size: int) -> str:
    """Return a size for people.

    Example:
        >>> in_bytes(0), in_bytes(1_500), in_bytes(2_300_000)
        ('0 bytes', '1.5 kB', '2.3 MB')
    """
    if size < 1000:
        return f"{size} bytes"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"
