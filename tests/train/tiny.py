"""The smallest models, blocks and scripts of the stateful face."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purestate import train
from purestate.run._ledger import Ledger
from tests.helpers import Mlp, build
from tests.run.tiny import loader

__all__ = ["ASK", "SETUP", "block", "built", "digits", "folders", "fresh_seeds", "model", "records", "train_dl", "val_dl"]

SETUP: dict[str, Any] = dict(
    loss_cls=nn.CrossEntropyLoss,
    optimizer_cls=torch.optim.Adam,
    optimizer_args=dict(lr=0.05),
    epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR,
    epoch_scheduler_args=dict(step_size=2, gamma=0.5),
)
ASK: dict[str, Any] = dict(watch="accuracy", epochs=2, metrics=[train.metric_accuracy])
_seeds = itertools.count()


def fresh_seeds() -> None:
    """Let `built` begin anew, so that a test does not depend on those before it."""
    global _seeds
    _seeds = itertools.count(1000)


def built(cls: type[nn.Module] = Mlp, **arguments: Any) -> nn.Module:
    """Return a module with weights that no other call gets, as a builder without a seed does."""
    return build(cls, next(_seeds), **arguments)


def train_dl(size: int = 16) -> Any:
    return loader(size)


def val_dl(size: int = 8) -> Any:
    return loader(size, seed=1, shuffle=False)


def model(id: str = "net", module: nn.Module | None = None, **options: Any) -> train.Model:
    """Return a model as another process of the same script would make it: under the same id, with other weights."""
    return train.Model(id, built() if module is None else module, **options)


def block(
    m: train.Model, id: Any = 1, trains: int = 1, setup: dict[str, Any] | None = SETUP, **ask: Any
) -> train.ModelCheckpoint:
    """Run a block: a setup, if one is given, and some trains."""
    with m.checkpoint(id) as cp:
        if setup is not None:
            cp.setup(**setup)
        for _ in range(trains):
            cp.train(train_dl(), val_dl(), **{**ASK, **ask})
    return cp


def records(m: train.Model, id: Any = None, kind: str | None = None) -> int:
    """How many records a checkpoint has; all of the model's, if no id is given."""
    ids = [m.id, *(info.id for info in m.checkpoints())] if id is None else [m.place.name(m.id, id)]
    logs = [Ledger(m.store._backend, name).log.records for name in ids]
    return sum(kind in (None, record.kind) for log in logs for record in log)


def folders(place: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no folder."""
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def digits(path: Path) -> tuple[Any, Any]:
    """Return loaders of the digits in a file that the fixture of this name wrote: 96 to train, shuffled, and 48 to validate."""
    from torch.utils.data import DataLoader, TensorDataset

    x, y = torch.load(path, weights_only=True)
    return (
        DataLoader(TensorDataset(x[:96], y[:96]), batch_size=16, shuffle=True),
        DataLoader(TensorDataset(x[96:144], y[96:144]), batch_size=48),
    )
