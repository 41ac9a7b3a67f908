"""What a position lends is read by others while `train` goes on: nothing in it changes until they were asked to let go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import purestate as ps
from purestate.core import _ops as ops
from purestate.core._position import Position
from purestate.core._state import COMPONENTS
from purestate.data._feed import feed
from tests.helpers import Linear, batch, bits

TRAIN = [batch(4, seed=i) for i in range(4)] + [batch(2, seed=9)]
VAL = [batch(6, seed=20)]
IDS = [(torch.arange(4 * i, 4 * i + 12).reshape(4, 3) % 7, torch.tensor([0, 1, 1, 0])) for i in range(3)]


class Reader:
    """Reads all of a position when it is told to let go, which is as late as anybody may."""

    def __init__(self, *, asks: bool) -> None:
        self._asks = asks
        self._lent: dict[str, tuple[torch.Tensor, bytes]] = {}
        self.read = 0

    def between(self, position: Callable[[], Position] | None, *, trained: bool) -> None:
        if self._asks and trained and position is not None:
            self.release()
            state = position().state
            trees: dict[str, Any] = {"params": state.params, "frozen": state.frozen, "ema": state.ema or {}}
            trees |= {name: part.leaves for name in COMPONENTS if (part := getattr(state, name)) is not None}
            # buffers are copied at once by who keeps a position
            self._lent = {f"{name}/{leaf}": (t, bits(t)) for name, tree in trees.items() for leaf, t in tree.items()}

    def release(self) -> None:
        for leaf, (tensor, before) in self._lent.items():
            assert bits(tensor) == before, f"{leaf} changed while it was lent"
            self.read += 1
        self._lent = {}


class Counting:
    """A scheduler of a user's, which writes into a tensor of its own."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.steps = optimizer, torch.zeros(2)

    def step(self) -> None:
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 / float(self.steps[0])


def looked_up() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4, max_norm=0.1), nn.Flatten(), nn.Linear(12, 2))


TENSOR_RATE = dict(optimizer_args=dict(lr=torch.tensor(0.05)))
CASES: dict[str, dict[str, Any]] = {
    "average, clipping": dict(ema_decay=0.9, clip_grad_norm=1.0),
    "momentum": dict(optimizer_cls=SGD, optimizer_args=dict(lr=0.1, momentum=0.9)),
    "a tensor for the rate": TENSOR_RATE | dict(epoch_scheduler_cls=StepLR, epoch_scheduler_args=dict(step_size=1)),
    "and a plateau": TENSOR_RATE | dict(epoch_scheduler_cls=ReduceLROnPlateau, epoch_scheduler_args=dict(patience=0)),
    "and a cycle": TENSOR_RATE | dict(step_scheduler_cls=OneCycleLR, step_scheduler_args=dict(max_lr=0.1, total_steps=30)),
    "a user's epoch scheduler": dict(epoch_scheduler_fn=Counting),
    "a user's step scheduler": dict(step_scheduler_fn=Counting),
    "written by forward": dict(module=looked_up),
    "frozen, written by forward": dict(module=looked_up, freeze="0.*"),
    "compiled with the update": dict(compile="inductor"),
    "compiled, momentum": dict(compile="inductor", optimizer_cls=SGD, optimizer_args=dict(lr=0.1, momentum=0.9)),
}


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_nothing_that_is_lent_changes_until_release(case: str, warmup: int) -> None:
    recipe: dict[str, Any] = dict(loss_cls=nn.CrossEntropyLoss, optimizer_cls=Adam, optimizer_args=dict(lr=0.05)) | CASES[case]
    module, frozen = recipe.pop("module", Linear), recipe.pop("freeze", None)
    state = ps.setup(ps.init(module, seed=0), **recipe)
    if frozen is not None:
        state = ps.freeze(state, frozen)
    train, val = (TRAIN, VAL) if module is Linear else (IDS, IDS)
    answers: list[list[str]] = []
    for asks in (False, True):
        reader = Reader(asks=asks)
        stream = ops.train(state, feed(train), feed(val), keeper=reader, warmup=warmup)
        answers.append([next(stream).state.hash for _ in range(4)])
        stream.close()
    assert reader.read > 0
    assert answers[0] == answers[1], "to ask for a position changes nothing"
