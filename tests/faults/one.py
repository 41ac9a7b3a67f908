"""One disturbance, as the tests do it: ``python -m tests.faults CASE ROLE ACTION AT [ERROR] [--mask N]``."""

from __future__ import annotations

from tests.faults.cases import Prepared
from tests.faults.shim import Fault

__all__ = ["disturb", "reproduce"]

_TYPED = "PureStateError"


def disturb(case: Prepared, fault: Fault) -> str:
    """Let something happen to a process, look at the store, run it again, and return a word for how it went.

    Raises:
        AssertionError: Something that must hold does not.
        PureStateError: The store does not verify.
    """
    root = case.fresh()
    outcome = case.run(root, fault)
    hit = outcome.main if fault.role == "main" else outcome.writer
    case.check(root, outcome.said, outcome.again)
    deadly = fault.action in ("kill", "tear")
    if deadly and fault.role == "main" and hit.hits:
        assert outcome.status == -9, outcome.output
    else:
        assert outcome.status == 0, outcome.output
        assert case.values(outcome.again or outcome.said) == case.expected, "it went on to another end"
        assert not deadly or not hit.hits or outcome.errors, "nobody was told that the writer process died"
    for error in outcome.errors:
        expected = {"StoreWriteError"} if fault.mask == 1 else {_TYPED}
        assert expected & set(error["classes"]), f"{error['classes'][0]}: {error['text']} at {error['where'][-3:]}"
    case.finish(root, outcome.said, outcome.again)
    return "not reached" if not hit.hits else "killed" if outcome.status else "told" if outcome.errors else "unnoticed"


def reproduce(case: Prepared, fault: Fault) -> str:
    """Return the command that lets the same happen again."""
    return f"python -m tests.faults {case.name} {fault}"
