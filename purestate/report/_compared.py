"""Two logs side by side: the first record that differs, in which of its parts, and whether the environment explains it.

What is compared is what was asked and what came out, in the order of the chain. Seconds, names, what is kept of the epochs and
answers that were voided do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from purestate.core._digest import short
from purestate.report._opened import Run
from purestate.report._report import Report
from purestate.run._chain import RecordLike, Trajectory, as_recorded
from purestate.run._envelope import contrast, elsewhere, envelope_of
from purestate.run._question import causes, said
from purestate.run._trace import EpochTrace, trace_of

__all__ = ["Difference", "LogComparison", "RecordPair", "Verdict", "compare_logs", "part_of"]

Verdict = Literal["equal", "unexplained", "expected", "unknown"]

_SAYS: Mapping[Verdict, str] = {
    "equal": "equal",
    "unexplained": "differs though nothing in the envelope does",
    "expected": "differs, and so does",
    "unknown": "unknown",
}
_DATA = ("train_data", "val_data", "data")
_LEAVES = 4
"""How many leaves are named of two states that differ."""
_HASH_AND_END = len(b',"hash":"b3:"}}') + 64
"""How many bytes the line of an epoch ends with behind its seconds, unless it says that it was resumed."""


@dataclass(frozen=True)
class Difference:
    """Something that differs between two records.

    Args:
        part: ``'arguments'``, ``'data'``, ``'code'``, ``'environment'``, ``'input state'``, ``'result'`` or ``'extent'``.
        what: Which of it, for people.
        a: What it is in the first; None where there is none.
        b: In the second.
    """

    part: str
    what: str
    a: Any
    b: Any

    def __str__(self) -> str:
        if self.part == "extent":
            return f"{self.part}: {self.what}"  # its values are the numbers of the records, which stand above it
        return f"{self.part}: {self.what} {_shown(self.a)} | {_shown(self.b)}"


@dataclass(frozen=True)
class RecordPair:
    """Two records that stand at the same place, of which one may be missing.

    Args:
        place: ``'train 0'``, ``'train 0, epoch 3'``, ``'evaluate'``.
        a: The number of the record in the first log.
        b: In the second.
        differences: What differs.
    """

    place: str
    a: int | None
    b: int | None
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        numbers = f"records {'-' if self.a is None else self.a} and {'-' if self.b is None else self.b}"
        return "\n".join([f"{self.place} ({numbers})", *(f"  {one}" for one in self.differences)])


@dataclass(frozen=True)
class LogComparison(Report):
    """Two logs, compared.

    Args:
        verdict: ``'equal'``; ``'unexplained'``, which is a finding: results differ and nothing that their bits may depend on
            does; ``'expected'``: so does what they depend on; ``'unknown'``, also where data was only probed.
        because: What explains it, or why it is not known.
        compared: How many pairs of records have the same content.
        first: The first pair in which anything that was asked or came out differs.
        result: The first pair in which what came out differs, which may be the same.
        envelope: What differs between the environments in which the trains were computed that far, and what ran their steps.
    """

    verdict: Verdict
    because: tuple[str, ...]
    compared: int
    first: RecordPair | None
    result: RecordPair | None
    envelope: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether they are equal."""
        return self.verdict == "equal"

    def __str__(self) -> str:
        because = (
            f" {', '.join(self.because)}"
            if self.verdict == "expected"
            else f": {'; '.join(self.because)}"
            if self.because
            else ""
        )
        lines = [f"logs: {_SAYS[self.verdict]}{because} ({self.compared} records agree)"]
        if self.first is not None:
            lines.append(f"first difference: {self.first}")
        if self.result is not None and self.result != self.first:
            lines.append(f"first other result: {self.result}")
        if self.envelope:
            lines += ["envelope:", *(f"  {one}" for one in self.envelope)]
        return "\n".join(lines)


@dataclass
class _Walk:
    """What is known while two logs are walked."""

    compared: int = 0
    pairs: list[RecordPair] = field(default_factory=list[RecordPair])
    envelope: list[Difference] = field(default_factory=list[Difference])
    doubts: list[str] = field(default_factory=list[str])
    """Why a difference that nothing explains may have an explanation."""
    probed: list[str] = field(default_factory=list[str])
    """Whose data may differ although nothing says so."""

    def note(self, pair: RecordPair) -> None:
        if pair.differences:
            self.pairs.append(pair)
        else:
            self.compared += 1

    def found(self, *parts: str) -> RecordPair | None:
        return next((pair for pair in self.pairs if any(one.part in parts for one in pair.differences)), None)


def compare_logs(a: Run, b: Run) -> LogComparison:
    """Compare what two checkpoints asked and what came out, up to the train that each name names.

    Args:
        a: Not modified.
        b: Not modified.

    Raises:
        CorruptLogError: A record does not hold what its kind does.
    """
    walk = _Walk()
    same = _common(a.records, b.records)
    trains = [run.chain.binding()[: None if run.name.op is None else run.name.op + 1] for run in (a, b)]
    for op, (ours, theirs) in enumerate(zip_longest(*trains)):
        if ours is None or theirs is None:
            there, missing = ours or theirs, "the first" if ours is None else "the second"
            assert there is not None
            numbers = (None, there.start.seq) if ours is None else (there.start.seq, None)
            walk.note(RecordPair(f"train {op}", *numbers, (Difference("extent", f"{missing} has no such train", *numbers),)))
            break
        _trains(walk, op, ours, theirs, same)
        if walk.found("result"):
            break
    else:
        if a.name.op is None and b.name.op is None:
            _readings(walk, a, b)
    verdict, because = _verdict(walk)
    first = walk.pairs[0] if walk.pairs else None
    return LogComparison(verdict, because, walk.compared, first, walk.found("result"), tuple(walk.envelope))


def part_of(name: str) -> str:
    """Return which part of a question a dotted name belongs to.

    Example:
        >>> part_of("recipe.optimizer.class.code"), part_of("recipe.optimizer.class.digest"), part_of("package.torch")
        ('arguments', 'code', 'environment')
    """
    head = name.partition(".")[0]
    if head in _DATA:
        return "data"
    if head in ("input", "parent", "base"):
        return "input state"
    if head == "package":
        return "environment"
    return "code" if head in ("module", "code") or name.endswith(".digest") else "arguments"


def _trains(walk: _Walk, op: int, ours: Trajectory, theirs: Trajectory, same: int) -> None:
    with as_recorded(ours.start), as_recorded(theirs.start):
        walk.note(RecordPair(f"train {op}", ours.start.seq, theirs.start.seq, tuple(_asked(ours.start, theirs.start))))
        _environments(walk, f"train {op}", ours.start, theirs.start)
        if ours.done and theirs.done:
            _environments(walk, f"train {op}", ours.done[0], theirs.done[0])
        if not (_end(ours) < same and _end(theirs) < same):  # else they are the same records
            _look_at_data(walk, f"train {op}", ours.start, theirs.start)
    _epoch_by_epoch(walk, op, ours, theirs, same)
    _moved(walk, op, ours, theirs)


def _epoch_by_epoch(walk: _Walk, op: int, ours: Trajectory, theirs: Trajectory, same: int) -> None:
    for n in sorted(ours.epochs.keys() | theirs.epochs.keys()):
        x, y = ours.epochs.get(n), theirs.epochs.get(n)
        if x is None or y is None:
            if n == 0 and (ours.binds and theirs.binds):
                continue  # the evaluation before the first epoch: only where there is validation data, which the question says
            numbers = x.seq if x else None, y.seq if y else None
            what = f"{'the first' if x is None else 'the second'} ends before epoch {n}"
            walk.note(RecordPair(f"train {op}, epoch {n}", *numbers, (Difference("extent", what, *numbers),)))
            break
        if (x.seq < same and y.seq < same) or _of_epoch(x) == _of_epoch(y):
            walk.compared += 1
            continue
        walk.note(RecordPair(f"train {op}, epoch {n}", x.seq, y.seq, tuple(_epochs(x, y))))
        if walk.found("result"):
            return
    _answers(walk, op, ours, theirs)


def _asked(x: RecordLike, y: RecordLike) -> Iterator[Difference]:
    asked = x.body["question"], y.body["question"]
    if any(asked[0][name] != asked[1][name] for name in ("op", "parts")):
        for name, a, b in causes(*asked):
            yield Difference(part_of(name), said(name), a, b)


def _end(train: Trajectory) -> int:
    """The number of a train's last record that is compared."""
    return max(record.seq for record in (train.start, *train.epochs.values(), *train.done))


def _environments(walk: _Walk, place: str, x: RecordLike, y: RecordLike) -> None:
    found = contrast(envelope_of(x), envelope_of(y))
    walk.envelope += [Difference("environment", f"{place}: {name}", a, b) for name, a, b in found.differing]
    if found.untold:
        walk.doubts.append(f"only one of both says for {place}: {', '.join(found.untold)}")
    for name, record in (("the first", x), ("the second", y)):
        if found.missing and record.kind != "done" and not envelope_of(record):
            walk.doubts.append(f"{place} of {name} does not say in what environment it was computed")


def _moved(walk: _Walk, op: int, ours: Trajectory, theirs: Trajectory) -> None:
    """Note in which epochs, as far as they were compared, one was computed elsewhere than it began and the other was not."""
    differing = walk.found("result")
    last = None if differing is None or ", epoch " not in differing.place else int(differing.place.rpartition(" ")[2])
    begun = [envelope_of(train.start) for train in (ours, theirs)]
    moved = [dict(elsewhere(train, last)) for train in (ours, theirs)]
    told: set[str] = set()
    for n in sorted({*moved[0], *moved[1]}):
        a, b = ({**start, **there.get(n, {})} for start, there in zip(begun, moved, strict=True))
        for name in {**moved[0].get(n, {}), **moved[1].get(n, {})}:
            if name not in told and a.get(name) != b.get(name):
                told.add(name)
                walk.envelope.append(Difference("environment", f"train {op}, epoch {n}: {name}", a.get(name), b.get(name)))


def _look_at_data(walk: _Walk, place: str, *records: RecordLike) -> None:
    for record in records:
        with as_recorded(record):
            parts = record.body["question"]["parts"]
            if any(parts.get(f"{data}.kind") == "probed" for data in _DATA):
                walk.probed.append(f"the data of {place} was only probed: what lies between the samples may differ")


def _of_epoch(record: RecordLike) -> Any:
    """Return what counts of an epoch: as bytes, where its line has the shape that is written, since there are thousands."""
    line: bytes | None = getattr(record, "line", None)
    if line is not None:
        start, end, hash = line.find(b'"metrics":', 150), line.rfind(b',"seconds":'), line.rfind(b',"hash":"')
        if 0 < start < end < hash == len(line) - _HASH_AND_END:
            return line[start:end], line[hash:]
    with as_recorded(record):
        return _told(record)


def _told(record: RecordLike) -> dict[str, Any]:
    return {
        name: value for name, value in record.body.items() if name not in ("of", "trace", "seconds", "resumed", "environment")
    }


def _epochs(x: RecordLike, y: RecordLike) -> Iterator[Difference]:
    with as_recorded(x), as_recorded(y):
        ours, theirs = x.body, y.body
        if ours["hash"] != theirs["hash"]:
            yield Difference("result", "state", short(ours["hash"]), short(theirs["hash"]))
            yield from _traced(trace_of(x), trace_of(y))
        for name in {**ours["metrics"], **theirs["metrics"]}:
            values = ours["metrics"].get(name), theirs["metrics"].get(name)
            if values[0] != values[1]:
                yield Difference("result", name, *values)
        if ours.get("lr") != theirs.get("lr"):
            yield Difference("result", "learning rates", ours.get("lr"), theirs.get("lr"))


def _traced(ours: EpochTrace | None, theirs: EpochTrace | None) -> Iterator[Difference]:
    """Yield what traces tell of two states that differ: whether the batches did, and the first leaves."""
    if ours is None or theirs is None:
        return
    if None not in (ours.data, theirs.data) and ours.data != theirs.data:
        yield Difference("result", "batches, or their order", short(str(ours.data)), short(str(theirs.data)))
    hashes = ours.leaves, theirs.leaves
    for name in [name for name in {**hashes[0], **hashes[1]} if hashes[0].get(name) != hashes[1].get(name)][:_LEAVES]:
        yield Difference("result", name, *(short(leaves[name]) if name in leaves else None for leaves in hashes))


def _answers(walk: _Walk, op: int, ours: Trajectory, theirs: Trajectory) -> None:
    """Compare answers to the same selection. Which selections were made is no result: each is computed from the epochs."""
    for x in ours.done:
        with as_recorded(x):
            y = theirs.answer(x.body["selection"])
            if y is not None:
                hashes = x.body["out"]["hash"], y.body["out"]["hash"]
                told = () if hashes[0] == hashes[1] else (Difference("result", "state", *map(short, hashes)),)
                walk.note(RecordPair(f"train {op}, answer for {x.body['selection']['epochs']} epochs", x.seq, y.seq, told))


def _readings(walk: _Walk, a: Run, b: Run) -> None:
    ours, theirs = a.chain.readers, b.chain.readers
    for digest in [digest for digest in ours if digest in theirs]:
        x, y = ours[digest], theirs[digest]
        with as_recorded(x), as_recorded(y):
            values = [(record.body.get("answer"), record.body.get("item")) for record in (x, y)]
            told = () if values[0] == values[1] else (Difference("result", "answer", *values),)
            walk.note(RecordPair(x.kind, x.seq, y.seq, told))
            if x.digest != y.digest:
                _look_at_data(walk, x.kind, x, y)
            if told:
                _environments(walk, x.kind, x, y)


def _verdict(walk: _Walk) -> tuple[Verdict, tuple[str, ...]]:
    if walk.found("result") is not None:
        asked = [one for pair in walk.pairs for one in pair.differences if one.part not in ("result", "extent")]
        parts = list(dict.fromkeys(f"{one.what} ({one.part})" for one in asked))
        inside = list(dict.fromkeys(one.what.rpartition(": ")[2] for one in walk.envelope))
        if parts or inside:
            return "expected", (*parts, *([f"the envelope in {', '.join(inside)}"] if inside else []))
        doubts = tuple(dict.fromkeys([*walk.doubts, *walk.probed]))
        return ("unknown", doubts) if doubts else ("unexplained", ())
    if (pair := walk.found("extent")) is not None:
        return "unknown", (f"from {pair.place} on there is nothing to compare with",)
    if walk.compared == 0 and not walk.pairs:
        return "unknown", ("nothing was recorded that could be compared",)
    return ("unknown", tuple(dict.fromkeys(walk.probed))) if walk.probed else ("equal", ())


def _common(a: Sequence[RecordLike], b: Sequence[RecordLike]) -> int:
    """Return how many records two logs begin with in common: digests form a chain, so one that agrees vouches for all before."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[middle - 1].digest == b[middle - 1].digest else (low, middle - 1)
    return low


def _shown(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
