"""`Checkpoint`: a named log in a store, and the ops that are asked through it. What else a log is good for is in `_logged`.

There is no cursor and nothing to restore first: every call is looked up by content. What a call computes is appended; what
it finds it returns, with the state's bytes left on disk until somebody looks at them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from purestate.core._guard import GuardMode, check_guard
from purestate.core._metrics import Metric, as_metrics
from purestate.core._optim import require_rates
from purestate.core._own import OwnStep, check_own
from purestate.core._state import State, require
from purestate.errors import SetupError
from purestate.run._answers import Curve, EpochView, Summary
from purestate.run._ask import ask_train
from purestate.run._cadence import Cadence
from purestate.run._ledger import Ledger
from purestate.run._logged import Logged
from purestate.run._policy import Policy
from purestate.run._profile import Profile
from purestate.run._progress import Progress
from purestate.run._readers import Reader, ask_evaluate, ask_find_lr, ask_predict
from purestate.run._retain import checked
from purestate.run._select import Selection
from purestate.run._trace import Level
from purestate.run._trace import checked as checked_trace
from purestate.run._training import Training

__all__ = ["Checkpoint"]

MetricLike = Metric | Callable[[Any, Any], Any]


class Checkpoint(Logged):
    """A named log. Made by `Store.checkpoint` and `Store.open`.

    Attributes:
        last: What the last op of this object did: a `Summary`, or None.

    Example:
        >>> import purestate as ps, torch
        >>> data = torch.utils.data.TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
        >>> s0 = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        >>> s0 = ps.setup(s0, loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
        >>> ck = ps.MemoryStore().checkpoint("sgd", echo=None)
        >>> s1 = ck.train(s0, loader, epochs=2)
        >>> ck.last.cached, ck.train(s0, loader, epochs=2) == s1, ck.last.cached
        (False, True, True)
    """

    def __init__(
        self, ledger: Ledger, *, echo: Callable[[str], None] | None = print, notify: Callable[[str], None] | None = print
    ) -> None:
        super().__init__(ledger)
        self._echo, self._tell = echo, notify
        self.last: Summary | None = None

    # ---------------------------------------------------------------- ops

    def root(self, state: State) -> State:
        """Return the initial state that this checkpoint was begun with; record the given one if there is none.

        With it a script that seeds nothing can be run again: the builder makes other weights each time, and the recorded
        ones are taken.

        Args:
            state: An initial state, see `purestate.init`. Not modified. If a root is recorded, only its recipe is used.

        Raises:
            TreeMismatchError: The recorded root has other names, shapes or dtypes; the first are named.
            StaleRecordError: It was made under another seed.

        Effects:
            The first time, one record and the items of the state.

        Example:
            >>> import purestate as ps, torch
            >>> ck = ps.MemoryStore().checkpoint("root")
            >>> first = ck.root(ps.init(torch.nn.Linear(2, 1)))
            >>> ck.root(ps.init(torch.nn.Linear(2, 1))) == first  # other weights, and nobody seeded them
            True
        """
        from purestate.run._root import root

        require(state, "template", "root")
        state.check()
        return root(self._ledger, state)

    def train(
        self,
        state: State,
        train_dl: Any,
        val_dl: Any = None,
        *,
        epochs: int,
        watch: str = "loss",
        load_best: bool = False,
        patience: int = 0,
        warmup: int = 0,
        metrics: Sequence[MetricLike] = (),
        keep: Policy | None = None,
        on_epoch: Callable[[EpochView], object] | None = None,
        resume_every: str | None = None,
        resume_budget: float = 0.02,
        progress: bool = True,
        profile: bool = False,
        guard: GuardMode = "first",
        trace: Level | None = None,
        step: OwnStep | None = None,
    ) -> State:
        """Train a state, or return what the log holds.

        Args:
            state: Where to start; never modified. It needs a loss and an optimizer, see `purestate.setup`.
            train_dl: A `torch.utils.data.DataLoader`, or a list of batches. Its order and all randomness come from
                ``state.key``; neither the loader nor a global generator moves.
            val_dl: The same for validation, which comes before the first epoch and after each.
            epochs: How many.
            watch: The metric to watch: ``val_<watch>``, of the parameters and not their average. Better means strictly better.
            load_best: Return parameters, their average, buffers and moments of the best epoch (the evaluation before the first
                is a candidate); schedulers, learning rates, counters and key are the last epoch's. Else the last epoch is
                returned, and the best is kept for ``store.load(id, best=True)``.
            patience: Stop after so many epochs without a new best; 0 never stops.
            warmup: During so many epochs the learning rate rises linearly, step by step, to what it was, and the
                schedulers are held back.
            metrics: Functions ``(y_pred, y_true)`` that return a sum over the batch, or ``(sum, count)``; see `metric`.
            keep: The epochs whose states are kept beside the last and the best, as in ``ps.keep.last(3) | ps.keep.every(10)``.
                Each is durable when it is finished, and dropped when the policy drops it. Of a train that is answered from the
                log, those that are missing are computed again and compared; what is there stays, see `prune`.
            on_epoch: Called with each epoch as `epochs` yields it, recorded ones too. What it raises ends the call; the
                finished epochs are recorded.
            resume_every: How often a resume point is written, from which a killed run goes on: ``'60s'``, ``'10min'``,
                ``'500 steps'``, ``'epoch'``, ``'5 epochs'``. Points are written in the background, two are kept, and none
                once the op is done. One that is due while the last is not durable yet comes when that is.
            resume_budget: Where ``resume_every`` is left out: the share of the time that points may cost.
            progress: Whether bars are shown while epochs are computed, where somebody can see them: in a terminal or a
                notebook.
            profile: Whether a table is printed of where the time went: data, step, optimizer, metrics, validation, saving.
                On an accelerator each phase is waited for then, which takes time itself.
            guard: At which steps it is looked whether forward, loss and metrics move what is in no state: an attribute, a
                global variable, a generator of their own. ``'first'``: the first three, the first of other shapes, and some in
                epochs 2, 4, 8, and so on. ``'always'``: each, which then runs twice and uncaptured. ``'off'``: none.
            trace: What is noted of the epochs that are computed, for `purestate bisect` and `purestate diff`: ``'epoch'``: the
                hash of every leaf; ``'step'``: those of the state, its leaves and the batch at each step too, which takes as
                long as hashing all of that. Of epochs that are recorded without, nothing is computed for it.
            step: Takes the steps in our place: a pure function ``(state, batch) -> (state, metrics)``, such as `make_step` and
                `jax_step` return. Gradient, optimizer, schedulers and clipping are its business; `state` needs neither a
                loss nor an optimizer then, but for a `val_dl` a loss. It draws from torch's generators, which are seeded for
                each step, or from ``state.key`` and ``state.counters.step``; the key and the counters are advanced by us.
                What it returns has the names, shapes and dtypes of what it was given; an optimizer may come with the first
                step. Its metrics are numbers or 0-d tensors, means over the batch, and become ``train_<name>``; those of
                `metrics` are computed in validation. Its code and what it holds are part of the question.

        Returns:
            The new state. From the log its bytes are read when somebody looks.

        Raises:
            StaleRecordError: The checkpoint holds an answer to another question; names what changed.
            MetricError: ``watch`` is not computed.
            NonFiniteLossError: The loss became nan or infinite; the finished epochs are recorded.
            ImpurityError: A step moved what is in no state, or depends on such; names it and the ways to declare it.
            MutatedStateError: A leaf of ``state`` was changed in place.
            TreeMismatchError: What ``step`` returned does not go on from what it was given; names the leaf.
            ReplayError: An epoch that had to be computed again, as after a kill, is not what was recorded.
            StoreLockedError: Another process is writing this checkpoint.
            OfflineError: It is not recorded, and ``PURESTATE_MODE`` is ``offline``.
            AuditError: ``PURESTATE_MODE`` is ``audit``, and computing it again gave something else, or it was never recorded.

        Effects:
            Records in the log, an epoch each and one for the answer; items in the store; resume points while it computes;
            prints one line. On SIGINT and SIGTERM the step is finished and a resume point made durable, and then what
            they do happens; a second signal happens at once.
        """
        began = time.perf_counter()
        bars = Progress(f"{self.id} train", epochs, shown=progress, epochs=on_epoch is None)
        cadence = Cadence(resume_every, resume_budget)
        call = self._training(
            state, train_dl, val_dl, epochs, watch, load_best, patience, warmup, metrics, keep, bars, cadence, step
        )
        call.guard, call.trace = check_guard(guard, "train"), checked_trace(trace, "train")
        if profile:
            call.profile = Profile(state.device, train_dl)
        stream = call.run()
        with bars:
            for epoch in stream:
                if on_epoch is not None:
                    try:
                        on_epoch(epoch)
                    except BaseException as error:
                        stream.throw(error)  # not `close`, which would conclude the op at this epoch
        self._say(call.summary(time.perf_counter() - began))
        if call.profile is not None and self._tell is not None:
            self._tell(str(call.profile))
        assert call.result is not None
        return call.result

    def epochs(
        self,
        state: State,
        train_dl: Any,
        val_dl: Any = None,
        *,
        epochs: int,
        watch: str = "loss",
        load_best: bool = False,
        patience: int = 0,
        warmup: int = 0,
        metrics: Sequence[MetricLike] = (),
        keep: Policy | None = None,
        resume_every: str | None = None,
        resume_budget: float = 0.02,
        guard: GuardMode = "first",
        trace: Level | None = None,
        step: OwnStep | None = None,
    ) -> Iterator[EpochView]:
        """Train as `train` does, as a stream of epochs. Leaving the loop early ends the op at that epoch.

        Args:
            state: As for `train`.
            train_dl: As for `train`.
            val_dl: As for `train`.
            epochs: How many at most.
            watch: As for `train`.
            load_best: As for `train`.
            patience: As for `train`.
            warmup: As for `train`.
            metrics: As for `train`.
            keep: As for `train`. Of epochs that are recorded, those up to which the loop is left are not kept afterwards.
            resume_every: As for `train`.
            resume_budget: As for `train`.
            guard: As for `train`.
            trace: As for `train`.
            step: As for `train`.

        Yields:
            The evaluation before the first epoch as number 0 (with ``val_dl``), then each epoch, recorded ones first.
            ``epoch.state`` is copied, read or recomputed only when somebody looks.
        """
        began = time.perf_counter()
        bars = Progress(f"{self.id} train", epochs, shown=False)
        cadence = Cadence(resume_every, resume_budget)
        call = self._training(
            state, train_dl, val_dl, epochs, watch, load_best, patience, warmup, metrics, keep, bars, cadence, step
        )
        call.guard, call.trace = check_guard(guard, "epochs"), checked_trace(trace, "epochs")
        try:
            yield from call.run()
        finally:
            if call.result is not None:
                self._say(call.summary(time.perf_counter() - began))

    def evaluate(
        self, state: State, dataloader: Any, *, metrics: Sequence[MetricLike] = (), guard: GuardMode = "first"
    ) -> dict[str, float]:
        """Return the mean loss and metrics of a state over a loader, from the log if it is there.

        Args:
            state: Not modified, not advanced.
            dataloader: As for `train`.
            metrics: As for `train`.
            guard: As for `train`.

        Returns:
            ``{'loss': …, 'accuracy': …}``, weighted by samples.

        Raises:
            SetupError: The state has no loss.

        Effects:
            One record if it was computed; prints one line.
        """
        return self._read(lambda: ask_evaluate(state, dataloader, as_metrics(metrics), check_guard(guard, "evaluate")))

    def find_lr(
        self,
        state: State,
        dataloader: Any,
        *,
        optimizer_cls: type | None = None,
        optimizer_args: Mapping[str, Any] | None = None,
        loss_cls: type | None = None,
        epochs: int = 1,
        min_rate: float = 1e-8,
        max_rate: float = 1.0,
        guard: GuardMode = "first",
    ) -> Curve:
        """Sweep the learning rate exponentially, one rate a step, and return the losses; from the log if they are there.

        Args:
            state: Not modified, not advanced: the sweep works on a copy.
            dataloader: As for `train`.
            optimizer_cls: Sweep with this one; else with the state's, from where it is.
            optimizer_args: Its arguments. The learning rate in it has no effect.
            loss_cls: Sweep with this loss; else with the state's.
            epochs: Over how many epochs the rates are spread.
            min_rate: The first rate.
            max_rate: The last.
            guard: As for `train`.

        Effects:
            One record if it was computed; prints one line.
        """
        changes = {"optimizer_cls": optimizer_cls, "optimizer_args": optimizer_args, "loss_cls": loss_cls}
        rates = epochs, min_rate, max_rate
        return self._read(lambda: ask_find_lr(state, dataloader, changes, *rates, check_guard(guard, "find_lr")))

    def predict(self, state: State, dataloader: Any, *, guard: GuardMode = "first") -> Any:
        """Return what the module returns for a loader, batches concatenated; from the log if it is there.

        Args:
            state: Not modified, not advanced.
            dataloader: As for `train`. Of a tuple all but the last entry are inputs, if it has more than one.
            guard: As for `train`.

        Returns:
            A tensor, or the structure of tensors that the module returns, on the CPU, with all samples in dimension 0.

        Effects:
            One record and one item if it was computed; prints one line.
        """
        return self._read(lambda: ask_predict(state, dataloader, check_guard(guard, "predict")))

    # ---------------------------------------------------------------- inside

    def _training(
        self,
        state: State,
        train_dl: Any,
        val_dl: Any,
        epochs: int,
        watch: str,
        load_best: bool,
        patience: int,
        warmup: int,
        metrics: Sequence[MetricLike],
        keep: Policy | None,
        progress: Progress,
        cadence: Cadence,
        step: OwnStep | None,
    ) -> Training:
        for part in ("loss", "optimizer") if step is None else ("template",):
            require(state, part, "train")
        state.check()
        selection = Selection(epochs, watch, load_best, patience)
        if type(warmup) is not int or warmup < 0:
            raise SetupError(f"train: warmup must be an integer of at least 0, got {warmup!r}.", argument="warmup")
        if warmup and state.recipe is not None:
            require_rates(state.recipe.optimizer, f"train: warmup={warmup} was given", "warmup")
        known = as_metrics(metrics)
        if step is not None:
            check_own(step, state, validated=val_dl is not None, metrics=known, warmup=warmup)
        names = ["loss", *(metric.name for metric in known)]
        selection.must_fit(names, validated=val_dl is not None)
        ask = partial(ask_train, state, train_dl, val_dl, metrics=known, warmup=warmup, watch=watch, step=step)
        return Training(
            ledger=self._ledger,
            state=state,
            loaders=(train_dl, val_dl),
            question=ask(),
            ask=ask,
            selection=selection,
            metrics=known,
            warmup=warmup,
            step=step,
            notify=self._notify,
            progress=progress,
            cadence=cadence,
            keep=checked(keep, watch, names if val_dl is not None else ()),
        )

    def _read(self, ask: Callable[[], Reader]) -> Any:
        began = time.perf_counter()  # asking hashes state, code and data: most of what an answer from the log costs
        reader = ask()
        value, cached, audit = reader.answer(self._ledger)
        seconds = time.perf_counter() - began
        shown = reader.metrics(value)
        self._say(Summary(f"{self.id} {reader.name}", cached, seconds, reader.state.hash, metrics=shown, audit=audit))
        return value

    def _notify(self, text: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.id}: {text}")

    def _say(self, summary: Summary) -> None:
        self.last = summary
        if self._echo is not None:
            self._echo(str(summary))
