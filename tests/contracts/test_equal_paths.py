"""One training, four ways: captured or not, batches by index or by the ``DataLoader``. The state hashes are equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset, TensorDataset

import purestate as ps
from purestate.core import _capture as capture
from purestate.core import _kept as kept
from purestate.core import _ops as ops
from purestate.core import _runners
from purestate.core._capture import Runner
from purestate.core._metrics import metric_accuracy
from purestate.core._state import State
from purestate.data._feed import feed
from tests.core.loop import HandWritten

N, D, C, BATCH, EPOCHS = 22, 8, 3, 8, 3
"""Batches of 8, 8 and 6 samples: the last one is another kind of batch."""


class Slow(Dataset[Any]):
    """The same samples, of a class that nobody serves by index."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        return tuple(t[index] for t in self.tensors)


class Attention(nn.Module):
    """Embeddings, attention with dropout, layer norm, and a head whose weight is that of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(C, D)
        layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(D, C)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Mixed(nn.Module):
    """A layer in float64 between layers in float32, a buffer that is assigned, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(D, D), nn.Linear(D, D, dtype=torch.float64), nn.Linear(D, C)
        self.frozen = nn.Linear(D, D).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.last(self.frozen(self.middle(self.first(x - self.mean).double()).float().relu()))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, C))


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, C))


def recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(D, D, 2, batch_first=True, dropout=0.2), nn.Linear(D, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    return Last()


@dataclass(frozen=True)
class Kind:
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    setup: dict[str, Any] = field(default_factory=dict[str, Any])
    by_hand: dict[str, Any] | None = None
    """Arguments of `HandWritten`; None where the loop by hand is not compared."""


def adam(**options: Any) -> dict[str, Any]:
    return {"optimizer_cls": optim.Adam, "optimizer_args": dict(lr=0.01) | options}


KINDS = (
    Kind("dropout, Adam", dropout, (D,), adam(weight_decay=0.1), {}),
    Kind("batch norm, SGD with momentum", convolutions, (1, 4, 4), {"optimizer_args": dict(lr=0.1, momentum=0.9)}, {}),
    Kind(
        "attention, tied embedding, AdamW", Attention, (5,), {"optimizer_cls": optim.AdamW, "optimizer_args": dict(lr=0.01)}, {}
    ),
    Kind(
        "mixed dtypes, frozen, buffer, RMSprop",
        Mixed,
        (D,),
        {"optimizer_cls": optim.RMSprop, "optimizer_args": dict(lr=0.01)},
        {},
    ),
    Kind("recurrent, dropout, clipped", recurrent, (5, D), adam() | {"clip_grad_norm": 0.5}),
    Kind("bfloat16 autocast", dropout, (D,), adam() | {"precision": "bfloat16"}),
    Kind("bfloat16 weights", lambda: dropout().bfloat16(), (D,), adam(weight_decay=0.1)),
    Kind("fused", dropout, (D,), adam(fused=True), {}),
    Kind(
        "schedulers",
        dropout,
        (D,),
        adam()
        | dict(
            step_scheduler_cls=optim.lr_scheduler.OneCycleLR,
            step_scheduler_args=dict(max_lr=0.1, total_steps=40),
            epoch_scheduler_cls=optim.lr_scheduler.ReduceLROnPlateau,
            epoch_scheduler_args=dict(patience=0),
        ),
    ),
)


def data(kind: Kind) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if kind.build is Attention:
        x = torch.randint(C, (N, *kind.shape), generator=generator)
    else:
        x = torch.randn(N, *kind.shape, generator=generator)
    x = x.bfloat16() if kind.name == "bfloat16 weights" else x
    return x, torch.randint(C, (N,), generator=generator)


def loaders(dataset: type[Dataset[Any]], tensors: tuple[Tensor, ...]) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return DataLoader(dataset(*tensors), BATCH, shuffle=True), DataLoader(dataset(*tensors), BATCH)  # type: ignore[call-arg]


def start(kind: Kind) -> State:
    setup: dict[str, Any] = {"loss_cls": nn.CrossEntropyLoss, "optimizer_cls": optim.SGD} | kind.setup
    return ps.setup(ps.init(kind.build, seed=4), **setup)


def train(s0: State, dataset: Any, tensors: tuple[Tensor, ...]) -> tuple[list[str], list[dict[str, float]], list[str]]:
    """Return the hashes of the states, the metrics of the epochs, and the notices."""
    train_dl, val_dl = loaders(dataset, tensors)
    notices: list[str] = []
    found: tuple[list[str], list[dict[str, float]], list[str]] = [], [], notices
    stream = ops.train(s0, feed(train_dl), feed(val_dl), metrics=[metric_accuracy], notices=notices)
    for epoch in stream:
        found[0].append(epoch.state.own().hash)
        found[1].append(epoch.metrics)
        if epoch.n == EPOCHS:
            break
    stream.close()
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_captured_uncaptured_and_both_ways_to_batches_end_on_the_same_hash(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = data(kind)
    s0 = start(kind)
    monkeypatch.setattr(_runners, "_CAPTURE_EVALUATION", 2)
    monkeypatch.setattr(capture, "_OTHERS_AFTER", 1)
    monkeypatch.setattr(kept, "_templates", type(kept._templates)())
    captured = {dataset: train(s0, dataset, tensors) for dataset in (TensorDataset, Slow)}
    replays: list[int] = []
    monkeypatch.setattr(Runner, "_capture", lambda self, entry, trees, batch, seed: _uncaptured(self, trees, batch, seed))
    monkeypatch.setattr(kept, "_templates", type(kept._templates)())
    monkeypatch.setattr(Runner, "_compare", lambda *_: replays.append(1))
    uncaptured = {dataset: train(s0, dataset, tensors) for dataset in (TensorDataset, Slow)}
    assert replays == []
    first = captured[TensorDataset]
    assert all("in eval mode" in notice for notice in first[2]), "the steps of the training were captured"
    for found in (captured[Slow], *uncaptured.values()):
        assert found[:2] == first[:2]
    assert len(set(first[0])) == EPOCHS + 1


def _uncaptured(runner: Any, trees: Any, batch: Any, seed: int) -> Any:
    from purestate.core._seeds import seed_all

    seed_all(seed)
    return runner.step(*trees, batch)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.by_hand is not None], ids=lambda kind: kind.name)
def test_the_loop_by_hand_ends_on_the_same_weights(kind: Kind) -> None:
    tensors = data(kind)
    s0 = start(kind)
    train_dl, _ = loaders(TensorDataset, tensors)
    options: dict[str, Any] = {"optimizer_cls": optim.SGD} | kind.setup
    hand = HandWritten(s0, kind.build, lambda params: options["optimizer_cls"](params, **options["optimizer_args"])).train(
        train_dl, epochs=EPOCHS
    )
    stream = ops.train(s0, feed(train_dl))
    last = next(epoch.state.own() for epoch in stream if epoch.n == EPOCHS)
    stream.close()
    theirs = hand.module.state_dict()
    ours = last.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
