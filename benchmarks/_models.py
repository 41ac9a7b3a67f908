"""What is trained: digits and an MLP, a CNN, a transformer; and the loops by hand that `train` is held against."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import purestate as ps

__all__ = ["ADAM", "CNN", "MLP", "Transformer", "adam_state", "by_hand", "digits", "on_device_sums"]

Data = tuple[torch.Tensor, torch.Tensor]

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"
ADAM = dict(lr=5e-3, weight_decay=5e-4)
_example = runpy.run_path(str(EXAMPLE))
MLP: type[nn.Module] = _example["MLP"]
CNN: type[nn.Module] = _example["CNN"]
DECAY = dict(step_size=10, gamma=0.2)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def digits() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the example's loaders: 1,438 scans to train on, in batches of 32, and 359 to validate."""
    return _example["loaders"]()


def adam_state(module: type[nn.Module], seed: int = 0, *, decay: bool = False) -> ps.State:
    """Return the state of a module, set up with cross entropy, Adam and, if asked for, StepLR."""
    scheduler: dict[str, Any] = (
        dict(epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR, epoch_scheduler_args=DECAY) if decay else {}
    )
    state = ps.init(module, seed=seed)
    return ps.setup(state, loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam, optimizer_args=ADAM, **scheduler)


def by_hand(train: Iterable[Any], val: Iterable[Any], epochs: int, seed: int) -> dict[str, torch.Tensor]:
    """Train the MLP as tutorials do: losses and hits are added up as Python numbers, the best weights are kept in memory."""
    torch.manual_seed(seed)
    model, loss_fn = MLP(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, **DECAY)
    best, best_weights, history = -1.0, model.state_dict(), []
    for _ in range(epochs):
        model.train()
        total, hits, n = 0.0, 0, 0
        for x, y in train:
            optimizer.zero_grad()
            out = model(x)
            loss = loss_fn(out, y)
            loss.backward()
            optimizer.step()
            total, hits, n = total + loss.item() * len(x), hits + (out.argmax(1) == y).sum().item(), n + len(x)
        model.eval()
        val_total, val_hits, val_n = 0.0, 0, 0
        with torch.no_grad():
            for x, y in val:
                out = model(x)
                val_total, val_hits = val_total + loss_fn(out, y).item() * len(x), val_hits + (out.argmax(1) == y).sum().item()
                val_n += len(x)
        scheduler.step()
        history.append((total / n, hits / n, val_total / val_n, val_hits / val_n))
        if val_hits / val_n > best:
            best, best_weights = val_hits / val_n, copy.deepcopy(model.state_dict())
    return best_weights


def on_device_sums(train: Data, val: Data, epochs: int, seed: int) -> dict[str, torch.Tensor]:
    """Train the MLP as somebody does who has profiled: no `DataLoader`, batches by `index_select`, one ``.item()`` an epoch."""
    torch.manual_seed(seed)
    model, loss_fn = MLP(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, **DECAY)
    best, best_weights, history = -1.0, model.state_dict(), []
    for _ in range(epochs):
        model.train()
        total, hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for x, y in _selected(train, 32, torch.randperm(len(train[0]))):
            optimizer.zero_grad()
            out = model(x)
            loss = loss_fn(out, y)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                total += loss.detach() * len(x)
                hits += (out.argmax(1) == y).sum()
        model.eval()
        val_total, val_hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        with torch.no_grad():
            for x, y in _selected(val, 256, torch.arange(len(val[0]))):
                out = model(x)
                val_total += loss_fn(out, y) * len(x)
                val_hits += (out.argmax(1) == y).sum()
        scheduler.step()
        accuracy = val_hits.item() / len(val[0])
        history.append((total.item() / len(train[0]), hits.item() / len(train[0]), val_total.item() / len(val[0]), accuracy))
        if accuracy > best:
            best, best_weights = accuracy, copy.deepcopy(model.state_dict())
    return best_weights


def _selected(data: Data, batch_size: int, order: torch.Tensor) -> Iterable[Data]:
    for rows in order.split(batch_size):
        yield data[0].index_select(0, rows), data[1].index_select(0, rows)
