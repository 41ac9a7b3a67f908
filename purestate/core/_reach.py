"""What the code of a step reaches outside of its module: global variables, closures, attributes of classes and of functions.

`reached` follows the user's functions and classes by the names in their bytecode and says where values lie. It executes
nothing, and of installed packages it looks at no code. What is seen there is compared by `_guard`.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch
from torch import nn

from purestate import errors

__all__ = ["Place", "reached"]

_INSTALLED = tuple(
    inspect.getfile(module).removesuffix(file)
    for module, file in ((random, "random.py"), (torch, "__init__.py"), (errors, "errors.py"))
)
"""Where the standard library, torch and purestate lie."""
_PACKAGES = ("site-packages", "dist-packages")
_BUILT_IN = frozenset({"builtins", "torch", "numpy", "purestate"})
_OF_TORCH = frozenset(vars(nn.Module()))
_MOST = 2_000
"""Functions, classes and objects that are followed."""
_DATA = frozenset({"builtins", "collections", "torch", "numpy", "random", "weakref"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies that the step may move.

    Args:
        name: In words, as ``the global 'COUNT' of train``.
        read: Returns the value that is there now; None where there is none.
    """

    name: str
    read: Callable[[], Any]


def reached(roots: Iterable[tuple[str, Any]]) -> list[Place]:
    """Return the places that code reaches.

    Args:
        roots: Functions, callable objects and modules, each with what it is called. Of a module the classes of it and its
            submodules, its hooks and the functions among its attributes; the values in its attributes are left out.

    Example:
        >>> def loss(prediction, target, seen=[]):
        ...     return prediction.sum()
        >>> [place.name for place in reached([("loss", loss)])]
        ["the default 'seen' of loss", 'the attribute loss']
    """
    search = _Search()
    for name, root in roots:
        search.root(root, name)
    return list(search.places.values())


class _Search:
    """A search in progress. Places are kept by where they are, so that each is there once."""

    def __init__(self) -> None:
        self.places: dict[Any, Place] = {}
        self._seen: dict[int, Any] = {}

    def root(self, root: Any, name: str) -> None:
        if isinstance(root, nn.Module):
            for module in root.modules():
                for key, value in vars(module).items():
                    # what is bound in an attribute is the module's own, and looked at with it; hooks are torch's
                    self._code_in(value, bound=key in _OF_TORCH)
                self.follow(type(module))
        else:
            self.value(root, name, (id(root),), lambda: root)

    def value(self, value: Any, name: str, where: Any, read: Callable[[], Any]) -> None:
        """Note a place, if what lies there is data, and follow it if it is code."""
        self.follow(value)
        if not isinstance(value, (ModuleType, type, FunctionType, MethodType, BuiltinFunctionType)) and _is_open(value):
            self.places.setdefault(where, Place(name, read))

    def follow(self, value: Any) -> None:
        """Look for places in what code there is in a value."""
        if isinstance(value, MethodType):
            self.follow(value.__func__)
            owner = value.__self__
            self.value(owner, f"the object of {value.__qualname__}", (id(owner),), lambda: owner)
        elif isinstance(value, functools.partial):
            self._partial(cast("functools.partial[Any]", value))
        elif not self._is_new(value):
            return
        elif isinstance(value, FunctionType):
            if _is_users(value.__code__):
                self._function(value)
        elif isinstance(value, type):
            self._class(cast("type[Any]", value))
        elif isinstance(value, (staticmethod, classmethod)):
            self.follow(value.__func__)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        elif isinstance(value, property):
            for accessor in (value.fget, value.fset):
                self.follow(accessor)
        elif isinstance(value, (Mapping, list, tuple)):
            self._code_in(value)
        elif not isinstance(value, ModuleType):
            self.follow(getattr(value, "__dict__", {}).get("__wrapped__"))  # that of functools.cache
            self.follow(type(value))

    def _is_new(self, value: Any) -> bool:
        if id(value) in self._seen or len(self._seen) >= _MOST:
            return False
        self._seen[id(value)] = value  # held, so that its id stays its own
        return True

    def _code_in(self, value: Any, *, bound: bool = True) -> None:
        items = list(cast("Mapping[Any, Any]", value).values()) if isinstance(value, Mapping) else value
        for item in items[:100] if isinstance(items, (list, tuple)) else [items]:
            if isinstance(item, (FunctionType, MethodType, functools.partial)) or (
                type(item).__module__ not in _DATA and not isinstance(item, (torch.Tensor, nn.Module))
            ):
                self.follow(item if bound else _unbound(item))

    def _partial(self, value: functools.partial[Any]) -> None:
        self.follow(value.func)
        for key, item in [*enumerate(value.args), *value.keywords.items()]:
            name = f"the argument {key!r} of a partial of {_name(value.func)}"
            self.value(item, name, (id(value), key), lambda item=item: item)

    def _function(self, function: FunctionType) -> None:
        name, names = _name(function), set(_names(function.__code__))
        space = function.__globals__
        for key in names & space.keys():
            self._global(space, key, names)
        self._variables(function, name, names)
        self._arguments(function, name)

    def _variables(self, function: FunctionType, name: str, names: set[str]) -> None:
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            value = _of_cell(cell)
            if isinstance(value, ModuleType):
                self._inner(value, names)
            self.value(value, f"the variable {key!r} of {name}", (id(cell),), functools.partial(_of_cell, cell))

    def _arguments(self, function: FunctionType, name: str) -> None:
        arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
        defaults = dict(zip(arguments[::-1], (function.__defaults__ or ())[::-1], strict=False)) | (function.__kwdefaults__ or {})
        for key, item in defaults.items():
            self.value(item, f"the default {key!r} of {name}", (id(function), key), lambda item=item: item)
        attributes = vars(function)
        for item in list(attributes.values()):
            self.follow(item)
        self.places[id(attributes),] = Place(f"the attribute {name}", lambda: attributes)

    def _global(self, space: dict[str, Any], key: str, names: set[str]) -> None:
        value = space[key]
        if isinstance(value, ModuleType):
            return self._inner(value, names)
        of = space.get("__name__", "?")
        self.value(value, f"the global {key!r} of {of}", (id(space), key), functools.partial(space.get, key))

    def _inner(self, module: ModuleType, names: set[str]) -> None:
        if _is_users_module(module):
            space = vars(module)
            for key in names & space.keys():
                if not isinstance(space[key], ModuleType):
                    self._global(space, key, names)

    def _class(self, cls: type[Any]) -> None:
        for base in cls.__mro__:
            if not _is_users_class(base) or (base is not cls and not self._is_new(base)):
                continue
            for key, item in list(vars(base).items()):
                if not (key.startswith("__") and key.endswith("__")) or callable(item):
                    read = functools.partial(vars(base).get, key)
                    self.value(item, f"the class attribute {base.__qualname__}.{key}", (id(base), key), read)


def _is_open(value: Any) -> bool:
    """Whether what is in a value is to be looked at: not in objects that installed packages made for themselves."""
    if isinstance(value, (torch.Tensor, torch.Generator, nn.Module)) or type(value).__module__ in ("builtins", "collections"):
        return value is not None and not isinstance(value, (property, staticmethod, classmethod))
    return type(value).__module__.partition(".")[0] in ("numpy", "random") or _is_users_class(type(value))


def _is_users(code: CodeType) -> bool:
    file = code.co_filename
    return not file.startswith((*_INSTALLED, "<frozen ")) and not any(folder in file for folder in _PACKAGES)


def _is_users_class(cls: type[Any]) -> bool:
    functions = [getattr(item, "__func__", item) for item in vars(cls).values()]
    codes = [f.__code__ for f in functions if isinstance(f, FunctionType) and f.__code__.co_filename[:1] != "<"]
    if codes:
        return any(map(_is_users, codes))
    return cls.__module__.partition(".")[0] not in _BUILT_IN


def _is_users_module(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and not file.startswith(_INSTALLED) and not any(folder in file for folder in _PACKAGES)


def _unbound(value: Any) -> Any:
    if isinstance(value, MethodType):
        return value.__func__
    return _unbound(cast("functools.partial[Any]", value).func) if isinstance(value, functools.partial) else value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
