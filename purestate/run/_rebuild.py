"""A recipe made again from what a record says of it, for a process in which nobody called `setup`.

Only classes that are already imported are looked up, by name, and what is made from them has to be described as the record
describes it: a log is data, and reading one must not import or call what it names. Functions cannot be found by name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from purestate.code import describe
from purestate.core._factory import Factory
from purestate.core._plain import decode
from purestate.core._recipe import Clip, Recipe
from purestate.core._state import COMPONENTS
from purestate.errors import StateError, UnsupportedError
from purestate.run._ask import describe_option
from purestate.run._question import flatten

__all__ = ["rebuild"]

_BASES: dict[str, type] = {"loss": nn.Module, "optimizer": torch.optim.Optimizer}
"""What a class that a stranger's log names has to be: it is going to be called with arguments from there."""


def rebuild(recipe: Recipe, parts: Mapping[str, Any], where: str) -> Recipe:
    """Return a recipe as a question describes it, for the module of another.

    Args:
        recipe: Gives the module.
        parts: The parts of the question that a train answered.
        where: Which checkpoint that is, for messages.

    Raises:
        StateError: Something in it cannot be made again; it is named.
    """
    made: dict[str, Any] = {"loss": None, "loss_args": None, "loss_fn": None}
    for name in ("loss", *COMPONENTS):
        factory = _factory(name, _below(parts, f"recipe.{name}"), where)
        if name == "loss" and factory is not None:
            made |= {"loss": factory.cls, "loss_args": factory.args}
        elif name != "loss":
            made[name] = factory
    made["clip"] = Clip(parts.get("recipe.clip.norm"), parts.get("recipe.clip.value"))
    made |= {name: parts.get(f"recipe.{name}") for name in ("precision", "deterministic", "compile", "ema_decay")}
    found = recipe.replace(**made)
    for name in ("loss", *COMPONENTS):
        if dict(flatten(describe_option(found, name), name)) != _below(parts, f"recipe.{name}", keep=name):
            raise _lost(name, where, "what it is called is another class now, or it takes other arguments")
    return found


def _below(parts: Mapping[str, Any], name: str, keep: str = "") -> dict[str, Any]:
    """The part of a question under a name, by the rest of the name."""
    found = {key.removeprefix(name): value for key, value in parts.items() if key == name or key.startswith(f"{name}.")}
    return {keep + key: value for key, value in found.items()}


def _factory(kind: str, table: Mapping[str, Any], where: str) -> Factory | None:
    if set(table) <= {""}:
        return None
    if ".class.code" not in table:
        raise _lost(kind, where, "it was made by a function or is an instance, which a record names and does not keep")
    cls = _imported(str(table[".class.code"]))
    if cls is None or not issubclass(cls, _BASES.get(kind, LRScheduler)):
        raise _lost(kind, where, f"no such class {table['.class.code']!r} is imported here")
    args = {key.removeprefix(".args."): value for key, value in table.items() if key.startswith(".args.")}
    try:
        return Factory.make(kind, cls, {name: decode(value) for name, value in args.items()}, None, describe=describe)
    except (UnsupportedError, TypeError, ValueError):
        raise _lost(kind, where, f"{cls.__qualname__} does not take its arguments {sorted(args)} as they are recorded") from None


def _imported(name: str) -> type | None:
    """Return a class by its full name, without importing anything."""
    path = name.split(".")
    for cut in range(len(path) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(path[:cut]))
        if found is not None:
            for attribute in path[cut:]:
                found = vars(found).get(attribute) if hasattr(found, "__dict__") else None
            return found if isinstance(found, type) else None
    return None


def _lost(kind: str, where: str, cause: str) -> StateError:
    return StateError(
        f"the {kind.replace('_', ' ')} of {where} cannot be made again from its record.",
        cause=f"In this process nobody has set it up, and {cause}.",
        fix="Run the block that trains the checkpoint before it is loaded (from the log that takes milliseconds).",
        path=kind,
    )
