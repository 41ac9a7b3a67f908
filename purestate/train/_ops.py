"""The ops as methods: of a model, of a checkpoint in its block, of a cache. Who has them says which state and which log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

from purestate.core._guard import GuardMode
from purestate.core._own import OwnStep
from purestate.core._state import State
from purestate.errors import PureStateError, SetupError, StaleRecordError
from purestate.run import Checkpoint, Curve, EpochView, setup
from purestate.run._checkpoint import MetricLike
from purestate.run._policy import Policy
from purestate.run._setup import SetupOptions
from purestate.run._trace import Level
from purestate.train._said import Lines, TrainHistory

__all__ = ["Reads", "Trains", "advice"]


class Reads(ABC):
    """`evaluate` and `find_lr`, which only read."""

    @abstractmethod
    def _asked(self) -> tuple[Checkpoint, State]:
        """The log that answers, and the state that is asked about."""

    def evaluate(
        self,
        dataloader: Any,
        loss_cls: type | None = None,
        metrics: Sequence[MetricLike] = (),
        guard: GuardMode = "first",
    ) -> dict[str, float]:
        """Return the mean loss and metrics over a loader, weighted by samples: ``{'loss': …, 'accuracy': …}``.

        Args:
            dataloader: A `torch.utils.data.DataLoader`, or a list of batches. Not moved.
            loss_cls: In place of the loss that was set up.
            metrics: Functions ``(y_pred, y_true)`` that return a sum over the batch; see `metric`.
            guard: As for `train`.

        Raises:
            SetupError: There is no loss.
            ImpurityError: As for `train`.
        """
        ck, state = self._asked()
        with advice():
            return ck.evaluate(setup(state, loss_cls=loss_cls) if loss_cls else state, dataloader, metrics=metrics, guard=guard)

    def find_lr(
        self,
        dataloader: Any,
        optimizer_cls: type | None = None,
        optimizer_args: Mapping[str, Any] | None = None,
        loss_cls: type | None = None,
        epochs: int = 1,
        min_rate: float = 1e-8,
        max_rate: float = 1.0,
        guard: GuardMode = "first",
    ) -> Curve:
        """Sweep the learning rate exponentially on a copy, one rate a step. The model is as it was.

        Args:
            dataloader: A `torch.utils.data.DataLoader`, or a list of batches. Not moved.
            optimizer_cls: Sweep with this one; else with a copy of the optimizer that there is, from where it is.
            optimizer_args: Its arguments. A learning rate in it has no effect.
            loss_cls: In place of the loss that was set up.
            epochs: Over how many epochs the rates are spread.
            min_rate: The first rate.
            max_rate: The last.
            guard: As for `train`.

        Returns:
            An object with ``.rates``, ``.losses``, ``.suggestion`` and ``.plot(start=None, end=None)``.

        Raises:
            SetupError: There is no loss or no optimizer.
        """
        ck, state = self._asked()
        with advice():
            return ck.find_lr(
                state,
                dataloader,
                optimizer_cls=optimizer_cls,
                optimizer_args=optimizer_args,
                loss_cls=loss_cls,
                epochs=epochs,
                min_rate=min_rate,
                max_rate=max_rate,
                guard=guard,
            )


class Trains(Reads):
    """`setup` and `train`, which give a new state, too."""

    @abstractmethod
    def _took(self, state: State) -> None:
        """Keep a new state."""

    @abstractmethod
    def _told(self, epoch: EpochView, train_dl: Any) -> None:
        """Hear of an epoch, recorded or computed."""

    @abstractmethod
    def _trains(self) -> tuple[Checkpoint, State]:
        """As `_asked`, for an op that gives a new state."""

    def setup(self, **options: Unpack[SetupOptions]) -> Any:
        """Decide how the model is trained. What is named starts afresh, what is not named stays with its state.

        Args:
            **options: ``loss_cls``; ``optimizer_cls`` with ``optimizer_args``, or ``optimizer_fn(params)``; the same for
                ``epoch_scheduler_*`` and ``step_scheduler_*``, with ``_fn(optimizer)``; ``clear_epoch_scheduler``,
                ``clear_step_scheduler``; and the others of `purestate.setup`, which describes them all.

        Returns:
            The object itself.

        Raises:
            SetupError: An argument does not fit, or it is the second call in a block.
        """
        _, state = self._trains()
        self._took(setup(state, **options))
        return self

    def train(
        self,
        train_dl: Any,
        val_dl: Any = None,
        watch: str = "loss",
        load_best: bool = True,
        epochs: int = 10,
        patience: int = 0,
        warmup: int = 0,
        metrics: Sequence[MetricLike] = (),
        keep: Policy | None = None,
        resume_every: str | None = None,
        resume_budget: float = 0.02,
        progress: bool = True,
        guard: GuardMode = "first",
        trace: Level | None = None,
        step: OwnStep | None = None,
    ) -> TrainHistory:
        """Train, or return what the log holds; the lines that are printed are the same.

        Args:
            train_dl: A `torch.utils.data.DataLoader`, or a list of batches. It is not moved: its order and all randomness
                come from the state's key.
            val_dl: The same for validation, before the first epoch and after each. Without it there is no best, so
                ``load_best=False`` is needed.
            watch: ``val_<watch>`` decides what is best. Better means strictly better, in the metric's own direction.
            load_best: Go on from the best epoch: parameters, their average, buffers and moments; schedulers, learning rates,
                counters and key are the last epoch's. Else go on from the last, and the best is a backup: see `load_checkpoint`.
            epochs: How many.
            patience: Stop after so many epochs without a new best; 0 never stops.
            warmup: During so many epochs the learning rate rises linearly, step by step, and the schedulers are held back.
            metrics: Functions ``(y_pred, y_true)`` that return a sum over the batch; see `metric`.
            keep: The epochs that are kept beside the last and the best, as in ``train.keep.last(3) | train.keep.every(10)``.
            resume_every: How often a resume point is written: ``'60s'``, ``'500 steps'``, ``'epoch'``.
            resume_budget: Where that is left out: the share of the time that resume points may cost.
            progress: Whether bars are shown while something is computed, in a terminal or a notebook.
            guard: When it is looked whether forward, loss and metrics move what belongs to no state: ``'first'`` in the first
                steps, ``'always'`` in each, ``'off'`` never. See `purestate.run.Checkpoint.train`.
            trace: What is noted of epochs that are computed: the hash of every leaf (``'epoch'``), and that of each step
                (``'step'``). See `purestate.run.Checkpoint.train`.
            step: A pure function ``(state, batch) -> (state, metrics)`` that takes the steps in our place. See
                `purestate.run.Checkpoint.train`.

        Returns:
            Lists: ``epoch`` (numbers over the life of the model), ``train_loss``, ``val_loss``, …; and ``log``.

        Raises:
            StaleRecordError: The checkpoint holds an answer to another question; names what changed.
            SetupError: There is no loss or no optimizer.
            NonFiniteLossError: The loss became nan or infinite; the finished epochs are recorded.
            ImpurityError: A step moved what belongs to no state, or depends on such; names it and how to declare it.

        Effects:
            Prints a line an epoch. In a checkpoint: records in the log, an epoch each and one for the answer, items in
            the store, and TensorBoard scalars where TensorBoard is installed.
        """
        ck, state = self._trains()
        lines = Lines(epochs, watch, load_best)

        def on_epoch(epoch: EpochView) -> None:
            lines.epoch(epoch)
            self._told(epoch, train_dl)

        with advice():
            new = ck.train(
                state,
                train_dl,
                val_dl,
                epochs=epochs,
                watch=watch,
                load_best=load_best,
                patience=patience,
                warmup=warmup,
                metrics=metrics,
                keep=keep,
                on_epoch=on_epoch,
                resume_every=resume_every,
                resume_budget=resume_budget,
                progress=progress,
                guard=guard,
                trace=trace,
                step=step,
            )
        self._took(new)
        assert ck.last is not None
        return lines.finish(ck.last)


@contextmanager
def advice() -> Generator[None]:
    """Let errors name the calls of this face where they would name those of the functions below."""
    try:
        yield
    except PureStateError as error:
        _reword(error)
        raise


def _reword(error: PureStateError) -> None:
    if isinstance(error, StaleRecordError):
        error.fix = (
            "Take another checkpoint id (a fork), delete it with model.delete_checkpoint(id) and run the block again, void "
            f"it from there with cp.reset({error.op}), say that it is the same with cp.accept({error.op}), or undo the change."
        )
    elif isinstance(error, SetupError) and error.argument == "val_dl":
        error.fix = "Give one: cp.train(train_dl, val_dl, ...); or load_best=False, which goes on from the last epoch."
    elif isinstance(error, SetupError) and "the state has no" in error.problem:
        example = "loss_cls=torch.nn.CrossEntropyLoss" if error.argument == "loss" else "optimizer_cls=torch.optim.Adam"
        error.problem = error.problem.replace("the state", "the model")
        error.cause = "Nobody has set one up in this block or in one that the model went through."
        error.fix = f"Give it one, at the beginning of the block: cp.setup({example}, ...)."
    elif error.fix is not None:
        error.fix = error.fix.replace("ck.", "cp.")
    error.args = ("\n".join(part for part in (error.problem, error.cause, error.fix) if part),)
