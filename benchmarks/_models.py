"""What is trained, in torch: digits and an MLP, the models of the step; and the loops by hand that `train` is held against."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import purestate as ps
from benchmarks._settings import ADAM, BATCH, DECAY, STEP_WIDTHS
from purestate.core._key import Tag

__all__ = [
    "CNN",
    "MLP",
    "StepMLP",
    "Transformer",
    "WideTransformer",
    "adam_state",
    "by_hand",
    "digits",
    "on_device_sums",
    "same_bits",
    "seeds_of",
]

Data = tuple[torch.Tensor, torch.Tensor]
Seeds = Iterable[tuple[int, Iterable[int]]]
"""For each epoch the seed of its order, and the seeds of its steps."""
Trained = tuple[dict[str, torch.Tensor], list[float]]
"""The best weights; and for each epoch the loss in validation."""

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"
_example = runpy.run_path(str(EXAMPLE))
MLP: type[nn.Module] = _example["MLP"]


class StepMLP(nn.Sequential):
    """64, 128, 10; batches of 64."""

    def __init__(self) -> None:
        inputs, hidden, outputs = STEP_WIDTHS
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class CNN(nn.Sequential):
    """Two convolutions with batch normalisation, for pictures of 28 by 28."""

    def __init__(self) -> None:
        super().__init__(*_block(1, 16), *_block(16, 32), nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def _block(inputs: int, outputs: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(inputs, outputs, 3, padding=1)
    yield nn.BatchNorm2d(outputs)
    yield nn.ReLU()
    yield nn.MaxPool2d(2)


class Transformer(nn.Module):
    """An encoder with dropout: small, so that what surrounds the arithmetic counts."""

    width, layers = 64, 2

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, self.width)
        layer = nn.TransformerEncoderLayer(self.width, 4, 2 * self.width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, self.layers, enable_nested_tensor=False)
        self.head = nn.Linear(self.width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class WideTransformer(Transformer):
    """The same, so large that only the arithmetic counts."""

    width, layers = 128, 4


def digits() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the example's loaders: 1,438 scans to train on, in batches of 32, and 359 to validate."""
    return _example["loaders"]()


def adam_state(
    module: type[nn.Module], seed: int = 0, *, decay: bool = False, setup: Mapping[str, Any] | None = None
) -> ps.State:
    """Return the state of a module, set up with cross entropy, Adam and, if asked for, StepLR.

    Args:
        module: Built under the seed.
        seed: Of the state.
        decay: Whether the learning rate decays.
        setup: Further arguments for `ps.setup`, or other ones.
    """
    arguments: dict[str, Any] = dict(loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam, optimizer_args=ADAM)
    if decay:
        arguments |= dict(epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR, epoch_scheduler_args=DECAY)
    return ps.setup(ps.init(module, seed=seed), **arguments | dict(setup or {}))


def seeds_of(state: ps.State, epochs: int, batches: int) -> list[tuple[int, list[int]]]:
    """Return the seeds that a `train` of this state takes, so that a loop by hand draws the same order and dropout."""
    key, steps = state.key, state.key.fold_in(Tag.STEP)
    return [
        (key.derive(Tag.ORDER, n).derive(Tag.ORDER, 0).seed, steps.seeds((n - 1) * batches, n * batches).tolist())
        for n in range(1, epochs + 1)
    ]


def same_bits(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two sets of weights are equal to the bit."""
    return ours.keys() == theirs.keys() and all(
        torch.equal(t.view(torch.uint8), theirs[n].view(torch.uint8)) for n, t in ours.items()
    )


def by_hand(model: nn.Module, train: Iterable[Any], val: Iterable[Any], seeds: Seeds) -> Trained:
    """Train a model as tutorials do: losses and hits are added up as Python numbers, the best weights are kept in memory.

    Before each epoch and each step torch's generator is seeded (a microsecond a step), so that the bits can be compared.
    """
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, **DECAY)
    best, best_weights, history = -1.0, model.state_dict(), []
    for order, steps in seeds:
        model.train()
        total, hits, n = 0.0, 0, 0
        torch.default_generator.manual_seed(order)
        for (x, y), seed in zip(train, steps, strict=True):
            torch.default_generator.manual_seed(seed)
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
    return best_weights, [epoch[2] for epoch in history]


def on_device_sums(model: nn.Module, train: Data, val: Data, epochs: int) -> Trained:
    """Train a model as somebody does who has profiled: no `DataLoader`, batches by `index_select`, one ``.item()`` an epoch."""
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, **DECAY)
    best, best_weights, history = -1.0, model.state_dict(), []
    for _ in range(epochs):
        model.train()
        total, hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for x, y in _selected(train, BATCH, torch.randperm(len(train[0]))):
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
    return best_weights, [epoch[2] for epoch in history]


def _selected(data: Data, batch_size: int, order: torch.Tensor) -> Iterable[Data]:
    for rows in order.split(batch_size):
        yield data[0].index_select(0, rows), data[1].index_select(0, rows)
