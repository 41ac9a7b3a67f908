"""A checkpoint, or an op of it, in full: what ``purestate show`` prints."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from purestate.core._digest import short
from purestate.errors import StoreError
from purestate.report._history import arguments_of
from purestate.report._name import RunName
from purestate.report._opened import Run, bytes_of, open_run, time_of
from purestate.report._provenance import by, provenance_of
from purestate.report._report import Report, seconds
from purestate.run._chain import RecordLike, Trajectory, as_recorded
from purestate.run._envelope import elsewhere, envelope_of
from purestate.run._maintain import items_of, named
from purestate.run._named import items_of as items_of_snapshot
from purestate.run._question import said
from purestate.store._report import counted, in_bytes
from purestate.view import text_table

__all__ = ["Answer", "Part", "Reading", "RunDetail", "TrainDetail", "show"]


@dataclass(frozen=True)
class Part:
    """A subtree of a state at rest.

    Args:
        name: ``'params'``.
        leaves: How many tensors it has; None where nothing was built yet.
        hash: Its digest; for what was set up and not built, that of how.
        item: The digest of the item that it is in; None if it is in the record.
        bytes: Of the files of that item.
    """

    name: str
    leaves: int | None
    hash: str
    item: str | None
    bytes: int


@dataclass(frozen=True)
class Answer:
    """What a train returned for a selection of its epochs.

    Args:
        selection: ``epochs``, ``watch``, ``load_best``, ``patience``.
        last: How many epochs it goes over.
        best: The best of them; None where none was watched.
        returned: The epoch whose parameters it has.
        hash: Of the state.
        provenance: Who recorded it, when and from what.
    """

    selection: Mapping[str, Any]
    last: int
    best: int | None
    returned: int
    hash: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class TrainDetail:
    """A train.

    Args:
        op: Its number.
        arguments: What was asked, by name.
        question: Everything that can change its answer, by name.
        environment: What else its bits may depend on, and what ran its steps.
        elsewhere: What of that was another, by epoch, where it went on in another environment than it was begun in.
        provenance: Who began it, when and from what: outside of what decides.
        acts: How its input was made.
        input: The hash of the state that it began from.
        epochs: How many are recorded.
        kept: Those of which the state is kept.
        seconds: How long they took.
        metrics: By epoch, from the evaluation before the first on.
        answers: Oldest first; none while it runs, or if it was killed.
        state: The subtrees of the newest answer.
        own: Bytes of the items that nothing else in the store names.
        shared: Bytes of those that others name too: other trains, other checkpoints.
    """

    op: int
    arguments: Mapping[str, Any]
    question: Mapping[str, Any]
    environment: Mapping[str, Any]
    elsewhere: Mapping[int, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    acts: tuple[Any, ...]
    input: str
    epochs: int
    kept: tuple[int, ...]
    seconds: float
    metrics: tuple[Mapping[str, float], ...]
    answers: tuple[Answer, ...]
    state: tuple[Part, ...]
    own: int
    shared: int


@dataclass(frozen=True)
class Reading:
    """The answer of an op that only reads.

    Args:
        op: ``'evaluate'``, ``'find_lr'``, ``'predict'``.
        input: The hash of the state that it read.
        answer: As it is recorded.
        item: The digest of the item with its tensors, if it has any.
        environment: What else its bits may depend on, and what ran its steps.
        provenance: Who recorded it, when and from what.
    """

    op: str
    input: str
    answer: Any
    item: str | None
    environment: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class RunDetail(Report):
    """A checkpoint with its ops, or with the one that was named.

    Args:
        run: Its name.
        description: What it is about.
        head: The digest of its last record.
        records: How many it has.
        torn: Bytes of a last line that is being written, or that a crash cut short.
        parent: Where its first train began, as it was recorded.
        trains: Its trains.
        readings: The answers of ops that only read.
    """

    run: str
    description: str | None
    head: str
    records: int
    torn: int
    parent: Mapping[str, Any] | None
    trains: tuple[TrainDetail, ...]
    readings: tuple[Reading, ...]

    def __str__(self) -> str:
        about = f", {self.description!r}" if self.description else ""
        lines = [f"{self.run}{about}: {self.records} records, head {short(self.head)}"]
        if self.parent is not None:
            lines.append(f"from {self.parent['checkpoint']} train {self.parent['op']}, {short(self.parent['hash'])}")
        lines += [line for train in self.trains for line in _lines(train)]
        for one in self.readings:
            lines += [f"{one.op} of {short(one.input)}: {_told(one)}", *(f"  recorded    {told}" for told in by(one.provenance))]
        return "\n".join(lines)


def show(name: RunName) -> RunDetail:
    """Return a checkpoint, or the train that is named.

    Raises:
        UsageError: There is no such run.
        CorruptLogError: Its log is damaged.
    """
    run = open_run(name)
    trains = list(enumerate(run.chain.binding())) if name.op is None else [run.train()]
    readings = run.chain.readers.values() if name.op is None else ()
    parent = run.chain.trains[0].start.body["parent"] if run.chain.trains else None
    others = _held_by_others(run)
    return RunDetail(
        run=str(run.name),
        description=run.chain.description,
        head=run.log.head,
        records=len(run.records),
        torn=run.log.torn,
        parent=parent,
        trains=tuple(_train(run, op, train, others) for op, train in trains),
        readings=tuple(_reading(record) for record in readings),
    )


def _train(run: Run, op: int, train: Trajectory, held_by_others: frozenset[str]) -> TrainDetail:
    with as_recorded(train.start):
        body = train.start.body
        question = body["question"]
        asked = {said(name): value for name, value in {**question["about"], **question["parts"]}.items()}
        held = _held(train)
        others = held_by_others.union(*(_held(other) for other in run.chain.trains if other is not train))
        newest = train.done[-1].body["out"] if train.done else {}
        return TrainDetail(
            op=op,
            arguments=arguments_of(question),
            question=asked,
            environment={**envelope_of(train.start), **(envelope_of(train.done[0]) if train.done else {})},
            elsewhere=dict(elsewhere(train)),
            provenance=provenance_of(train.start),
            acts=tuple(body["acts"]),
            input=train.input,
            epochs=sum(n > 0 for n in train.epochs),
            kept=tuple(sorted(train.kept_epochs())),
            seconds=time_of(train),
            metrics=tuple(train.history()),
            answers=tuple(_answer(record, len(train.history())) for record in train.done),
            state=tuple(_parts(run, newest)),
            own=bytes_of(run.backend, held - others),
            shared=bytes_of(run.backend, held & others),
        )


def _held(train: Trajectory) -> frozenset[str]:
    records = [*train.done, *train.keeps.values()]
    return frozenset(digest for record in records for digest in items_of(record))


def _held_by_others(run: Run) -> frozenset[str]:
    ids = [id for id in run.backend.ids() if id != run.id]
    found: set[str] = set()
    for id in ids:
        with contextlib.suppress(StoreError):  # of a log that is damaged nobody knows what it names: `ls` and `check` tell of it
            found |= named(run.backend.log(id).records).keys()
    return frozenset(found)


def _answer(record: RecordLike, epochs: int) -> Answer:
    with as_recorded(record):
        body = record.body
        if type(body["returned"]) is not int or not 0 <= body["returned"] < epochs:
            raise TypeError(f"{body['returned']!r} is none of its epochs")
        return Answer(body["selection"], body["last"], body["best"], body["returned"], body["out"]["hash"], provenance_of(record))


def _reading(record: RecordLike) -> Reading:
    with as_recorded(record):
        body = record.body
        told = envelope_of(record), provenance_of(record)
        return Reading(record.kind, body["input"], body.get("answer"), body.get("item"), *told)


def _parts(run: Run, snapshot: Mapping[str, Any]) -> Iterable[Part]:
    items = {part: digest for digest, part in items_of_snapshot(snapshot).items()}
    for name, part in snapshot.items():
        if name in ("hash", "key", "counters"):
            continue
        if not isinstance(part["fresh"] if "fresh" in part else part["digest"], str):
            raise TypeError(f"{name} has no digest")
        if "fresh" in part:
            yield Part(name, None, part["fresh"], None, 0)
            continue
        tensors = [entry for entries in part.get("layout", {}).values() for entry in entries]
        leaves = len(part["names"]) if "names" in part else len(part.get("inline", tensors))
        yield Part(name, leaves, part["digest"], items.get(name), bytes_of(run.backend, filter(None, [items.get(name)])))
        if "beside" in part:
            yield Part("buffers", len(part["beside"]["names"]), part["beside"]["digest"], items.get(name), 0)


def _lines(train: TrainDetail) -> Iterable[str]:
    yield ""
    sizes = f"own {in_bytes(train.own)}, shared {in_bytes(train.shared)}"
    yield f"train {train.op}: {counted(train.epochs, 'epoch')}, {seconds(train.seconds)}, {sizes}"
    yield f"  input       {short(train.input)}"
    yield from _table("arguments", train.arguments)
    yield from _table("environment", train.environment)
    for epochs, differing in _together(train.elsewhere):
        yield from _table("elsewhere", {epochs: ", ".join(f"{name} {value}" for name, value in differing.items())})
    for told in by(train.provenance):
        yield f"  begun       {told}"
    for answer in train.answers:
        asked = ", ".join(f"{name} {value}" for name, value in answer.selection.items())
        best = "" if answer.best is None else f", best {answer.best}"
        told = ", ".join(f"{name} {value:.4g}" for name, value in train.metrics[answer.returned].items())
        yield f"  answer      {short(answer.hash)}: {counted(answer.last, 'epoch')}{best}; {asked}; {told}"
        yield from (f"  recorded    {told}" for told in by(answer.provenance, train.provenance))
    if not train.answers:
        yield "  answer      none yet: it is running, or was stopped"
    yield f"  kept        epochs {', '.join(map(str, train.kept)) or 'none'}"
    if train.state:
        rows = [[part.name, part.leaves, short(part.hash.removeprefix("fresh:")), in_bytes(part.bytes)] for part in train.state]
        yield from ("  " + line for line in text_table(rows, ["state", "leaves", "hash", "at rest"]).splitlines())


def _table(title: str, values: Mapping[str, Any]) -> Iterable[str]:
    told = ", ".join(f"{name} {value}" for name, value in values.items())
    if told:
        yield f"  {title:11} {told}"


def _together(elsewhere: Mapping[int, Mapping[str, Any]]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield epochs that say the same of their environment together: ``'epochs 3 to 7'``."""
    for differing, group in itertools.groupby(elsewhere, elsewhere.__getitem__):
        epochs = list(group)
        yield (f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"), differing


def _told(reading: Reading) -> str:
    if isinstance(reading.answer, Mapping):
        return ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} ..." for name, value in reading.answer.items()
        )
    return f"tensors in {short(reading.item)}" if reading.item else str(reading.answer)
