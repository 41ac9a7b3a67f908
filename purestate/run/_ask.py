"""From the arguments of a call to its `Question`: content, code and data of everything that can change the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from purestate.code import describe, describe_module
from purestate.core._factory import Factory, is_plateau_factory
from purestate.core._metrics import Metric
from purestate.core._own import OwnStep
from purestate.core._recipe import Clip, Recipe
from purestate.core._state import COMPONENTS, State
from purestate.data._fingerprint import describe_data
from purestate.run._answers import op_name
from purestate.run._question import Question, flatten
from purestate.run._setup import describe_loss
from purestate.run._switches import switches

__all__ = ["ask_reader", "ask_train", "describe_option"]

_READ = ("params", "frozen", "buffers", "key")
"""The subtrees that `evaluate` and `predict` depend on: a fork that only changes the optimizer shares their answers."""

_EDITS = ("set_lr", "freeze", "unfreeze", "averaged")
"""What was done to a state by functions whose arguments say it better than digests do."""

_OPTIONS = ("loss", *COMPONENTS, "clip", "precision", "deterministic", "compile", "ema_decay")
"""What of a recipe enters a question."""

_NEWER = frozenset({"compile", "ema_decay"})
"""Options that the first records do not know: they are in a question where they are set, and old records stay answers."""


def ask_train(
    state: State,
    train_dl: Any,
    val_dl: Any,
    *,
    metrics: Sequence[Metric],
    warmup: int,
    watch: str,
    step: OwnStep | None = None,
) -> Question:
    """Return the question that a trajectory of `train` answers.

    Raises:
        FingerprintError: Something in it has no content that could be fingerprinted.
    """
    assert state.recipe is not None
    parts = _common(state, list(state.digests), metrics)
    parts |= _recipe(state.recipe, _OPTIONS)
    parts |= dict(flatten(_data(train_dl), "train_data"))
    parts |= dict(flatten(_data(val_dl) if val_dl is not None else None, "val_data"))
    if step is not None:
        parts |= dict(flatten(describe(step, "step"), "step"))
    if warmup:
        parts["args.warmup"] = warmup
    factory = state.recipe.epoch_scheduler
    if factory is not None and is_plateau_factory(factory) is not False:
        parts["args.watch"] = watch
    return Question("train/1", parts, _about(state))


def ask_reader(
    op: str,
    state: State,
    loader: Any,
    *,
    metrics: Sequence[Metric] = (),
    args: Mapping[str, Any] | None = None,
    whole: bool = False,
) -> Question:
    """Return the question of an op that only reads.

    Args:
        op: Its name and version.
        state: What it reads.
        loader: Its data.
        metrics: What it computes beside the loss.
        args: Its other arguments.
        whole: Whether it depends on the optimizer, as `find_lr` does. None depends on the average.
    """
    assert state.recipe is not None
    parts = _common(state, [name for name in state.digests if name != "ema"] if whole else _READ, metrics)
    parts |= _recipe(state.recipe, ("loss", "precision", "deterministic", *(("optimizer", "clip", "compile") if whole else ())))
    parts |= dict(flatten(_data(loader), "data")) | {f"args.{name}": value for name, value in (args or {}).items()}
    return Question(op, parts, _about(state))


def _common(state: State, subtrees: Sequence[str], metrics: Sequence[Metric]) -> dict[str, Any]:
    assert state.recipe is not None
    digests = state.digests
    parts: dict[str, Any] = {f"input.{name}": digests[name] for name in subtrees if name in digests}
    for name in ("params", "frozen", "buffers"):
        parts |= {f"input.layout.{name}.{leaf}": list(order) for leaf, order in getattr(state, name).orders.items()}
    parts |= describe_module(state.recipe.template)
    parts |= {f"args.{name}": value for name, value in switches(state.device).items()}
    for metric in metrics:
        parts |= dict(flatten({"higher_is_better": metric.higher_is_better, "fn": describe(metric.fn)}, f"metrics.{metric.name}"))
    return parts


def _recipe(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    given = [name for name in names if name not in _NEWER or getattr(recipe, name) is not None]
    return dict(flatten({name: describe_option(recipe, name) for name in given}, "recipe"))


def describe_option(recipe: Recipe, name: str) -> Any:
    """Describe what `setup` decided, as it is now: what a function reads from globals and closure may have changed since."""
    value = getattr(recipe, name)
    if name == "loss":
        return describe_loss(value, recipe.loss_args, recipe.loss_fn)
    if isinstance(value, Factory):
        return Factory.make(value.kind, value.cls, value.args or None, value.fn, describe=describe).description
    return {"norm": value.norm, "value": value.value} if isinstance(value, Clip) else value


def _data(loader: Any) -> dict[str, Any]:
    if not isinstance(loader, DataLoader | list | tuple):
        from purestate.data._feed import feed

        feed(loader)  # raises what is wrong with it, which is more to the point than what changed
    found = describe_data(loader, describe)
    return {"kind": found.kind, "digest": found.digest, **found.parts}


def _about(state: State) -> dict[str, Any]:
    about: dict[str, Any] = {}
    for act in state.origin.acts:
        for name, value in act.items():
            if name == "init":
                about["seed"] = value["seed"]
            elif name in _EDITS:
                about[f"edits.{name}"] = value
    parent = state.origin.parent
    if parent is not None:
        about["parent"] = f"{parent['checkpoint']} {op_name(parent['op'])}, {parent['epochs']} epochs"
    return about
