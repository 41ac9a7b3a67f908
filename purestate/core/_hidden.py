"""State that hides: what a module keeps in plain attributes instead of buffers.

A State has the parameters and buffers of a module. A counter, a list or a generator in an attribute is in none of them, so a
step that moves one is not a function of its inputs, and no captured step. `Attributes` notices, `New` makes a module new
again. What is moved outside of modules is found by `_reach`, and whether a move matters is decided by `_guard`.
"""

from __future__ import annotations

import copy
import functools
import random
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Attributes", "New", "walk"]

_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_OF_TORCH = frozenset(vars(nn.Module()))
_CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)
_DEEPEST = 5
_LONGEST = 10_000
"""Of a container with more entries than this, its length and the first hundred are looked at."""
_LARGEST = 1 << 24
"""Of an array with more bytes than this, some thousand entries are looked at."""


class Attributes:
    """The plain attributes of modules as they are now, to find later which have moved.

    Numbers, texts, containers, generators and the attributes of other objects are looked at. A tensor counts as moved if
    it was written in place; one that was *exchanged* counts only if the old one was used, since many modules keep
    there what they have just computed.

    Args:
        *owners: Modules, or objects that hold some. Not modified.

    Example:
        >>> module = nn.Identity()
        >>> module.calls = 0
        >>> before = Attributes(module)
        >>> module.calls += 1
        >>> before.moved()
        "the attribute 'calls'"
    """

    def __init__(self, *owners: Any) -> None:
        self._owners = owners
        self._values, self._tensors = self._look()
        self._bound = [(vars(m), dict(vars(m))) for owner in owners for m in _modules(owner)]

    @property
    def values(self) -> Mapping[str, Any]:
        """All of them but the tensors, by path, in a form that can be compared."""
        return self._values

    def moved(self, used: Sequence[Any] = ()) -> str | None:
        """Return the name of the first attribute that moved since, or None.

        Args:
            used: Tensors that a trace since found to be constants of the computation.
        """
        values, tensors = self._look()
        for path in self._values | values:
            if self._values.get(path) != values.get(path):
                return f"the attribute {path!r}"
        constants = {t.untyped_storage().data_ptr() for t in used if isinstance(t, Tensor) and t.layout is torch.strided}
        for path, (tensor, version) in self._tensors.items():
            if tensor._version != version:
                return f"the tensor attribute {path!r}"
            now = tensors.get(path)
            exchanged = now is None or now[0] is not tensor
            if (
                exchanged
                and tensor.layout is torch.strided
                and not tensor.is_meta
                and tensor.untyped_storage().data_ptr() in constants
            ):
                return f"the tensor attribute {path!r}"
        return None

    def put_back(self) -> None:
        """Bind every attribute of the modules to what it was bound to, and take away those that are new."""
        for now, before in self._bound:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)

    def _look(self) -> tuple[dict[str, Any], dict[str, tuple[Tensor, int]]]:
        values: dict[str, Any] = {}
        tensors: dict[str, tuple[Tensor, int]] = {}
        for owner in self._owners:
            for path, value in walk(owner, "", 0, set()):
                if isinstance(value, Tensor):
                    tensors[path] = value, value._version
                else:
                    values[path] = value
        return values, tensors


class New:
    """The plain attributes of modules as they are when this is made, to lend them out again later.

    What cannot be copied is shared by all loans.

    Args:
        *modules: Modules that have not been called yet, with all their submodules. Not modified.

    Example:
        >>> module = nn.Identity()
        >>> module.seen = []
        >>> new = New(module)
        >>> module.seen.append(1)
        >>> with new.lent():
        ...     module.seen
        []
        >>> module.seen
        [1]
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = [m for module in modules for m in module.modules()]
        tensors = (t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values()))
        self._theirs = {id(own): own for own in (*self._modules, *tensors)}
        self._attributes = self._copied([_plain(m) for m in self._modules])

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Bind copies of the attributes for the length of a ``with`` block, and then again what there was before."""
        used = [_plain(m) for m in self._modules]
        self._bind(self._copied(self._attributes))
        try:
            yield
        finally:
            self._bind(used)

    def _copied(self, attributes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        memo: dict[int, Any] = dict(self._theirs)
        return [{name: _copied(value, memo) for name, value in of.items()} for of in attributes]

    def _bind(self, attributes: list[dict[str, Any]]) -> None:
        for module, mine in zip(self._modules, attributes, strict=True):
            for name in _plain(module):
                del vars(module)[name]
            vars(module).update(mine)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a file, a __deepcopy__ of the user's may raise anything: what has no copy is shared by both runs
        return value


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def walk(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield what can move in a value, with its path: tensors as they are, all else in a form that can be compared.

    Args:
        value: Anything. Of a module its plain attributes and those of its submodules; no parameter and no buffer.
        path: What the value is called.
        depth: How deep it lies in other values; there is an end to that.
        seen: Ids of what was looked at already. Added to.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, _VALUES):
        yield path, repr(value)
    elif (state := _generator(value)) is not None:
        yield path, state
    elif id(value) in seen or depth > _DEEPEST:
        return
    elif isinstance(value, nn.Module):
        seen.add(id(value))
        for name, item in _plain(value).items():
            yield from walk(item, f"{path}.{name}".lstrip("."), depth + 1, seen)
        for name, item in value._modules.items():
            # submodules are no nesting of attributes: however deep they are, they are looked at
            yield from walk(item, f"{path}.{name}".lstrip("."), 0, seen)
    else:
        seen.add(id(value))
        yield from _inside(value, path, depth + 1, seen)


def _modules(owner: Any) -> Iterator[nn.Module]:
    for found in (owner, *vars(owner).values()):
        if isinstance(found, nn.Module):
            yield from found.modules()


def _inside(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        # the length of a cache grows with every key; what it holds is what counts
        if len(value) > _LONGEST:
            yield path, len(value)
        for key, item in _some(value, value.items()):
            yield from walk(item, f"{path}[{key!r}]", depth, seen)
    elif isinstance(value, (list, tuple, deque)):
        yield path, len(value)
        for i, item in enumerate(_some(value, value)):
            yield from walk(item, f"{path}[{i}]", depth, seen)
    elif isinstance(value, (set, frozenset)):
        yield path, len(value) if len(value) > _LONGEST else sorted(map(repr, value))
    elif isinstance(value, np.ndarray):
        yield path, (value.dtype.str, value.shape, _bytes(value))
    elif isinstance(value, MethodType):
        yield from walk(value.__self__, path, depth, seen)
    elif isinstance(value, functools.partial):
        bound = cast("functools.partial[Any]", value)
        yield from walk((*bound.args, *bound.keywords.values()), f"{path}.args", depth, seen)
        yield from walk(bound.func, path, depth, seen)
    elif not isinstance(value, _CODE):
        for name, item in _fields(value):
            yield from walk(item, f"{path}.{name}".lstrip("."), depth, seen)


def _some(container: Collection[Any], items: Any) -> Iterator[Any]:
    return iter(items) if len(container) <= _LONGEST else islice(items, 100)


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if (field := vars(cls).get(name)) is not None and hasattr(field, "__get__"):
                try:
                    yield name, field.__get__(value)
                except AttributeError:
                    continue  # a slot that nothing was put into


def _bytes(array: np.ndarray) -> bytes:
    flat = array.reshape(-1) if array.nbytes <= _LARGEST else array.flat[:: max(1, array.size // 4096)]
    return flat.tobytes()


def _generator(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        state: Any = value.get_state().numpy().tobytes()
    elif isinstance(value, np.random.Generator):
        state = repr(value.bit_generator.state)
    elif isinstance(value, np.random.RandomState):
        state = repr(value.get_state())
    elif isinstance(value, random.Random):
        state = value.getstate()
    else:
        return None
    return "generator", state
