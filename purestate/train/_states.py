"""States that this face makes of others: with tensors from a state dict, with the schedulers of another."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from purestate.core._hash import leaf_hash
from purestate.core._module import state_dict_names
from purestate.core._optim import replace_learning_rates, stored_learning_rates
from purestate.core._state import SUBTREES, State
from purestate.errors import StateError, TreeMismatchError

__all__ = ["keep_schedulers", "leaves_from"]

_SCHEDULERS = ("epoch_scheduler", "step_scheduler")


def leaves_from(state_dict: Mapping[str, Tensor], state: State) -> dict[str, dict[str, Tensor]]:
    """Return copies of a module's tensors by subtree, for `State.replace`. What is not in a state dict is the state's.

    Raises:
        StateError: Something is no tensor.
        TreeMismatchError: A tensor that has two names has two values.
    """
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            raise StateError(f"load_state_dict: expected {name!r} to be a tensor, got {type(tensor).__name__}.", path=name)
    assert state.recipe is not None
    for alias, (_, name) in state_dict_names(state.recipe.template).items():
        if alias != name and name in state_dict and leaf_hash(state_dict[alias]) != leaf_hash(state_dict[name]):
            raise TreeMismatchError(
                f"load_state_dict: {alias!r} and {name!r} are one tensor in the model, and have two values in the given one.",
                cause="It is of a module in which they are not tied.",
                path=alias,
            )
    return {
        subtree: {
            name: state_dict[name].detach().clone().to(tensor.device) if name in state_dict else tensor
            for name, tensor in getattr(state, subtree).items()
        }
        for subtree in SUBTREES
    }


def keep_schedulers(state: State, model: State) -> State:
    """Return a state with the schedulers of another, and with its learning rates where there are as many groups."""
    assert state.recipe is not None
    recipe, parts = model.recipe, {name: getattr(model, name) for name in _SCHEDULERS}
    changed = state.recipe.replace(**{name: getattr(recipe, name) for name in _SCHEDULERS})
    optimizer = state.optimizer
    if optimizer is not None and model.optimizer is not None:
        rates = stored_learning_rates(model.optimizer)
        if len(rates) == len(stored_learning_rates(optimizer)):
            optimizer = replace_learning_rates(optimizer, rates)
    return state.derived({"keep_schedulers": True}, recipe=changed, optimizer=optimizer, **parts)
