"""Two recorded runs computed again side by side, from the last state that they share to the first step at which they part.

Each in a process of its own (`_lockstep`), a step of the one and a step of the other, so that neither goes further than it has
to, and both states of the step are there to be looked at. What the logs say already is for `purestate.report._bisect`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purestate.run._chain import Trajectory
from purestate.run._named import items_of
from purestate.run._pipe import Process
from purestate.run._script import Target
from purestate.store._backend import Backend

if TYPE_CHECKING:
    import torch

__all__ = ["Found", "Operator", "Side", "Strayed", "replay"]


@dataclass(frozen=True)
class Side:
    """One of the two.

    Args:
        name: What it is called: ``'ckpts:adam'``.
        store: The folder of the store.
        backend: What is in it.
        checkpoint: Its id.
        train: The trajectory.
        target: The script that made it.
    """

    name: str
    store: Path
    backend: Backend
    checkpoint: str
    train: Trajectory
    target: Target

    def process(self, folder: Path, timeout: float | None) -> Process:
        """Start the script in a process of its own."""
        run = {"store": os.fspath(self.store), "checkpoint": self.checkpoint, "record": self.train.start.digest}
        return Process(self.target, run, folder, timeout)


@dataclass(frozen=True)
class Strayed:
    """An epoch whose recorded hash did not come again.

    Args:
        run: Which of the two.
        epoch: Its number.
        recorded: The hash.
        now: What came.
    """

    run: str
    epoch: int
    recorded: str
    now: str


@dataclass(frozen=True)
class Operator:
    """The first operator of a step that does something else in the one run than in the other.

    Args:
        number: Its number within the step, from 1.
        phase: ``'forward and backward'`` or ``'update'``.
        a: Its name in the first run; None where it has no such operator.
        b: In the second.
        kind: ``'output'``: given the same, it gives something else; ``'input'``: it is given something else, which no operator
            before it made; ``'other'``: it is another operator.
    """

    number: int
    phase: str
    a: str | None
    b: str | None
    kind: str


@dataclass
class Found:
    """What came of it.

    Args:
        batch: The batch of the epoch, from 1, behind which the states differ; None where none does.
        batches: How many batches the epoch has.
        same_batch: Whether both were given the same.
        ended: Which run's epoch ended before the other's; None where both have as many batches.
        names: The paths of the leaves that differ, in the order of the state.
        plain: The parts whose plain values differ, with both values.
        tensors: Those leaves, of both, where both have them.
        part: What differed first within the step: ``'batch'``, ``'loss'``, ``'gradients'``, or a part of the state.
        gradients: The parameters whose gradients differ.
        operator: Where it was told.
        unknown: Why the operator is not known.
        start: The epoch behind which the replay began.
        steps: How many steps were taken again, in both runs together.
        again: How many of them once more, to take them apart.
        strayed: Epochs that did not come again as they were recorded.
        end: The hashes behind the epoch, of those that went to its end.
        states: The hashes of the two states.
    """

    batch: int | None = None
    batches: int | None = None
    same_batch: bool | None = None
    ended: int | None = None
    names: list[str] = field(default_factory=list[str])
    plain: dict[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    tensors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict[str, "tuple[torch.Tensor, torch.Tensor]"])
    part: str | None = None
    gradients: list[str] = field(default_factory=list[str])
    operator: Operator | None = None
    unknown: str | None = None
    start: int = 0
    steps: int = 0
    again: int = 0
    strayed: list[Strayed] = field(default_factory=list[Strayed])
    end: list[str | None] = field(default_factory=lambda: [None, None])
    states: tuple[str, str] | None = None


def replay(a: Side, b: Side, epoch: int, folder: Path, *, finish: bool, timeout: float | None = None) -> Found:
    """Compute an epoch of two runs again, side by side, and find the first step behind which their states differ.

    Args:
        a: One run.
        b: The other: up to the epoch before, its recorded hashes are those of the first.
        epoch: The epoch, from 1.
        folder: Where what the processes hand over is put. Its files are removed by the caller.
        finish: Whether both go on to the end of the epoch, which shows whether what was recorded came again.
        timeout: Seconds that one step, or the way to the first, may take.

    Raises:
        ReplayFailedError: A script did not come as far.
        ScriptError: It took longer than the timeout.

    Effects:
        Runs both scripts up to the train, each in a process of its own. No store is written to.
    """
    sides = (a, b)
    found = Found()
    start, leader, source = _start(sides, epoch)
    found.start = start
    with a.process(folder / "a", timeout) as first, b.process(folder / "b", timeout) as second:
        pair = (first, second)
        for process in pair:
            process.expect("ready")
        hand = os.fspath(folder / "handed") if 0 < epoch - 1 != start else None
        pair[leader].say(start=start, epoch=epoch, hand=hand, **{"from": source})
        if hand is not None:
            if not _led(pair[leader], sides[leader], epoch, found):
                return found
            pair[1 - leader].say(start=epoch - 1, epoch=epoch, hand=None, **{"from": {"file": hand}})
        else:
            pair[1 - leader].say(start=start, epoch=epoch, hand=None, **{"from": source})
        _compare(pair, sides, epoch, found, folder, finish=finish)
    return found


def _start(sides: Sequence[Side], epoch: int) -> tuple[int, int, Any]:
    """Return the last epoch before whose state is kept by either, which of them goes on from there, and where the state is."""
    best: tuple[int, int, Any] = (0, 0, None)
    for i, side in enumerate(sides):
        for n, snapshot in side.train.kept().items():
            if best[0] < n < epoch and all(side.backend.has(item) for item in items_of(snapshot)):
                best = (n, i, {"snapshot": snapshot, "store": os.fspath(side.store)})
    return best


def _led(process: Process, side: Side, epoch: int, found: Found) -> bool:
    """Follow a run to the epoch before the one that is wanted. Returns whether it came there as it was recorded."""
    while "handed" not in (event := process.next()):
        if "step" in event:
            found.steps += 1
        elif "epoch" in event:
            _held(side, event, found)
            if found.strayed:
                return False
    return True


def _held(side: Side, event: Mapping[str, Any], found: Found) -> None:
    record = side.train.epochs.get(event["epoch"])
    if record is not None and record.body["hash"] != event["hash"]:
        found.strayed.append(Strayed(side.name, event["epoch"], record.body["hash"], event["hash"]))


def _compare(
    pair: tuple[Process, Process], sides: Sequence[Side], epoch: int, found: Found, folder: Path, *, finish: bool
) -> None:
    while True:
        events = [_step(process, side, epoch, found) for process, side in zip(pair, sides, strict=True)]
        ended = ["epoch" in event for event in events]
        if any(ended):
            found.ended = None if all(ended) else ended.index(True)
            found.end = [event["hash"] if "epoch" in event else None for event in events]
            if all(ended) and found.end[0] != found.end[1]:
                _differing(found, events[0], events[1])
                found.part = _part(found, [None, None])
            return
        found.batches = events[0]["of"]
        if events[0]["hash"] != events[1]["hash"]:
            break
        for process in pair:
            process.say(go="compare")
    found.batch, found.same_batch = events[0]["batch"], events[0]["data"] == events[1]["data"]
    found.states = events[0]["hash"], events[1]["hash"]
    _look(pair, found, folder)
    for process in pair:
        process.say(go="finish" if finish else "end")
    if finish:
        for i, (process, side) in enumerate(zip(pair, sides, strict=True)):
            found.end[i] = _step(process, side, epoch, found)["hash"]


def _step(process: Process, side: Side, epoch: int, found: Found) -> dict[str, Any]:
    """Return the next step of a run, or the end of its epoch."""
    while True:
        event = process.next()
        if "step" in event or "batch" in event:
            found.steps += 1
        if "epoch" in event:
            _held(side, event, found)
        if "batch" in event or event.get("epoch") == epoch:
            return event


# -------------------------------------------------------------------- what differs


def _look(pair: tuple[Process, Process], found: Found, folder: Path) -> None:
    """Look at the two states, and take the step apart."""
    shown = [process.asked(show=True) for process in pair]
    ours, theirs = (one["hashes"] for one in shown)
    _differing(found, shown[0], shown[1])
    both = [name for name in found.names if name in ours and name in theirs]
    if both:
        from purestate.run._handed import read_leaves

        paths = folder / "a.leaves", folder / "b.leaves"
        told = [p.asked(leaves=os.fspath(path), names=both)["dumped"] for p, path in zip(pair, paths, strict=True)]
        read = [read_leaves(path, json) for path, json in zip(paths, told, strict=True)]
        found.tensors = {name: (read[0][name], read[1][name]) for name in both}
    taken = [process.asked(retrace=True) for process in pair]
    found.again = len(taken)
    found.unknown = next((one["unknown"] for one in taken if "unknown" in one), None)
    if found.unknown is None:
        x, y = (one["retraced"] for one in taken)
        found.gradients = [name for name in x["gradients"] if x["gradients"][name] != y["gradients"].get(name)]
        found.operator = _operator(x, y)
        if found.operator is None:
            found.unknown = "all operators are given and give the same: it is something that torch does not dispatch"
    found.part = _part(found, [one.get("retraced") for one in taken])


def _differing(found: Found, x: Mapping[str, Any], y: Mapping[str, Any]) -> None:
    ours, theirs = x["hashes"], y["hashes"]
    found.names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    found.plain = {
        name: (x["skeletons"].get(name, value), y["skeletons"].get(name, y["plain"].get(name)))
        for name, value in x["plain"].items()
        if value != y["plain"].get(name)
    }


def _operator(x: Mapping[str, Any], y: Mapping[str, Any]) -> Operator | None:
    ours, theirs = x["operators"], y["operators"]
    for i in range(max(len(ours), len(theirs))):
        one, other = (log[i] if i < len(log) else None for log in (ours, theirs))
        if one != other:
            phase = "forward and backward" if i < min(x["update"], y["update"]) else "update"
            names = one and one[0], other and other[0]
            kind = (
                "other" if one is None or other is None or names[0] != names[1] else "output" if one[1] == other[1] else "input"
            )
            return Operator(i + 1, phase, *names, kind)
    return None


_ORDER = ("buffers", "frozen", "optimizer", "params", "step_scheduler", "epoch_scheduler", "ema", "extra", "key", "counters")
"""In which order a step changes the parts of a state; of an optimizer, moments come before parameters."""


def _part(found: Found, taken: Sequence[Mapping[str, Any] | None]) -> str:
    if found.same_batch is False:
        return "batch"
    x, y = taken
    if x is not None and y is not None:
        if x["loss"] != y["loss"]:
            return "loss"
        if found.gradients:
            return "gradients"
    parts = {name.partition("[")[0] for name in found.names}
    if found.batch is None and "epoch_scheduler" in (*parts, *found.plain):
        return "epoch_scheduler"
    return next((part for part in _ORDER if part in parts), next((part for part in _ORDER if part in found.plain), "state"))
