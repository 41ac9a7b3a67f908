"""An optimizer's step as part of a compiled step: the tensors that it changes, and the numbers that it takes each time.

Options and counters stay outside of the graph: learning rate, decay and bias corrections enter as entries of one tensor.
Whether a step is joined depends on nothing but the state, so that it does not matter where a run was cut.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from purestate.core._forms import FORMS, Form, Traceable

__all__ = ["Joined"]

_DTYPES = torch.float32, torch.float64


@dataclass(slots=True)
class _Row:
    """The parameters of a group that have taken the same number of steps."""

    group: int
    count: float
    most: float
    """What a counter of this dtype stays at when one is added."""
    traceable: Traceable
    names: list[str]


class Joined:
    """What a graph that has the optimizer's step in it is made of and called with.

    Args:
        optimizer: Of a class in `FORMS`. State that it has not got yet is begun.
        parameters: What it was built on, by name.
        tensors: The same tensors without gradient.

    Raises:
        ValueError: There is something about the state or the options that the class has to do itself.
    """

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
        form = FORMS.get(type(optimizer).__name__)
        if form is None:
            raise ValueError(type(optimizer).__name__)
        self._optimizer, self._form = optimizer, form
        self._states: dict[str, dict[str, Any]] = {}
        names = {id(p): name for name, p in parameters.items()}
        rows: dict[tuple[int, float, float], _Row] = {}
        for i, group in enumerate(optimizer.param_groups):
            if not self._takes(group):
                raise ValueError("options")
            traceable = form.traceable(group)
            for p in group["params"]:
                name = names[id(p)]
                state = _state(optimizer, p, tensors[name], group, form, traceable)
                self._states[name] = state
                key = (i, *_counted(state))
                rows.setdefault(key, _Row(*key, traceable, [])).names.append(name)
        self._rows = list(rows.values())
        self._behind = False
        self.slots: list[Tensor] = [
            self._states[n][slot] for row in self._rows for n in row.names for slot in row.traceable.slots
        ]
        """What the graph changes besides the parameters."""
        numbers = torch.tensor(self._numbers(), dtype=torch.float64)
        self.numbers = numbers
        """What it takes for one step: `advance` fills it."""
        self._array = numbers.numpy()
        self.burnt_in: Hashable = tuple((row.traceable.burnt_in, tuple(row.names)) for row in self._rows)
        """Everything that `apply` depends on, besides the tensors that it is given."""

    def fits(self) -> bool:
        """Whether the options are still such that the graph does what the class would."""
        return all(self._takes(group) for group in self._optimizer.param_groups) and all(
            row.traceable.burnt_in == self._form.traceable(self._optimizer.param_groups[row.group]).burnt_in for row in self._rows
        )

    def advance(self) -> None:
        """Count a step and fill in its numbers."""
        for row in self._rows:
            row.count = min(row.count + 1, row.most)
        self._behind = True
        if hasattr(self._optimizer.step, "_wrapped_by_lr_sched"):
            vars(self._optimizer)["_opt_called"] = True  # schedulers of torch look whether there was a step
        self._array[:] = self._numbers()

    def apply(
        self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], slots: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """Take the step, on tensors that are traced."""
        rest, values = iter(slots), iter(numbers.unbind())
        for row in self._rows:
            count = len(row.traceable.numbers(self._optimizer.param_groups[row.group], 1.0))
            mine = [next(values) for _ in range(count)]
            for name in row.names:
                tensor = parameters[name]
                theirs = [next(rest) for _ in row.traceable.slots]
                row.traceable.apply(tensor, gradients[name], theirs, [value.to(tensor.dtype) for value in mine])

    def settle(self) -> None:
        """Write the counters into the optimizer's state."""
        if self._behind and self._form.counts:
            for row in self._rows:
                for name in row.names:
                    self._states[name]["step"].fill_(row.count)
        self._behind = False

    def _takes(self, group: Mapping[str, Any]) -> bool:
        return (type(group["lr"]) is float or type(group["lr"]) is int) and self._form.takes(group)

    def _numbers(self) -> list[float]:
        groups = self._optimizer.param_groups
        return [value for row in self._rows for value in row.traceable.numbers(groups[row.group], max(row.count, 1.0))]


def _state(
    optimizer: Optimizer, parameter: nn.Parameter, tensor: Tensor, group: Mapping[str, Any], form: Form, traceable: Traceable
) -> dict[str, Any]:
    """The state of a parameter, begun if there is none."""
    if tensor.dtype not in _DTYPES or tensor.device.type != "cpu" or not tensor.numel():
        raise ValueError("tensor")
    state = optimizer.state.get(parameter, {})
    wanted = [*(["step"] if form.counts else []), *traceable.slots]
    if not state and wanted:
        if not traceable.begins:
            raise ValueError("begin")
        state = optimizer.state[parameter]
        if form.counts:
            double = torch.get_default_dtype() == torch.float64 and not group["fused"]
            state["step"] = torch.tensor(0.0, dtype=torch.float64 if double else torch.float32)
        state.update({slot: torch.zeros_like(tensor) for slot in traceable.slots})
    if any(not isinstance(state.get(slot), Tensor) for slot in wanted):
        raise ValueError("slots")
    return state


def _counted(state: Mapping[str, Any]) -> tuple[float, float]:
    step = state.get("step")
    return (0.0, math.inf) if step is None else (step.item(), 2 / torch.finfo(step.dtype).eps)
