"""`train`: a generator of epochs. Pure, and unaware of any log.

A function of a State, of feeds (batches as a function of a key) and of plain arguments. What the caller's global generators
were is put back before control returns, at a yield, a return or an exception.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from purestate.core._batch import Batches, Feed
from purestate.core._capture import Runner
from purestate.core._guard import GuardMode, check_guard
from purestate.core._key import Key, Tag
from purestate.core._metrics import Metric, Sums
from purestate.core._optim import require_rates
from purestate.core._own import Means, Own, OwnStep, check_own
from purestate.core._position import Keeper, Position
from purestate.core._runners import evaluate_runner, gradient_runner, plan_of, sweep
from purestate.core._state import State, require
from purestate.core._work import Working, isolated
from purestate.errors import NonFiniteLossError

__all__ = ["Epoch", "advanced", "begun", "train"]


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch of `train` gives.

    Args:
        n: Its number within the op, from 1; 0 is the evaluation before the first.
        epoch: Its number over the life of the state.
        metrics: ``train_loss``, ``val_loss`` and the others, as Python floats.
        lr: The learning rate of each parameter group during the epoch's last step.
        state: The state after the epoch, **lent**: its tensors change with the next epoch. ``state.own()`` keeps it.
        plan: What ran its last step: ``{'step': 'captured', 'optimizer': 'long'}``; nothing for the evaluation before the first.
    """

    n: int
    epoch: int
    metrics: dict[str, float]
    lr: list[float]
    state: State
    plan: Mapping[str, str] = field(default_factory=dict[str, str])


def advanced(key: Key, n: int) -> Key:
    """Return the key of the state after ``n`` epochs of an op that began with ``key``."""
    return key.derive(Tag.ADVANCE, n)


def begun(state: State, key: Key) -> State:
    """Return the state that the evaluation before the first epoch gives: the input, under the key that follows the op's."""
    return state.replace(key=advanced(key, 0), origin=state.origin)


def train(
    state: State,
    feed: Feed,
    val_feed: Feed | None = None,
    *,
    metrics: Sequence[Metric] = (),
    warmup: int = 0,
    watch: str = "loss",
    key: Key | None = None,
    done: int = 0,
    position: Position | None = None,
    keeper: Keeper | None = None,
    notices: list[str] | None = None,
    lap: Callable[[str], object] = lambda phase: None,
    guard: GuardMode = "first",
    step: OwnStep | None = None,
) -> Generator[Epoch]:
    """Train without end, an epoch at each step of the iterator: whoever iterates decides when to stop.

    Args:
        state: Where to start; never modified.
        feed: Training batches.
        val_feed: Validation batches: evaluated before the first epoch and after each.
        metrics: Computed on both.
        warmup: During so many epochs the learning rate rises linearly, step by step, to what it was, and the schedulers
            are held back.
        watch: The metric whose validation value a plateau scheduler steps on.
        key: The key of the op; the state's if left out. Given with ``done`` to go on in the middle.
        done: How many epochs of this op the state has behind it.
        position: Where to go on in the middle of the epoch after those; ``state`` is its state then.
        keeper: Told after each batch, and asked before anything that it may be reading changes.
        notices: What the user should be told once is appended here.
        lap: Called at the end of each phase with its name: ``'data'``, ``'step'``, ``'optimizer'``, ``'metrics'``,
            ``'validation'``.
        guard: At which steps it is looked whether forward, loss and metrics move what is in no state; see `Guard`.
        step: What takes the steps in our place: ``(state, batch) -> (state, metrics)``, see `Own`. `metrics` are those of
            validation then.

    Yields:
        The evaluation before the first epoch as number 0 (with ``val_feed`` and without ``done``), then every epoch.

    Raises:
        NonFiniteLossError: The training loss of an epoch was nan or infinite, with the step.
        ImpurityError: A step moved what is in no state, or depends on such.
        SetupError: The state lacks a loss or an optimizer, or a plateau scheduler has nothing to watch.
        TreeMismatchError: What ``step`` returned does not go on from what it was given.
    """
    check_guard(guard, "train")
    if step is None:
        require(state, "loss", "train")
        recipe = require(state, "optimizer", "train")
        if warmup:
            require_rates(recipe.optimizer, f"train: warmup={warmup} was given", "warmup")
    else:
        check_own(step, state, validated=val_feed is not None, metrics=metrics, warmup=warmup)
    state.check()
    with isolated(state):
        loop = _Loop(state, feed, val_feed, metrics, warmup, watch, key or state.key, keeper, notices, lap, guard, step)
    lap("other")
    if done == 0 and position is None and val_feed is not None:
        with isolated(state):
            values = loop.validate(0, None)
        yield Epoch(0, state.counters.epoch, values, loop.work.rates(), begun(state, loop.key))
    for n in itertools.count(done + 1):
        with isolated(state):
            values, lr = loop.epoch(n, position)
            position = None
            lent = loop.work.lend(key=advanced(loop.key, n))
        yield Epoch(n, loop.work.epoch, values, lr, lent, loop.plan)


class _Loop:
    """A `train` in progress."""

    def __init__(
        self,
        state: State,
        feed: Feed,
        val_feed: Feed | None,
        metrics: Sequence[Metric],
        warmup: int,
        watch: str,
        key: Key,
        keeper: Keeper | None,
        notices: list[str] | None,
        lap: Callable[[str], object],
        guard: GuardMode,
        step: OwnStep | None,
    ) -> None:
        assert state.recipe is not None
        self._lap = lap
        self.key, self.metrics, self.watch, self.warmup = key, metrics, watch, warmup
        self._feed, self._val_feed, self._keeper, self._notices = feed, val_feed, keeper, notices
        self._told: set[str] = set()
        self.work: Working | Own
        self._train: Runner | None = None
        if step is not None:
            self.work = Own(state, step, key, guard)
        else:
            self.work = Working(state)
            self._train = gradient_runner(state.recipe, metrics, guard, self.work)
            if val_feed is None:
                self.work.refuse_metric_schedulers()
        self._evaluate = None if val_feed is None else evaluate_runner(state.recipe, metrics, guard)

    def epoch(self, n: int, position: Position | None) -> tuple[dict[str, float], list[float]]:
        """Train for one epoch, validate, step the epoch scheduler. Returns metrics and the learning rates of its last step."""
        work, lap, keeper = self.work, self._lap, self._keeper
        progress = _Progress(self, n, position)
        size = self._feed.batches
        first = (n - 1) * size + progress.batch
        take = self._own_steps(work, progress) if isinstance(work, Own) else self._steps(work, progress, first)
        seeds = self.key.fold_in(Tag.STEP).seeds(first, n * size).tolist()
        where = None if position is None else position.feed
        with closing(self._feed.epoch(self.key.derive(Tag.ORDER, n), progress.batch, where)) as batches:
            progress.batches = batches
            for batch, seed in zip(batches, seeds, strict=True):
                lap("data")
                take(batch, seed)
                lap("metrics")
                if keeper is not None:
                    keeper.between(progress.position, trained=True)
        work.restore_rates()
        progress.losses.check()
        values = {f"train_{name}": value for name, value in progress.sums.means().items()}
        lap("metrics")
        values |= self.validate(n, progress.position)
        if isinstance(work, Working) and n > self.warmup:
            if keeper is not None:
                keeper.release()  # a scheduler may write into tensors: a learning rate, its own
            work.epoch_scheduler(values.get(f"val_{self.watch}"))
        work.epoch += 1
        self._tell(self._train)
        return values, progress.lr

    def _steps(self, work: Working, progress: _Progress, first: int) -> Callable[[Any, int], None]:
        """Return what takes a step of ours on a batch, under a seed: the gradient, the optimizer, the step scheduler."""
        run, lap, keeper, size = self._train, self._lap, self._keeper, self._feed.batches
        assert run is not None
        run.start_epoch(progress.n)
        warming, steps = (work.rates() if progress.n <= self.warmup else None), self.warmup * size
        done = itertools.count(first + 1)

        def take(batch: Any, seed: int) -> None:
            if warming is not None:
                work.set_rates(warming, next(done) / steps)
            if keeper is not None and progress.forward_writes:
                keeper.release()
            out = run(work.params, work.frozen, work.buffers, batch, seed)
            lap("step")
            if keeper is not None:
                keeper.release()
            work.update(out.gradients, out.buffers)
            lap("optimizer")
            progress.sums.add(out.loss, out.sums, out.size)
            progress.losses.add(out.loss)
            progress.batch += 1
            if progress.batch == size:
                progress.lr = work.rates()
            if warming is None:
                work.step_scheduler()

        return take

    def _own_steps(self, work: Own, progress: _Progress) -> Callable[[Any, int], None]:
        """Return what takes a step of the user's own on a batch. It draws from the key and the step counter of the state."""
        lap, size, means = self._lap, self._feed.batches, progress.sums
        assert isinstance(means, Means)

        def take(batch: Any, seed: int) -> None:
            metrics, samples = work.take(batch)
            lap("step")
            means.take(metrics, samples)
            if "loss" in metrics:
                progress.losses.add(torch.as_tensor(metrics["loss"], dtype=torch.float64).detach())
            progress.batch += 1
            if progress.batch == size:
                progress.lr = work.rates()

        return take

    @property
    def plan(self) -> dict[str, str]:
        """What ran the last step."""
        if isinstance(self.work, Own) or self._train is None:
            return {"step": "own"}
        return {"step": plan_of(self._train), "optimizer": self.work.optimizer_step.plan}

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        return self._feed.batches

    @property
    def forward_writes(self) -> bool:
        """Whether the next call may write into parameters: so it is where it is not captured, as far as anybody knows."""
        return self._train is not None and (not self._train.captured or self._train.writes)

    def validate(self, n: int, position: Callable[[], Position] | None) -> dict[str, float]:
        """Evaluate the working state after epoch ``n``, which is where ``position`` is."""
        if self._val_feed is None or self._evaluate is None:
            return {}
        work, keeper = self.work, self._keeper
        self._evaluate.start_epoch(n)
        values = sweep(
            self._evaluate,
            work.params,
            work.frozen,
            work.buffers,
            self._val_feed,
            self.key.derive(Tag.VALIDATE, n),
            self.metrics,
            (lambda: None) if keeper is None else lambda: keeper.between(position, trained=False),
        )
        self._tell(self._evaluate)
        self._lap("validation")
        return {f"val_{name}": value for name, value in values.items()}

    def _tell(self, runner: Runner | None) -> None:
        if runner is not None and runner.notice is not None and self._notices is not None and runner.notice not in self._told:
            self._told.add(runner.notice)
            self._notices.append(runner.notice)


class _Progress:
    """How far an epoch has come."""

    def __init__(self, loop: _Loop, n: int, start: Position | None) -> None:
        self._loop, self.n = loop, n
        self.batch = 0 if start is None else start.batch
        self.lr: list[float] = [] if start is None else start.lr
        fresh = Means() if isinstance(loop.work, Own) else Sums(loop.metrics)
        self.sums = fresh if start is None else start.sums
        self.losses = _Losses(loop.work.epoch + 1, self.batch)
        self.batches: Batches | None = None
        self.forward_writes = loop.forward_writes

    def position(self) -> Position:
        """Return where the epoch stands now."""
        work = self._loop.work
        self.losses.check()
        self.forward_writes = self._loop.forward_writes
        lr = self.lr or work.rates()
        work.restore_rates()
        feed = None if self.batches is None else self.batches.position()
        return Position(self.n, self.batch, self._loop.batches, feed, self.sums.copy(), lr, work.lend(key=self._loop.key))


class _Losses:
    """Finds the step at which the loss stopped being finite, asking the device once in a thousand steps."""

    def __init__(self, epoch: int, before: int) -> None:
        self._epoch, self._before = epoch, before
        self._losses: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        self._losses.append(loss)
        if len(self._losses) == 1000:
            self.check()

    def check(self) -> None:
        """Raise `NonFiniteLossError` if a loss since the last check was nan or infinite."""
        if not self._losses:
            return
        losses = torch.stack(self._losses)
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            step, value = int(bad[0]), float(losses[bad[0]])
            raise NonFiniteLossError(
                f"train: the loss became {value} in epoch {self._epoch}, step {self._before + step + 1}.",
                cause="The learning rate is probably too high, or the data holds nan or infinite values.",
                fix="Finished epochs are recorded. Try a lower lr (ck.find_lr shows where it breaks) or clip_grad_norm=1.0.",
                epoch=self._epoch,
                step=self._before + step + 1,
                value=value,
            )
        self._before += len(self._losses)
        self._losses.clear()
