"""Generators that user objects own: found in their attributes, read, and seeded from a key.

A sampler, a dataset or a transform may hold a `torch.Generator`, a numpy `Generator`, `RandomState` or `BitGenerator`,
or a `random.Random`. These four kinds can be seeded from outside, so that what they give depends on the key only.
"""

from __future__ import annotations

import functools
import random
import sys
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch

from purestate.core._key import Key
from purestate.errors import HiddenStateError

__all__ = ["OwnGenerator", "find_generators", "generator_state", "is_generator", "seed_generator", "set_generator_state", "walk"]

OwnGenerator: TypeAlias = "torch.Generator | np.random.Generator | np.random.RandomState | np.random.BitGenerator | random.Random"

_LONGEST = 1000
"""A longer container is data: looking for generators in a million file names would cost more than it finds."""

_PLAIN = (str, bytes, int, float, complex, type(None), type, types.ModuleType, np.ndarray, np.generic)


def is_generator(item: Any) -> TypeGuard[OwnGenerator]:
    """Whether an object is a generator that can be seeded."""
    if isinstance(item, torch.Generator | random.Random):
        return True
    # numpy imports its generators when they are first used: before that nobody has one
    if "numpy.random" not in sys.modules:
        return False
    return isinstance(item, np.random.Generator | np.random.RandomState | np.random.BitGenerator)


def walk(root: Any, where: str, skip: Container[int] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every object that can be reached from one through attributes, containers, closures and partials.

    Args:
        root: Where to begin; it is the first object yielded.
        where: What the root is called in the paths.
        skip: Ids of objects that are yielded but not entered. It may grow while the walk goes on.

    Yields:
        ``(path, object)``, each object once, parents before children. Tensors, arrays, numbers, texts and classes are
        not yielded, and containers of more than 1000 entries not entered.
    """
    seen: set[int] = set()
    stack = [(where, root)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, (*_PLAIN, torch.Tensor)) or id(item) in seen:
            continue
        seen.add(id(item))
        yield path, item
        if not is_generator(item) and id(item) not in skip:
            stack.extend(reversed(list(_children(path, item))))


def find_generators(root: Any, where: str, skip: Container[int] = ()) -> list[OwnGenerator]:
    """Return the generators that an object owns, in the order in which `walk` meets them.

    Raises:
        HiddenStateError: One of them draws from the operating system, which no seed can reach.
    """
    found = [(path, item) for path, item in walk(root, where, skip) if is_generator(item)]
    for path, item in found:
        if isinstance(item, random.SystemRandom):
            raise HiddenStateError(
                f"{path} is a random.SystemRandom, which cannot be seeded.",
                cause="It draws from the operating system, so that no two runs agree.",
                fix="Use random.Random or a torch.Generator in its place.",
            )
    return [item for _, item in found]


def seed_generator(generator: OwnGenerator, key: Key) -> None:
    """Set a generator to the state that it would have if it had been made from a key's seed."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(key.seed)
    elif isinstance(generator, random.Random):
        generator.seed(key.seed)
    elif isinstance(generator, np.random.RandomState):
        generator.seed(key.lo)
    else:
        bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
        bits.state = type(bits)(key.seed).state


def generator_state(generator: OwnGenerator) -> Any:
    """Read a generator without moving it."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.state


def set_generator_state(generator: OwnGenerator, state: Any) -> None:
    """Set a generator to what `generator_state` read."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.state = state


def _children(path: str, item: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(item, Mapping):
        entries = item.items() if len(item) <= _LONGEST else ()
        yield from ((f"{path}[{key!r}]", value) for key, value in entries)
    elif isinstance(item, list | tuple | set | frozenset) and len(item) <= _LONGEST:
        yield from ((f"{path}[{i}]", value) for i, value in enumerate(item))
    elif isinstance(item, functools.partial):
        yield from ((f"{path}.{name}", getattr(item, name)) for name in ("func", "args", "keywords"))
    elif isinstance(item, types.MethodType | types.BuiltinFunctionType):
        yield f"{path}.__self__", item.__self__
    elif isinstance(item, types.FunctionType) and item.__closure__:
        for name, cell in zip(item.__code__.co_freevars, item.__closure__, strict=True):
            try:
                yield f"{path}.<{name}>", cell.cell_contents
            except ValueError:  # a name of the enclosing function that has no value yet
                continue
    yield from ((f"{path}.{name}", value) for name, value in getattr(item, "__dict__", {}).items())
    for cls in type(item).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(item, name):
                yield f"{path}.{name}", getattr(item, name)
