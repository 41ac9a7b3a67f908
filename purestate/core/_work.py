"""The working set of a `train` in progress: tensors that it owns and updates in place, and the objects that update them.

A State goes in and a State comes out, but in between there is what the hand-written loop has: parameters, one optimizer,
at most two schedulers. Nothing outside of this file and of the ops ever sees them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from purestate.core._ema import average_of
from purestate.core._module import written_in_forward
from purestate.core._optim import export_optimizer, learning_rates, with_moments_of
from purestate.core._sched import export_scheduler, start, step_scheduler
from purestate.core._seeds import preserved_generators
from purestate.core._state import Counters, State, require
from purestate.core._tree import Leaves
from purestate.core._update import Update
from purestate.errors import SetupError, UnsupportedError

__all__ = ["Working", "combine", "isolated"]

_SCHEDULERS = ("epoch_scheduler", "step_scheduler")


@contextmanager
def isolated(state: State) -> Generator[None]:
    """Run as if nobody had switched anything: no autocast, no `torch.no_grad`, no inference mode around it.

    On accelerators deterministic algorithms are used unless the recipe says otherwise. The process-wide generators may be
    seeded inside; they and the switches are put back on the way out, also after an exception.
    """
    device = state.device
    exact = device.type != "cpu" and state.recipe is not None and state.recipe.deterministic
    switches = torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False)
    with preserved_generators(), switches[0], switches[1], switches[2]:
        with _deterministic_algorithms() if exact else nullcontext():
            yield


@contextmanager
def _deterministic_algorithms() -> Generator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Working:
    """What a `train` owns.

    Args:
        state: Where to start from. Its tensors are copied.
    """

    def __init__(self, state: State) -> None:
        recipe = require(state, "optimizer", "train")
        assert recipe.optimizer is not None
        self._state = state
        self.params = {name: tensor.clone() for name, tensor in state.params.items()}
        written = written_in_forward(recipe.template)
        self._average = average_of(state)
        self.frozen = {name: tensor.clone() if name in written else tensor for name, tensor in state.frozen.items()}
        self._writes_frozen = not written.isdisjoint(self.frozen)
        self.buffers = {name: tensor.clone() for name, tensor in state.buffers.items()}
        self._parameters = {name: nn.Parameter(tensor) for name, tensor in self.params.items()}
        if not self._parameters:
            raise UnsupportedError("train: the state has no trainable parameters.", fix="Unfreeze some: ps.unfreeze(state, '*').")
        self.epoch, self.step = state.counters.epoch, state.counters.step
        factories = {name: getattr(recipe, name) for name in _SCHEDULERS}
        kept = {name: getattr(state, name) for name in _SCHEDULERS}
        self.optimizer, self._schedulers = start(recipe.optimizer, state.optimizer, factories, kept, self._parameters)
        self.optimizer_step = Update(self.optimizer, self._parameters, self.params, recipe.clip)
        self._lent: list[torch.Tensor] = []
        self._held: list[Any] = []  # the learning rates that `set_rates` replaced: floats, or tensors where they were given so

    def update(self, gradients: Mapping[str, torch.Tensor | None], buffers: Mapping[str, torch.Tensor]) -> None:
        """Take one step of the optimizer, in place.

        Args:
            gradients: By parameter; None where it had no part in the loss. Clipping changes them in place.
            buffers: As the step left them: the working set's own, or what the module assigned instead.
        """
        self.optimizer_step(gradients)
        if self._lent:
            # what was lent has changed, and not all that changes it is counted by torch
            torch.autograd.graph.increment_version(self._lent)
            self._lent = []
        if self._average is not None:
            self._average.update(self.params)
        for name, buffer in buffers.items():
            if buffer is not self.buffers[name]:
                self._assign(name, buffer)
        self.step += 1

    def _assign(self, name: str, buffer: torch.Tensor) -> None:
        """A module assigned this buffer. Its shape may move (a growing history), its owner is still the working set."""
        mine = self.buffers[name]
        if mine.shape == buffer.shape and mine.dtype == buffer.dtype and mine.stride() == buffer.stride():
            mine.copy_(buffer)
        else:
            self.buffers[name] = buffer.clone()

    def rates(self) -> list[float]:
        """The learning rate of each parameter group."""
        return learning_rates(self.optimizer)

    def set_rates(self, rates: list[float], factor: float) -> None:
        """Use ``factor * rate`` for each group until `restore_rates`."""
        groups = self.optimizer.param_groups
        self._held = self._held or [group["lr"] for group in groups]
        for group, rate, held in zip(groups, rates, self._held, strict=True):
            group["lr"] = torch.full_like(held, rate * factor) if isinstance(held, torch.Tensor) else rate * factor

    def restore_rates(self) -> None:
        """Put the very learning rates back that `set_rates` replaced, if it did."""
        if not self._held:
            return
        for group, held in zip(self.optimizer.param_groups, self._held, strict=True):
            group["lr"] = held
        self._held = []

    def set_all_rates(self, rate: float) -> None:
        """Use one learning rate for every group."""
        self.set_rates([rate] * len(self.optimizer.param_groups), 1.0)

    def step_scheduler(self) -> None:
        """Step the step scheduler, if there is one."""
        if (live := self._schedulers.get("step_scheduler")) is not None:
            if not type(live.scheduler).__module__.startswith("torch."):
                self.optimizer_step.settle()  # a user's scheduler may look at the optimizer's state; torch's do not
            step_scheduler(live)

    def epoch_scheduler(self, metric: float | None) -> None:
        """Step the epoch scheduler, if there is one; a plateau scheduler steps on ``metric``."""
        if (live := self._schedulers.get("epoch_scheduler")) is not None:
            self.optimizer_step.settle()
            step_scheduler(live, metric)

    def refuse_metric_schedulers(self) -> None:
        """Raise `SetupError` if a scheduler steps on a metric: there is no validation to give it one."""
        for name, live in self._schedulers.items():
            if live.needs_metric:
                raise SetupError(
                    f"train: the {name} {type(live.scheduler).__qualname__} steps on a validation metric, "
                    "and there is no val_dl.",
                    fix="Give one: ck.train(state, train_dl, val_dl, ...).",
                    argument=name,
                )

    def lend(self, **rest: Any) -> State:
        """Return the state as it is now, over the working tensors: true until the next step."""
        self.optimizer_step.settle()
        optimizer = export_optimizer(self.optimizer, self._parameters)
        fields: dict[str, Any] = dict.fromkeys(_SCHEDULERS)
        if self._writes_frozen:
            fields["frozen"] = Leaves(self.frozen, "frozen")
        if self._average is not None:
            fields["ema"] = Leaves(self._average.tensors, "ema")
        fields |= {name: export_scheduler(live) for name, live in self._schedulers.items()}
        self._lent = [*self.params.values(), *self.buffers.values(), *optimizer.leaves.values()]
        return self._state.based(
            params=Leaves(self.params, "params"),
            buffers=Leaves(self.buffers, "buffers"),
            optimizer=optimizer,
            counters=Counters(self.epoch, self.step),
            **fields,
            **rest,
        )


def combine(best: State, last: State) -> State:
    """Return what `load_best` returns: parameters, their average, buffers and moments of ``best``, all else of ``last``.

    Learning rates and other hyperparameters live in the optimizer's groups, which are the last epoch's, by design: the next
    `train` goes on with the lower rate, from the better parameters.
    """
    moments = last.optimizer and with_moments_of(last.optimizer, best.optimizer)
    return last.based(params=best.params, frozen=best.frozen, buffers=best.buffers, ema=best.ema, optimizer=moments)
