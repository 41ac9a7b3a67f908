"""How things are timed: cases in turn, medians, and the ratio of each round by itself. Knows nothing of what is timed."""

from __future__ import annotations

import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

__all__ = [
    "Case",
    "Peer",
    "Row",
    "Skipped",
    "as_json",
    "child",
    "compare",
    "figure",
    "folder_bytes",
    "interleave",
    "serve",
    "skipped",
    "table",
    "timed",
]

Case = Callable[[], float]
"""Does something once and returns the seconds that count."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        group: The file that measured it.
        name: What was measured.
        ours: The median of this library, in ``unit``; None where it was skipped.
        peer: The median of the peer; None where there is none, or it was skipped.
        against: Who the peer is.
        ratio: Lower quartile, median and upper quartile of ours over the peer's, round by round; below 1 is faster.
        unit: ``'ms'``, ``'s'``, ``'us'``, ``'MB'`` or ``'bytes'``.
        rounds: How many rounds.
        note: Whether the results were equal, why something was skipped.
    """

    group: str
    name: str
    ours: float | None
    peer: float | None
    against: str
    ratio: tuple[float, float, float] | None
    unit: str
    rounds: int
    note: str = ""


@dataclass(frozen=True)
class Skipped:
    """In place of a case that cannot run here."""

    reason: str


class Peer:
    """A peer in a process of its own, so that what it imports and starts (JAX, a compiler, hooks) stays out of this one.

    Args:
        script: The module of this package that runs there and ends in `serve`.
        args: For it.
        needs: Packages without which the peer is skipped.
        skip: Why it is skipped, if it is.
    """

    def __init__(self, script: str, *args: object, needs: Sequence[str] = (), skip: str = "") -> None:
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        self._process: subprocess.Popen[str] | None = None
        self.case: Case | Skipped = self._ask
        if skip or missing:
            self.case = Skipped(skip or f"{' and '.join(missing)} not installed")
            return
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{script}", *map(str, args)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[1], text=True)
        if (answer := self._answer()) != "ready":
            self.case = Skipped(answer)

    def _ask(self) -> float:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


def serve(case: Case | Skipped) -> None:
    """Be the other end of `Peer`: run the case whenever a line comes in. Whatever else is printed goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    if isinstance(case, Skipped):
        print(json.dumps(case.reason), file=answers, flush=True)
        return
    case()  # imports, compilation, allocators
    print(json.dumps("ready"), file=answers, flush=True)
    for _ in sys.stdin:
        gc.collect()
        print(case(), file=answers, flush=True)


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
    group: str,
    name: str,
    cases: Mapping[str, Case | Skipped],
    rounds: int,
    *,
    unit: str = "ms",
    times: int = 1,
    ours: str = "purestate",
    notes: Mapping[str, Callable[[], str]] | None = None,
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
        notes: What to note of a peer, asked for at the end.
    """
    present = {who: case for who, case in cases.items() if not isinstance(case, Skipped)}
    seconds = interleave(present, rounds)
    mine = seconds.pop(ours)
    scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit] / times
    rows: list[Row] = []
    for who, case in cases.items():
        if isinstance(case, Skipped):
            rows.append(skipped(group, name, case, against=who, unit=unit))
        elif who != ours:
            row = figure(group, name, [t * scale for t in mine], [t * scale for t in seconds[who]], against=who, unit=unit)
            rows.append(replace(row, note=notes[who]()) if notes and who in notes else row)
    return rows


def figure(
    group: str,
    name: str,
    ours: Sequence[float],
    peer: Sequence[float] = (),
    *,
    against: str = "",
    unit: str = "ms",
    note: str = "",
) -> Row:
    """Return the row of values that were measured: paired where there is a peer."""
    ratio = _quartiles([a / b for a, b in zip(ours, peer, strict=True)]) if peer else None
    theirs = statistics.median(peer) if peer else None
    return Row(group, name, statistics.median(ours), theirs, against, ratio, unit, len(ours), note)


def skipped(group: str, name: str, case: Skipped, *, against: str, unit: str = "ms") -> Row:
    """Return the row of what could not be measured here, with the reason."""
    return Row(group, name, None, None, against, None, unit, 0, f"skipped: {case.reason}")


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
    head = ["what", "purestate", "peer", "", "ratio (quartiles)", "note"]
    cells = [
        [row.name, _amount(row.ours, row.unit), row.against, _amount(row.peer, row.unit), _ratio(row), row.note] for row in rows
    ]
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
