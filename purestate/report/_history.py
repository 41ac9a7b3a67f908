"""The records of a checkpoint, one line each: what ``purestate log`` prints, and goes on printing with ``--follow``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from purestate.core._digest import short
from purestate.report._name import RunName
from purestate.report._opened import Run, open_run
from purestate.report._provenance import provenance_of
from purestate.report._report import Report, fragment, seconds
from purestate.run._chain import READERS, RecordLike, as_recorded
from purestate.run._maintain import voided
from purestate.run._question import said
from purestate.view import html_table, text_table

__all__ = ["Entry", "History", "arguments_of", "entries", "history"]

_ARGUMENTS = ("recipe.", "args.", "edits.", "seed")
_NAMES = (".class.code", ".fn.code", ".value.code")
"""Where the name of a class or a function is, which somebody wrote, and not its content."""
_HEADER = ["seq", "op", "epoch", "what", "hash", "time", "recorded"]


@dataclass(frozen=True)
class Entry:
    """A record.

    Args:
        seq: Its number.
        kind: ``'train'``, ``'epoch'``, ``'done'``, ``'evaluate'`` and so on.
        op: The number of the train that it belongs to, as it was when it was appended; None for others.
        epoch: Which epoch it is of.
        arguments: What was asked, by name.
        result: What came out, by name: metrics, an answer.
        input: The hash of the state that it began from.
        hash: The hash of the state that it ends on.
        seconds: How long it took.
        digest: Of the record.
        voided: Whether a later reset took it back.
        provenance: Who recorded it, when and from what; nothing of epochs, and of what versions recorded that did not say.
    """

    seq: int
    kind: str
    op: int | None
    epoch: int | None
    arguments: Mapping[str, Any]
    result: Mapping[str, Any]
    input: str | None
    hash: str | None
    seconds: float | None
    digest: str
    voided: bool
    provenance: Mapping[str, Any]

    def __str__(self) -> str:
        cells = ["" if cell is None else str(cell) for cell in self.cells()]
        widths = (5, 12, 6, 0, 11, 0, 0)
        fields = [cell.rjust(w) if i in (0, 2) else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(fields).rstrip()

    def cells(self) -> list[Any]:
        """Return what a table shows of it."""
        op = self.kind if self.op is None else f"train {self.op}" if self.kind == "train" else f"{self.kind} {self.op}"
        told = {**self.arguments, **self.result}
        what = ("voided: " if self.voided else "") + ", ".join(f"{name} {_short(value)}" for name, value in told.items())
        state = self.hash or self.input
        who = "@".join(filter(None, (self.provenance.get("user"), self.provenance.get("host"))))
        recorded = " ".join(filter(None, (self.provenance.get("time"), who)))
        return [self.seq, op, self.epoch, what, short(state) if state else "", seconds(self.seconds), recorded]


@dataclass(frozen=True)
class History(Report):
    """The records of a checkpoint.

    Args:
        run: Its name.
        head: The digest of the last record: what to pin.
        torn: Bytes of a last line that is being written, or that a crash cut short.
        entries: The records, in their order.
    """

    run: str
    head: str
    torn: int
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        rows = [entry.cells() for entry in self.entries]
        return "\n".join([text_table(rows, _HEADER), *self._torn(), f"head {self.head}"])

    def to_html(self) -> str:
        """Return the records as a table: a fragment for a page."""
        return fragment(("", html_table([entry.cells() for entry in self.entries], _HEADER)), *self._torn(), f"head {self.head}")

    def _torn(self) -> list[str]:
        return [f"{self.torn} bytes of a last line that is being written, or that a crash cut short"] if self.torn else []


def history(name: RunName) -> History:
    """Return the records of a checkpoint, or of one of its trains.

    Raises:
        UsageError: There is no such run.
        CorruptLogError: Its log is damaged.
    """
    run = open_run(name)
    found = list(entries(run))
    if name.op is not None:
        run.train()
        found = [entry for entry in found if entry.op == name.op and not entry.voided]
    return History(str(run.name), run.log.head, run.log.torn, tuple(found))


def entries(run: Run, start: int = 0) -> Iterator[Entry]:
    """Yield the records from a number on.

    Raises:
        CorruptLogError: A record does not hold what its kind does.
    """
    gone = voided(run.records)
    ops: dict[int, int] = {}
    chain: list[int] = []  # the trains that are in effect, by the number of their first record
    begun: set[int] = set()
    for record in run.records:
        with as_recorded(record):
            of, counts = _train_of(record)
        if record.kind == "train":
            # one without an epoch binds nobody: the next takes its number
            chain = [seq for seq in chain if seq in begun] + [record.seq]
            ops[record.seq] = len(chain) - 1
        elif of is not None and counts:
            begun.add(of)
        elif record.kind == "reset":
            with as_recorded(record):
                chain = [seq for seq in chain if seq not in record.body["of"]]
        if record.seq >= start:
            yield _entry(record, None if of is None else ops.get(of), (record.seq if of is None else of) in gone)


def arguments_of(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a question somebody wrote in a call: arguments, not data, code or states."""
    asked = {**question["about"], **question["parts"]}
    return {said(name): value for name, value in asked.items() if _is_argument(name) and value not in (None, {})}


def _is_argument(name: str) -> bool:
    return name.startswith(_ARGUMENTS) and (name.endswith(_NAMES) or not name.endswith((".digest", ".code")))


def _train_of(record: RecordLike) -> tuple[int | None, bool]:
    """Return the first record of the train that a record belongs to, and whether from this one on the train binds."""
    kind = record.kind
    if kind == "train":
        return record.seq, False
    if kind in ("epoch", "keep"):
        of, n = record.leading("of", "n")
        if type(of) is not int or type(n) is not int:
            raise TypeError(f"{of!r} and {n!r} are no numbers of a train and an epoch")
        return of, n > 0
    of = record.body.get("of") if kind not in READERS else None
    return (of, kind == "done") if type(of) is int else (None, False)


def _entry(record: RecordLike, op: int | None, gone: bool) -> Entry:
    kind = record.kind
    asked: dict[str, Any] = {}
    told: dict[str, Any] = {}
    state: Any = None
    with as_recorded(record):
        body = record.body
        began, epoch = body.get("input"), body.get("n")
        if "question" in body:
            asked = arguments_of(body["question"])
            told = body["answer"] if isinstance(body.get("answer"), dict) else {}
        elif kind == "epoch":
            told, state = dict(body["metrics"]), body["hash"]
        elif kind == "done":
            asked, state, began, epoch = dict(body["selection"]), body["out"]["hash"], None, body["returned"]
        elif kind in ("root", "keep"):
            state = body["state"]["hash"]
        else:
            asked = {name: value for name, value in body.items() if name not in ("of", "provenance") and value is not None}
        lasted = body.get("seconds")
        if not isinstance(lasted, int | float | None) or any(not isinstance(hash, str | None) for hash in (began, state)):
            raise TypeError(f"{lasted!r}, {began!r} or {state!r} is no duration, or no hash")
        who = provenance_of(record) if kind not in ("epoch", "keep") else {}
        return Entry(record.seq, kind, op, epoch, asked, told, began, state, lasted, record.digest, gone, who)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping) and "~" in value:
        return str(value.get("v"))
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
