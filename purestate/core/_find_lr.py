"""`find_lr`: the learning rate range test. Pure: it works on a copy of what a state holds."""

from __future__ import annotations

import itertools
import math
from contextlib import closing

import torch

from purestate.core._batch import Feed
from purestate.core._guard import GuardMode, check_guard
from purestate.core._key import Tag
from purestate.core._optim import require_rates
from purestate.core._runners import gradient_runner, plan_of
from purestate.core._state import State, require
from purestate.core._work import Working, isolated
from purestate.errors import SetupError

__all__ = ["find_lr"]

_SMOOTHING = 0.9
"""How much of the average loss stays with each step of `find_lr`; the rest is the new loss."""


def find_lr(
    state: State,
    feed: Feed,
    *,
    min_rate: float = 1e-8,
    max_rate: float = 1.0,
    epochs: int = 1,
    guard: GuardMode = "first",
    plan: dict[str, str] | None = None,
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
        plan: What ran the last step is noted in it.

    Returns:
        ``(rates, losses, suggestion)``: the suggestion is where the smoothed loss falls fastest on the logarithmic axis.

    Raises:
        SetupError: The state lacks a loss or an optimizer, or the rates are no range.
        ImpurityError: As for `train`.
    """
    check_guard(guard, "find_lr")
    require(state, "loss", "find_lr")
    recipe = require(state, "optimizer", "find_lr")
    require_rates(recipe.optimizer, "find_lr: a rate is swept", "optimizer_fn")
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
        runner = gradient_runner(recipe, (), guard, work)
        seeds = key.fold_in(Tag.STEP).seeds(0, steps).tolist()
        for n in range(epochs):
            with closing(feed.epoch(key.derive(Tag.ORDER, n + 1))) as batches:
                for i, batch in enumerate(batches, n * feed.batches):
                    work.set_all_rates(rates[i])
                    out = runner(work.params, work.frozen, work.buffers, batch, seeds[i])
                    work.update(out.gradients, out.buffers)
                    losses.append(out.loss)
                    del out
    if plan is not None:
        plan |= {"step": plan_of(runner), "optimizer": work.optimizer_step.plan}
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
