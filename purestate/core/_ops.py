"""The ops: `train` as a generator of epochs, `evaluate`, `find_lr`, `predict`. Pure, and unaware of any log.

Each is a function of a State, of feeds (batches as a function of a key) and of plain arguments. What the caller's global
generators were is put back before control returns, at a yield, a return or an exception.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from purestate.core._batch import Batches, Feed
from purestate.core._capture import Runner
from purestate.core._guard import GuardMode, check_guard, guarded
from purestate.core._kept import kept_for
from purestate.core._key import Key, Tag
from purestate.core._metrics import Metric, Sums
from purestate.core._position import Keeper, Position
from purestate.core._recipe import Recipe
from purestate.core._state import State, require
from purestate.core._step import make_evaluate_step, make_gradient_step, make_predict_step
from purestate.core._work import Working, isolated
from purestate.errors import NonFiniteLossError, SetupError

__all__ = ["Epoch", "advanced", "begun", "evaluate", "find_lr", "predict", "train"]

_CAPTURE_EVALUATION = 200
"""Batches of a kind after which an evaluation is captured: capturing costs as much as hundreds of them."""

_SMOOTHING = 0.9
"""How much of the average loss stays with each step of `find_lr`; the rest is the new loss."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch of `train` gives.

    Args:
        n: Its number within the op, from 1; 0 is the evaluation before the first.
        epoch: Its number over the life of the state.
        metrics: ``train_loss``, ``val_loss`` and the others, as Python floats.
        lr: The learning rate of each parameter group during the epoch's last step.
        state: The state after the epoch, **lent**: its tensors change with the next epoch. ``state.own()`` keeps it.
    """

    n: int
    epoch: int
    metrics: dict[str, float]
    lr: list[float]
    state: State


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

    Yields:
        The evaluation before the first epoch as number 0 (with ``val_feed`` and without ``done``), then every epoch.

    Raises:
        NonFiniteLossError: The training loss of an epoch was nan or infinite, with the step.
        ImpurityError: A step moved what is in no state, or depends on such.
        SetupError: The state lacks a loss or an optimizer, or a plateau scheduler has nothing to watch.
    """
    check_guard(guard, "train")
    require(state, "loss", "train")
    require(state, "optimizer", "train")
    state.check()
    with isolated(state):
        loop = _Loop(state, feed, val_feed, metrics, warmup, watch, key or state.key, keeper, notices, lap, guard)
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
        yield Epoch(n, loop.work.epoch, values, lr, lent)


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
    ) -> None:
        assert state.recipe is not None
        self._lap = lap
        self.key, self.metrics, self.watch, self.warmup = key, metrics, watch, warmup
        self._feed, self._val_feed, self._keeper, self._notices = feed, val_feed, keeper, notices
        self._told: set[str] = set()
        self.work = Working(state)
        self._train = _gradient_runner(state.recipe, metrics, guard, self.work)
        self._evaluate = _evaluate_runner(state.recipe, metrics, guard)
        if val_feed is None:
            self.work.refuse_metric_schedulers()

    def epoch(self, n: int, position: Position | None) -> tuple[dict[str, float], list[float]]:
        """Train for one epoch, validate, step the epoch scheduler. Returns metrics and the learning rates of its last step."""
        work, lap, keeper = self.work, self._lap, self._keeper
        progress = _Progress(self, n, position)
        sums, losses = progress.sums, progress.losses
        self._train.start_epoch(n)
        warming = work.rates() if n <= self.warmup else None
        size = self._feed.batches
        first, steps = (n - 1) * size + progress.batch, self.warmup * size
        seeds = self.key.fold_in(Tag.STEP).seeds(first, n * size).tolist()
        where = None if position is None else position.feed
        with closing(self._feed.epoch(self.key.derive(Tag.ORDER, n), progress.batch, where)) as batches:
            progress.batches = batches
            for i, (batch, seed) in enumerate(zip(batches, seeds, strict=True), first + 1):
                lap("data")
                if warming is not None:
                    work.set_rates(warming, i / steps)
                if keeper is not None and progress.forward_writes:
                    keeper.release()
                out = self._train(work.params, work.frozen, work.buffers, batch, seed)
                lap("step")
                if keeper is not None:
                    keeper.release()
                work.update(out.gradients, out.buffers)
                lap("optimizer")
                sums.add(out.loss, out.sums, out.size)
                losses.add(out.loss)
                progress.batch += 1
                if progress.batch == size:
                    progress.lr = work.rates()
                if warming is None:
                    work.step_scheduler()
                del out  # or its gradients would be in memory beside those of the next step
                lap("metrics")
                if keeper is not None:
                    keeper.between(progress.position, trained=True)
        if warming is not None:
            work.restore_rates()
        losses.check()
        values = {f"train_{name}": value for name, value in sums.means().items()}
        lap("metrics")
        values |= self.validate(n, progress.position)
        if warming is None:
            if keeper is not None:
                keeper.release()  # a scheduler may write into tensors: a learning rate, its own
            work.epoch_scheduler(values.get(f"val_{self.watch}"))
        work.epoch += 1
        self._tell(self._train)
        return values, progress.lr

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        return self._feed.batches

    @property
    def forward_writes(self) -> bool:
        """Whether the next call may write into parameters: so it is where it is not captured, as far as anybody knows."""
        return not self._train.captured or self._train.writes

    def validate(self, n: int, position: Callable[[], Position] | None) -> dict[str, float]:
        """Evaluate the working state after epoch ``n``, which is where ``position`` is."""
        if self._val_feed is None:
            return {}
        work, keeper = self.work, self._keeper
        self._evaluate.start_epoch(n)
        values = _sweep(
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

    def _tell(self, runner: Runner) -> None:
        if runner.notice is not None and self._notices is not None and runner.notice not in self._told:
            self._told.add(runner.notice)
            self._notices.append(runner.notice)


class _Progress:
    """How far an epoch has come."""

    def __init__(self, loop: _Loop, n: int, start: Position | None) -> None:
        self._loop, self._n = loop, n
        self.batch = 0 if start is None else start.batch
        self.lr: list[float] = [] if start is None else start.lr
        self.sums = Sums(loop.metrics) if start is None else start.sums
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
        return Position(self._n, self.batch, self._loop.batches, feed, self.sums.copy(), lr, work.lend(key=self._loop.key))


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


def evaluate(state: State, feed: Feed, *, metrics: Sequence[Metric] = (), guard: GuardMode = "first") -> dict[str, float]:
    """Return the mean loss and metrics of a state over a loader, in eval mode.

    Args:
        state: Not modified, not advanced.
        feed: The batches.
        metrics: Computed beside the loss.
        guard: As for `train`.

    Returns:
        ``{'loss': …, 'accuracy': …}``, weighted by samples.

    Raises:
        SetupError: The state has no loss.
        ImpurityError: As for `train`.
    """
    check_guard(guard, "evaluate")
    recipe = require(state, "loss", "evaluate")
    state.check()
    with isolated(state):
        runner = _evaluate_runner(recipe, metrics, guard)
        return _sweep(
            runner, dict(state.params), dict(state.frozen), dict(state.buffers), feed, state.key.derive(Tag.EVALUATE), metrics
        )


def _gradient_runner(recipe: Recipe, metrics: Sequence[Metric], guard: GuardMode, work: Working) -> Runner:
    step = make_gradient_step(recipe.template, recipe.objective(), metrics)
    kept = kept_for(recipe, metrics, training=True)
    if recipe.compile == "inductor":
        from purestate.core._inductor import InductorRunner

        return InductorRunner(step, update=work.optimizer_step, kept=kept, guard=guard)
    return Runner(step, kept=kept, guard=guard)


def _evaluate_runner(recipe: Recipe, metrics: Sequence[Metric], guard: GuardMode) -> Runner:
    step = make_evaluate_step(recipe.template, recipe.objective(), metrics)
    kept = kept_for(recipe, metrics, training=False)
    return Runner(step, capture_after=_CAPTURE_EVALUATION, kept=kept, guard=guard)


def _sweep(
    runner: Runner,
    params: dict[str, torch.Tensor],
    frozen: dict[str, torch.Tensor],
    buffers: dict[str, torch.Tensor],
    feed: Feed,
    key: Key,
    metrics: Sequence[Metric],
    after: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    sums = Sums(metrics)
    seeds = key.fold_in(Tag.STEP).seeds(0, feed.batches).tolist()
    with closing(feed.epoch(key)) as batches:
        for batch, seed in zip(batches, seeds, strict=True):
            out = runner(params, frozen, buffers, batch, seed)
            sums.add(out.loss, out.sums, out.size)
            after()
    return sums.means()


def predict(state: State, feed: Feed, *, guard: GuardMode = "first") -> list[Any]:
    """Return what the module returns for each batch of a loader, in eval mode.

    Args:
        state: Not modified, not advanced.
        feed: The batches. Of a tuple all but the last entry are inputs, if it has more than one.
        guard: As for `train`.

    Raises:
        ImpurityError: As for `train`.
    """
    check_guard(guard, "predict")
    recipe = require(state, "template", "predict")
    state.check()
    objective = recipe.objective() if recipe.has_loss else None
    step = guarded(make_predict_step(recipe.template, objective), guard)
    params, frozen, buffers = dict(state.params), dict(state.frozen), dict(state.buffers)
    key = state.key.derive(Tag.PREDICT)
    outputs: list[Any] = []
    with isolated(state), closing(feed.epoch(key)) as batches:
        seeds = key.fold_in(Tag.STEP).seeds(0, feed.batches).tolist()
        for batch, seed in zip(batches, seeds, strict=True):
            outputs.append(step(params, frozen, buffers, batch, seed))
    return outputs


def find_lr(
    state: State,
    feed: Feed,
    *,
    min_rate: float = 1e-8,
    max_rate: float = 1.0,
    epochs: int = 1,
    guard: GuardMode = "first",
) -> tuple[list[float], list[float], float | None]:
    """Train on a copy with a learning rate that rises exponentially, one rate a step, and return the losses.

    The learning rate range test of Smith, "Cyclical learning rates for training neural networks" (2017). The optimizer goes
    on from its state; schedulers are left out. What comes after the first loss that is not finite is left out too.

    Args:
        state: Not modified, not advanced.
        feed: The batches.
        min_rate: The first rate.
        max_rate: The last.
        epochs: Over how many epochs the rates are spread.
        guard: As for `train`.

    Returns:
        ``(rates, losses, suggestion)``: the suggestion is where the smoothed loss falls fastest on the logarithmic axis.

    Raises:
        SetupError: The state lacks a loss or an optimizer, or the rates are no range.
        ImpurityError: As for `train`.
    """
    check_guard(guard, "find_lr")
    require(state, "loss", "find_lr")
    recipe = require(state, "optimizer", "find_lr")
    numbers = all(isinstance(rate, (int, float)) for rate in (min_rate, max_rate)) and isinstance(epochs, int)
    if not numbers or not 0 < min_rate < max_rate or epochs < 1:
        raise SetupError(
            f"find_lr: expected 0 < min_rate < max_rate and a whole number of epochs of at least 1, "
            f"got {min_rate!r}, {max_rate!r}, {epochs!r}."
        )
    state.check()
    bare = recipe.replace(epoch_scheduler=None, step_scheduler=None, ema_decay=None)
    key, steps = state.key.derive(Tag.FIND_LR), epochs * feed.batches
    rates = [min_rate * (max_rate / min_rate) ** (i / max(steps - 1, 1)) for i in range(steps)]
    losses: list[torch.Tensor] = []
    with isolated(state):
        work = Working(state.replace(recipe=bare, epoch_scheduler=None, step_scheduler=None, ema=None, origin=state.origin))
        runner = _gradient_runner(recipe, (), guard, work)
        seeds = key.fold_in(Tag.STEP).seeds(0, steps).tolist()
        for n in range(epochs):
            with closing(feed.epoch(key.derive(Tag.ORDER, n + 1))) as batches:
                for i, batch in enumerate(batches, n * feed.batches):
                    work.set_all_rates(rates[i])
                    out = runner(work.params, work.frozen, work.buffers, batch, seeds[i])
                    work.update(out.gradients, out.buffers)
                    losses.append(out.loss)
                    del out
    values = [float(value) for value in torch.stack(losses)]
    finite = list(itertools.takewhile(math.isfinite, values))
    return rates[: len(finite)], finite, _steepest(rates, finite)


def _steepest(rates: list[float], losses: list[float]) -> float | None:
    """The rate at which the exponentially smoothed loss falls fastest, before its minimum; None where it never falls."""
    smooth: list[float] = []
    average = 0.0
    for i, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smooth.append(average / (1 - _SMOOTHING**i))
    lowest = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    slopes = [(smooth[i + 1] - smooth[i - 1], i) for i in range(1, lowest)]
    slope, at = min(slopes, default=(0.0, 0))
    return rates[at] if slope < 0 else None
