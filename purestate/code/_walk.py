"""The walk over everything that a callable or an object reaches: functions and classes here, values in `_content`.

A `Walker` describes an object as JSON. User functions and classes are described once each, under their qualified name, in
`Walker.parts`, and appear elsewhere as ``{"code": name}``: so cycles end, and a change is reported where it was made.
Installed code appears by name, and its package in `Walker.packages`. Nothing is ever described by its address, its
default ``repr`` or a pickle: what has no content to look at is refused.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, ClassVar, cast

from purestate.code._class import class_attributes, made_of_user_code, slots, written_over
from purestate.code._content import DECLARES, content
from purestate.code._package import Package, importable_name, module_file, package_of_file, package_of_module
from purestate.code._source import Reference, code_digest, file_digest, file_imports, literals, references
from purestate.code._text import note
from purestate.core._hash import canonical_json, scalar_hash
from purestate.errors import FingerprintError

__all__ = ["Json", "Walker", "shortened"]

Json = Any
_SCALARS = frozenset({bool, int, str, type(None)})
_C_CALLABLES = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
_FOLLOWED = (ModuleType, FunctionType, type, int, float, str)
_BY_NAME = frozenset({"code", "class", "function", "module", "builtin", "installed"})
_DATACLASS_OPTIONS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
_FIELD_OPTIONS = ("default", "default_factory", "init", "repr", "hash", "compare", "kw_only")
_LONG = 120


@dataclass(frozen=True, slots=True)
class _Installed:
    """Something that code reads off an installed module: known by its name."""

    name: str


def shortened(description: Json) -> Json:
    """Return a description as it is if it is short, and else by its digest."""
    if type(description) in _SCALARS and not (isinstance(description, str) and len(description) > _LONG):
        return description
    text = canonical_json(description)
    return description if len(text) <= _LONG else {"digest": scalar_hash(description)[:32]}


class Walker:
    """One walk. Everything described by the same walker shares `parts` and `packages`.

    Args:
        where: What is described, as errors name it.
    """

    def __init__(self, where: str = "") -> None:
        self.parts: dict[str, Json] = {}
        self.packages: dict[str, str] = {}
        self.known: dict[int, Json] = {}
        """Objects with a description given beforehand, by identity: the submodules and parameters of a module."""
        self._path: list[str] = [where] if where else []
        self._names: dict[int, str] = {}
        self._taken: dict[str, int] = {}
        self._open: dict[int, int] = {}
        self._globals: dict[tuple[int, str], Json] = {}
        self._seen: set[int] = set()
        self._alive: list[object] = []

    def alone(self) -> Walker:
        """Return a walker for an element of something unordered: what it describes does not depend on what came before."""
        walker = Walker(f"{self.path}.item")
        walker.known, walker._open = self.known, self._open
        return walker

    @property
    def path(self) -> str:
        """Where the walk is, as errors name it."""
        return ".".join(self._path) or "the value"

    def refuse(self, obj: object) -> FingerprintError:
        """Return the error for something without content."""
        kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
        return FingerprintError(
            f"{self.path} is a {kind}, which has no content that could be fingerprinted.",
            cause="It can change the answer, but nothing tells whether it is the same as before.",
            fix=f"Give the class that holds it a method {DECLARES}(self) that returns plain values, or keep it out.",
            path=self.path,
        )

    def inner(self, key: object, obj: object) -> Json:
        """Return the short description of a member; ``key`` is what errors call it."""
        if type(obj) in _SCALARS:
            return obj if not (isinstance(obj, str) and len(obj) > _LONG) else shortened(obj)
        self._path.append(str(key))
        description = shortened(self.describe(obj))
        self._path.pop()
        return description

    def describe(self, obj: Any) -> Json:
        """Return the description of any object as JSON.

        Raises:
            FingerprintError: Something in it has no content.
        """
        if type(obj) in _SCALARS:
            return obj
        if id(obj) in self.known:
            return self.known[id(obj)]
        if id(obj) in self._open:
            return {"outer": self._open[id(obj)]}
        if isinstance(obj, type):
            return self._class(cast("type[Any]", obj))
        declared = self._declared(obj)
        if declared is not None:
            return declared[0]
        name = importable_name(obj)
        if name is not None and self.installed_module(obj.__module__):
            return {"installed": name}
        with self._inside(obj):
            for kind, write in self._callables:
                if isinstance(obj, kind):
                    return write(self, obj)
            return content(self, obj)

    def class_name(self, cls: type[Any]) -> str:
        """Return how descriptions name a class: with its module if installed, by its part if the user's."""
        description = self._class(cls)
        return description.get("code") or description["class"]

    @contextmanager
    def _inside(self, obj: object) -> Generator[None]:
        self._alive.append(obj)  # an object that ended while the walk goes on would give its identity to another
        self._open[id(obj)] = len(self._open)
        try:
            yield
        finally:
            del self._open[id(obj)]

    def _declared(self, obj: Any) -> tuple[Json] | None:
        if getattr(type(obj), DECLARES, None) is not None or DECLARES in getattr(obj, "__dict__", ()):
            kind = type(obj)
            name = getattr(obj, "__qualname__", kind.__qualname__)
            return ({"declared": name.replace(".<locals>", ""), "value": self.inner(DECLARES, getattr(obj, DECLARES)())},)
        return None

    def _name(self, obj: object, name: str) -> tuple[str, bool]:
        """Return the name of a part, and whether it is new: the second of a name is ``name#2``."""
        known = self._names.get(id(obj))
        if known is not None:
            return known, False
        name = name.replace(".<locals>", "")
        self._taken[name] = count = self._taken.get(name, 0) + 1
        self._names[id(obj)] = name = name if count == 1 else f"{name}#{count}"
        self._alive.append(obj)
        self.parts[name] = ""  # takes its place, so that parts are listed in the order in which they are reached
        return name, True

    def _installed(self, package: Package) -> None:
        self.packages[package[0]] = package[1]

    # functions

    def _function(self, fn: FunctionType) -> Json:
        filename = fn.__code__.co_filename
        package = package_of_file(filename) if filename[:1] != "<" or filename.startswith("<frozen ") else None
        if package is None and filename[:1] == "<":  # made by exec: it is whose namespace it runs in
            package = package_of_module(str(fn.__globals__.get("__name__", "")))
        if package is not None:
            self._installed(package)
            # a wrapper bears the name of what it wraps, its code bears its own
            return {"function": f"{fn.__globals__.get('__name__')}.{fn.__code__.co_qualname}", **self._caught(fn)}
        name, new = self._name(fn, fn.__qualname__)
        if new:
            self._path.append(name)
            self.parts[name] = note(self._function_content(fn, name))
            self._path.pop()
        return {"code": name}

    def _function_content(self, fn: FunctionType, name: str) -> Json:
        code = fn.__code__
        names, free, imports = references(code)
        cells = _cells(fn)
        free |= {(key, ()) for key in cells.keys() - {key for key, _ in free}}  # super() reads its class unseen
        return {
            "code": code_digest(code, fn.__globals__),
            "closure": {key: self._bound(f"{name}[{key}]", key, value) for key, value in self._reached(free, cells)},
            "defaults": [self.inner("default", value) for value in fn.__defaults__ or ()],
            "keywords": {key: self.inner(key, value) for key, value in sorted((fn.__kwdefaults__ or {}).items())},
            "attributes": {key: self.inner(key, value) for key, value in sorted(vars(fn).items())},
            "globals": {key: self._global(fn, key, value) for key, value in self._reached(names, fn.__globals__)},
            "imports": {key: self._import(key, fn.__globals__) for key in sorted(imports)},
        }

    def _caught(self, fn: FunctionType) -> dict[str, Json]:
        """Describe what a wrapper of an installed package holds: the user's function is in there."""
        if "_torchdynamo_orig_callable" in fn.__dict__:
            return {"compiles": self.inner("compiled", fn.__dict__["_torchdynamo_orig_callable"])}
        if "registry" in fn.__dict__ and "dispatch" in fn.__dict__:  # functools.singledispatch
            return {"registry": self.inner("registry", dict(fn.__dict__["registry"]))}
        if fn.__closure__ is None:
            return {}
        return {"closure": {key: self.inner(key, value) for key, value in sorted(_cells(fn).items())}}

    def _reached(self, wanted: frozenset[Reference], namespace: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield what is read through names of a namespace; modules are entered, builtins left out."""
        for name, chain in sorted(wanted):
            if name not in namespace:
                continue
            value, dotted = namespace[name], name
            for attribute in chain:
                if not isinstance(value, ModuleType) or not hasattr(value, attribute):
                    break
                owner, value, dotted = value, getattr(value, attribute), f"{dotted}.{attribute}"
                if not isinstance(value, _FOLLOWED) and self.installed_module(owner.__name__):
                    value = _Installed(f"{owner.__name__}.{attribute}")  # such as sys.stdout or np.add
            yield dotted, value

    def installed_module(self, name: str) -> bool:
        """Note the package of a module; return False if it is the user's."""
        package = package_of_module(name)
        if package is not None:
            self._installed(package)
        return package is not None

    def _global(self, fn: FunctionType, key: str, value: Any) -> Json:
        variable = (id(fn.__globals__), key)
        described = self._globals.get(variable)
        if described is None:
            self._globals[variable] = {"global": key}  # while it is described, it may lead back here
            described = self._globals[variable] = self._bound(key, key, value)
        return described

    def _bound(self, part: str, key: str, value: Any) -> Json:
        """Describe the value of a variable; a plain one becomes a part, so that a change of it can be shown."""
        description = self.inner(key, value)
        if isinstance(description, dict) and not _BY_NAME.isdisjoint(description):
            return description
        self._taken[part] = count = self._taken.get(part, 0) + 1
        part = part if count == 1 else f"{part}#{count}"
        self.parts[part] = description
        return {"value": part}

    # classes

    def _class(self, cls: type[Any]) -> Json:
        package = package_of_module(cls.__module__)
        if package is not None:
            self._installed(package)
            self.written_over(cls)
            if not made_of_user_code(cls):
                return {"class": f"{cls.__module__}.{cls.__qualname__}"}
        name, new = self._name(cls, cls.__qualname__)
        if new:
            self._path.append(name)
            self.parts[name] = note(self._class_content(cls, name))
            self._path.pop()
        return {"code": name}

    def written_over(self, owner: type[Any] | ModuleType) -> None:
        """Note what the user wrote over in an installed class, in those that it derives from, or in an installed module."""
        for part in owner.__mro__ if isinstance(owner, type) else (owner,):
            if id(part) in self._seen:
                continue
            self._seen.add(id(part))
            for name, value in written_over(part) if package_of_module(_module_of(part)) is not None else ():
                self.parts[name] = self.inner(name, value)

    def _class_content(self, cls: type[Any], name: str) -> Json:
        fields, options = vars(cls).get("__dataclass_fields__"), vars(cls).get("__dataclass_params__")
        return {
            "bases": [self.describe(base) for base in cls.__bases__],
            "metaclass": self.describe(type(cls)),
            "slots": slots(cls),
            "fields": [self._field(key, field) for key, field in fields.items()] if fields is not None else None,
            "options": {name: getattr(options, name) for name in _DATACLASS_OPTIONS} if options is not None else None,
            "attributes": {key: self._attribute(name, key, value) for key, value in class_attributes(cls)},
        }

    def _field(self, key: str, field: Any) -> Json:
        told = {"name": key, **{option: self.inner(f"{key}.{option}", getattr(field, option)) for option in _FIELD_OPTIONS}}
        kind = field._field_type.name  # '_FIELD', or what ClassVar and InitVar make of it
        told |= {} if kind == "_FIELD" else {"kind": kind}
        return {**told, "metadata": self.inner(f"{key}.metadata", dict(field.metadata))} if field.metadata else told

    def _attribute(self, owner: str, key: str, value: Any) -> Json:
        if isinstance(value, FunctionType | type | property | classmethod | staticmethod):
            return self.inner(key, value)
        return self._bound(f"{owner}.{key}", key, value)

    # other callables, modules

    def _method(self, method: MethodType) -> Json:
        return {"method": self.inner("__func__", method.__func__), "self": self.inner("__self__", method.__self__)}

    def _property(self, value: property) -> Json:
        return {"property": [self.inner(name, getattr(value, name)) for name in ("fget", "fset", "fdel")]}

    def _unbound(self, method: Any) -> Json:
        return {type(method).__name__: self.inner("__func__", method.__func__)}

    def _builtin(self, fn: Any) -> Json:
        owner = getattr(fn, "__self__", None)
        cls = getattr(fn, "__objclass__", None) or (owner if isinstance(owner, type) else type(owner))
        module = getattr(fn, "__module__", None) or (owner.__name__ if isinstance(owner, ModuleType) else cls.__module__)
        name = {"builtin": f"{module}.{getattr(fn, '__qualname__', None) or fn.__name__}"}
        if not self.installed_module(module):
            name["file"] = self._extension(module)
        if isinstance(owner, type):
            return name if package_of_module(owner.__module__) is not None else {**name, "self": self._class(owner)}
        if owner is None or isinstance(owner, ModuleType) or type(owner).__module__ == "torch._C":
            return name
        return {**name, "self": self.inner("__self__", owner)}

    def _extension(self, module: str) -> Json:
        """Describe a compiled module of the user by the bytes of its file."""
        filename = getattr(sys.modules.get(module), "__file__", None)
        return None if filename is None else file_digest(filename)

    def _partial(self, partial: functools.partial[Any]) -> Json:
        return {
            "partial": self.inner("func", partial.func),
            "args": [self.inner(i, value) for i, value in enumerate(partial.args)],
            "keywords": {key: self.inner(key, value) for key, value in sorted(partial.keywords.items())},
            "class": self.class_name(type(partial)),
            **self._hung(partial),
        }

    def _cached(self, fn: Any) -> Json:
        wrapped: dict[str, Any] = getattr(fn.__wrapped__, "__dict__", {})
        copied = {key for key, value in vars(fn).items() if wrapped.get(key, fn) is value}
        hung = self._hung(fn, copied | {"cache_parameters", "__wrapped__", *functools.WRAPPER_ASSIGNMENTS})
        return {"cached": self.inner("__wrapped__", fn.__wrapped__), **hung}

    def _hung(self, fn: Any, known: Collection[str] = ()) -> dict[str, Json]:
        """Describe attributes that somebody gave to a callable."""
        hung = {key: self.inner(key, value) for key, value in sorted(vars(fn).items()) if key not in known}
        return {"attributes": hung} if hung else {}

    def _module(self, module: ModuleType) -> Json:
        """Describe a Python module that is used as a value: nobody knows which of its names will be read.

        Its source tells what they are, but for a name that somebody gave another value since: ``config.SCALE = 3``.
        """
        description = self._import(module.__name__, {}) or {"module": module.__name__}
        filename = getattr(module, "__file__", None)
        if filename is not None and package_of_file(filename) is None:
            for name, value in literals(filename).items():
                now = getattr(module, name, value)
                if type(now) in (*_SCALARS, float, tuple) and (type(now), now) != (type(value), value):
                    self.parts[f"{module.__name__}.{name}"] = self.inner(name, now)
        return description

    def _import(self, name: str, namespace: dict[str, Any]) -> Json:
        """Describe a module that is imported when the code runs. It may not be loaded yet, so its source is what counts."""
        package = str(namespace.get("__package__") or namespace.get("__name__", "").rpartition(".")[0])
        if name.startswith("."):
            name = importlib.util.resolve_name(name, package) if package else name.lstrip(".")
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:
            return self._installed(package_of_module(top) or ("python", ""))
        filename = module_file(name)
        if filename is None or f"module {name}" in self.parts:
            return None
        installed = package_of_file(filename)
        if installed is not None:
            return self._installed(installed)
        digest = file_digest(filename)
        if digest is None:
            return None
        self.parts[f"module {name}"] = digest[:32]
        inside = {"__package__": name if filename.endswith("__init__.py") else name.rpartition(".")[0]}
        for other in sorted(file_imports(filename)):
            self._import(other, inside)
        return {"module": name}

    _callables: ClassVar[tuple[tuple[Any, Callable[[Any, Any], Json]], ...]] = (
        (FunctionType, _function),
        (MethodType, _method),
        (property, _property),
        ((classmethod, staticmethod), _unbound),
        (_C_CALLABLES, _builtin),
        (_Installed, lambda walker, found: {"installed": found.name}),
        (functools.partial, _partial),
        (ModuleType, _module),
        (type(functools.lru_cache(len)), _cached),
        (functools.cached_property, lambda walker, fn: {"cached property": walker.inner("func", fn.func)}),
    )


def _module_of(owner: type[Any] | ModuleType) -> str:
    return owner.__module__ if isinstance(owner, type) else owner.__name__


def _cells(fn: FunctionType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet: a later function of the same scope
            continue
    return found
