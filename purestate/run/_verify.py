"""`verify_resume`: a user's own script is killed at random steps and run again, and has to end on the same hashes.

Each run is a process of its own (`_cut`) on stores of its own. What is compared are their logs.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from purestate.core._component import Component
from purestate.core._diff import diff
from purestate.core._hash import short
from purestate.core._key import Key
from purestate.core._state import COMPONENTS, SUBTREES, Counters, State
from purestate.core._tree import Leaves
from purestate.errors import ScriptError, SetupError
from purestate.run._chain import READERS
from purestate.run._processes import Answers, Asked, First, Run, Runs
from purestate.run._question import Question, changes
from purestate.run._script import target
from purestate.run._verdict import END, Cut, Kind, Parting, ResumeReport
from purestate.store._disk import DiskBackend
from purestate.store._placed import are_elsewhere

__all__ = ["verify_resume"]


def verify_resume(
    script: str | os.PathLike[str] | Callable[[Any], object],
    n: int = 3,
    *,
    args: Sequence[str] = (),
    seed: int = 0,
    timeout: float | None = None,
) -> ResumeReport:
    """Kill a training script at random steps, run it again, and compare every hash with those of an undisturbed run.

    The script runs from nothing, ``2 * n + 1`` times, each time in a new process with another ``PYTHONHASHSEED``: once
    undisturbed, and ``n`` times killed (SIGKILL) between two steps and run again to its end, going on from the resume point
    that was durable when it died. Where runs differ, they are repeated to find the first step and the tensors that do.

    Args:
        script: The path of a script; ``'package.module'``, which runs as by ``python -m``; or a function that takes a `Store` and
            trains, by itself or as ``'package.module:name'``. It has to be importable in a new process.
        n: How many cuts.
        args: Arguments for the script, as on a command line.
        seed: Decides where it is cut.
        timeout: Seconds that one run may take; None for as long as it takes.

    Returns:
        The report: ``report.ok``, ``report.cuts``, ``report.parting``. ``report.check()`` raises if it is not ok, with all of
        its text.

    Raises:
        ScriptError: There is no such script, it fails without being disturbed, or it trains nothing in a `Store`.
        SetupError: ``n`` is less than 1, or ``args`` are given for a function.

    Effects:
        Runs the script, with whatever it does, in the current folder. Every folder that it gives to a `Store` is replaced by a
        temporary one, which is removed afterwards: a store of yours is neither read nor written.

    Example:
        A test with pytest is one line::

            def test_training_resumes():
                ps.verify_resume("train.py").check()
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise SetupError(f"verify_resume: expected n to be a whole number from 1 on, got {n!r}.", argument="n")
    what = target(script, args, "verify_resume")
    if are_elsewhere():
        raise ScriptError(f"verify_resume: {what.name} verifies itself, without end.", fix="Call it from another file.")
    with TemporaryDirectory(prefix="purestate-", ignore_cleanup_errors=True) as folder:
        runs = Runs(what, Path(folder), timeout)
        first = runs.undisturbed()
        steps = random.Random(seed).sample(range(first.steps), min(n, first.steps))
        tried = [_Tried.of(runs, first, first.place(step)) for step in sorted(steps)]
        bad = next((i for i, one in enumerate(tried) if one.cut.kind != "equal"), None)
        parting = None
        if bad is not None:
            tried[bad], parting = tried[bad].looked_at(runs, first)
        return ResumeReport(what.name, first.steps, tuple(one.cut for one in tried), parting)


@dataclass(frozen=True)
class _Tried:
    """A cut, with what is needed to look closer at it.

    Args:
        cut: What came of it.
        stores: A copy of the stores as they were when the run was killed; None where it was another run before.
        at: The train and the epoch of the first difference, if it is in an epoch.
    """

    cut: Cut
    stores: Path | None = None
    at: list[Any] | None = None

    @classmethod
    def of(cls, runs: Runs, first: First, place: list[Any]) -> _Tried:
        """Cut the script at a place, run it again and compare."""
        cut = Cut(*place[1:])
        killed = runs.run(cut=place)
        before = killed.answers()
        if (found := _compare(first, before, before.keys())) is not None:
            return cls(replace(cut, kind="unstable", finding=f"undisturbed, {found.text}"), at=found.at)
        if not killed.cut:
            return cls(replace(cut, kind="unstable", finding=killed.error or "undisturbed, it never came here"))
        stores = runs.copy(killed.stores)
        again = runs.run(killed.stores)
        after = again.answers()
        shutil.rmtree(killed.stores)
        found = _compare(first, after, {**first.answers, **after}.keys() if again.code == 0 else after.keys())
        if again.code != 0 and (found is None or found.kind != "question"):
            return cls(replace(cut, kind="error", finding=again.error), stores, found and found.at)
        if found is None and not _went_on(after, place):
            return cls(replace(cut, kind="anew", finding="began anew"), stores)
        if found is None:
            shutil.rmtree(stores)
            return cls(cut)
        return cls(replace(cut, kind=found.kind, finding=found.text), stores, found.at)

    def looked_at(self, runs: Runs, first: First) -> tuple[_Tried, Parting | None]:
        """Repeat the run and an undisturbed one to find where the two part; None where no epoch of theirs differs.

        Where the undisturbed run does not repeat itself, that is the finding, and two of them are compared.
        """
        if self.at is None:
            return self, None
        one = runs.run(trace=self.at)
        if self.stores is not None and one.trace.get(END, ("", None))[0] != first.epoch(self.at)["hash"]:
            cut = replace(self.cut, kind="unstable", finding=f"undisturbed, epoch {self.at[3]} has other bits each time")
            return replace(self, cut=cut), self._parting(runs, first, one, None)
        return self, self._parting(runs, first, one, self.stores)

    def _parting(self, runs: Runs, first: First, one: Run, stores: Path | None) -> Parting | None:
        """Trace a run on stores up to the first state that one before did not have, and compare the two."""
        assert self.at is not None
        expected = {batch: state for batch, (state, _) in one.trace.items()}
        other = runs.run(None if stores is None else runs.copy(stores), trace=self.at, expected=expected)
        if not other.cut:
            return None
        last = list(other.trace)[-1]
        batch = None if last == END else int(last)
        there = runs.run(cut=[*self.at, END if batch is None else batch])
        data = one.trace[last][1], other.trace[last][1]
        return Parting(
            checkpoint=self.at[1],
            op=self.at[2],
            epoch=self.at[3],
            batch=batch,
            step=None if batch is None else first.step(self.at, batch),
            same_batch=None if None in data else data[0] == data[1],
            leaves=tuple(diff(_point(there.stores, self.at), _point(other.stores, self.at)) if there.cut else ()),
        )


@dataclass(frozen=True)
class _Difference:
    kind: Kind
    text: str
    at: list[Any] | None = None


def _compare(first: First, now: Answers, keys: Any) -> _Difference | None:
    """Return the first difference between what the undisturbed run answered and what another did, among some answers."""
    for key in sorted(keys, key=first.order):
        if (found := _difference(key, first.answers.get(key), now.get(key))) is not None:
            return found
    return None


def _difference(key: Asked, a: Any, b: Any) -> _Difference | None:
    if key[2] in READERS:
        what = f"{key[2]} of {key[1]!r}"
    else:
        what = f"train {key[2]} of {key[1]!r}" + (f", epoch {key[4]}" if key[3] == "epoch" else "")
    if a is None or b is None:
        return _Difference("question", f"{what} is only in the {'undisturbed' if b is None else 'resumed'} run")
    if key[3] == "question":
        if a["digest"] == b["digest"]:
            return None
        moved = changes(a, Question(b["op"], b["parts"], b["about"]))
        text = ", ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in moved[:3])
        return _Difference("question", f"{what} asks another question: {text}")
    if key[3] != "epoch":
        return None if a == b else _Difference("bits", f"{what} has another answer")
    if a["hash"] != b["hash"]:
        return _Difference("bits", f"{what}: {short(b['hash'])} in place of {short(a['hash'])}", [*key[:3], key[4]])
    other = [name for name in a["metrics"] if a["metrics"][name] != b["metrics"].get(name)]
    if other:
        values = f"{b['metrics'].get(other[0])} in place of {a['metrics'][other[0]]}"
        return _Difference("bits", f"{what}: {other[0]} {values}, of the same state")
    return None


def _went_on(answers: Answers, place: list[Any]) -> bool:
    """Whether the train that was cut went on from its resume point."""
    body: Mapping[str, Any] = answers.get((*place[:3], "epoch", place[3]), {})
    return body.get("resumed", {}).get("after") == [place[3] - 1, place[4]]


def _point(stores: Path, at: list[Any]) -> State:
    """Return the state of the resume point that a run was cut with. What it shares with the train's input is left out."""
    point = DiskBackend(stores / at[0]).load_resume(at[1])
    assert point is not None
    body, trees = point
    json = body["position"]["state"] if "position" in body else body["states"][str(at[3])]

    def leaves(part: Mapping[str, Any], name: str) -> Leaves:
        return Leaves(trees[part["tree"]], name)

    fields: dict[str, Any] = {name: leaves(json[name], name) if name in json else Leaves({}, name) for name in SUBTREES}
    for name in (*COMPONENTS, "extra"):
        if name in json:
            fields[name] = Component(json[name]["skeleton"], leaves(json[name], name))
    if "ema" in json:
        fields["ema"] = leaves(json["ema"], "ema")
    return State(key=Key(*json["key"]), counters=Counters(*json["counters"]), **fields)
