"""The exponential moving average of the parameters: what keeps it during training, and the state that it makes.

The arithmetic is torch's own, that of `torch.optim.swa_utils.get_ema_multi_avg_fn`, after every step of the optimizer and
outside of what is captured or compiled. Buffers are not averaged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

import torch

from purestate.core._state import State
from purestate.core._tree import check_same_names
from purestate.errors import SetupError, StateError

__all__ = ["Average", "average_of", "averaged"]

_foreach_lerp: Any = cast("Any", torch)._foreach_lerp_  # has no types


class Average:
    """The average of a `train` in progress: tensors that it owns and updates in place.

    Args:
        params: The parameters, whose layout it takes, so that the same kernels run whatever it was read from.
        start: What it begins with, by the same names. Copied.
        decay: How much of it stays with each step.
    """

    def __init__(self, params: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor], decay: float) -> None:
        self.tensors = {name: torch.empty_like(tensor).copy_(start[name]) for name, tensor in params.items()}
        self._weight = 1 - decay
        groups: defaultdict[Any, list[str]] = defaultdict(list)
        for name, tensor in params.items():
            groups[tensor.device, tensor.dtype].append(name)
        self._groups = [([self.tensors[name] for name in names], names) for names in groups.values()]

    def update(self, params: Mapping[str, torch.Tensor]) -> None:
        """Take in the parameters as a step of the optimizer left them."""
        for tensors, names in self._groups:
            _foreach_lerp(tensors, [params[name] for name in names], self._weight)


def average_of(state: State) -> Average | None:
    """Return the working average of a state in training, beginning with its parameters where there is none yet.

    Raises:
        SetupError: The state has an average that nobody keeps: training on would leave it behind.
        TreeMismatchError: It is of other parameters.
    """
    decay = state.recipe.ema_decay if state.recipe is not None else None
    if decay is not None:
        start = state.params if state.ema is None else state.ema
        check_same_names("ema", state.params.spec, start.spec, "the average")
        return Average(state.params, start, decay)
    if state.ema is not None:
        raise SetupError(
            "train: the state has an average of its parameters, and its setup does not say how to keep it.",
            cause="It was put there by hand, or loaded like a module or a state without one.",
            fix="Say so, ps.setup(state, ema_decay=0.999), or let it go: ps.setup(state, clear_ema=True).",
            argument="ema_decay",
        )
    return None


def averaged(state: State) -> State:
    """Return the state with its average in the place of its parameters: to evaluate it, to export it, to train on from it.

    Buffers stay, such as the running statistics of batch normalisation, which are those of the parameters. Trained on, the
    average goes on from here too.

    Args:
        state: Trained since ``setup(state, ema_decay=...)``; not modified, and not copied.

    Raises:
        StateError: The state has no average.

    Example:
        >>> import purestate as ps
        >>> state = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        >>> state = ps.setup(
        ...     state, loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1), ema_decay=0.5
        ... )
        >>> new, _ = ps.make_step(state)(state, (torch.ones(4, 2), torch.zeros(4, 1)))
        >>> torch.equal(ps.averaged(new).params["bias"], state.params["bias"].lerp(new.params["bias"], 0.5))
        True
    """
    if not isinstance(state, State):
        raise StateError(f"averaged: expected a State, got {type(state).__name__}.")
    if state.ema is None:
        raise StateError(
            "averaged: the state has no average of its parameters.",
            fix="Have one kept: ps.setup(state, ema_decay=0.999), and train.",
            path="ema",
        )
    return state.derived({"averaged": True}, params=state.ema)
