"""One call of `train`: ask the log, compute what is missing, record it, answer.

The call folds over the epochs that core's generator gives. Nothing that decides lives in this object alone: the epochs are
records, the best of them follows from the records (`_select`), and what a killed run had is in its resume point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from purestate.core import _ops as ops
from purestate.core._metrics import Metric
from purestate.core._plain import encode
from purestate.core._state import State
from purestate.core._work import combine
from purestate.data._feed import feed
from purestate.errors import ReplayError
from purestate.run._answers import EpochView, Summary, as_history
from purestate.run._chain import Chain, RecordLike, Trajectory
from purestate.run._environment import environment
from purestate.run._ledger import Ledger
from purestate.run._question import Question
from purestate.run._resume import ResumePoints
from purestate.run._select import Choice, Selection, choose
from purestate.run._snapshot import Items, snapshot
from purestate.run._stale import accepted, check_appendable

__all__ = ["Training"]


@dataclass
class Training:
    """A call of `train`, to be iterated once.

    Args:
        ledger: Where answers are looked up and recorded.
        state: The input.
        loaders: The training loader, and the one for validation or None.
        question: What is asked, without the selection.
        selection: What to pick.
        metrics: Computed on both loaders.
        warmup: Epochs of linear warm-up.
        notify: Shown what the user should be told once.
        progress: Called with each computed epoch.
    """

    ledger: Ledger
    state: State
    loaders: tuple[Any, Any]
    question: Question
    selection: Selection
    metrics: Sequence[Metric]
    warmup: int
    notify: Callable[[str], None]
    progress: Callable[[ops.Epoch], None]
    result: State | None = None
    computed: int = 0
    _states: dict[int, State] = field(default_factory=dict[int, State])
    _live: ops.Epoch | None = None

    def run(self) -> Iterator[EpochView]:
        """Yield every epoch that the selection reaches, recorded ones first. Sets ``result``.

        Closing the iterator early concludes the op at the epoch that it has reached.
        """
        train = self.ledger.refresh().find(self.question.digest)
        record = train and train.answer(self.selection.json())
        if train is not None and record is not None:
            yield from self._recorded(train, record.body["last"])
            self.result = self._answer(train, record)
            return
        if train is None:
            check_appendable(self.ledger, self.question, self.state)
        with self.ledger.writing() as chain:
            yield from self._compute(chain)

    def summary(self, seconds: float) -> Summary:
        """Return what the finished call did."""
        assert self.result is not None and self.result.origin.parent is not None
        train = self._trajectory(self.ledger.chain)
        record = train.answer(self.selection.json())
        assert record is not None
        history = train.history()
        body = record.body
        returned = history[body["returned"]]
        shown = [f"val_{self.selection.watch}", "val_loss"] if f"val_{self.selection.watch}" in returned else ["train_loss"]
        epochs = [train.epochs[n].body | {"metrics": history[n]} for n in range(1, body["last"] + 1)]
        return Summary(
            op=f"{self.ledger.id} train {self.ledger.chain.index(train)}",
            cached=self.computed == 0,
            seconds=seconds,
            input=self.state.hash,
            output=self.result.hash,
            epochs=body["last"],
            computed=self.computed,
            best_epoch=body["best"],
            history=as_history(epochs),
            metrics={name: returned[name] for name in dict.fromkeys(shown) if name in returned},
        )

    # ---------------------------------------------------------------- from the log

    def _trajectory(self, chain: Chain) -> Trajectory:
        train = chain.find(self.question.digest)
        assert train is not None
        return train

    def _recorded(self, train: Trajectory, last: int, first: int = 0) -> Iterator[EpochView]:
        history = train.history()
        for n in range(first, last + 1):
            if n in train.epochs:
                yield self._view(train, train.epochs[n].body, history[n], cached=True)

    def _view(self, train: Trajectory, body: dict[str, Any], metrics: dict[str, float], *, cached: bool) -> EpochView:
        n = body["n"]
        return EpochView(n, body["epoch"], metrics, body["lr"], body["seconds"], cached, lambda: self._state_at(train, n))

    def _answer(self, train: Trajectory, record: RecordLike) -> State:
        body = record.body
        state = self.ledger.restore(body["out"], self.state.recipe, self.state.device)
        return self._parented(train, record, state)

    def _parented(self, train: Trajectory, record: RecordLike, state: State) -> State:
        return state.answered(
            {
                "checkpoint": self.ledger.id,
                "op": self.ledger.chain.index(train),
                "seq": record.seq,
                "record": record.digest,
                "hash": state.hash,
                "epochs": record.body["last"],
            }
        )

    # ---------------------------------------------------------------- computing

    def _compute(self, chain: Chain) -> Iterator[EpochView]:
        train = chain.find(self.question.digest) or accepted(self.ledger, self.question, self.state)
        if train is None:
            check_appendable(self.ledger, self.question, self.state)
            train = self._begin()
        elif (record := train.answer(self.selection.json())) is not None:  # made while we waited for the lock
            yield from self._recorded(train, record.body["last"])
            self.result = self._answer(train, record)
            return
        points = ResumePoints(self.ledger, train, self.state.recipe, self.state.device)
        try:
            choice = self._choose(train)
            if not choice.complete:
                choice = yield from self._extend(train, points)
            else:
                yield from self._recorded(train, choice.last)
            self._conclude(train, choice, self.selection)
            points.clear()
        except GeneratorExit:
            reached = self._live.n if self._live is not None else 0
            if reached:
                selection = Selection(reached, self.selection.watch, self.selection.load_best, self.selection.patience)
                self._conclude(train, self._choose(train, selection), selection)
                points.clear()
            raise
        finally:
            points.close()

    def _begin(self) -> Trajectory:
        origin = self.state.origin
        record = self.ledger.append(
            "train",
            {
                "question": self.question.json(),
                "input": self.state.hash,
                "base": origin.base or self.state.hash,
                "acts": list(origin.acts),
                "parent": origin.parent,
                "environment": environment(self.state.device),
            },
        )
        return next(train for train in self.ledger.chain.trains if train.start.seq == record.seq)

    def _choose(self, train: Trajectory, selection: Selection | None = None) -> Choice:
        selection = selection or self.selection
        higher = {metric.name: metric.higher_is_better for metric in self.metrics}
        return choose(train.history(), selection, higher_is_better=higher.get(selection.watch, False))

    def _extend(self, train: Trajectory, points: ResumePoints) -> Iterator[EpochView]:
        """Train from the furthest state that is kept until the selection is complete. Returns the choice."""
        self.ledger.backend.warm()
        self._states |= points.load()
        start = self._nearest(train, len(train.history()) - 1)
        yield from self._recorded(train, start)
        choice = self._choose(train)
        for epoch, seconds in self._epochs(train, start):
            new = self._record(train, epoch, seconds)
            choice = self._choose(train)
            if choice.best == epoch.n:
                self._states = {n: state for n, state in self._states.items() if n != choice.best} | {epoch.n: epoch.state.own()}
            points.offer(epoch, choice.best, self._states.get(choice.best or -1))
            self.progress(epoch)
            yield self._view(train, train.epochs[epoch.n].body, epoch.metrics, cached=not new)
            if choice.complete and epoch.n >= choice.last:
                break
        if self._live is not None:
            self._states.setdefault(self._live.n, self._live.state)
        self._live = None
        return choice

    def _epochs(self, train: Trajectory, start: int) -> Iterator[tuple[ops.Epoch, float]]:
        """Yield epochs from core after ``start``, with the seconds that each took."""
        notices: list[str] = []
        begin = self.state if start == 0 else self._state_at(train, start)
        device = self.state.device
        train_feed = feed(self.loaders[0], device=device)
        val_feed = None if self.loaders[1] is None else feed(self.loaders[1], device=device)
        epochs = ops.train(
            begin,
            train_feed,
            val_feed,
            metrics=self.metrics,
            warmup=self.warmup,
            watch=self.selection.watch,
            key=self.state.key,
            done=start,
            notices=notices,
        )
        try:
            while True:
                began = time.perf_counter()
                epoch = next(epochs)
                yield epoch, time.perf_counter() - began
                while notices:
                    self.notify(notices.pop(0))
        finally:
            epochs.close()

    def _record(self, train: Trajectory, epoch: ops.Epoch, seconds: float) -> bool:
        """Record an epoch, or hold it against its record. Returns whether it is new."""
        self._live = epoch
        recorded = train.epochs.get(epoch.n)
        if recorded is not None:
            _must_be(epoch, recorded.body["hash"], f"checkpoint {self.ledger.id!r}, train {self.ledger.chain.index(train)}")
            return False
        self.computed += epoch.n > 0
        body = {
            "of": train.start.seq,
            "n": epoch.n,
            "epoch": epoch.epoch,
            "metrics": encode(epoch.metrics),
            "lr": epoch.lr,
            "seconds": seconds,
            "hash": epoch.state.hash,
        }
        self.ledger.append("epoch", body)
        return True

    # ---------------------------------------------------------------- states

    def _nearest(self, train: Trajectory, n: int) -> int:
        """The greatest epoch up to ``n`` whose state is at hand; 0 is the input."""
        return max((m for m in (*self._states, *train.kept()) if m <= n), default=0)

    def _state_at(self, train: Trajectory, n: int) -> State:
        """Return the state after epoch ``n``: at hand, kept, or recomputed from the nearest kept one and checked."""
        if self._live is not None and self._live.n == n and n not in self._states:
            self._states[n] = self._live.state.own()
        if n in self._states:
            return self._states[n]
        if n == 0:
            return self.state.replace(key=ops.advanced(self.state.key, 0), origin=self.state.origin)
        if n in train.kept():
            return self.ledger.restore(train.kept()[n], self.state.recipe, self.state.device)
        for epoch, _ in self._epochs(train, self._nearest(train, n)):
            _must_be(epoch, train.epochs[epoch.n].body["hash"], f"checkpoint {self.ledger.id!r}")
            self.computed += epoch.n > 0
            if epoch.n == n:
                self._states[n] = epoch.state.own()
                break
        return self._states[n]

    def _conclude(self, train: Trajectory, choice: Choice, selection: Selection) -> None:
        """Make the answer durable: items first, then the record.

        Effects:
            Items in the store and a ``done`` record; the resume point is obsolete.
        """
        last = self._state_at(train, choice.last)
        best = last if choice.best in (None, choice.last) else self._state_at(train, choice.best)
        returned = choice.returned(selection)
        out = last if returned == choice.last else combine(best, last)
        items: Items = {}
        kept: dict[str, Any] = {}
        for n, state in {choice.last: last, **({choice.best: best} if choice.best is not None else {})}.items():
            kept[str(n)], more = snapshot(state)
            items |= more
        answer, more = snapshot(out)
        items |= more
        body: dict[str, Any] = {
            "of": train.start.seq,
            "selection": selection.json(),
            "last": choice.last,
            "best": choice.best,
            "returned": returned,
            "out": answer,
            "kept": kept,
        }
        if not train.done and self.state.origin.parent is None:
            body["input"], more = snapshot(self.state)
            items |= more
        self.ledger.put(items)
        record = self.ledger.append("done", body)
        self.selection = selection
        self.result = self._parented(train, record, out)


def _must_be(epoch: ops.Epoch, recorded: str, where: str) -> None:
    if epoch.state.hash != recorded:
        raise ReplayError(
            f"{where}: epoch {epoch.n} was recorded as {recorded[:11]}, and computing it again gave {epoch.state.hash[:11]}.",
            cause="The environment differs (torch, threads, device), or something in the step is not deterministic.",
            fix="Compare ck.environments(), or begin anew under another checkpoint id.",
            expected=recorded,
            actual=epoch.state.hash,
        )
