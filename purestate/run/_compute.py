"""What a call of `train` does when the log has no answer: train, record every epoch, conclude.

It folds over the epochs that core's generator gives. Nothing that decides lives in this object alone: the epochs are
records, the best of them follows from the records (`_select`), and what a killed run had is in its resume point.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

from purestate.core import _ops as ops
from purestate.core._hash import short
from purestate.core._plain import encode
from purestate.core._position import Position
from purestate.core._state import State
from purestate.core._work import combine
from purestate.errors import ReplayError
from purestate.run._again import stream
from purestate.run._answers import EpochView
from purestate.run._chain import Trajectory
from purestate.run._code import of_train
from purestate.run._envelope import envelope_of
from purestate.run._environment import difference, environment, prepare
from purestate.run._memory import give_back
from purestate.run._question import changes
from purestate.run._resume import Resumed, ResumePoints, counted
from purestate.run._retain import Retention
from purestate.run._signals import Deferred
from purestate.run._snapshot import Items, snapshot
from purestate.run._stale import accepted, check_appendable
from purestate.run._tracer import Tracer
from purestate.run._training import Training

__all__ = ["Computation"]


class Computation:
    """The computing half of a call.

    Args:
        call: What was asked. Its ``result``, ``states`` and ``computed`` are set.
    """

    def __init__(self, call: Training) -> None:
        self._call, self._ledger = call, call.ledger
        self._live: ops.Epoch | None = None
        self._stop = Deferred()
        self._resumed: dict[str, Any] | None = None
        self._plan: Mapping[str, str] = {}
        self._elsewhere: dict[str, Any] | None = None
        self._tracer = None if call.trace is None else Tracer(call.trace)
        self._lap: Callable[[str], object] = call.profile.lap if call.profile is not None else lambda phase: None

    def run(self) -> Iterator[EpochView]:
        """Yield the epochs of the call and conclude it, under the checkpoint's lock."""
        call = self._call
        prepare(call.state.device)
        with self._ledger.writing() as chain:
            if (yield from call.hit(chain)):  # made while we waited for the lock
                return
            train = chain.find(call.question.digest) or accepted(self._ledger, call.question, call.state, call.notify)
            if train is None:
                check_appendable(self._ledger, call.question, call.state)
                train = self._begin()
            elif (yield from call.hit(chain)):  # accepted just now
                return
            points = self._points(train)
            try:
                self._resume(train, points)
                if not call.choose(train).complete:
                    yield from self._extend(train, points)
                self._keep_missing(train)
                if not (yield from call.hit(chain)):
                    yield from call.recorded(train, call.choose(train).last)
                    self._conclude(train)
                points.clear(call.choose(train).last)
                self._lap("saving")
                self._tell_what_moved()
            except GeneratorExit:
                if self._live is not None:
                    call.states.setdefault(self._live.n, self._live.state)  # its loop is closed: nothing changes it any more
                if call.reached > 0 and not call.stop(chain):
                    self._conclude(train)
                    points.clear(call.choose(train).last)
                raise
            finally:
                points.leave()

    def conclude(self) -> None:
        """Record the answer of a call whose epochs are there, under the checkpoint's lock."""
        with self._ledger.writing() as chain:
            train = chain.find(self._call.question.digest)
            assert train is not None
            points = self._points(train)
            self._resume(train, points)
            self._conclude(train)
            points.clear(self._call.choose(train).last)

    def replay(self, train: Trajectory, n: int) -> None:
        """Put the state after epoch ``n`` into the call's ``states``: that of now, the input, or recomputed and checked.

        Raises:
            ReplayError: It is not what was recorded.
        """
        call = self._call
        if n == 0:
            call.states[0] = ops.begun(call.state, call.state.key)
            return
        with closing(self._epochs(train, self._nearest(train, n), stop=n)) as epochs:
            for epoch, _ in epochs:
                self._must_be_recorded(train, epoch)
                call.computed += epoch.n > 0
                if epoch.n == n:
                    call.states[n] = epoch.state
                    return

    def _points(self, train: Trajectory) -> ResumePoints:
        call = self._call
        so_far = (lambda: None) if self._tracer is None else self._tracer.plain
        return ResumePoints(self._ledger, train, call.state, call.metrics, call.cadence, self._stop, call.notify, so_far)

    def _tell_what_moved(self) -> None:
        """Ask again: what the op itself moved (a cache in a dataset, a global generator) makes the next question another."""
        call = self._call
        now = call.ask()
        if now.digest != call.question.digest:
            what = ", ".join(name for name, _, _ in changes(call.question.json(), now))
            call.notify(
                f"{what}: this moved while the op ran, so another call or another run asks another question. "
                "Give the object a method __purestate_fingerprint__() that says what counts, or keep it out of what it holds."
            )

    def _begin(self) -> Trajectory:
        state = self._call.state
        record = self._ledger.append(
            "train",
            {
                "question": self._call.question.json(),
                "input": state.hash,
                "base": state.origin.base or state.hash,
                "acts": list(state.origin.acts),
                "parent": state.origin.parent,
                "environment": environment(state.device, *self._call.loaders),
            },
        )
        return next(train for train in self._ledger.chain.trains if train.start.seq == record.seq)

    def _extend(self, train: Trajectory, points: ResumePoints) -> Iterator[EpochView]:
        """Train from the furthest state that is kept until the selection is complete."""
        call = self._call
        self._ledger.backend.warm()
        retention, start = self._retention(train), self._nearest(train, len(train.history()) - 1)
        self._say_where(train, start)
        epochs = self._epochs(train, start, points=points)
        with closing(epochs):
            while True:
                with self._stop:  # a signal waits until the epoch is recorded, or until the step is done
                    epoch, seconds = next(epochs)
                    self._live = epoch
                    new = self._record(train, epoch, seconds)
                    choice = call.choose(train)
                    if choice.best == epoch.n:
                        self._keep_best(epoch, points, ends=choice.complete and epoch.n >= choice.last)
                    if retention is not None:
                        retention.after(epoch.n, epoch.state)
                    points.after(epoch)
                    self._lap("saving")
                    call.progress.update(epoch)
                    if self._stop.pending is not None:
                        points.leave_after(epoch)
                if epoch.n > call.reached:
                    call.reached = epoch.n
                    yield call.view(train, epoch.n, epoch.metrics, cached=not new, state=self._state_while_live)
                if choice.complete and epoch.n >= choice.last:
                    break
        call.states.setdefault(epoch.n, epoch.state)
        self._live = None

    def _keep_best(self, epoch: ops.Epoch, points: ResumePoints, *, ends: bool) -> None:
        """Own the state after an epoch, in the place of the best before. At the end nobody else needs the tensors."""
        self._call.states = {}
        points.keep_best(0, epoch.state)  # lets go of the one before, or three copies would be in memory
        give_back(epoch.state.params.values())
        shared = ends or epoch.n == 0  # before the first epoch it is the input, which nobody changes
        self._call.states[epoch.n] = epoch.state if shared else epoch.state.own()
        points.keep_best(epoch.n, self._call.states[epoch.n])

    def _resume(self, train: Trajectory, points: ResumePoints) -> None:
        """Take what a resume point holds, where nobody finished the train."""
        call = self._call
        found = call.found = points.load()
        for error in found.damaged:
            call.notify(f"{error.problem} The resume point before it is used, or the last state that is kept.")
        call.states |= found.states
        if (best := call.choose(train).best) in found.states:
            points.keep_best(best, found.states[best])

    @property
    def _found(self) -> Resumed:
        """What a resume point held, for whoever computes for this call: a state that is looked at later, too."""
        return self._call.found or Resumed()

    def _position(self, train: Trajectory, start: int, stop: int) -> Position | None:
        """The position at which to go on behind the state of epoch ``start``, on the way to that of ``stop``."""
        found = self._found.position
        if found is None or not start < found.n <= min(stop, len(train.history())):
            return None
        # without the evaluation before the first epoch there is nothing to begin a history with
        return found if 0 in train.epochs or self._call.loaders[1] is None else None

    def _say_where(self, train: Trajectory, start: int) -> None:
        position, damaged = self._position(train, start, sys.maxsize), self._found.damaged
        if position is None and start not in self._found.states and not damaged:
            return
        at = [start, 0] if position is None else [position.n - 1, position.batch]
        self._resumed = {"after": at, "damaged": [error.problem for error in damaged]}
        more = f" and {counted(at[1], 'batch', 'batches')}" if at[1] else ""
        self._call.notify(f"goes on after epoch {at[0]}{more}.")

    def _retention(self, train: Trajectory) -> Retention | None:
        keep, watch = self._call.keep, self._call.selection.watch
        # without a record there is a store that keeps nothing
        return Retention(self._ledger, train, keep, watch) if keep is not None and self._ledger.log.records else None

    def _keep_missing(self, train: Trajectory) -> None:
        """Compute again what is to be kept and is not, each held against its record.

        Effects:
            Items in the store and a record for each, durable on return.
        """
        call, retention = self._call, self._retention(train)
        missing = sorted(call.lacking(train, call.choose(train).last)) if retention is not None else []
        while retention is not None and missing:
            if self._nearest(train, missing[0]) == missing[0]:
                n = missing.pop(0)
                retention.keep(n, call.state_at(train, n))
                continue
            with closing(self._epochs(train, self._nearest(train, missing[0]), stop=missing[0])) as epochs:
                for epoch, _ in epochs:
                    self._must_be_recorded(train, epoch)
                    call.computed += epoch.n > 0
                    if epoch.n in missing:
                        missing.remove(epoch.n)
                        retention.keep(epoch.n, epoch.state)
                    if not missing or self._nearest(train, missing[0]) > epoch.n:
                        break

    def _state_while_live(self, train: Trajectory, n: int) -> State:
        if self._live is not None and self._live.n == n and n not in self._call.states:
            self._call.states[n] = self._live.state.own()
        return self._call.state_at(train, n)

    def _epochs(
        self, train: Trajectory, start: int, *, stop: int = sys.maxsize, points: ResumePoints | None = None
    ) -> Generator[tuple[ops.Epoch, float]]:
        """Return epochs from core after ``start``, or from the position on, with the seconds that each took."""
        call = self._call
        self._must_begin_alike(train)
        position = self._position(train, start, stop)
        more: dict[str, Any] = {"keeper": points, "lap": self._lap}
        if points is not None and self._tracer is not None:
            self._tracer.begin(position, self._found.trace)
            more |= self._tracer.hears(points)
        if position is None:
            state = call.state if start == 0 else call.state_at(train, start)
            return stream(call, state, start, **more)
        return stream(call, position.state, position.n - 1, position=position, seconds=self._found.seconds, **more)

    def _record(self, train: Trajectory, epoch: ops.Epoch, seconds: float) -> bool:
        """Record an epoch, or hold it against its record. Returns whether it is new."""
        trace = {} if self._tracer is None else {"trace": self._tracer.take(epoch)}
        self._plan = epoch.plan or self._plan
        if epoch.n in train.epochs:
            self._must_be_recorded(train, epoch)
            return False
        self._call.computed += epoch.n > 0
        if self._call.profile is not None:
            self._call.profile.epochs += epoch.n > 0
        body = {
            "of": train.start.seq,
            "n": epoch.n,
            **trace,
            "epoch": epoch.epoch,
            "metrics": encode(epoch.metrics),
            "lr": epoch.lr,
            "seconds": seconds,
            "hash": epoch.state.hash,
        }
        if (elsewhere := self._computed_elsewhere(train)) and epoch.n > 0:
            body["environment"] = elsewhere
        if self._resumed is not None:
            body["resumed"], self._resumed = self._resumed, None
        self._ledger.append_soon("epoch", body)
        return True

    def _computed_elsewhere(self, train: Trajectory) -> dict[str, Any]:
        """What of the environment is another than that in which the train was begun: looked at once."""
        if self._elsewhere is None:
            now = environment(self._call.state.device, *self._call.loaders)
            self._elsewhere = difference(envelope_of(train.start), now)
        return self._elsewhere

    def _must_begin_alike(self, train: Trajectory) -> None:
        """An accepted question may have another input; the epochs that are missing cannot be computed from that one."""
        now, recorded = self._call.state.hash, train.input
        if now != recorded and self._call.state.digests["key"] != train.question["parts"]["input.key"]:
            raise ReplayError(
                f"checkpoint {self._ledger.id!r}, train {self._ledger.chain.index(train)}: it began from {short(recorded)} "
                f"and was accepted as the answer for {short(now)}, whose key is another.",
                cause="What is recorded is returned; further epochs would mix two streams of random numbers.",
                fix="Ask for what is recorded, or begin anew under another checkpoint id.",
                expected=recorded,
                actual=now,
            )

    def _must_be_recorded(self, train: Trajectory, epoch: ops.Epoch) -> None:
        if epoch.n not in train.epochs or (recorded := train.epochs[epoch.n].body["hash"]) == epoch.state.hash:
            return
        op = self._ledger.chain.index(train)
        raise ReplayError(
            f"checkpoint {self._ledger.id!r}, train {op}: epoch {epoch.n} was recorded as {short(recorded)}, "
            f"and computing it again gave {short(epoch.state.hash)}.",
            cause="The environment differs (torch, threads, device), or something in the step is not deterministic.",
            fix=f"Go on under another checkpoint id, or void the train with ck.reset({op}).",
            expected=recorded,
            actual=epoch.state.hash,
        )

    def _nearest(self, train: Trajectory, n: int) -> int:
        """The greatest epoch up to ``n`` whose state is at hand; 0 is the input."""
        return max((m for m in (*self._call.states, *train.kept()) if m <= n), default=0)

    def _ran(self) -> dict[str, Any]:
        """What ran the last step of this call, if it ran one."""
        return {"plan": {**self._plan, "world_size": 1}} if self._plan else {}

    def _conclude(self, train: Trajectory) -> None:
        """Make the answer durable: items first, then the record.

        Effects:
            Items in the store and a ``done`` record.
        """
        call = self._call
        selection, choice = call.selection, call.choose(train)
        last = call.state_at(train, choice.last)
        if last.params.loaded:
            give_back(last.params.values())
        best = last if choice.best in (None, choice.last) else call.state_at(train, choice.best)
        returned = choice.returned(selection)
        out = last if returned == choice.last else combine(best, last)
        kept = {choice.last: last} | ({} if choice.best is None else {choice.best: best})
        items: Items = {}
        taken: dict[str, dict[str, Any]] = {}

        def keep(state: State) -> dict[str, Any]:
            if state.hash not in taken:  # taking a state apart copies its moments, and most of these are one state
                taken[state.hash], more = snapshot(state)
                items.update(more)
            return taken[state.hash]

        body: dict[str, Any] = {
            "of": train.start.seq,
            "selection": selection.json(),
            "last": choice.last,
            "best": choice.best,
            "returned": returned,
            "out": keep(out),
            "kept": {str(n): keep(state) for n, state in kept.items()},
        }
        if not train.done and call.state.origin.parent is None:
            body["input"] = keep(call.state)
        code, texts = of_train(self._ledger, train.question)
        self._ledger.put(items | texts)
        record = self._ledger.append("done", body | code | self._ran())
        call.answer(train, record, out)
