"""The training loop that everybody writes, in plain torch, under the seeds and in the order that `train` promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

import purestate as ps
from purestate.core import _ops as ops
from purestate.core._key import Key, Tag
from purestate.core._seeds import preserved_generators, seed_all
from purestate.core._state import State
from purestate.data._feed import feed

__all__ = ["HandWritten", "run"]


def run(state: State, loader: Any, val: Any = None, *, epochs: int = 2, **arguments: Any) -> list[ops.Epoch]:
    """Train for some epochs; the states are owned."""
    found: list[ops.Epoch] = []
    done = arguments.get("done", 0)
    stream = ops.train(state, feed(loader), None if val is None else feed(val), **arguments)
    for epoch in stream:
        found.append(ops.Epoch(epoch.n, epoch.epoch, epoch.metrics, epoch.lr, epoch.state.own()))
        if epoch.n == done + epochs:
            break
    stream.close()
    return found


class HandWritten:
    """A module, an optimizer and schedulers of plain torch, trained by a loop.

    Args:
        state: Gives the weights and the key.
        build: Makes the module.
        optimizer: A function of the trainable parameters.
        epoch_scheduler: A function of the optimizer, or None.
        step_scheduler: Likewise.
        clip: Called with the parameters after ``backward()``.
        autocast: The dtype of `torch.autocast`, or None.
        warmup: Epochs of linear warm-up.
        loss: ``(output, target) -> loss``.
    """

    def __init__(
        self,
        state: State,
        build: Callable[[], nn.Module],
        optimizer: Callable[[Any], torch.optim.Optimizer],
        *,
        epoch_scheduler: Callable[[Any], Any] | None = None,
        step_scheduler: Callable[[Any], Any] | None = None,
        clip: Callable[[Sequence[nn.Parameter]], object] | None = None,
        autocast: torch.dtype | None = None,
        warmup: int = 0,
        loss: Callable[[Any, Any], torch.Tensor] = nn.functional.cross_entropy,
    ) -> None:
        with preserved_generators():
            self.module = ps.to_module(state, build())
        self.key, self.warmup, self.loss, self.clip, self.autocast = state.key, warmup, loss, clip, autocast
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = optimizer(self.parameters)
        self.epoch_scheduler = epoch_scheduler and epoch_scheduler(self.optimizer)
        self.step_scheduler = step_scheduler and step_scheduler(self.optimizer)
        self.epochs = 0
        self.losses: list[float] = []
        self.rates: list[float] = []

    def train(self, loader: Any, val: Any = None, *, epochs: int = 2) -> HandWritten:
        """Train for some epochs. The process-wide generators are where they were afterwards."""
        with preserved_generators():
            for _ in range(epochs):
                self.epochs += 1
                self._epoch(loader)
                metric = self.evaluate(val) if val is not None else None
                if self.epoch_scheduler is not None and self.epochs > self.warmup:
                    self.epoch_scheduler.step(*([metric] if isinstance(self.epoch_scheduler, ReduceLROnPlateau) else []))
        return self

    def _epoch(self, loader: Any) -> None:
        self.module.train()
        batches = self._batches(loader, self.key.derive(Tag.ORDER, self.epochs))
        total, samples, base = 0.0, 0, [group["lr"] for group in self.optimizer.param_groups]
        for i in range(len(batches)):
            step = (self.epochs - 1) * len(batches) + i
            warming = self.epochs <= self.warmup
            if warming:
                for group, rate in zip(self.optimizer.param_groups, base, strict=True):
                    group["lr"] = rate * ((step + 1) / (self.warmup * len(batches)))
            seed_all(self.key.derive(Tag.STEP, step).seed)
            self.optimizer.zero_grad()
            *inputs, target = batches[i]
            with torch.autocast("cpu", dtype=self.autocast) if self.autocast else nullcontext():
                loss = self.loss(self.module(*inputs), target)
            loss.backward()
            if self.clip is not None:
                self.clip(self.parameters)
            self.optimizer.step()
            rate = self.optimizer.param_groups[0]["lr"]
            if self.step_scheduler is not None and not warming:
                self.step_scheduler.step()
            total, samples = total + float(loss.detach()) * len(target), samples + len(target)
        if self.epochs <= self.warmup:
            for group, held in zip(self.optimizer.param_groups, base, strict=True):
                group["lr"] = held
        self.losses.append(total / samples)
        self.rates.append(float(rate))

    @torch.no_grad()
    def evaluate(self, batches: Any) -> float:
        """Return the mean loss over samples, in eval mode."""
        self.module.eval()
        values = [(float(self.loss(self.module(*inputs), target)), len(target)) for *inputs, target in batches]
        return sum(loss * n for loss, n in values) / sum(n for _, n in values)

    def _batches(self, loader: Any, key: Key) -> list[Any]:
        if isinstance(loader, DataLoader):
            # a loader and samplers without generators of their own draw from torch's
            torch.manual_seed(key.derive(Tag.ORDER, 0).seed)
        return list(loader)
