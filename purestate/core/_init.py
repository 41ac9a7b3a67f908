"""A State from a module and back: `init`, `to_module`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from purestate.core._key import Key, Tag
from purestate.core._module import put_together, take_apart
from purestate.core._recipe import Recipe
from purestate.core._seeds import preserved_generators, seed_all
from purestate.core._state import Origin, State
from purestate.core._tree import Leaves
from purestate.errors import SetupError, UnsupportedError

__all__ = ["init", "to_module"]


def init(module: nn.Module | Callable[[], nn.Module], *, seed: int = 0, device: torch.device | str | None = None) -> State:
    """Make the first state of a model.

    Args:
        module: A function without arguments that builds a module, which runs under ``seed``; or a module, whose weights
            are taken as they are. The module is copied, never modified or kept.
        seed: Seeds the builder, and the key from which all later randomness derives. ``-2**63 <= seed < 2**64``.
        device: Where the state goes; where the module is, if left out.

    Returns:
        A state without optimizer and loss: see `purestate.setup`.

    Raises:
        UnsupportedError: The module has uninitialised lazy parameters, or cannot be copied.
        SetupError: The seed is no integer in that range.

    Example:
        >>> init(lambda: nn.Linear(2, 1), seed=0).params["weight"].shape
        torch.Size([1, 2])
    """
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise SetupError(f"init: expected a seed from -2**63 to 2**64 - 1, got {seed!r}.", argument="seed")
    key = Key.from_seed(seed)
    if not isinstance(module, nn.Module) and callable(module):
        with preserved_generators():
            seed_all(key.derive(Tag.INIT).seed)
            module = module()
    if not isinstance(module, nn.Module):
        raise UnsupportedError(
            f"init: expected a torch.nn.Module or a function that builds one, got {type(module).__name__}.",
            fix="Write ps.init(lambda: MyModule(), seed=0).",
        )
    with torch.inference_mode(False):
        template, params, frozen, buffers = take_apart(module)
    state = State(
        params=Leaves(params, "params"),
        frozen=Leaves(frozen, "frozen"),
        buffers=Leaves(buffers, "buffers"),
        key=key,
        recipe=Recipe(template),
        origin=Origin(None, ({"init": {"seed": seed}},)),
    )
    return state if device is None else state.to(device)


def to_module(state: State, module: nn.Module) -> nn.Module:
    """Fill a module with a state's parameters and buffers, and return it.

    Args:
        state: Not modified; the module gets copies.
        module: A module of the same structure. Its tensors are replaced in place and take the state's device.

    Raises:
        TreeMismatchError: Names, shapes or dtypes differ; the first is named.

    Example:
        >>> state = init(lambda: nn.Linear(2, 1), seed=0)
        >>> net = to_module(state, nn.Linear(2, 1))
        >>> torch.equal(net.weight, state.params["weight"])
        True
    """
    if not isinstance(module, nn.Module):
        raise UnsupportedError(
            f"to_module: expected a torch.nn.Module to fill, got {type(module).__name__}.",
            fix="Build one: to_module(state, MyModule()).",
        )
    return put_together(module, dict(state.params), dict(state.frozen), dict(state.buffers))
