"""SIGKILL at every system call of an act on a store, in the process that trains and in its writer process."""

from __future__ import annotations

import pytest

from tests.faults.cases import CASES
from tests.faults.one import disturb, reproduce
from tests.faults.shim import Fault

QUICK = {
    "create": 5,
    "save": 5,
    "soon": 4,
    "train": 3,
    "keep": 3,
    "resume": 3,
    "acts": 3,
    "rename": 3,
    "gc": 5,
    "repair": 3,
    "copy": 3,
    "export": 3,
}
PLACES = [(name, role) for name, case in CASES.items() for role in case.roles]


def kill(prepared, name, role, failures, most=None):
    case = prepared(name)
    points = case.points(role, most)
    assert points, f"{role} makes no call in {name}"
    faults = [Fault(role, "kill", k) for k in points]
    torn = case.points(role, None if most is None else max(most // 3, 1), frozenset({"write"}))
    faults += [Fault(role, "tear", k) for k in torn]
    for fault in faults:
        try:
            disturb(case, fault)
        except Exception as error:
            failures.append(f"{reproduce(case, fault)}\n    {type(error).__name__}: {error}")
    print(f"{name}, {role}: killed at {len(points)} calls and inside of {len(torn)} writes")


@pytest.mark.parametrize(("name", "role"), PLACES)
def test_killed_at_some_calls(prepared, name, role, failures):
    kill(prepared, name, role, failures, QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "role"), PLACES)
def test_killed_at_every_call(prepared, name, role, failures):
    kill(prepared, name, role, failures)
