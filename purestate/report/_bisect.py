"""The first step, and the first leaf, at which two runs part that should agree. What ``purestate bisect`` prints.

Hashes that are recorded tell the train and the epoch, and the step where both were traced. The rest is computed again, in
processes that `purestate.run._bisect` starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from purestate.core._digest import short
from purestate.errors import ScriptError, UsageError
from purestate.report._compare import name_of
from purestate.report._compared import Difference, part_of
from purestate.report._leaf import LeafComparison
from purestate.report._name import RunName
from purestate.report._opened import Run, environment_of, open_run
from purestate.report._parting import Bisection, Parting
from purestate.run._chain import Trajectory, as_recorded
from purestate.run._question import causes, said
from purestate.run._trace import EpochTrace, trace_of
from purestate.store._placed import are_elsewhere

if TYPE_CHECKING:
    from purestate.run import Checkpoint, Store
    from purestate.run._bisect import Found

__all__ = ["bisect"]


def bisect(
    a: str | os.PathLike[str] | RunName | Checkpoint | Store,
    b: str | os.PathLike[str] | RunName | Checkpoint | Store,
    script: Any = None,
    script_b: Any = None,
    *,
    args: Sequence[str] = (),
    anyway: bool = False,
    timeout: float | None = None,
) -> Bisection:
    """Find the first step, and the first leaf, at which two runs part that should agree.

    Hashes that are recorded tell the train and the epoch. The epoch is computed again in both runs side by side, each in a
    process of its own, from the last state before it that either has kept, until their states differ. The two states are
    compared then, and the step is taken once more in both, operator by operator.

    Args:
        a: ``STORE[:CHECKPOINT[@OP]]``: a checkpoint, or a train up to which is looked;
            or a `Checkpoint` of a `Store`, or one that has a single one.
        b: Another, of any store.
        script: What made the first: a path; ``'package.module'``, which runs as by ``python -m``; or a function that takes a
            `Store`, by itself or as ``'package.module:name'``. Without it only what is recorded is looked at, which tells the
            step of runs with ``trace='step'``.
        script_b: What made the second; the same if left out.
        args: Arguments for both, as on a command line.
        anyway: Whether runs that were asked other questions are looked at, too.
        timeout: Seconds that one step, or the way to the first, may take; None for as long as it takes.

    Returns:
        The report: ``report.ok`` if they are equal; ``report.parting`` with ``op``, ``epoch``, ``step``, ``leaves``. Its text
        says all of it.

    Raises:
        UsageError: There is no such run, or ``script_b`` is given without ``script``.
        ScriptError: There is no such script, it took longer than the timeout, or it is the script that calls this.
        CorruptLogError: A log is damaged.

    Effects:
        With a script: runs both up to the train, in processes of their own, with whatever they do besides. No store is
        written to.
    """
    if script is None and script_b is not None:
        raise UsageError("bisect: a script for the second run is given, and none for the first.", fix="Give --script too.")
    if script is not None and are_elsewhere():
        raise ScriptError(f"bisect: {script} bisects itself, without end.", fix="Call it from another file.")
    names = [name_of(run, "bisect") for run in (a, b)]
    runs = open_run(names[0]), open_run(names[1])
    found = _recorded(*runs, anyway=anyway)
    parting = found.parting
    if script is None or parting is None or not parting.epoch:
        return found
    from purestate.run._bisect import Side, replay
    from purestate.run._pipe import ReplayFailedError
    from purestate.run._script import target

    targets = [target(script, args, "bisect")]
    targets.append(targets[0] if script_b is None else target(script_b, args, "bisect"))
    trains = [run.chain.binding()[parting.op] for run in runs]
    sides = tuple(
        Side(str(run.name), run.name.store.absolute(), run.backend, run.id, train, what)
        for run, train, what in zip(runs, trains, targets, strict=True)
    )
    with TemporaryDirectory(prefix="purestate-", ignore_cleanup_errors=True) as folder:
        try:
            came = replay(sides[0], sides[1], parting.epoch, Path(folder), finish=parting.batch is None, timeout=timeout)
        except ReplayFailedError as error:
            return replace(found, failed=str(error))
        return _joined(found, parting, came, trains)


# -------------------------------------------------------------------- what is recorded


@dataclass
class _Walk:
    compared: int = 0
    questions: list[Difference] = field(default_factory=list[Difference])
    measured: str | None = None


def _recorded(a: Run, b: Run, *, anyway: bool) -> Bisection:
    """Return what the logs say."""
    walk, names = _Walk(), (str(a.name), str(b.name))
    trains = [run.chain.binding()[: None if run.name.op is None else run.name.op + 1] for run in (a, b)]
    for op, (ours, theirs) in enumerate(zip_longest(*trains)):
        if ours is None or theirs is None:
            ends = f"{names[0] if ours is None else names[1]} has no train {op}"
            return Bisection(*names, "ends", walk.compared, ends=ends, measured=walk.measured)
        with as_recorded(ours.start), as_recorded(theirs.start):
            walk.questions += _asked(ours, theirs)
        if walk.questions and not anyway:
            return Bisection(*names, "asked", walk.compared, questions=tuple(walk.questions))
        found = _epochs(walk, op, ours, theirs, names)
        if found is not None:
            found = replace(found, measured=walk.measured)
            return replace(found, questions=tuple(walk.questions), envelope=tuple(_environments(ours, theirs)))
    if not trains[0]:
        return Bisection(*names, "ends", walk.compared, ends="neither has a train")
    return Bisection(*names, "measured" if walk.measured else "equal", walk.compared, measured=walk.measured)


def _asked(ours: Trajectory, theirs: Trajectory) -> Iterator[Difference]:
    if any(ours.question[name] != theirs.question[name] for name in ("op", "parts")):
        for name, x, y in causes(ours.question, theirs.question):
            yield Difference(part_of(name), said(name), x, y)


def _environments(ours: Trajectory, theirs: Trajectory) -> Iterator[Difference]:
    x, y = environment_of(ours.start), environment_of(theirs.start)
    if x and y:
        for name in dict.fromkeys([*x, *y]):
            if x.get(name) != y.get(name):
                yield Difference("environment", name, x.get(name), y.get(name))


def _epochs(walk: _Walk, op: int, ours: Trajectory, theirs: Trajectory, names: tuple[str, str]) -> Bisection | None:
    with as_recorded(ours.start), as_recorded(theirs.start):
        if _begin_apart(ours, theirs):
            states = ours.start.body["input"], theirs.start.body["input"]
            return Bisection(*names, "parted", walk.compared, Parting(op, 0, states=states))
    for n in sorted(ours.epochs.keys() | theirs.epochs.keys()):
        x, y = ours.epochs.get(n), theirs.epochs.get(n)
        if x is None or y is None:
            if n == 0:
                continue
            ends = f"{names[0] if x is None else names[1]} ends before epoch {n} of train {op}"
            return Bisection(*names, "ends", walk.compared, ends=ends)
        with as_recorded(x), as_recorded(y):
            states = x.body["hash"], y.body["hash"]
            steps = [record.body.get("trace", {}).get("steps") for record in (x, y)]
            values = x.body["metrics"], y.body["metrics"]
        if states[0] == states[1] and walk.measured is None:
            walk.measured = _measured(op, n, *values)
        # what is gone again before an epoch ends parts no epochs, and shows where each step was noted
        if states[0] == states[1] and (None in steps or steps[0] == steps[1]):
            walk.compared += n > 0
            continue
        parting, of = Parting(op, n, states=states), None
        mine, other = trace_of(x), trace_of(y)
        if mine is not None and other is not None:
            parting = _traced(parting, mine, other, n)
            of = max(mine.covers.stop - 1, 0) * max(ours.epochs) or None
        if states[0] == states[1] and parting.batch is None:
            walk.compared += n > 0  # they began to be noted at other steps
            continue
        return Bisection(*names, "parted", walk.compared, parting, of=of)
    for one in ours.done:
        with as_recorded(one):
            other = theirs.answer(one.body["selection"])
            if other is not None and one.body["out"]["hash"] != other.body["out"]["hash"]:
                states = one.body["out"]["hash"], other.body["out"]["hash"]
                return Bisection(*names, "parted", walk.compared, Parting(op, None, states=states))
    return None


def _begin_apart(ours: Trajectory, theirs: Trajectory) -> bool:
    """Whether they begin with other tensors, keys or counters. What is yet to be built (``fresh:``) tells in the first step."""
    parts = [train.question["parts"] for train in (ours, theirs)]
    names = [name for name in parts[0].keys() & parts[1].keys() if name.startswith("input.")]
    return any(
        x != y and not (x.startswith("fresh:") or y.startswith("fresh:")) for x, y in ([p[n] for p in parts] for n in names)
    )


def _measured(op: int, n: int, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Return what was measured otherwise of the same state. Of what only one was asked for there is nothing to say."""
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            return f"train {op}, epoch {n}: {name} {ours[name]} | {theirs[name]}"
    return None


def _traced(parting: Parting, ours: EpochTrace, theirs: EpochTrace, n: int) -> Parting:
    """Return what the traces of an epoch say of it."""
    steps = dict(theirs.steps())
    for batch, step in ours.steps():
        other = steps.get(batch)
        if other is not None and step.state != other.state and ours.covers.start == theirs.covers.start == 1:
            same = step.batch == other.batch
            names = _differing(step.leaves, other.leaves)
            leaves = tuple(LeafComparison(name, step.leaves.get(name, "none"), other.leaves.get(name, "none")) for name in names)
            number = (n - 1) * (ours.covers.stop - 1) + batch
            part = None if same else "batch"
            return replace(
                parting, batch=batch, step=number, same_batch=same, part=part, states=(step.state, other.state), leaves=leaves
            )
    same = None if None in (ours.data, theirs.data) else ours.data == theirs.data
    names = _differing(ours.leaves, theirs.leaves)
    leaves = tuple(
        LeafComparison(name, short(ours.leaves.get(name, "none")), short(theirs.leaves.get(name, "none"))) for name in names
    )
    return replace(parting, same_batch=same, leaves=leaves)


def _differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]


# -------------------------------------------------------------------- what was recomputed


def _joined(found: Bisection, parting: Parting, came: Found, trains: Sequence[Trajectory]) -> Bisection:
    """Return what is recorded with what came of computing it again."""
    of = found.of if came.batches is None else came.batches * max(trains[0].epochs)
    told = replace(found, steps=came.steps, again=came.again, start=came.start, of=of, strayed=tuple(came.strayed))
    if came.batch is None and not (came.names or came.plain):
        return replace(told, failed=_why_not(came, parting))
    if came.batch is None:
        return replace(told, parting=replace(parting, by="recomputed", part=came.part, leaves=tuple(_leaves(came))))
    assert parting.epoch is not None
    assert came.batches is not None
    assert came.states is not None
    new = replace(
        parting,
        batch=came.batch,
        step=(parting.epoch - 1) * came.batches + came.batch,
        by="recomputed",
        same_batch=came.same_batch,
        part=came.part,
        states=came.states,
        leaves=tuple(_leaves(came)),
        gradients=tuple(came.gradients),
        operator=came.operator,
        unknown=came.unknown,
    )
    return replace(told, parting=new)


def _why_not(came: Found, parting: Parting) -> str:
    if came.ended is not None:
        return f"the {'second' if came.ended else 'first'} run's epoch {parting.epoch} has fewer batches than the other's"
    if None in came.end:
        return "the run did not come as far as it was recorded"
    return f"computed again, both runs take the same steps and end epoch {parting.epoch} on {short(str(came.end[0]))}"


def _leaves(came: Found) -> Iterator[LeafComparison]:
    from purestate.core._diff import diff_skeletons
    from purestate.report._numbers import compare_leaves

    for name in came.names:
        if name in came.tensors:
            yield compare_leaves(name, *came.tensors[name])
        else:
            yield LeafComparison(name, "other bits", "other bits")
    for name, (x, y) in came.plain.items():
        if isinstance(x, str) or isinstance(y, str):
            yield LeafComparison(name, str(x), str(y))
        else:
            yield from (LeafComparison(one.path, one.a, one.b) for one in diff_skeletons(name, x, y))
