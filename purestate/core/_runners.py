"""How steps are run: which runner a recipe's step gets, and a runner swept over a feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import torch

from purestate.core._batch import Feed
from purestate.core._capture import Runner
from purestate.core._guard import GuardMode
from purestate.core._kept import kept_for
from purestate.core._key import Key, Tag
from purestate.core._metrics import Metric, Sums
from purestate.core._recipe import Recipe
from purestate.core._step import make_evaluate_step, make_gradient_step
from purestate.core._work import Working

__all__ = ["evaluate_runner", "gradient_runner", "plan_of", "sweep"]

_CAPTURE_EVALUATION = 200
"""Batches of a kind after which an evaluation is captured: capturing costs as much as hundreds of them."""


def gradient_runner(recipe: Recipe, metrics: Sequence[Metric], guard: GuardMode, work: Working) -> Runner:
    step = make_gradient_step(recipe.template, recipe.objective(), metrics)
    kept = kept_for(recipe, metrics, training=True)
    if recipe.compile == "inductor":
        from purestate.core._inductor import InductorRunner

        return InductorRunner(step, update=work.optimizer_step, kept=kept, guard=guard)
    return Runner(step, kept=kept, guard=guard)


def evaluate_runner(recipe: Recipe, metrics: Sequence[Metric], guard: GuardMode) -> Runner:
    step = make_evaluate_step(recipe.template, recipe.objective(), metrics)
    kept = kept_for(recipe, metrics, training=False)
    return Runner(step, capture_after=_CAPTURE_EVALUATION, kept=kept, guard=guard)


def plan_of(runner: Runner) -> str:
    """Return what runs a step, as far as it came: ``'inductor'``, ``'captured'`` or ``'uncaptured'``."""
    if runner.compiled:
        return "inductor"
    return "captured" if runner.captured else "uncaptured"


def sweep(
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
