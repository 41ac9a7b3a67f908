"""Questions: everything that can change an op's answer, by content, as a flat table that people can read.

The log maps questions to answers. A question is equal to another if its table is; where it is not, `changes` names what
differs and leaves out what only follows from something else that differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from purestate.core._hash import scalar_hash

__all__ = ["Question", "changes", "flatten"]

_FOLLOWS = {
    "input.optimizer": ("recipe.optimizer",),
    "input.epoch_scheduler": ("recipe.epoch_scheduler", "recipe.optimizer"),
    "input.step_scheduler": ("recipe.step_scheduler", "recipe.optimizer"),
    "input.params": ("seed", "module.", "code."),
    "input.frozen": ("seed", "module.", "code."),
    "input.buffers": ("seed", "module.", "code."),
    "input.key": ("seed",),
}
_STATE_PARTS = ("params", "frozen", "buffers", "optimizer", "epoch_scheduler", "step_scheduler", "key", "counters", "ema", "extra")
_SAYINGS = (
    ("recipe.clip.", "gradient clipping "),
    ("recipe.", ""),
    ("code.", "code of "),
    ("train_data.", "training data: "),
    ("val_data.", "validation data: "),
    ("data.", "data: "),
    ("args.", ""),
    ("input.", "input "),
    ("packages.", "package "),
)


@dataclass(frozen=True)
class Question:
    """What an op is asked.

    Args:
        op: Name and version: ``'train/1'``.
        parts: Plain JSON values by dotted name. They decide.
        about: What people want to read beside it, such as the seed. It does not decide.
    """

    op: str
    parts: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def digest(self) -> str:
        """The digest of op and parts."""
        return scalar_hash({"op": self.op, "parts": dict(self.parts)})

    def json(self) -> dict[str, Any]:
        """Return it as a record holds it."""
        return {"op": self.op, "digest": self.digest, "parts": dict(self.parts), "about": dict(self.about)}


def flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted name, value)`` for everything in nested dicts; typed values (``{'~': ...}``) stay whole."""
    if isinstance(value, Mapping) and value and "~" not in value:
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def changes(recorded: Mapping[str, Any], now: Question) -> list[tuple[str, Any, Any]]:
    """Return ``(what, recorded value, value now)`` for each difference that is not a consequence of another.

    Args:
        recorded: A question as `Question.json` wrote it.
        now: What is asked.
    """
    old = {**recorded["about"], **recorded["parts"]}
    new = {**now.about, **now.parts}
    missing = object()
    names = [*old, *(name for name in new if name not in old)]
    differing = [name for name in names if old.get(name, missing) != new.get(name, missing)]
    causes = [name for name in differing if not _follows(name, differing)]
    return [(_say(name), _show(old.get(name)), _show(new.get(name))) for name in sorted(causes, key=_importance)]


def _follows(name: str, differing: list[str]) -> bool:
    if any(other.startswith(cause) for cause in _FOLLOWS.get(name, ()) for other in differing if other != name):
        return True
    # digests of a whole are in the table beside what they are digests of
    return name.endswith(".digest") and any(other.startswith(name.removesuffix("digest")) for other in differing if other != name)


def _importance(name: str) -> tuple[int, str]:
    order = ("seed", "recipe.", "args.", "module.", "code.", "train_data.", "val_data.", "data.", "input.", "packages.")
    return next((i for i, prefix in enumerate(order) if name.startswith(prefix)), len(order)), name


def _say(name: str) -> str:
    for prefix, saying in _SAYINGS:
        if name.startswith(prefix):
            return saying + name.removeprefix(prefix).replace(".args.", " ").replace(".class", " class").replace(".fn", " function")
    return name


def _show(value: Any) -> Any:
    if isinstance(value, str) and len(value) == 64:
        return f"b3:{value[:8]}"
    return value
