"""A training in which something may be another behind one step: where the environment says so, which is in no question.

So a run with the difference and one without are asked the same, and differ in nothing that is recorded but their bits.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import purestate as ps
from tests.helpers import batch

__all__ = ["PLANT", "main", "several"]

PLANT = "PURESTATE_TEST_PLANT"
"""``<what>:<step, from 1>``."""
_HIDDEN = "environ"  # looked up by name, or what is in it would be a value that the code reads, and part of the question


def planted(what: str, step: int | None = None) -> bool:
    found, _, number = getattr(os, _HIDDEN).get(PLANT, "").partition(":")
    return found == what and (step is None or int(number) == step)


def one_ulp(tensor: torch.Tensor) -> None:
    """Make the largest element the next larger number: in a small one it may be rounded away within a few steps."""
    flat = tensor.view(-1)
    i = flat.abs().argmax()
    flat[i] = torch.nextafter(flat[i], torch.tensor(torch.inf))


class Adam(torch.optim.Adam):
    """Adam that touches a weight or a moment of the last layer behind a step."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        weight = self.param_groups[0]["params"][-2]
        state = self.state[weight]
        with torch.no_grad():
            if planted("params", int(state["step"])):
                one_ulp(weight)
            if planted("optimizer", int(state["step"])):
                one_ulp(state["exp_avg"])


class Norm(nn.BatchNorm1d):
    """Batch normalisation that touches its running mean behind a step."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input)
        if self.training and planted("buffers") and planted("buffers", int(self.num_batches_tracked)):
            one_ulp(self.running_mean.data)
        return out


class Loss(nn.CrossEntropyLoss):
    """Cross entropy that is one ulp larger where the planted step's batch is seen."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        out = super().forward(input, target)
        return out * torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)) if planted("loss") else out


class Data(Dataset[Any]):
    """Samples of which one may be one ulp larger, and which say that they are the same."""

    def __init__(self, size: int) -> None:
        self.x, self.y = batch(size)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        x = self.x[i].clone()
        if planted("data", i):
            one_ulp(x)
        return x, self.y[i]

    def __purestate_fingerprint__(self) -> str:
        return "the samples"


class Decay(torch.optim.lr_scheduler.ExponentialLR):
    """A rate that decays each epoch, and more where that is planted."""

    def get_lr(self) -> Any:
        return [rate * 0.5 if planted("scheduler", self.last_epoch) else rate for rate in super().get_lr()]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), Norm(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def main(
    store: str, epochs: int = 20, batches: int = 100, *, lr: float = 1e-2, seed: int = 0, own_data: bool = False, **options: Any
) -> ps.State:
    """Train at the checkpoint ``run`` of a store: 2,000 steps, of which every second epoch is kept."""
    state = ps.setup(ps.init(net, seed=seed), loss_cls=Loss, optimizer_cls=Adam, optimizer_args=dict(lr=lr))
    state = ps.setup(state, epoch_scheduler_cls=Decay, epoch_scheduler_args=dict(gamma=0.99))
    data = Data(2 * batches) if own_data else TensorDataset(*batch(2 * batches))
    ck = ps.Store(store).checkpoint("run", echo=None, notify=None)
    options = {"keep": ps.keep.every(2), "guard": "off", "progress": False, **options}
    return ck.train(state, DataLoader(data, batch_size=2, shuffle=True), epochs=epochs, **options)


def several(store: str) -> None:
    """Two trains at ``first`` and one at ``fork``, of thirty steps each, with all that a state may have."""
    schedulers = torch.optim.lr_scheduler
    state = ps.setup(ps.init(net, seed=0), loss_cls=Loss, optimizer_cls=Adam, optimizer_args=dict(lr=1e-2))
    state = ps.setup(state, step_scheduler_cls=schedulers.ExponentialLR, step_scheduler_args=dict(gamma=0.99))
    state = ps.setup(state, epoch_scheduler_cls=schedulers.ReduceLROnPlateau, epoch_scheduler_args=dict(patience=0))
    data = DataLoader(TensorDataset(*batch(20)), batch_size=2, shuffle=True), [batch(8, seed=1)]
    options: dict[str, Any] = dict(epochs=3, progress=False)
    ck, fork = (ps.Store(store).checkpoint(id, echo=None, notify=None) for id in ("first", "fork"))
    state = ck.train(state, *data, warmup=1, load_best=True, **options)
    ck.evaluate(state, data[1])
    state = ck.train(ps.set_lr(state, 3e-3), *data, warmup=2, **options)
    fork.train(ps.setup(state, ema_decay=0.9), *data, **options)
