"""One gradient step with Adam, by the library and by the peers that live in torch: each a `Loop`.

The library's step is built here from the parts that `train` is built of (`core._capture`, `core._work`), and nowhere else in
this folder: whoever changes those parts changes `captured` and `uncaptured`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad

import purestate as ps
from benchmarks._measure import Case, timed
from benchmarks._settings import ADAM
from purestate.core._capture import Runner
from purestate.core._seeds import seed_all
from purestate.core._step import make_gradient_step
from purestate.core._work import Working

__all__ = ["WARM", "Batch", "Loop", "captured", "compiled", "functional", "repeat", "stateful", "streamed", "uncaptured"]

Batch = tuple[torch.Tensor, torch.Tensor]

WARM = 4
"""Steps that a loop has behind it: uncaptured, captured, compared, replayed."""


@dataclass(frozen=True)
class Loop:
    """A step to be repeated, and the parameters that it updates. Step ``i`` runs under the seed ``i``."""

    step: Callable[[], object]
    params: Callable[[], Mapping[str, torch.Tensor]]

    def warm(self) -> Loop:
        for _ in range(WARM):
            self.step()
        return self


def repeat(loop: Loop, times: int) -> Case:
    """Return the case of so many steps."""

    def run() -> None:
        for _ in range(times):
            loop.step()

    return timed(run)


def captured(state: ps.State, batch: Batch) -> Loop:
    """The step as `train` takes it: captured and replayed. Cold: it is captured in the first `WARM` steps."""
    assert state.recipe is not None
    work, seeds = Working(state), itertools.count()
    runner = Runner(make_gradient_step(state.recipe.template, state.recipe.objective()))
    runner.start_epoch(1)

    def step() -> None:
        out = runner(work.params, work.frozen, work.buffers, batch, next(seeds))
        work.update(out.gradients, out.buffers)
        if runner.notice is not None:
            raise RuntimeError(f"not captured: {runner.notice}")

    return Loop(step, lambda: work.params)


def uncaptured(state: ps.State, batch: Batch) -> Loop:
    """The same with the capture left out."""
    assert state.recipe is not None
    work, seeds = Working(state), itertools.count()
    gradient_step = make_gradient_step(state.recipe.template, state.recipe.objective())

    def step() -> None:
        seed_all(next(seeds))
        out = gradient_step(work.params, work.frozen, work.buffers, batch)
        work.update(out.gradients, out.buffers)

    return Loop(step, lambda: work.params)


def streamed(state: ps.State, batch: Batch, steps: int) -> Case:
    """The case of an epoch of so many equal batches, through the public stream: with all that `train` does beside the step."""
    epochs = ps.NullStore().checkpoint("a", echo=None).epochs(state, [batch] * steps, epochs=100_000)
    next(epochs)
    next(epochs)
    return timed(lambda: next(epochs))


def stateful(state: ps.State, module: Callable[[], nn.Module], batch: Batch, **options: Any) -> Loop:
    """zero_grad, backward, step: what everybody writes."""
    model, loss_fn, seeds = ps.to_module(state, module()).train(), nn.CrossEntropyLoss(), itertools.count()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM, **options)
    x, y = batch

    def step() -> None:
        torch.default_generator.manual_seed(next(seeds))  # a microsecond; so that dropout can be compared
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()

    return Loop(step, lambda: {name: p.detach() for name, p in model.named_parameters()})


def compiled(module: Callable[[], nn.Module], batch: Batch) -> Loop:
    """The ordinary loop with `torch.compile` over the forward pass with its loss, and over the optimizer."""
    model, loss_fn = module().train(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    loss = torch.compile(lambda x, y: loss_fn(model(x), y))
    update = torch.compile(lambda: optimizer.step())
    x, y = batch

    def step() -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        update()

    return Loop(step, lambda: {name: p.detach() for name, p in model.named_parameters()})


def functional(state: ps.State, module: Callable[[], nn.Module], batch: Batch) -> Loop:
    """`torch.func.grad` of `functional_call`, and an Adam that is a function of dicts: what one writes who wants it pure."""
    model, loss_fn = module().train(), nn.CrossEntropyLoss()
    zeros = {name: torch.zeros_like(p) for name, p in state.params.items()}
    held: list[Any] = [dict(state.params), zeros, zeros, 0]

    def loss(params: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss_fn(functional_call(model, dict(params), (x,)), y)

    def step() -> None:
        params, m, v, t = held
        held[:] = _adam(params, grad(loss)(params, *batch), m, v, t + 1)

    return Loop(step, lambda: held[0])


_Tensors = dict[str, torch.Tensor]


def _adam(params: _Tensors, gradients: _Tensors, m: _Tensors, v: _Tensors, t: int) -> tuple[_Tensors, _Tensors, _Tensors, int]:
    rate, decay = ADAM["lr"], ADAM["weight_decay"]
    gradients = {name: g + decay * params[name] for name, g in gradients.items()}
    m = {name: 0.9 * m[name] + 0.1 * g for name, g in gradients.items()}
    v = {name: 0.999 * v[name] + 0.001 * g * g for name, g in gradients.items()}
    one, two = 1 - 0.9**t, 1 - 0.999**t
    return {name: p - rate * (m[name] / one) / ((v[name] / two).sqrt() + 1e-8) for name, p in params.items()}, m, v, t
