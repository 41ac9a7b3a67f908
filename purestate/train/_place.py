"""Where models are kept, and what they are called there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from purestate.errors import InvalidIdError
from purestate.store._placed import placed

__all__ = [
    "Id",
    "Place",
    "checkpoint_word",
    "here",
    "set_model_checkpoint_sep",
    "set_namespace",
    "set_root_folder",
    "sort_key",
    "word",
]

Id = int | float | str
_WORD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_SEPARATOR = re.compile(r"[A-Za-z0-9._-]+")
_NUMBER = re.compile(r"[0-9]{4,}(\.[0-9]+)?")
_TAKEN = ("checkpoints", "items", "locks", "trash", "format.json", "journal.jsonl")
"""What a store has in its folder, where the folders of namespaces are, too."""


@dataclass(frozen=True)
class Place:
    """Where a model lives. Taken when the model is made: what is set later concerns later models.

    Args:
        root: The folder that holds ``ckpts/`` and ``runs/``.
        namespace: A folder in each of the two, or None.
        separator: What stands between the id of a model and the id of a checkpoint.
    """

    root: Path = Path()
    namespace: str | None = None
    separator: str = "--"

    @property
    def store(self) -> Path:
        """The folder of the store."""
        return self.root / "ckpts" / (self.namespace or "")

    @property
    def runs(self) -> Path:
        """The folder of the TensorBoard files."""
        return placed(self.root / "runs" / (self.namespace or ""), store=False)

    def name(self, model: str, id: Id) -> str:
        """Return what the store calls a checkpoint of a model.

        Args:
            model: The id of the model.
            id: The id of the checkpoint. Integers have four digits at least, and a float sorts between its neighbours.

        Raises:
            InvalidIdError: The id is negative or has letters that cannot be in a name; or the separator is in one of the
                two, so that the name could not be taken apart again.
        """
        own = checkpoint_word(id)
        name = f"{model}{self.separator}{own}"
        if name.split(self.separator) != [model, own]:
            raise InvalidIdError(
                f"model {model!r}, checkpoint {id!r}: {self.separator!r} stands between the two in names, and is in one of them.",
                fix=f"Take other ids, or another separator: train.set_model_checkpoint_sep({_separator_for(model + own)!r}).",
            )
        return name

    def own(self, model: str, name: str) -> str | None:
        """Return the part of a name that says which checkpoint of a model it is; None if it is none of that model."""
        parts = name.split(self.separator)
        return parts[1] if len(parts) == 2 and parts[0] == model else None


_place = Place()


def here() -> Place:
    """Return where models are made now."""
    return _place


def set_root_folder(path: str | Path) -> None:
    """Say which folder holds ``ckpts/`` and ``runs/`` of the models that are made from now on; the current one otherwise.

    Args:
        path: Created when something is written.
    """
    _set(root=Path(path))


def set_namespace(name: str | None) -> None:
    """Keep the models that are made from now on in a folder of their own: ``ckpts/<name>`` and ``runs/<name>``.

    Args:
        name: Letters, digits, ``.``, ``_``, ``-``; None for no namespace, as at the start.

    Raises:
        InvalidIdError: The name has other letters, or is a name that a store has in its folder.
    """
    if name in _TAKEN:
        raise InvalidIdError(f"{name!r} cannot be a namespace: a store has something of that name in its folder.", id=name)
    _set(namespace=None if name is None else word(name, "a namespace"))


def set_model_checkpoint_sep(separator: str) -> None:
    """Say what stands between model and checkpoint in the names of the store, for models that are made from now on.

    Args:
        separator: Of the same letters as an id: ``'--'`` at the start.

    Raises:
        InvalidIdError: It has other letters, or none.
    """
    _set(separator=word(separator, "a separator", _SEPARATOR))


def _set(**changes: Any) -> None:
    global _place
    _place = replace(_place, **changes)


def _separator_for(text: str) -> str:
    return next(sign * n for n in range(1, 9) for sign in "._-" if sign not in text or sign * n not in text)


def checkpoint_word(id: Id) -> str:
    """Return an id as a word: ``1`` is ``'0001'``, ``1.5`` is ``'0001.5'``."""
    if isinstance(id, bool) or not isinstance(id, Integral | float | str):
        raise InvalidIdError(f"expected a number or a text as the id of a checkpoint, got {id!r}.")
    if isinstance(id, str):
        return word(id, "the id of a checkpoint")
    if not 0 <= id < 1e15:
        raise InvalidIdError(f"expected the id of a checkpoint to be a number from 0 on, got {id!r}.")
    digits = f"{id:.10f}" if isinstance(id, float) else f"{int(id)}."
    if float(digits) != float(id):
        raise InvalidIdError(f"expected the id of a checkpoint to have at most ten digits behind the point, got {id!r}.")
    whole, _, fraction = digits.partition(".")
    return f"{int(whole):04d}{f'.{rest}' if (rest := fraction.rstrip('0')) else ''}"


def sort_key(own: str) -> tuple[bool, float, str]:
    """Return what sorts the words of checkpoints: numbers as numbers, and words behind them."""
    number = float(own) if _NUMBER.fullmatch(own) else None
    return number is None, number or 0.0, own


def word(text: str, what: str, letters: re.Pattern[str] = _WORD) -> str:
    """Return a text that can be part of a name, and the name of a folder.

    Raises:
        InvalidIdError: It cannot.
    """
    if not isinstance(text, str) or not letters.fullmatch(text):
        raise InvalidIdError(
            f"expected {what} of letters, digits, '_', '-' and, inside of it, '.', got {text!r}.",
            fix=f"{re.sub(r'[^A-Za-z0-9._-]+', '-', str(text)).strip('-.') or 'model'!r}, for example.",
        )
    return text
