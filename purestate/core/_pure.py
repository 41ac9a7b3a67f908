"""`make_step` and `make_loss`: training as plain functions, for people who write their own loop or compose transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from purestate.core._metrics import Metric, Sums, as_metrics
from purestate.core._module import fresh_copy
from purestate.core._own import step_key
from purestate.core._recipe import Recipe
from purestate.core._seeds import preserved_generators, seed_all
from purestate.core._state import State, require
from purestate.core._step import make_gradient_step
from purestate.core._work import Working, isolated

__all__ = ["make_loss", "make_step"]


def make_step(
    state: State, *, metrics: Sequence[Metric | Callable[[Any, Any], Any]] = ()
) -> Callable[[State, Any], tuple[State, dict[str, float]]]:
    """Return the pure function ``step(state, batch) -> (new_state, metrics)``.

    One step of the optimizer and of the step scheduler. The random numbers of a step derive from the key and the step
    counter of the state that goes in, so the same state and batch give the same bits.

    Args:
        state: Says what the recipe is; not modified. The step takes any state of that recipe.
        metrics: Computed beside the loss.

    Returns:
        The step. It modifies neither its arguments nor a global generator; the state it returns owns its memory. It may be
        given as ``train(step=)``, alone or inside a step of your own.

    Raises:
        SetupError: The state lacks a loss or an optimizer.

    Example:
        >>> import purestate as ps
        >>> s = ps.init(lambda: nn.Linear(2, 1), seed=0)
        >>> s = ps.setup(s, loss_cls=nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
        >>> step = make_step(s)
        >>> batch = torch.ones(4, 2), torch.zeros(4, 1)
        >>> step(s, batch)[0] == step(s, batch)[0], step(s, batch)[0] == s
        (True, False)
    """
    recipe = require(state, "loss", "make_step")
    require(state, "optimizer", "make_step")
    known = as_metrics(metrics)
    gradient_step = make_gradient_step(recipe.template, recipe.objective(), known)

    def step(state: State, batch: Any) -> tuple[State, dict[str, float]]:
        state.check()
        sums = Sums(known)
        with isolated(state):
            work = Working(state.replace(recipe=recipe, origin=state.origin))
            seed_all(step_key(state).seed)
            out = gradient_step(work.params, work.frozen, work.buffers, batch)
            work.update(out.gradients, out.buffers)
            work.step_scheduler()
        sums.add(out.loss, out.sums, out.size)
        return state.after({"step": state.counters.step}, work.lend()), sums.means()

    # not the module that it runs on, whose attributes may move
    vars(step)["__purestate_fingerprint__"] = lambda: _content(recipe, known)
    return step


def make_loss(state: State, *, train: bool = True) -> Callable[[Mapping[str, torch.Tensor], Any], torch.Tensor]:
    """Return the pure function ``loss(params, batch)``, which composes with `torch.func.grad`, ``vmap`` and ``jacrev``.

    It draws the random numbers that the next step of `make_step` draws from this state, whatever the parameters.

    Args:
        state: Gives the recipe, the frozen parameters and the buffers; not modified. Buffers that a call would update
            stay as they are.
        train: Whether the module is in train mode.

    Raises:
        SetupError: The state has no loss.

    Example:
        >>> import purestate as ps
        >>> s = ps.setup(ps.init(lambda: nn.Linear(2, 1), seed=0), loss_cls=nn.MSELoss)
        >>> batch = torch.ones(4, 2), torch.zeros(4, 1)
        >>> torch.func.grad(make_loss(s))(dict(s.params), batch)["weight"].shape
        torch.Size([1, 2])
    """
    recipe = require(state, "loss", "make_loss")
    whole = _Whole(recipe.objective(), fresh_copy(recipe.template).train(train))
    state.check()
    frozen, buffers = dict(state.frozen), dict(state.buffers)
    seed = step_key(state).seed

    def loss(params: Mapping[str, torch.Tensor], batch: Any) -> torch.Tensor:
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        with preserved_generators():
            seed_all(seed)
            return functional_call(whole, {f"module.{n}": t for n, t in {**params, **frozen, **copies}.items()}, (batch,))

    return loss


def _content(recipe: Recipe, metrics: Sequence[Metric]) -> dict[str, Any]:
    """All that decides what a step of a recipe computes, for who describes it by content."""
    made = {name: getattr(recipe, name) for name in ("optimizer", "step_scheduler")}
    return {
        "template": recipe.template,
        "loss": [recipe.loss, recipe.loss_args, recipe.loss_fn],
        **{name: f and [f.cls, dict(f.args), f.fn] for name, f in made.items()},
        "clip": [recipe.clip.norm, recipe.clip.value],
        "precision": recipe.precision,
        "deterministic": recipe.deterministic,
        "ema_decay": recipe.ema_decay,
        "metrics": [[metric.name, metric.fn] for metric in metrics],
    }


class _Whole(nn.Module):
    """A module whose forward is the loss, so that `torch.func.functional_call` lends it tensors."""

    def __init__(self, objective: Any, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._objective = (objective,)  # a loss that is a module is not a part of this one

    def forward(self, batch: Any) -> torch.Tensor:
        return self._objective[0](self.module, batch)[0]
