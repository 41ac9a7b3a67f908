"""When a question may be appended to a chain, and what is said when it may not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from purestate.core._state import State
from purestate.errors import StaleRecordError
from purestate.run._answers import Asked
from purestate.run._chain import Chain, Trajectory
from purestate.run._ledger import Ledger
from purestate.run._lineage import forks
from purestate.run._question import DEFAULT, Question, changes

__all__ = ["accepted", "check_appendable", "continues", "rival", "told"]


def check_appendable(ledger: Ledger, question: Question, state: State) -> None:
    """Return if the question may become the next record of the chain.

    It may if the chain holds nothing, if the state is an answer of the chain's last train or was made from one, or if
    somebody accepted that the recorded answer is for this question.

    Raises:
        StaleRecordError: Otherwise. It names what changed against the record that the question would have been.
    """
    chain = ledger.chain
    if continues(chain, state):
        return
    other = rival(chain, question, _base(state))
    if other.start.seq not in chain.accepting:
        error = _stale(ledger, other, question)
        ledger.note(Asked(f"train {error.op}", "would re-run", error.problem.partition(": ")[2].rstrip(".")), question.digest)
        raise error


def accepted(ledger: Ledger, question: Question, state: State, notify: Callable[[str], None]) -> Trajectory | None:
    """Return the trajectory that somebody accepted as the answer to this question, and record that it is.

    Effects:
        An ``alias`` record, once.
    """
    chain = ledger.chain
    if not chain.accepting or continues(chain, state):
        return None
    other = rival(chain, question, _base(state))
    if other.start.seq not in chain.accepting:
        return None
    found = changes(other.question, question)
    ledger.append("alias", {"of": other.start.seq, "digest": question.digest, "changes": [list(change) for change in found]})
    notify(f"train {chain.index(other)} is taken as the answer, as was accepted, although {told(found)}")
    return other


def _base(state: State) -> str:
    return state.origin.base or state.hash


def continues(chain: Chain, state: State) -> bool:
    """Return whether a train of a state may be appended: the chain holds nothing, or the state is from its last answer."""
    trains = chain.binding()
    return not trains or _base(state) in trains[-1].outputs


def rival(chain: Chain, question: Question, base: str | None) -> Trajectory:
    """Return the record that the question would have been.

    That is the train that began from the same answer; else the one behind the train that answered this state; else the one
    from which it differs least.

    Args:
        chain: It has a train that binds.
        question: What is asked.
        base: The hash of the answer that its input was made from; None if that is not known.
    """
    trains = chain.binding()
    for train in trains:
        if base in (train.base, train.input):
            return train
    for before, train in pairwise(trains):
        if base in before.outputs:
            return train
    return min(trains, key=lambda train: len(changes(train.question, question)))


def _stale(ledger: Ledger, rival: Trajectory, question: Question) -> StaleRecordError:
    chain = ledger.chain
    op, found = chain.index(rival), changes(rival.question, question)
    later = tuple(range(op + 1, len(chain.binding())))
    others = forks(ledger, op)
    depends = f"; {_listed(later)} on it" if later else ""
    if others:
        depends += f"; {', '.join(map(repr, others))} began from there"
    return StaleRecordError(
        f"checkpoint {ledger.id!r}, train {op}: {told(found)}.",
        cause=f"The recorded answer is not for this question{depends}.",
        fix=f"Fork with another checkpoint id, void it with ck.reset({op}), say that it is the same with ck.accept({op}), "
        "or undo the change.",
        checkpoint=ledger.id,
        op=op,
        changes=tuple(found),
        dependents=later,
        forks=others,
    )


def told(found: Sequence[tuple[str, Any, Any]]) -> str:
    """Return differences as `changes` finds them as one sentence: the first three, and how many more there are."""
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(_difference(*change) for change in found[:3]) + more


def _listed(ops: tuple[int, ...]) -> str:
    return f"train {ops[0]} depends" if len(ops) == 1 else f"trains {', '.join(map(str, ops))} depend"


def _difference(name: str, old: Any, new: Any) -> str:
    if isinstance(old, str) and isinstance(new, str) and old.startswith("b3:") and new.startswith("b3:"):
        return f"{name} changed since this was recorded ({old}, now {new})"
    if old is None:
        return f"{name} was not there when this was recorded, now {_quoted(new)}"
    if new is None:
        return f"{name} was {_quoted(old)} when this was recorded, now there is none"
    return f"{name} was {_quoted(old)} when this was recorded, now {_quoted(new)}"


def _quoted(value: Any) -> str:
    return DEFAULT if value == DEFAULT else repr(value)
