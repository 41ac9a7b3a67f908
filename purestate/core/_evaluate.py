"""`evaluate` and `predict`: what a state says of a feed. Pure: they read a state and move nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from purestate.core._batch import Feed
from purestate.core._guard import GuardMode, check_guard, guarded
from purestate.core._key import Tag
from purestate.core._metrics import Metric
from purestate.core._runners import evaluate_runner, plan_of, sweep
from purestate.core._state import State, require
from purestate.core._step import make_predict_step
from purestate.core._work import isolated

__all__ = ["evaluate", "predict"]


def evaluate(
    state: State,
    feed: Feed,
    *,
    metrics: Sequence[Metric] = (),
    guard: GuardMode = "first",
    plan: dict[str, str] | None = None,
) -> dict[str, float]:
    """Return the mean loss and metrics of a state over a loader, in eval mode.

    Args:
        state: Not modified, not advanced.
        feed: The batches.
        metrics: Computed beside the loss.
        guard: As for `train`.
        plan: What ran the last step is noted in it.

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
        runner = evaluate_runner(recipe, metrics, guard)
        trees = dict(state.params), dict(state.frozen), dict(state.buffers)
        found = sweep(runner, *trees, feed, state.key.derive(Tag.EVALUATE), metrics)
    if plan is not None:
        plan["step"] = plan_of(runner)
    return found


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
