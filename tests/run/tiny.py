"""The smallest training there is, with every part of it open to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps
from tests.helpers import Mlp, batch

__all__ = ["Ask", "checkpoint", "loader", "start"]


def loader(size: int = 8, *, seed: int = 0, batch_size: int = 4, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*batch(size, seed=seed)), batch_size=batch_size, shuffle=shuffle, **options)


def start(module: Callable[[], nn.Module] = Mlp, *, seed: int = 0, lr: float = 0.05, **recipe: Any) -> ps.State:
    """Return a state that can be trained: SGD with momentum, so that moments matter, and cross entropy."""
    arguments = dict(optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=lr, momentum=0.9), loss_cls=nn.CrossEntropyLoss)
    return ps.setup(ps.init(module, seed=seed), **{**arguments, **recipe})


def checkpoint(store: Any = None, id: str = "a") -> ps.Checkpoint:
    return (store or ps.MemoryStore()).checkpoint(id, echo=None)


@dataclass
class Ask:
    """A call of train, from nothing. Each part can be changed alone."""

    module: Callable[[], nn.Module] = Mlp
    seed: int = 0
    recipe: dict[str, Any] = field(
        default_factory=lambda: dict(epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR, epoch_scheduler_args=dict(step_size=2))
    )
    lr: float = 0.05
    train_dl: Any = field(default_factory=loader)
    val_dl: Any = field(default_factory=lambda: loader(4, seed=1, shuffle=False))
    options: dict[str, Any] = field(default_factory=lambda: dict(epochs=2, metrics=[ps.metric_accuracy]))

    def state(self) -> ps.State:
        return start(self.module, seed=self.seed, lr=self.lr, **self.recipe)

    def of(self, ck: ps.Checkpoint, **options: Any) -> ps.State:
        return ck.train(self.state(), self.train_dl, self.val_dl, **{**self.options, **options})
