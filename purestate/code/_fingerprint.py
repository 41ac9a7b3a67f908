"""The fingerprint of anything callable or plain: one digest, and the parts that explain why it is another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from purestate.code._plain import plain
from purestate.code._text import note
from purestate.code._walk import Walker, shortened
from purestate.errors import UnsupportedError

__all__ = ["Fingerprint", "describe", "fingerprint"]

Json = Any


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What an object is, in content. Two with the same digest compute the same, on the same Python and packages.

    Args:
        value: The object itself: a reference into `parts` for the user's code, else its content.
        parts: Every function, class and variable of the user that it reaches, by qualified name: a digest, or the value of
            a plain variable. A second one of the same name is ``name#2``.
        packages: Every installed package that it reaches, with its version.
    """

    value: Json
    parts: dict[str, Json]
    packages: dict[str, str]

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over everything."""
        return note([self.value, self.parts, self.packages])

    @property
    def name(self) -> str:
        """How to call it in a sentence."""
        value = self.value
        if not isinstance(value, dict):
            return str(value)
        return next((name for key in _NAMES if isinstance(name := value.get(key), str)), next(iter(value), ""))

    def describe(self) -> dict[str, Json]:
        """Return everything as one flat dict: ``code.<name>``, ``package.<name>`` and ``value``."""
        parts = {f"code.{name}": value for name, value in self.parts.items()}
        packages = {f"package.{name}": version for name, version in self.packages.items()}
        return {"value": shortened(self.value), **parts, **packages}


_NAMES = ("code", "function", "builtin", "class", "object", "module", "installed")


def fingerprint(obj: object, *, where: str = "") -> Fingerprint:
    """Return what an object computes, by content: code, closures, defaults, bound values, globals, attributes.

    Code of the user counts by its syntax (not by comments, white space, docstrings, or where the file lies) and is followed
    through the names it reads; installed packages count by version. Type hints of functions count, since decorators read
    them. ``1``, ``1.0`` and ``True`` are apart, and so are two orders of a dict. An object with a method
    ``__purestate_fingerprint__()`` is what that returns.

    Args:
        obj: A function, lambda, method, partial, class, module, or any object of plain attributes. Not called, not modified.
        where: What errors call it.

    Raises:
        FingerprintError: Something in it has no content, such as an open file.

    Effects:
        Reads the source files of the user's functions, once.

    Example:
        >>> fingerprint(abs).value
        {'installed': 'builtins.abs'}
        >>> fingerprint([1, 2]).digest == fingerprint([1, 2.0]).digest
        False
    """
    walker = Walker(where)
    value = walker.describe(obj)
    return Fingerprint(value, walker.parts, walker.packages)


def describe(value: Any, where: str = "") -> Json:
    """Return a value as a question holds it: plain ones as they are, others by name and digest.

    Args:
        value: An argument of an op.
        where: What errors call it.

    Raises:
        FingerprintError: It has no content.

    Effects:
        Reads the source files of the user's functions, once.

    Example:
        >>> describe({"betas": (0.9, 0.999), "lr": 0.1})
        {'betas': {'~': 'tuple', 'v': [0.9, 0.999]}, 'lr': 0.1}
    """
    try:
        return plain(value, describe)
    except UnsupportedError:
        found = fingerprint(value, where=where)
    kind = "code" if isinstance(value, Callable) else "object"
    return {kind: found.name, "digest": found.digest}
