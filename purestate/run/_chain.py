"""The chain: what the records of a checkpoint say, folded into trajectories and answers of readers.

Pure: records in, a table out. The `train`s of a checkpoint form one chain, in which each begins from an answer of the one
before; a trajectory is one of them with all its recorded epochs and every selection that was made from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from purestate.errors import CorruptLogError, FormatVersionError, PureStateError

if TYPE_CHECKING:
    from purestate.run._policy import Past

__all__ = ["READERS", "Chain", "RecordLike", "Trajectory", "as_recorded", "named"]

READERS = ("evaluate", "find_lr", "predict")
"""The kinds of records that hold the answer of an op which only reads."""


_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "root": {"state": dict, "shapes": dict, "acts": list},
    "train": {"question": dict, "input": str, "base": str, "acts": list, "parent": (dict, type(None))},
    "done": {"of": int, "selection": dict, "last": int, "best": (int, type(None)), "returned": int, "out": dict, "kept": dict},
    "reset": {"of": list},
    "accept": {"of": int},
    "alias": {"of": int, "digest": str},
    "drop": {"of": int, "epochs": list},
    **{reader: {"question": dict, "input": str} for reader in READERS},
}
"""What records hold that is asked for wherever a log is read. Epochs and what is kept of them, thousands, come when asked for."""

_PARENT = {"checkpoint": str, "seq": int, "record": str, "hash": str, "epochs": int}


class RecordLike(Protocol):
    """What the chain needs of a record of a store."""

    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def home(self) -> str: ...
    @property
    def body(self) -> dict[str, Any]: ...
    def leading(self, *names: str) -> tuple[int, ...]: ...


@contextmanager
def as_recorded(record: RecordLike) -> Iterator[None]:
    """Raise `CorruptLogError` where a block finds that a record does not hold what its kind does.

    A record verifies by its digest, which says that nobody changed it since it was written, not who wrote it.
    """
    try:
        yield
    except PureStateError:
        raise
    except _STRANGE as error:
        raise _strange(record, error) from None


_STRANGE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


def _strange(record: RecordLike, error: Exception) -> CorruptLogError:
    kind, reason = record.kind, f"{type(error).__name__}: {error}"
    return CorruptLogError(
        f"{named(record)} does not hold what a record of the kind {kind!r} does ({reason}).",
        cause="It verifies, so it was written so: by another program, or by a version with a bug.",
        fix="Put back a copy of the log, or delete the checkpoint.",
        line=record.seq + 1,
    )


def named(record: RecordLike) -> str:
    """Return how messages name a record.

    Example:
        >>> from purestate.store._record import EMPTY_HEAD, Record, encode
        >>> named(Record(3, b"", "adam")), named(encode(3, EMPTY_HEAD, "reset", {}))
        ("checkpoint 'adam': record 3", 'record 3')
    """
    return f"checkpoint {record.home!r}: record {record.seq}" if record.home else f"record {record.seq}"


@dataclass
class Trajectory:
    """A `train` with its recorded epochs.

    Args:
        start: The record that began it.
        aliases: Digests of questions that were accepted as the same.
        epochs: The records of its epochs, by number within the op.
        done: The records of its answers, a selection each, oldest first.
        keeps: The records that keep the state of an epoch beside the answers, by epoch.
        dropped: Those that were taken back since: the bytes may be there, if something else began from them.
    """

    start: RecordLike
    aliases: set[str] = field(default_factory=set[str])
    epochs: dict[int, RecordLike] = field(default_factory=dict[int, RecordLike])
    done: list[RecordLike] = field(default_factory=list[RecordLike])
    keeps: dict[int, RecordLike] = field(default_factory=dict[int, RecordLike])
    dropped: dict[int, RecordLike] = field(default_factory=dict[int, RecordLike])
    _history: list[dict[str, float]] = field(default_factory=list[dict[str, float]], repr=False)
    _seconds: list[float] = field(default_factory=list[float], repr=False)

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
            self._history.append(_metrics(self.epochs[0]) if 0 in self.epochs else {})
        # epochs are recorded in their order and never again, so what was decoded stays
        while len(self._history) in self.epochs:
            self._history.append(_metrics(self.epochs[len(self._history)]))
        return self._history

    def answered(self) -> set[tuple[int, str]]:
        """How far each of its answers goes, and what it watches."""
        found: set[tuple[int, str]] = set()
        for record in self.done:
            with as_recorded(record):
                found.add((record.body["last"], str(record.body["selection"]["watch"])))
        return found

    def past(self, last: int, watch: str) -> Past:
        """What a retention policy is told of the epochs up to ``last``, where ``watch`` is watched."""
        from purestate.run._policy import Past

        history = self.history()
        for n in range(len(self._seconds), len(history)):
            self._seconds.append(_seconds(self.epochs[n]) if n in self.epochs else 0.0)
        return Past(history[: last + 1], self._seconds[: last + 1], watch, self.higher)

    @property
    def higher(self) -> frozenset[str]:
        """The metrics of which higher values are better."""
        before, after = "metrics.", ".higher_is_better"
        with as_recorded(self.start):
            names = [name for name, value in self.question["parts"].items() if value is True]
        return frozenset(name[len(before) : -len(after)] for name in names if name.startswith(before) and name.endswith(after))

    def in_answers(self) -> set[int]:
        """The epochs that its answers keep: the last and the best of each."""
        found: set[int] = set()
        for record in self.done:
            with as_recorded(record):
                found.update(map(int, record.body["kept"]))
        return found

    def kept_epochs(self) -> set[int]:
        """The epochs that have a snapshot."""
        return self.in_answers() | self.keeps.keys()

    def kept(self) -> dict[int, dict[str, Any]]:
        """The snapshots of those, by epoch."""
        found = {n: _snapshot(record) for n, record in self.keeps.items()}
        return found | {int(n): snapshot for record in self.done for n, snapshot in record.body["kept"].items()}

    def snapshot(self, n: int) -> dict[str, Any] | None:
        """The snapshot of an epoch, if any record has one: of one that was dropped, the bytes may be gone."""
        return self.kept().get(n) or (_snapshot(self.dropped[n]) if n in self.dropped else None)


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
        kind = record.kind
        fold = self._on_reader if kind in READERS else getattr(self, f"_on_{kind}", None)
        if fold is None:
            raise FormatVersionError(
                f"{named(record)} is of the kind {kind!r}, which this version does not know.",
                cause="The checkpoint was written by a newer version.",
                fix="Update purestate.",
                expected=READERS,
                actual=kind,
            )
        try:  # not `as_recorded`: there are thousands
            if kind in _FIELDS:
                _must_have_its_fields(record)
            fold(record)
        except PureStateError:
            raise
        except _STRANGE as error:
            raise _strange(record, error) from None
        self.seen, self._last = record.seq + 1, record

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
        if type(n) is not int:
            raise TypeError(f"{n!r} is no epoch")
        self._by_start[of].epochs[n] = record

    def _on_keep(self, record: RecordLike) -> None:
        of, n = record.leading("of", "n")  # likewise: a snapshot is long
        if type(n) is not int:
            raise TypeError(f"{n!r} is no epoch")
        self._by_start[of].keeps[n] = record
        self._by_start[of].dropped.pop(n, None)

    def _on_drop(self, record: RecordLike) -> None:
        train = self._by_start[record.body["of"]]
        for n in record.body["epochs"]:
            if (kept := train.keeps.pop(n, None)) is not None:
                train.dropped[n] = kept

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


def _must_have_its_fields(record: RecordLike) -> None:
    body = record.body
    fields = _FIELDS[record.kind]
    wrong = [name for name, kind in fields.items() if not isinstance(body[name], kind) or type(body[name]) is bool]
    if "question" in body and not isinstance(body["question"]["digest"], str):
        wrong.append("question")
    if body.get("parent") is not None and not all(isinstance(body["parent"][name], kind) for name, kind in _PARENT.items()):
        wrong.append("parent")
    if record.kind == "done" and body["best"] is not None and str(body["best"]) not in body["kept"]:
        wrong.append("best")
    if record.kind == "done" and not isinstance(body["out"].get("hash"), str):
        wrong.append("out")
    if wrong:
        raise TypeError(f"{wrong[0]!r} is of another kind")


def _snapshot(record: RecordLike) -> dict[str, Any]:
    with as_recorded(record):
        state = record.body["state"]
        if not isinstance(state["hash"], str):
            raise TypeError("there is a hash that is none")
        return state


def _seconds(record: RecordLike) -> float:
    with as_recorded(record):
        return float(record.body["seconds"])


def _metrics(record: RecordLike) -> dict[str, float]:
    with as_recorded(record):
        found = dict(record.body["metrics"])
        if any(isinstance(value, dict) for value in found.values()):  # inf or nan: the decoder needs torch, this file does not
            from purestate.core._plain import decode

            found = decode(found)
        if not all(isinstance(value, int | float) for value in found.values()):
            raise TypeError("a metric is no number")
        return found
