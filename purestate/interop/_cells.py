"""Functions of Optax that write to their own closures are put back as they were made.

Some of its schedules make a float of their number of steps when they are first called. What they compute stays the same; what is
asked for would not: a script that finds its first train in the log never calls the schedule that it gives to the second.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["put_back"]

_made: WeakKeyDictionary[FunctionType, list[tuple[CellType, Any]]] = WeakKeyDictionary()
"""The numbers in the closures of functions, as they were when these were first seen."""


def put_back(*things: Any) -> None:
    """Put functions of Optax that are reached from some things back as they were when they were first seen here.

    Args:
        *things: Transformations, and functions that hold such in closures and global variables.

    Example:
        >>> def schedule(steps):
        ...     def now(count):
        ...         nonlocal steps
        ...         steps = float(steps)
        ...         return count / steps
        ...     now.__module__ = "optax.schedules"
        ...     return now
        >>> now = schedule(10)
        >>> put_back(now)
        >>> now(5), now.__closure__[0].cell_contents
        (0.5, 10.0)
        >>> put_back(now)
        >>> now.__closure__[0].cell_contents
        10
    """
    left, seen = list(things), dict[int, Any]()
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing  # held, or another might get its identity
        if isinstance(thing, FunctionType) and (thing.__module__ or "").partition(".")[0] == "optax":
            if thing not in _made:
                _made[thing] = [(cell, value) for cell, value in _cells(thing) if type(value) in (bool, int, float)]
            for cell, value in _made[thing]:
                cell.cell_contents = value
        left += _inside(thing)


def _inside(thing: Any) -> Iterator[Any]:
    """Yield what may be or hold such a function."""
    if isinstance(thing, FunctionType):
        yield from (value for _, value in _cells(thing))
        yield from (thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, tuple | list):
        yield from thing
    elif (wrapped := getattr(thing, "__wrapped__", None)) is not None:
        yield wrapped


def _cells(fn: FunctionType) -> Iterator[tuple[CellType, Any]]:
    for cell in fn.__closure__ or ():
        try:
            yield cell, cell.cell_contents
        except ValueError:  # not assigned yet: a later function of the same scope
            continue
