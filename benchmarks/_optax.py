"""Run by ``interop``: steps of Adam on the CNN, by Optax and by torch, in a process that may import JAX."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

if os.environ.get("OMP_NUM_THREADS") == "1":  # as many threads as torch has
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
os.environ["JAX_PLATFORMS"] = "cpu"

import optax
import torch
from torch import nn

import purestate as ps
from benchmarks._measure import interleave
from benchmarks._models import CNN
from benchmarks._settings import ADAM
from benchmarks._steps import Loop, captured, repeat, stateful
from purestate.core._work import Working

rounds, times = map(int, sys.argv[1:])
batch = torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
adam = optax.chain(optax.add_decayed_weights(ADAM["weight_decay"]), optax.adam(ADAM["lr"]))
s0 = ps.setup(ps.init(CNN, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam, optimizer_args=ADAM)
by_optax = ps.setup(s0, optimizer_fn=ps.optax(adam))
gradients = {name: torch.randn(p.shape) for name, p in s0.params.items()}


def update(state: ps.State) -> Loop:
    work = Working(state)
    return Loop(lambda: work.update(dict(gradients), {}), lambda: work.params)


def plain() -> Loop:
    params = {name: nn.Parameter(p.clone()) for name, p in s0.params.items()}
    optimizer = torch.optim.Adam(params.values(), **ADAM)

    def step() -> None:
        for name, p in params.items():
            p.grad = gradients[name]
        optimizer.step()

    return Loop(step, lambda: params)


loops: dict[str, Callable[[], Loop]] = {
    "update, optax": lambda: update(by_optax),
    "update, torch": plain,
    "update, ours": lambda: update(s0),
    "step, optax": lambda: captured(by_optax, batch),
    "step, torch": lambda: stateful(s0, CNN, batch),
}
cases = {name: repeat(make().warm(), 10 * times if name.startswith("update") else times) for name, make in loops.items()}
print(json.dumps(interleave(cases, rounds)))
