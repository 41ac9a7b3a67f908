"""Every op on every kind of model: `train` is the hand-written loop to the bit, however batches come and steps are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps
from purestate.core import _ops as ops
from purestate.core import _runners
from purestate.core._capture import Runner
from purestate.core._state import State
from purestate.data._feed import feed
from tests.core.loop import HandWritten, run
from tests.helpers import ConvNet, Mlp, assert_trees_identical

SAMPLES, BATCH, EPOCHS = 22, 4, 3
"""Six batches an epoch, the last of two samples."""


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return self.out(self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(tokens).mean(1))


class Frozen(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


class MaxNorm(nn.Module):
    """Forward itself writes the table, frozen or not."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, max_norm=0.5).requires_grad_(not frozen)
        self.out = nn.Linear(4, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(tokens).mean(1))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=torch.bfloat16)
        self.second = nn.Linear(4, 2, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += len(x)
        return self.second(self.first(x.bfloat16()).relu().double())


class Assigned(nn.Module):
    """Assigns its buffer, which takes other strides by that."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("mean", torch.zeros(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = (0.9 * self.mean + 0.1 * (x.T @ x).detach()).T
        return self.fc(x @ self.mean)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x[:, None].expand(-1, 3, -1))[0][:, -1])


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))


def _vectors() -> torch.Tensor:
    return _x(3)


def _tokens() -> torch.Tensor:
    return torch.randint(7, (SAMPLES, 5), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Model:
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], torch.Tensor] = _vectors
    optimizer: type[torch.optim.Optimizer] = Adam


MODELS = [
    Model("dropout", Mlp),
    Model("batch norm", ConvNet, partial(_x, 1, 4, 4)),
    Model("channels last", lambda: ConvNet().to(memory_format=torch.channels_last), partial(_x, 1, 4, 4)),
    Model("attention", Attention, _tokens, AdamW),
    Model("tied", Tied, _tokens),
    Model("frozen", Frozen, optimizer=SGD),
    Model("max norm", partial(MaxNorm, frozen=False), _tokens),
    Model("frozen max norm", partial(MaxNorm, frozen=True), _tokens),
    Model("mixed dtypes", Mixed),
    Model("assigned buffer", Assigned),
    Model("recurrent", Recurrent),
]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
some_models = pytest.mark.parametrize(
    "model",
    [model for model in MODELS if model.name in ("dropout", "batch norm", "frozen max norm", "mixed dtypes", "assigned buffer")],
    ids=lambda model: model.name,
)


def setup(model: Model) -> State:
    state = ps.init(model.build, seed=3)
    return ps.setup(
        state,
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=model.optimizer,
        optimizer_args=dict(lr=0.05),
        epoch_scheduler_cls=StepLR,
        epoch_scheduler_args=dict(step_size=2, gamma=0.5),
    )


def dataset(model: Model) -> TensorDataset:
    return TensorDataset(model.inputs(), torch.arange(SAMPLES) % 2)


def batched(model: Model) -> list[Any]:
    return [list(batch) for batch in zip(*(t.split(BATCH) for t in dataset(model).tensors), strict=True)]


@each_model
def test_train_is_the_hand_written_loop(model: Model) -> None:
    state, loader = setup(model), DataLoader(dataset(model), batch_size=BATCH, shuffle=True)
    before = state.own()
    hand = HandWritten(
        state, model.build, lambda p: model.optimizer(p, lr=0.05), epoch_scheduler=lambda o: StepLR(o, step_size=2, gamma=0.5)
    ).train(loader, epochs=EPOCHS)
    epochs = run(state, loader, epochs=EPOCHS)
    assert_trees_identical(epochs[-1].state.state_dict(), dict(hand.module.state_dict()))
    assert [epoch.lr for epoch in epochs] == [[rate] for rate in hand.rates] == [[0.05], [0.05], [0.025]]
    for epoch, loss in zip(epochs, hand.losses, strict=True):
        assert epoch.metrics["train_loss"] == pytest.approx(loss, rel=1e-12)  # a sum in double, in another order
    state.verify()
    assert state == before


@each_model
def test_how_batches_and_steps_are_run_does_not_count(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    state, loader = setup(model), DataLoader(dataset(model), batch_size=BATCH)

    def hashes(source: Any) -> list[str]:
        notices: list[str] = []
        found = [epoch.state.hash for epoch in run(state, source, source, epochs=2, notices=notices)]
        assert notices == []
        return found

    captured = hashes(loader)
    assert hashes(batched(model)) == captured
    monkeypatch.setattr(_runners, "Runner", lambda step, **_: Runner(step, capture_after=10**9))
    assert hashes(loader) == captured


@some_models
def test_two_epochs_and_one_are_three(model: Model) -> None:
    state, loader = setup(model), DataLoader(dataset(model), batch_size=BATCH, shuffle=True)
    whole = run(state, loader, loader, epochs=3)
    for cut in (1, 2):
        rest = run(whole[cut].state, loader, loader, key=state.key, done=cut, epochs=3 - cut)
        assert [epoch.state.hash for epoch in rest] == [epoch.state.hash for epoch in whole[cut + 1 :]]
        assert [epoch.metrics for epoch in rest] == [epoch.metrics for epoch in whole[cut + 1 :]]


@some_models
def test_readers_only_read(model: Model) -> None:
    state, loader = setup(model), DataLoader(dataset(model), batch_size=BATCH, shuffle=True)
    (_, trained) = run(state, loader, epochs=2)
    source = feed(loader)
    for s in (state, trained.state):
        before = s.own()
        first = ops.evaluate(s, source, metrics=[ps.metric_accuracy]), ops.find_lr(s, source), ops.predict(s, source)
        second = ops.evaluate(s, source, metrics=[ps.metric_accuracy]), ops.find_lr(s, source), ops.predict(s, source)
        assert_trees_identical(list(first), list(second))
        assert s == before
        s.verify()
        expected = HandWritten(s, model.build, lambda p: SGD(p, lr=0.1)).evaluate(batched(model))
        # the order of the samples decides which make a batch; a mean over samples of means over batches rounds in float32
        assert first[0]["loss"] == pytest.approx(expected, rel=1e-2 if model.name == "mixed dtypes" else 1e-5)
    assert [epoch.state.hash for epoch in run(state, loader, epochs=2)][-1] == trained.state.hash


@some_models
def test_a_step_scheduler_and_momentum_cycles(model: Model) -> None:
    """OneCycleLR moves the momentum, too, and adds keys to the groups."""
    loader = DataLoader(dataset(model), batch_size=BATCH, shuffle=True)
    cycle = dict(max_lr=0.2, total_steps=18)
    state = ps.setup(
        ps.init(model.build, seed=3),
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=SGD,
        optimizer_args=dict(lr=0.01, momentum=0.9),
        step_scheduler_cls=OneCycleLR,
        step_scheduler_args=cycle,
    )
    hand = HandWritten(
        state, model.build, lambda p: SGD(p, lr=0.01, momentum=0.9), step_scheduler=lambda o: OneCycleLR(o, **cycle)
    ).train(loader, epochs=2)
    epochs = run(state, loader, epochs=2)
    assert_trees_identical(epochs[-1].state.state_dict(), dict(hand.module.state_dict()))
    assert [epoch.lr[0] for epoch in epochs] == hand.rates
