"""What looking after a store found and did, as plain frozen data that prints as a text for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CheckReport", "CopyReport", "Finding", "GcReport", "Level", "RepairReport", "in_bytes"]

Level = Literal["records", "items", "bytes"]
"""How closely a store is looked at."""


@dataclass(frozen=True)
class Finding:
    """Something in a store that is not as it should be.

    Args:
        kind: ``'damaged'`` or ``'missing'``, which lose something; ``'gone'``, which somebody removed by hand;
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

    def __str__(self) -> str:
        looked = {"records": "", "items": ", their names and sizes", "bytes": ", every byte of them"}[self.level]
        size = f"{self.checkpoints} checkpoints, {self.records} records, {self.items} items{looked}"
        return "\n".join([f"{'ok' if self.ok else 'NOT ok'}: {size}", *map(str, self.findings)])


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

    def __str__(self) -> str:
        left = [f"left alone: {what}" for what in self.left]
        return "\n".join([f"{len(self.done)} things mended, {in_bytes(self.bytes)} freed", *self.done, *left])


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

    def __str__(self) -> str:
        did = "would be removed" if self.dry_run else "removed"
        return f"{len(self.items)} items, {in_bytes(self.bytes)}, {did}; {self.kept} stay"


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

    def __str__(self) -> str:
        lost = f"; {len(self.lost)} items of voided records are gone" if self.lost else ""
        return f"{len(self.checkpoints)} checkpoints: {self.records} records and {len(self.items)} items copied{lost}"


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
