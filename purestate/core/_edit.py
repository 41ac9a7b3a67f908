"""Ways to make a state from a state without training it: `set_lr`, `freeze`, `unfreeze`. See also `purestate.setup`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from purestate.core._optim import replace_learning_rates, require_rates, stored_learning_rates
from purestate.core._state import COMPONENTS, State, require
from purestate.core._tree import Leaves
from purestate.errors import SetupError, StateError

__all__ = ["freeze", "set_lr", "unfreeze"]


def set_lr(state: State, lr: float | Sequence[float]) -> State:
    """Return the state with another learning rate. A scheduler overwrites it when it steps next, as in torch.

    Args:
        state: After at least one step; not modified. Before, the rate is an argument of the optimizer: see `setup`.
        lr: One for all parameter groups, or one for each.

    Raises:
        SetupError: The optimizer was not built yet, the number of rates differs from that of the groups, or a rate is
            negative, infinite or nan.

    Example:
        >>> import purestate as ps, torch
        >>> state = ps.setup(
        ...     ps.init(lambda: torch.nn.Linear(2, 1), seed=0),
        ...     loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1),
        ... )
        >>> state, _ = ps.make_step(state)(state, (torch.ones(4, 2), torch.zeros(4, 1)))
        >>> [(leaf.path, leaf.a, leaf.b) for leaf in ps.diff(state, ps.set_lr(state, 0.01))]
        [("optimizer.param_groups[0]['lr']", '0.1', '0.01')]
    """
    recipe = require(state, "optimizer", "set_lr")
    require_rates(recipe.optimizer, "set_lr: a rate was given", "lr")
    if state.optimizer is None:
        raise SetupError(
            "set_lr: the optimizer was not built yet, so its rate is the one in its arguments.",
            fix="Set it up with another: ps.setup(state, optimizer_cls=..., optimizer_args=dict(lr=...)).",
            argument="lr",
        )
    groups = len(stored_learning_rates(state.optimizer))
    try:
        rates = [float(lr)] * groups if isinstance(lr, (int, float, torch.Tensor)) else [float(rate) for rate in lr]
    except (TypeError, ValueError):
        raise SetupError(f"set_lr: expected a rate, or a list of them, got {lr!r}.", argument="lr") from None
    if len(rates) != groups:
        raise SetupError(f"set_lr: expected {groups} rates, one for each parameter group, got {len(rates)}.", argument="lr")
    if not all(0 <= rate < math.inf for rate in rates):
        raise SetupError(f"set_lr: expected finite rates of at least 0, got {lr!r}.", argument="lr")
    return state.derived({"set_lr": rates}, optimizer=replace_learning_rates(state.optimizer, rates))


def freeze(state: State, *patterns: str) -> State:
    """Return the state with some parameters out of training: they take no gradient and are stored once for all forks.

    Args:
        state: Not modified.
        *patterns: Names, or shell patterns such as ``'encoder.*'``.

    Returns:
        A state whose optimizer and schedulers, if they were set up, start afresh on what is left. Its average is one of what
        is left.

    Raises:
        StateError: No pattern was given, one matches no trainable parameter, or none would be left.

    Example:
        >>> from torch import nn
        >>> from purestate.core._init import init
        >>> state = freeze(init(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))), "0.*")
        >>> list(state.params), list(state.frozen)
        (['1.weight', '1.bias'], ['0.weight', '0.bias'])
    """
    return _move(state, "params", "frozen", patterns, "freeze")


def unfreeze(state: State, *patterns: str) -> State:
    """Return the state with some parameters in training again: what `freeze` takes out.

    Args:
        state: Not modified.
        *patterns: Names, or shell patterns such as ``'encoder.*'``.

    Returns:
        A state whose optimizer and schedulers, if they were set up, start afresh on what is in training. Its average begins
        with the values of now for what came in.

    Raises:
        StateError: No pattern was given, or one matches no frozen parameter.

    Example:
        >>> import purestate as ps, torch
        >>> state = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        >>> ps.unfreeze(ps.freeze(state, "bias"), "*") == state
        True
    """
    return _move(state, "frozen", "params", patterns, "unfreeze")


def _move(state: State, source: str, target: str, patterns: tuple[str, ...], act: str) -> State:
    recipe = require(state, "template", act)
    names = list(getattr(state, source))
    if not patterns:
        raise StateError(f"{act}: expected at least one name or pattern.", fix=f"ps.{act}(state, '*.bias'), for example.")
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise StateError(
                f"{act}: {pattern!r} matches no leaf of {source}; there is {', '.join(names[:8]) or 'none'}.", path=pattern
            )
    template = copy.deepcopy(recipe.template)
    every = {**state.params, **state.frozen}
    for name, parameter in template.named_parameters():
        if name in chosen:
            parameter.requires_grad_(target == "params")
    order = [(name, parameter.requires_grad) for name, parameter in template.named_parameters()]
    trees: dict[str, Any] = {
        "params": Leaves({name: every[name] for name, trainable in order if trainable}, "params"),
        "frozen": Leaves({name: every[name] for name, trainable in order if not trainable}, "frozen"),
    }
    if not len(trees["params"]):
        raise StateError(f"{act}: no trainable parameter would be left.", path="params")
    if state.ema is not None:
        trees["ema"] = Leaves({name: state.ema.get(name, tensor) for name, tensor in trees["params"].items()}, "ema")
    fresh = dict.fromkeys(COMPONENTS)
    return state.derived({act: list(patterns)}, recipe=recipe.replace(template=template), **trees, **fresh)
