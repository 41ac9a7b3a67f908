"""The chain: what the records of a checkpoint say, folded into trajectories and answers of readers.

Pure: records in, a table out. The `train`s of a checkpoint form one chain, in which each begins from an answer of the one
before; a trajectory is one of them with all its recorded epochs and every selection that was made from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from purestate.core._plain import decode
from purestate.errors import FormatVersionError

__all__ = ["READERS", "Chain", "RecordLike", "Trajectory"]

READERS = ("evaluate", "find_lr", "predict")
"""The kinds of records that hold the answer of an op which only reads."""


class RecordLike(Protocol):
    """What the chain needs of a record of a store."""

    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def body(self) -> dict[str, Any]: ...
    def leading(self, *names: str) -> tuple[int, ...]: ...


@dataclass
class Trajectory:
    """A `train` with its recorded epochs.

    Args:
        start: The record that began it.
        aliases: Digests of questions that were accepted as the same.
        epochs: The records of its epochs, by number within the op.
        done: The records of its answers, a selection each, oldest first.
    """

    start: RecordLike
    aliases: set[str] = field(default_factory=set[str])
    epochs: dict[int, RecordLike] = field(default_factory=dict[int, RecordLike])
    done: list[RecordLike] = field(default_factory=list[RecordLike])
    _history: list[dict[str, float]] = field(default_factory=list[dict[str, float]], repr=False)

    @property
    def question(self) -> dict[str, Any]:
        return self.start.body["question"]

    @property
    def input(self) -> str:
        """The hash of the state that it began from."""
        return self.start.body["input"]

    @property
    def base(self) -> str:
        """The hash of the answer that its input was made from by `setup` and its like; else the input itself."""
        return self.start.body["base"]

    @property
    def binds(self) -> bool:
        """Whether an epoch was finished or an answer given. Before, there is nothing that another question could contradict."""
        return bool(self.done) or any(n > 0 for n in self.epochs)

    @property
    def outputs(self) -> set[str]:
        """The hashes of all its answers."""
        return {record.body["out"]["hash"] for record in self.done}

    def answers(self, digest: str) -> bool:
        """Whether this is the trajectory of a question."""
        return digest == self.question["digest"] or digest in self.aliases

    def answer(self, selection: dict[str, Any]) -> RecordLike | None:
        """The record of the answer for a selection, if it was made."""
        return next((record for record in reversed(self.done) if record.body["selection"] == selection), None)

    def history(self) -> list[dict[str, float]]:
        """Metrics by epoch without a gap: the entry at 0 is the evaluation before the first (or empty)."""
        if not self._history:
            if not self.epochs:
                return [{}]
            self._history.append(decode(self.epochs[0].body["metrics"]) if 0 in self.epochs else {})
        # epochs are recorded in their order and never again, so what was decoded stays
        while len(self._history) in self.epochs:
            self._history.append(decode(self.epochs[len(self._history)].body["metrics"]))
        return self._history

    def kept(self) -> dict[int, dict[str, Any]]:
        """The snapshots that its answers kept, by epoch."""
        return {int(n): snapshot for record in self.done for n, snapshot in record.body["kept"].items()}


class Chain:
    """The records of one checkpoint, by meaning."""

    def __init__(self) -> None:
        self.trains: list[Trajectory] = []
        self.readers: dict[str, RecordLike] = {}
        self.root: RecordLike | None = None
        self.description: str | None = None
        self.accepting: set[int] = set()
        """Starts of trajectories for which the next question that would be stale is to be taken as the same."""
        self._by_start: dict[int, Trajectory] = {}
        self.seen = 0
        """How many records were folded in."""
        self._last: RecordLike | None = None

    @property
    def head(self) -> str:
        """The digest of the last record that was folded in; nothing if there is none."""
        return self._last.digest if self._last is not None else ""

    def update(self, records: Iterable[RecordLike]) -> None:
        """Fold in all records of the log; those seen before are skipped."""
        for record in records:
            if record.seq >= self.seen:
                self.add(record)

    def add(self, record: RecordLike) -> None:
        """Fold in one record."""
        self.seen, self._last = record.seq + 1, record
        kind = record.kind
        if kind in READERS:
            self._on_reader(record)
        elif (fold := getattr(self, f"_on_{kind}", None)) is not None:
            fold(record)
        else:
            raise FormatVersionError(
                f"record {record.seq} is of the kind {kind!r}, which this version does not know.",
                cause="The checkpoint was written by a newer version.",
                fix="Update purestate.",
                expected=READERS,
                actual=kind,
            )

    def find(self, digest: str) -> Trajectory | None:
        """Return the trajectory of a question, or None."""
        return next((train for train in self.trains if train.answers(digest)), None)

    def index(self, train: Trajectory) -> int:
        """Return the number of a train in the chain: what users call the op."""
        return self.trains.index(train)

    def binding(self) -> list[Trajectory]:
        """Return the trains that hold something: all but a last one that failed, or was killed, in its first epoch."""
        return [train for train in self.trains if train.binds]

    def finished(self) -> Iterator[tuple[int, Trajectory, RecordLike]]:
        """Yield ``(op, trajectory, its newest answer)``."""
        for op, train in enumerate(self.trains):
            if train.done:
                yield op, train, train.done[-1]

    def _on_checkpoint(self, record: RecordLike) -> None:
        self.description = record.body.get("description")

    def _on_root(self, record: RecordLike) -> None:
        self.root = record

    def _on_train(self, record: RecordLike) -> None:
        train = Trajectory(record)
        self.trains = [*self.binding(), train]
        self._by_start[record.seq] = train

    def _on_epoch(self, record: RecordLike) -> None:
        of, n = record.leading("of", "n")  # there are thousands, of which nobody may look at the rest
        self._by_start[of].epochs[n] = record

    def _on_done(self, record: RecordLike) -> None:
        self._by_start[record.body["of"]].done.append(record)

    def _on_reset(self, record: RecordLike) -> None:
        voided = set(record.body["of"])
        self.trains = [train for train in self.trains if train.start.seq not in voided]
        self.readers = {digest: reader for digest, reader in self.readers.items() if reader.seq not in voided}

    def _on_accept(self, record: RecordLike) -> None:
        self.accepting.add(record.body["of"])

    def _on_alias(self, record: RecordLike) -> None:
        self.accepting.discard(record.body["of"])
        self._by_start[record.body["of"]].aliases.add(record.body["digest"])

    def _on_reader(self, record: RecordLike) -> None:
        self.readers[record.body["question"]["digest"]] = record
