"""One call of `train`: ask the log, and answer from it; what is missing is computed by `_compute`.

Nothing here computes, nor imports what computes: on a re-run this file is all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from purestate.core._guard import GuardMode
from purestate.core._metrics import Metric
from purestate.core._own import OwnStep
from purestate.core._state import State
from purestate.run._answers import Asked, EpochView, Summary, as_history, counted
from purestate.run._cadence import Cadence
from purestate.run._chain import Chain, RecordLike, Trajectory
from purestate.run._explain import why
from purestate.run._ledger import Ledger
from purestate.run._mode import auditor, mode_of, refuse
from purestate.run._policy import Policy
from purestate.run._profile import Profile
from purestate.run._progress import Progress
from purestate.run._question import Question
from purestate.run._retain import lacking
from purestate.run._select import Choice, Selection, choose
from purestate.run._stale import check_appendable
from purestate.run._trace import Level, untraced

if TYPE_CHECKING:
    from purestate.run._compute import Computation
    from purestate.run._resume import Resumed

__all__ = ["Training"]


@dataclass
class Training:
    """A call of `train`, to be iterated once.

    Args:
        ledger: Where answers are looked up and recorded.
        state: The input.
        loaders: The training loader, and the one for validation or None.
        question: What is asked, without the selection.
        ask: Asks it again.
        selection: What to pick.
        metrics: Computed on both loaders.
        warmup: Epochs of linear warm-up.
        notify: Shown what the user should be told once.
        progress: Shows how far it has come.
        cadence: When resume points are due.
        profile: Adds up where the time goes, if anybody asks.
        keep: Which epochs are kept beside the last and the best.
        guard: At which steps impurities are looked for. Selects no bits.
        step: What takes the steps in the place of ours.
        trace: How much is noted of epochs that are computed.
    """

    ledger: Ledger
    state: State
    loaders: tuple[Any, Any]
    question: Question
    ask: Callable[[], Question]
    selection: Selection
    metrics: tuple[Metric, ...]
    warmup: int
    notify: Callable[[str], None]
    progress: Progress
    cadence: Cadence
    profile: Profile | None = None
    keep: Policy | None = None
    guard: GuardMode = "first"
    step: OwnStep | None = None
    trace: Level | None = None
    because: str = ""
    """Why it is not answered from the log, if it is not."""
    result: State | None = None
    computed: int = 0
    """How many epochs this call computed."""
    reached: int = -1
    """The last epoch that was yielded."""
    audit: str | None = None
    """What an audit said."""
    states: dict[int, State] = field(default_factory=dict[int, State])
    """States at hand that are in no record yet, by epoch."""
    found: Resumed | None = None
    """What a resume point held."""

    def run(self) -> Generator[EpochView]:
        """Yield every epoch that the selection reaches, recorded ones first. Sets ``result``.

        Closing the iterator early concludes the op at the epoch that it has reached.
        """
        try:
            train, asked = self.ledger.refresh().find(self.question.digest), mode_of(self.ledger.backend)
            if asked == "audit":
                self.audit = auditor().train(self, train)
                self.keep = None  # nothing is kept from here on, and what is there is the answer
            if (yield from self.hit(self.ledger.chain)):
                return
            self.because = why(self.question, self.ledger.chain, self.state, self.selection.json())
            if train is not None:
                yield from self.recorded(train, self.choose(train).last)
            elif asked == "record":
                check_appendable(self.ledger, self.question, self.state)
            yield from self.computation().run()
        except GeneratorExit:
            if self.reached > 0 and self.result is None and not self.stop(self.ledger.chain):
                self.computation().conclude()
            raise

    def computation(self) -> Computation:
        """Return what computes and records for this call.

        Raises:
            OfflineError: The mode is ``offline``.
            AuditError: The mode is ``audit``, so what has to be computed was never recorded.
        """
        if mode_of(self.ledger.backend) != "record":
            train = self.ledger.chain.find(self.question.digest)
            answer = train and train.answer(self.selection.json())
            if train is not None and answer is not None:
                missing = ", ".join(map(str, sorted(self.lacking(train, answer.body["last"]))))
                reason = f"its answer is recorded, and of the epochs that keep= wants {missing} are not kept"
            else:
                reason = why(self.question, self.ledger.chain, self.state, self.selection.json())
            refuse(self.ledger, "train", reason, train)
        from purestate.run._compute import Computation

        return Computation(self)

    def stop(self, chain: Chain) -> bool:
        """Select the epochs that were yielded, and no more. Returns whether that is answered already."""
        self.selection, self.keep = replace(self.selection, epochs=self.reached), None  # nothing is computed from here on
        for _ in self.hit(chain):
            pass
        return self.result is not None

    def hit(self, chain: Chain) -> Iterator[EpochView]:
        """Yield the recorded epochs if the answer is recorded, and what is to be kept of them. Returns whether it is."""
        train = chain.find(self.question.digest)
        record = train and train.answer(self.selection.json())
        if train is None or record is None or self.lacking(train, record.body["last"]):
            return False
        yield from self.recorded(train, record.body["last"])
        self.answer(train, record, self.ledger.restore(record.body["out"], self.state.recipe, self.state.device))
        return True

    def lacking(self, train: Trajectory, last: int) -> set[int]:
        """Return the epochs up to ``last`` that are to be kept and are not."""
        return set() if self.keep is None else lacking(train, self.keep, last, self.selection.watch)

    def answer(self, train: Trajectory, record: RecordLike, state: State) -> None:
        """Set ``result``: a state that knows the record which it is the answer of."""
        last = record.body["last"]
        self.result = state.answered(self.ledger.parent(train, record, state.hash, last))
        if self.trace is not None and (missing := untraced(train, self.trace, last)):
            which = counted(len(missing), "epoch")
            self.notify(f"{which} of {last} recorded without trace={self.trace!r}. Nothing was computed again for it.")

    def recorded(self, train: Trajectory, last: int) -> Iterator[EpochView]:
        """Yield epochs from their records, those up to ``last`` that were not yielded yet."""
        history = train.history()
        for n in range(self.reached + 1, last + 1):
            self.reached = n
            if n in train.epochs:
                yield self.view(train, n, history[n], cached=True, state=self.state_at)

    def view(
        self, train: Trajectory, n: int, metrics: dict[str, float], *, cached: bool, state: Callable[[Trajectory, int], State]
    ) -> EpochView:
        """Return a recorded epoch for people."""
        body = train.epochs[n].body

        def look() -> State:
            if self.result is not None and self.result.hash == body["hash"]:
                return self.result
            return state(train, n).answered(self.ledger.parent(train, train.epochs[n], body["hash"], n))

        return EpochView(n, body["epoch"], metrics, body["lr"], body["seconds"], cached, body["hash"], look)

    def state_at(self, train: Trajectory, n: int) -> State:
        """Return the state after epoch ``n``: at hand, kept, or recomputed from the nearest kept one and checked."""
        if n not in self.states and (kept := train.kept().get(n)) is not None:
            return self.ledger.restore(kept, self.state.recipe, self.state.device)
        if n not in self.states:
            if n > 0 and mode_of(self.ledger.backend) == "offline":
                refuse(self.ledger, f"state after epoch {n}", "its record is there, and its bytes are not kept", train)
            from purestate.run._compute import Computation

            Computation(self).replay(train, n)
        return self.states[n]

    def choose(self, train: Trajectory, selection: Selection | None = None) -> Choice:
        """Return what a selection (of the call, if left out) picks from the epochs that are recorded."""
        return self.choose_of(train.history(), selection)

    def choose_of(self, history: Sequence[Mapping[str, float]], selection: Selection | None = None) -> Choice:
        """Return what a selection picks from epochs."""
        selection = selection or self.selection
        higher = {metric.name: metric.higher_is_better for metric in self.metrics}
        return choose(history, selection, higher_is_better=higher.get(selection.watch, False))

    def summary(self, seconds: float) -> Summary:
        """Return what the finished call did."""
        assert self.result is not None
        train = self.ledger.chain.find(self.question.digest)
        record = train and train.answer(self.selection.json())
        assert train is not None
        assert record is not None
        op, digest = f"train {self.ledger.chain.index(train)}", f"{self.question.digest} {self.selection}"
        asked = Asked(op, "computed", self.because, record.seq) if self.computed else Asked(op, "reused", record=record.seq)
        self.ledger.note(asked, digest)
        history, body = train.history(), record.body
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
            audit=self.audit,
        )
