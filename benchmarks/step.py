"""One training step: as `train` takes it (captured, and with the capture left out) against zero_grad, backward, step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from benchmarks._measure import Case, Row, compare, timed
from benchmarks._models import ADAM, CNN, MLP, Transformer, adam_state
from purestate.core._capture import Runner
from purestate.core._seeds import seed_all
from purestate.core._step import make_gradient_step
from purestate.core._work import Working

__all__ = ["rows"]

Batch = tuple[torch.Tensor, torch.Tensor]


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    target = torch.randint(10, (32,))
    models: dict[str, tuple[type[nn.Module], Batch, int]] = {
        "MLP, batch 32": (MLP, (torch.rand(32, 64), target), 200),
        "CNN with BatchNorm, batch 32": (CNN, (torch.rand(32, 64), target), 60),
        "transformer, 2 layers, dropout, batch 32": (Transformer, (torch.randint(100, (32, 32)), target), 12),
    }
    found: list[Row] = []
    for name, (module, batch, steps) in models.items():
        cases = {
            "purestate": _repeat(_captured(module, batch), steps),
            "backward()": _repeat(_stateful(module, batch), steps),
            "purestate, uncaptured": _repeat(_uncaptured(module, batch), steps),
        }
        found += compare("step", f"step of {name}", cases, 5 if quick else 25, unit="us", times=steps)
    return found


def _repeat(step: Callable[[], object], times: int) -> Case:
    def run() -> None:
        for _ in range(times):
            step()

    return timed(run)


def _captured(module: type[nn.Module], batch: Batch) -> Callable[[], object]:
    state = adam_state(module)
    assert state.recipe is not None
    work, seeds = Working(state), itertools.count()
    runner = Runner(make_gradient_step(state.recipe.template, state.recipe.objective()))

    def step() -> None:
        out = runner(work.params, work.frozen, work.buffers, batch, next(seeds))
        work.update(out.gradients, out.buffers)

    runner.start_epoch(1)
    for _ in range(4):  # uncaptured, captured, compared, replayed
        step()
    if runner.captured != 1:
        raise RuntimeError(f"{module.__name__} was not captured: {runner.notice}")
    return step


def _uncaptured(module: type[nn.Module], batch: Batch) -> Callable[[], object]:
    state = adam_state(module)
    assert state.recipe is not None
    work, seeds = Working(state), itertools.count()
    gradient_step = make_gradient_step(state.recipe.template, state.recipe.objective())

    def step() -> None:
        seed_all(next(seeds))
        out = gradient_step(work.params, work.frozen, work.buffers, batch)
        work.update(out.gradients, out.buffers)

    step()
    return step


def _stateful(module: type[nn.Module], batch: Batch) -> Callable[[], object]:
    model, loss_fn = module().train(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    x, y = batch

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()

    step()
    return step
