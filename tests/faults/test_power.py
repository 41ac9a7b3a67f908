"""The power goes, after every system call, with what was not synced lost, torn or out of order.

The store is whole, holds what was acknowledged, and its script goes on.
"""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tests.faults.cases import CASES
from tests.faults.one import reproduce
from tests.faults.power import Disk, fingerprint, states, write_tree
from tests.faults.shim import Fault, read_log
from tests.faults.verify import acknowledged, whole

PLACES = [(name, role) for name, case in CASES.items() for role in case.roles]


def different_states(case, *, each, draws, seed):
    """Return the states that differ, each with where it was met last and what had been acknowledged then."""
    place = case.place
    found: dict[bytes, tuple] = {}
    tried, said, at = 0, [], 0
    calls = iter(case.calls)

    def told(calls):
        for call in calls:
            if call.name == "mark":
                line = json.loads(call.path)
                said.extend([line["said"]] if "said" in line else [])
            else:
                yield call

    for at, variant, tree in states(Disk(case.folder_before, place), told(calls), each=each, draws=draws, seed=seed):
        tried += 1
        found[fingerprint(tree)] = at, variant, tree, len(said)
    return tried, list(found.values()), said


def cut(case, failures, folder, *, each, draws, most, again, seed=0):
    tried, different, said = different_states(case, each=each, draws=draws, seed=seed)
    generator = random.Random(seed)
    chosen = different if most is None else generator.sample(different, min(most, len(different)))
    run_again = set(generator.sample(range(len(chosen)), min(again, len(chosen))))
    for i, (at, variant, tree, acks) in enumerate(chosen):
        root = folder / "state"
        write_tree(tree, root)
        try:
            case.check(root, said[:acks])
            if i in run_again:
                case.finish(root, said[:acks])
        except Exception as error:
            failures.append(f"{case.name}, seed {seed}: after call {at}, {variant!r}:\n    {type(error).__name__}: {error}")
        shutil.rmtree(root, ignore_errors=True)
    print(f"{case.name}: {tried} states, {len(different)} differ, {len(chosen)} looked at, {len(run_again)} gone on from")


@pytest.mark.parametrize("name", CASES)
def test_some_power_cuts(prepared, name, failures, tmp_path):
    cut(prepared(name), failures, tmp_path, each=False, draws=1, most=40, again=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_power_cuts(prepared, name, failures, tmp_path):
    cut(prepared(name), failures, tmp_path, each=True, draws=6, most=None, again=200)


def kill_then_cut(case, role, points, failures, folder):
    """Kill, run again to the end, and then let the power go: what the second run built on may not have been durable."""
    looked_at = 0
    for k in points:
        fault, root, said, calls = Fault(role, "kill", k), case.fresh(), [], []
        for n, what in enumerate((fault, None)):
            log = folder / f"{n}.log"
            outcome = case.run(root, what, log=log)
            calls += read_log(log)
            log.unlink()
        disk = Disk(case.folder_before, str(root.resolve()))
        for i, call in enumerate(calls):
            if call.name != "mark":
                disk.apply(call)
                continue
            line = json.loads(call.path)
            said += [line[kind] for kind in ("said", "again") if kind in line]
            if i + 1 < len(calls) and "end" not in line:
                continue
            looked_at += 1
            write_tree(disk.after([]), folder / "state")
            try:
                case.check(folder / "state", said)
            except Exception as error:
                failures.append(f"{reproduce(case, fault)}, run again, no power:\n    {type(error).__name__}: {error}")
            shutil.rmtree(folder / "state")
        assert outcome.status == 0
        shutil.rmtree(root)
    print(f"{case.name}, {role}: killed at {len(points)} calls, {looked_at} power cuts after the next run")


@pytest.mark.parametrize(("name", "role"), [("create", "main"), ("acts", "main")])
def test_a_kill_and_then_a_power_cut(prepared, name, role, failures, tmp_path):
    case = prepared(name)
    kill_then_cut(case, role, case.points(role, 5), failures, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "role"), PLACES)
def test_kills_and_then_power_cuts(prepared, name, role, failures, tmp_path):
    case = prepared(name)
    kill_then_cut(case, role, case.points(role, None), failures, tmp_path)


@pytest.mark.parametrize("forgotten", ["fsync", "fdatasync"])
def test_what_is_not_synced_is_noticed(prepared, forgotten, tmp_path):
    """The check can fail: of a store that had made one of the two calls nowhere, acknowledged records are lost."""
    case = prepared("create")
    calls = [call for call in case.calls if call.name != forgotten]
    said = [json.loads(call.path)["said"] for call in calls if call.name == "mark" and call.path.startswith('{"said"')]
    disk = Disk(case.folder_before, case.place)
    for call in calls:
        if call.name != "mark":
            disk.apply(call)
    write_tree(disk.after([]), tmp_path / "state")
    with pytest.raises(AssertionError, match="acknowledged"):
        acknowledged(whole(tmp_path / "state" / "store"), said)
