"""Questions: everything that can change an op's answer, by content, as a flat table that people can read.

The log maps questions to answers. A question is equal to another if its table is; where it is not, `changes` names what
differs and leaves out what only follows from something else that differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from purestate.core._digest import canonical_json, scalar_hash

__all__ = ["DEFAULT", "Question", "causes", "changes", "flatten", "said", "shown"]

DEFAULT = "the default"
"""What is said of an argument that was left out."""

_FOLLOWS = {
    "input.optimizer": ("recipe.optimizer", "edits", "parent"),
    "input.epoch_scheduler": ("recipe.epoch_scheduler", "recipe.optimizer", "edits.freeze", "edits.unfreeze", "parent"),
    "input.step_scheduler": ("recipe.step_scheduler", "recipe.optimizer", "edits.freeze", "edits.unfreeze", "parent"),
    "input.params": ("seed", "module", "code", "edits.freeze", "edits.unfreeze", "edits.averaged", "parent"),
    "input.ema": ("recipe.ema_decay", "seed", "module", "code", "edits.freeze", "edits.unfreeze", "parent"),
    "input.frozen": ("seed", "module", "code", "edits.freeze", "edits.unfreeze", "parent"),
    "input.buffers": ("seed", "module", "code", "parent"),
    "input.key": ("seed", "parent"),
    "input.counters": ("parent",),
}
"""What may follow from what; a name stands for everything below it too."""
_SAYINGS = (
    ("recipe.clip.", "gradient clipping "),
    ("recipe.", ""),
    ("metrics.", "metric "),
    ("train_data", "training data"),
    ("val_data", "validation data"),
    ("args.", ""),
    ("input.layout.", "stride order of "),
    ("input.", "input "),
    ("parent", "input"),
    ("edits.", ""),
    ("package.", "package "),
)
"""How the beginning of a name is put for people; the first that fits."""
_DATA = ("train_data", "val_data", "data")
_MISSING = object()
_DIGEST = re.compile(r"(?:b3:)?\b([0-9a-f]{8})[0-9a-f]{24,56}\b")


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
    return [(said(name), a, b) for name, a, b in causes(recorded, now.json())]


def causes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return ``(dotted name, value in a, value in b)`` for each difference that is not a consequence of another.

    Args:
        a: A question as `Question.json` wrote it.
        b: Another.
    """
    tables = tuple({"op": q["op"], **q["about"], **q["parts"]} for q in (a, b))
    differing = [name for name in {**tables[0], **tables[1]} if not _same(name, tables)]
    first = [name for name in differing if not _follows(name, differing, tables)]
    return [(name, *(shown(name, table) for table in tables)) for name in sorted(first or differing, key=_importance)]


def _same(name: str, tables: _Tables) -> bool:
    one, other = (table.get(name, _MISSING) for table in tables)
    if one != other or type(one) is str or one is _MISSING:
        return one == other
    return canonical_json(one) == canonical_json(other)  # 1, 1.0 and True are equal to Python


_Tables = tuple[Mapping[str, Any], ...]


def _follows(name: str, differing: list[str], tables: _Tables) -> bool:
    if any(_within(other, cause) for cause in _FOLLOWS.get(name, ()) for other in differing):
        return True
    if any(name in table and table[name] == {} for table in tables) and any(
        _within(other, name) for other in differing if other != name
    ):
        return True
    above = [name[:i] for i, letter in enumerate(name) if letter == "."]
    if any(cause in differing and cause != name for whole in above for cause in _tells(whole, tables)):
        return True
    owner, _, argument = name.partition(".args.")
    if argument and not all(name in table for table in tables) and f"{owner}.class.code" in differing:
        return True  # an argument that only one of two classes takes
    if name.startswith("code.") and not all(name in table for table in tables):
        # code that came or went was reached from something
        known = [other for other in differing if all(other in table for table in tables)]
        return any(_within(other, "module") or _within(other, "code") for other in known)
    place, _, last = name.rpartition(".")
    if last == "digest" and any(_within(other, place) for other in differing if other != name):
        return True  # it is over what is in the table beside it
    data, _, part = name.partition(".")
    if data not in _DATA:
        return False
    return f"{data}.{part.removeprefix('batch_sampler.')}" in differing[: differing.index(name)] or (
        part.startswith("dataset.tensors") and f"{data}.dataset.samples" in differing
    )


def _within(name: str, whole: str) -> bool:
    return name == whole or name.startswith(f"{whole}.")


def _tells(whole: str, tables: _Tables) -> list[str]:
    """The names that, where they differ, say of a whole that it came, went or is of another class: of its parts then too."""
    names = [whole] if _within(whole, "module") or any(whole in table and table[whole] is None for table in tables) else []
    return names if whole.endswith((".class", ".fn", ".value")) else [*names, f"{whole}.code", f"{whole}.fn.code"]


def _importance(name: str) -> tuple[int, bool, str]:
    order = ("seed", "recipe.", "args.", "module", "code.", "metrics.", *_DATA, "parent", "edits.", "input.", "package.")
    return next((i for i, prefix in enumerate(order) if name.startswith(prefix)), len(order)), ".args." in name, name


def said(name: str) -> str:
    """Return how a dotted name is put for people."""
    if name.startswith("code."):
        return f"code of {name.removeprefix('code.')}"
    code = name.endswith(".digest")
    for end in (".code", ".digest", ".fn", ".value") if not name.startswith("module.") else ():
        name = name.removesuffix(end)
    for prefix, saying in _SAYINGS:
        if name.startswith(prefix):
            name = saying + name.removeprefix(prefix)
            break
    data, dot, part = name.partition(".")
    if dot and data.endswith("data"):
        return f"{data}: {'code of ' if code else ''}{part}"
    name = name.replace(".args.", " ").replace(".class", " class")
    return f"code of {name}" if code else name


def shown(name: str, table: Mapping[str, Any]) -> Any:
    """Return a value for people; of something with parts what it is called."""
    value = table.get(name)
    if name not in table and ".args." in name:
        return DEFAULT
    if value is None:
        ends = ("class.code", "fn.code", "value.code", "code", "kind")
        value = next((table[f"{name}.{end}"] for end in ends if f"{name}.{end}" in table), None)
    return _DIGEST.sub(r"b3:\1", value) if isinstance(value, str) else value
