"""How things are timed: cases in turn, medians, and the ratio of each round by itself. Knows nothing of what is timed."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Case", "Row", "as_json", "child", "compare", "figure", "folder_bytes", "interleave", "table", "timed"]

Case = Callable[[], float]
"""Does something once and returns the seconds that count."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        group: The file that measured it.
        name: What was measured.
        ours: The median of this library, in ``unit``.
        peer: The median of the peer; None where there is none.
        against: Who the peer is.
        ratio: Lower quartile, median and upper quartile of ours over the peer's, round by round; below 1 is faster.
        unit: ``'ms'``, ``'s'``, ``'us'`` or ``'bytes'``.
        rounds: How many rounds.
    """

    group: str
    name: str
    ours: float
    peer: float | None
    against: str
    ratio: tuple[float, float, float] | None
    unit: str
    rounds: int


def timed(function: Callable[[], Any]) -> Case:
    """Return the case whose seconds are those of one call."""

    def case() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return case


def interleave(cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """Run the cases in turn, ``rounds`` times each, and return the seconds of each.

    Every round begins with another case, so that none always runs on the caches that the same other one left.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round in range(rounds):
        at = round % len(names)
        for name in names[at:] + names[:at]:
            gc.collect()
            seconds[name].append(cases[name]())
    return seconds


def compare(
    group: str, name: str, cases: Mapping[str, Case], rounds: int, *, unit: str = "ms", times: int = 1, ours: str = "purestate"
) -> list[Row]:
    """Time one case against all others and return a row for each of them.

    Args:
        group: See `Row`.
        name: See `Row`.
        cases: What is timed, by who does it.
        rounds: How often.
        unit: See `Row`.
        times: How many times a case does what the row names; its seconds are divided by it.
        ours: Which case the others are held against.
    """
    seconds = interleave(cases, rounds)
    mine = seconds.pop(ours)
    scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit] / times
    return [
        figure(group, name, [t * scale for t in mine], [t * scale for t in theirs], against=peer, unit=unit)
        for peer, theirs in seconds.items()
    ]


def figure(
    group: str, name: str, ours: Sequence[float], peer: Sequence[float] = (), *, against: str = "", unit: str = "ms"
) -> Row:
    """Return the row of values that were measured: paired where there is a peer."""
    ratio = _quartiles([a / b for a, b in zip(ours, peer, strict=True)]) if peer else None
    return Row(group, name, statistics.median(ours), statistics.median(peer) if peer else None, against, ratio, unit, len(ours))


def child(script: str, *args: object) -> dict[str, Any]:
    """Run a module of this package in a process of its own; return the JSON of its last line, with ``wall`` seconds added."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", *map(str, args)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": time.perf_counter() - began}


def folder_bytes(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def table(rows: Sequence[Row]) -> str:
    """Return the rows for people, as a table in Markdown."""
    head = ["what", "purestate", "peer", "", "ratio (quartiles)"]
    cells = [[row.name, _amount(row.ours, row.unit), row.against, _amount(row.peer, row.unit), _ratio(row)] for row in rows]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(n) for cell, n in zip(line, widths, strict=True)] for line in [head, rule, *cells]]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain JSON."""
    return [asdict(row) for row in rows]


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.3g} {unit}"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    low, middle, high = (f"{value:.2f}" if value >= 0.1 else f"{value:.2g}" for value in row.ratio)
    return f"{middle} ({low} to {high})"


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
