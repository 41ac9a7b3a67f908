"""Why a question is, or is not, answered by what is recorded: for people.

What of a checkpoint depends on what is in `_explained`. Nothing here decides: what may be appended is for `_stale`, what an
answer is for `_training` and `_readers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purestate.core._state import State
from purestate.run._answers import counted
from purestate.run._chain import Chain, RecordLike, as_recorded
from purestate.run._question import Question, changes
from purestate.run._stale import continues, rival, told

__all__ = ["why"]

_NEWEST = 100
"""How many answers of a reader are looked at for the nearest: there may be thousands, and the newest are the likeliest."""


def why(question: Question, chain: Chain, state: State | None = None, selection: Mapping[str, Any] | None = None) -> str:
    """Return why nothing that is recorded answers a question: a sentence without a full stop.

    Args:
        question: What is asked.
        chain: What is recorded. Not modified.
        state: The input of a train, if it is known; says which of the recorded trains it would have been.
        selection: What a train is asked to pick from its epochs, as a record holds it.

    Example:
        >>> why(Question("evaluate/1", {}), Chain())
        'no evaluate is recorded'
    """
    op = question.op.partition("/")[0]
    return _train(question, chain, state, selection or {}) if op == "train" else _reader(op, question, chain)


def _train(question: Question, chain: Chain, state: State | None, selection: Mapping[str, Any]) -> str:
    trains = chain.binding()
    found = chain.find(question.digest)
    if found is not None and found in trains:
        there = f"train {trains.index(found)} has {counted(max(found.epochs, default=0), 'epoch')}"
        asked = ", ".join(f"{name} {value}" for name, value in selection.items())
        return f"{there}, and no answer is recorded for {asked or 'this selection of them'}"
    if not trains:
        return "no train is recorded"
    if state is not None and continues(chain, state):
        return f"train {len(trains) - 1} is the last that is recorded, and this would be train {len(trains)}"
    other = rival(chain, question, None if state is None else state.origin.base or state.hash)
    return f"train {trains.index(other)} is recorded for another question: {told(changes(other.question, question))}"


def _reader(op: str, question: Question, chain: Chain) -> str:
    recorded = [record for record in chain.readers.values() if record.kind == op][-_NEWEST:]
    if not recorded:
        return f"no {op} is recorded"
    nearest = min(recorded, key=lambda record: len(changes(_asked(record), question)))  # the first of those that are as near
    differing = told(changes(_asked(nearest), question))
    return f"the nearest {op} (record {nearest.seq}) answers another question: {differing}"


def _asked(record: RecordLike) -> Mapping[str, Any]:
    with as_recorded(record):
        return record.body["question"]
