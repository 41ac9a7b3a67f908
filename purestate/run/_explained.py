"""A checkpoint, op by op: what each depends on, what depends on it, and what came of it in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from purestate.core._digest import short
from purestate.run._answers import Asked, counted, op_name
from purestate.run._chain import Chain, RecordLike, Trajectory, as_recorded
from purestate.run._explain import why
from purestate.run._ledger import Ledger
from purestate.run._lineage import begun_from
from purestate.run._question import Question, said
from purestate.view import html_table
from purestate.view._report import Report, fragment

__all__ = ["Explanation", "OpExplained", "explain"]


@dataclass(frozen=True)
class OpExplained:
    """An op that is recorded.

    Args:
        op: ``'train 0'``, ``'evaluate'``, ...
        record: The number of its record; of a train that of the first.
        asked: What came of it in this process; None where nobody asked.
        input: What it began from: another train, a root, a fork of another checkpoint, an initial state.
        data: The data that it depends on.
        code: The functions and classes of the user that it depends on.
        used_by: What depends on it: trains and answers, also of other checkpoints of the store.
    """

    op: str
    record: int
    asked: Asked | None
    input: str
    data: tuple[str, ...]
    code: tuple[str, ...]
    used_by: tuple[str, ...]

    def __str__(self) -> str:
        rows = {"from": (self.input,), "data": self.data, "code": self.code, "used by": self.used_by}
        told = "not asked in this process" if self.asked is None else str(self.asked)
        lines = [f"{self.op} (record {self.record}): {told}"]
        return "\n".join([*lines, *(f"  {name:8} {'; '.join(values)}" for name, values in rows.items() if values)])


@dataclass(frozen=True)
class Explanation(Report):
    """A checkpoint, op by op.

    Args:
        checkpoint: Its name.
        ops: What is recorded and in effect.
        unanswered: What was asked in this process and is not recorded.
    """

    checkpoint: str
    ops: tuple[OpExplained, ...]
    unanswered: tuple[Asked, ...]

    @property
    def ok(self) -> bool:
        """Whether all that was asked is answered by a record."""
        return not self.unanswered

    def __str__(self) -> str:
        there = f"{counted(len(self.ops), 'op')} {'is' if len(self.ops) == 1 else 'are'}" if self.ops else "nothing is"
        head = f"{self.checkpoint}: {there} recorded"
        return "\n".join([head, *map(str, self.ops), *(f"{one.op}: {one}" for one in self.unanswered)])

    def to_html(self) -> str:
        """Return a table with a row an op: a fragment for a page."""
        header = ["op", "record", "in this process", "from", "data", "code", "used by"]
        rows = [
            [one.op, one.record, one.asked and str(one.asked), one.input, *map("; ".join, (one.data, one.code, one.used_by))]
            for one in self.ops
        ]
        rows += [[one.op, None, str(one), *[""] * 4] for one in self.unanswered]
        return fragment(self.checkpoint, *([("", html_table(rows, header))] if rows else ["nothing is recorded"]))


def explain(ledger: Ledger) -> Explanation:
    """Return a checkpoint, op by op. See `purestate.run._logged.Logged.explain`."""
    chain = ledger.refresh()
    by_record = {asked.record: asked for asked in ledger.asked.values() if asked.record is not None}
    elsewhere = _users_elsewhere(ledger)
    ops = [_of_train(chain, op, train, by_record, elsewhere) for op, train in enumerate(chain.binding())]
    before = Chain()
    for record in sorted(chain.readers.values(), key=lambda record: record.seq):
        before.update(ledger.log.records[before.seen : record.seq])
        ops.append(_of_reader(chain, record, by_record.get(record.seq), before))
    unanswered = tuple(asked for asked in ledger.asked.values() if asked.record is None)
    return Explanation(ledger.id, tuple(sorted(ops, key=lambda op: op.record)), unanswered)


def _of_train(
    chain: Chain, op: int, train: Trajectory, by_record: Mapping[int, Asked], elsewhere: Mapping[str, list[str]]
) -> OpExplained:
    with as_recorded(train.start):
        start, question = train.start.body, train.question
        records = [train.start.seq, *(record.seq for record in train.done)]
        asked = next((by_record[seq] for seq in reversed(records) if seq in by_record), None)
        after = [f"train {n}" for n, other in enumerate(chain.binding()) if other is not train and other.base in train.outputs]
        states = train.outputs | {record.body["hash"] for record in train.epochs.values()}
        read = [f"{record.kind} (record {record.seq})" for record in chain.readers.values() if record.body["input"] in states]
        digests = [record.digest for record in (train.start, *train.epochs.values(), *train.done)]
        others = dict.fromkeys(user for digest in digests for user in elsewhere.get(digest, ()))
        return OpExplained(
            op=f"train {op}",
            record=train.start.seq,
            asked=asked,
            input=_input(start, question),
            data=_data(question["parts"]),
            code=_code(question["parts"]),
            used_by=(*after, *read, *others),
        )


def _of_reader(chain: Chain, record: RecordLike, asked: Asked | None, before: Chain) -> OpExplained:
    with as_recorded(record):
        question, state = record.body["question"], record.body["input"]
        if asked is not None and asked.outcome == "computed":
            asked = replace(asked, because=why(Question(question["op"], question["parts"], question["about"]), before))
        origin = next((_where(train, op, state) for op, train in enumerate(chain.binding()) if _gave(train, state)), None)
        return OpExplained(
            op=record.kind,
            record=record.seq,
            asked=asked,
            input=origin or _input({}, question),
            data=_data(question["parts"]),
            code=_code(question["parts"]),
            used_by=(),
        )


def _gave(train: Trajectory, state: str) -> bool:
    return state in train.outputs or any(record.body["hash"] == state for record in train.epochs.values())


def _where(train: Trajectory, op: int, state: str) -> str:
    done = next((record.body["last"] for record in train.done if record.body["out"]["hash"] == state), None)
    last = done if done is not None else next(n for n, record in train.epochs.items() if record.body["hash"] == state)
    return f"train {op}, {counted(last, 'epoch')}"


def _input(start: Mapping[str, Any], question: Mapping[str, Any]) -> str:
    about = question["about"]
    edits = [said(name) for name in about if name.startswith("edits.")]
    parent = start.get("parent")
    if parent is not None:
        origin = f"{parent['checkpoint']} {op_name(parent['op'])}, {counted(parent['epochs'], 'epoch')}"
    else:
        origin = about.get("parent") or (f"an initial state, seed {about['seed']}" if "seed" in about else "an initial state")
    return f"{origin}, changed by {' and '.join(edits)}" if edits else str(origin)


def _data(parts: Mapping[str, Any]) -> tuple[str, ...]:
    found: list[str] = []
    for data in ("train_data", "val_data", "data"):
        if parts.get(f"{data}.kind") is not None:
            samples = parts.get(f"{data}.dataset.samples")
            size = "" if samples is None else f", {counted(samples, 'sample')}"
            found.append(f"{said(data)} by {parts[f'{data}.kind']}{size}, {short(parts[f'{data}.digest'])}")
    return tuple(found)


def _code(parts: Mapping[str, Any]) -> tuple[str, ...]:
    own = [name.removeprefix("code.") for name in parts if name.startswith("code.")]
    functions = [name.removesuffix(".fn.digest") for name in parts if name.endswith(".fn.digest")]
    return (*own, *(said(name) for name in functions))


def _users_elsewhere(ledger: Ledger) -> dict[str, list[str]]:
    """Return what in other checkpoints of the store began from a record, by its digest."""
    found: dict[str, list[str]] = {}
    for id, parent in begun_from(ledger):
        found.setdefault(parent["record"], []).append(f"{id} train 0")
    return found
