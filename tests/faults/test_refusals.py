"""The system refuses a call: there is no space (ENOSPC), or the disk is broken (EIO).

Whoever asked is told in our words, what was acknowledged stays, and the same process goes on when the disk does.
"""

from __future__ import annotations

import errno
import itertools

import pytest

from tests.faults.cases import CASES
from tests.faults.one import disturb, reproduce
from tests.faults.shim import EVERYTHING, Fault

QUICK = {
    "create": 5,
    "save": 5,
    "soon": 4,
    "train": 3,
    "keep": 3,
    "resume": 3,
    "acts": 3,
    "rename": 3,
    "gc": 3,
    "repair": 3,
    "copy": 3,
    "export": 3,
}
PLACES = [(name, role) for name, case in CASES.items() for role in case.roles]
WAYS = [("fail", errno.EIO), ("full", errno.ENOSPC), ("fail", errno.ENOSPC)]
WRITES = frozenset({"open", "write", "fsync", "fdatasync", "mkdir"})


def refuse(prepared, name, role, failures, faults):
    case = prepared(name)
    told: dict[str, int] = {}
    for fault in faults(case, role):
        try:
            how = disturb(case, fault)
            told[how] = told.get(how, 0) + 1
        except Exception as error:
            failures.append(f"{reproduce(case, fault)}\n    {type(error).__name__}: {error}")
    assert told.get("told"), f"nothing was refused: {told}"
    print(f"{name}, {role}: {told}")


@pytest.mark.parametrize(("name", "role"), PLACES)
def test_some_calls_are_refused(prepared, name, role, failures):
    def faults(case, role):
        ways = itertools.cycle(WAYS)
        return [Fault(role, action, k, error) for k, (action, error) in zip(case.points(role, QUICK[name]), ways, strict=False)]

    refuse(prepared, name, role, failures, faults)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "role"), PLACES)
def test_every_call_is_refused(prepared, name, role, failures):
    def faults(case, role):
        for action, error in WAYS:
            yield from (Fault(role, action, k, error) for k in case.points(role, None))

    refuse(prepared, name, role, failures, faults)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "role"), PLACES)
def test_every_call_is_refused_that_reads_locks_or_takes_memory(prepared, name, role, failures):
    def faults(case, role):
        root = case.fresh()
        undisturbed = case.run(root, Fault(role, mask=EVERYTHING))
        calls = (undisturbed.main if role == "main" else undisturbed.writer).calls
        yield from (Fault(role, "fail", k, errno.EIO, EVERYTHING) for k in range(1, calls + 1))

    refuse(prepared, name, role, failures, faults)
