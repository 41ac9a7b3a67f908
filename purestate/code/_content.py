"""The content of values: numbers, texts, containers, tensors, and objects by their class and attributes.

`content` is called by the walk for what is no function, class or module. A kind of object is added here as one row of
`_KINDS`: how its content is read without its address, its default ``repr`` or a pickle.
"""

from __future__ import annotations

import array
import ctypes
import datetime
import decimal
import logging
import operator
import random
import re
import sys
import types
import typing
import uuid
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from blake3 import blake3
from torch._library.custom_ops import OPDEFS, CustomOpDef
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils.hooks import RemovableHandle

from purestate.code._package import package_of_file
from purestate.code._plain import plain
from purestate.core._hash import canonical_json, dtype_name, leaf_hash
from purestate.core._tree import array_order, layout_text

if TYPE_CHECKING:
    from purestate.code._walk import Walker

__all__ = ["DECLARES", "content", "tensor_attributes", "tensor_content"]

Json = Any
DECLARES = "__purestate_fingerprint__"
"""The method with which a class says itself what its objects are: it returns any plain value."""


def content(walker: Walker, obj: Any) -> Json:
    """Return the description of a value as JSON, its members through ``walker.inner``.

    Raises:
        FingerprintError: It has no content that could be read.
    """
    kind = type(obj)
    write = _EXACT.get(kind)
    if write is not None:
        return write(walker, obj)
    for base, write in _kinds("numpy.random" in sys.modules):
        if isinstance(obj, base):
            walker.installed_module(kind.__module__)
            return write(walker, obj)
    return _instance(walker, obj)


def tensor_content(walker: Walker, tensor: torch.Tensor) -> Json:
    """Return dtype, shape and stride order of a tensor, and the digest of its elements unless it is on the meta device."""
    text = layout_text(tensor)
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return {"tensor": f"{dtype_name(tensor.dtype)} uninitialized"}
    if tensor.is_meta:
        return {"tensor": text}
    if tensor.layout is torch.sparse_coo:
        sparse = tensor.detach().coalesce()
        parts = (sparse.indices(), sparse.values())
    elif tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested:
        parts = (tensor,)
    else:
        raise walker.refuse(tensor)
    return {"tensor": " ".join([text, *(f"b3:{leaf_hash(part)[:32]}" for part in parts)])}


def _tensor(walker: Walker, tensor: torch.Tensor) -> Json:
    description = tensor_content(walker, tensor)
    kind = type(tensor)
    if kind not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return {**description, "class": walker.class_name(kind), "vars": _attributes(walker, tensor)}
    hung = tensor_attributes(walker, tensor)
    return {**description, "vars": hung} if hung else description


def tensor_attributes(walker: Walker, tensor: torch.Tensor) -> dict[str, Json]:
    """Return what somebody hung on a tensor, such as ``no_weight_decay`` on a parameter, what torch's compiler did apart."""
    hung = {key: value for key, value in vars(tensor).items() if not key.startswith("_dynamo")} if vars(tensor) else {}
    return {key: walker.inner(key, hung[key]) for key in sorted(hung)}


def _ndarray(walker: Walker, value: np.ndarray) -> Json:
    if type(value) not in (np.ndarray, np.memmap):
        return {**_ndarray(walker, value.view(np.ndarray)), "class": walker.class_name(type(value)), **_beside(walker, value)}
    if value.dtype.hasobject:
        return {"array": list(value.shape), "items": [walker.inner(i, item) for i, item in enumerate(value.ravel().tolist())]}
    data = np.ascontiguousarray(value).tobytes()
    text = f"{value.dtype.str if value.dtype.names is None else value.dtype.descr}{list(value.shape)}"
    return {"array": f"{text}{array_order(value)} b3:{blake3(data).hexdigest()[:32]}"}


def _beside(walker: Walker, array: np.ndarray) -> dict[str, Json]:
    """Return what a subclass holds beside the elements: the mask of a masked array, the attributes of a user's class."""
    if isinstance(array, np.ma.MaskedArray):
        return {"mask": _ndarray(walker, np.ma.getmaskarray(array)), "fill": walker.inner("fill_value", array.fill_value)}
    return {"vars": _attributes(walker, array)}


def _mapping(walker: Walker, value: Mapping[Any, Any]) -> Json:
    # in their order: user code may go through them
    if all(type(key) is str for key in value):
        return {"pairs": [[key, walker.inner(key, item)] for key, item in value.items()]}
    return {"pairs": [[_standalone(walker, key), walker.inner("item", item)] for key, item in value.items()]}


def _ordered(walker: Walker, value: Mapping[Any, Any]) -> Json:
    return {"ordered": [[walker.inner("key", key), walker.inner(key, item)] for key, item in value.items()]}


def _set(walker: Walker, value: set[Any]) -> Json:
    return {type(value).__name__: sorted((_standalone(walker, item) for item in value), key=canonical_json)}


def _standalone(walker: Walker, obj: Any) -> Json:
    """Describe an element of something unordered on its own: the walk must not come to it in the order of addresses."""
    if type(obj) in (str, int, bool):
        return obj
    alone = walker.alone()
    described = alone.describe(obj)
    walker.packages.update(alone.packages)
    return {"item": described, "parts": alone.parts} if alone.parts else described


def _sequence(walker: Walker, value: Any) -> Json:
    return {type(value).__name__: [walker.inner(i, item) for i, item in enumerate(value)]}


def _deque(walker: Walker, value: deque[Any]) -> Json:
    return {"deque": [walker.inner(i, item) for i, item in enumerate(value)], "maxlen": value.maxlen}


def _defaultdict(walker: Walker, value: defaultdict[Any, Any]) -> Json:
    return {**_mapping(walker, value), "default": walker.inner("default_factory", value.default_factory)}


def _plain(walker: Walker, value: Any) -> Json:
    return plain(value, walker.describe)


def _as(name: str, read: Callable[[Any], Any]) -> Callable[[Walker, Any], Json]:
    """Return how to describe a kind that is wholly told by one value."""
    return lambda walker, obj: {name: walker.inner(name, read(obj))}


def _enum(walker: Walker, member: Enum) -> Json:
    return {"enum": walker.class_name(type(member)), "name": member.name, "value": walker.inner("value", member.value)}


def _reduced(walker: Walker, obj: Any) -> Json:
    """Describe an object of the standard library whose ``__reduce__`` is documented to hold its arguments."""
    return {"class": walker.class_name(type(obj)), "args": walker.inner("args", list(obj.__reduce__()[1]))}


def _generic(walker: Walker, alias: Any) -> Json:
    return {"type": [walker.inner("origin", typing.get_origin(alias)), walker.inner("args", list(typing.get_args(alias)))]}


def _network(walker: Walker, module: torch.nn.Module) -> Json:
    from purestate.code._module import network_content  # it walks with a Walker, so it cannot be imported above

    return network_content(walker, module)


def _instance(walker: Walker, obj: Any) -> Json:
    """Describe an object of a Python class: its class, its attributes, and what a builtin base of it holds."""
    cls = type(obj)
    if cls.__module__.startswith("torch._ops"):
        return _operator(walker, obj)
    if cls.__module__.startswith("PIL.") and hasattr(obj, "tobytes"):
        return {"image": [obj.mode, list(obj.size), blake3(obj.tobytes()).hexdigest()[:32]]}
    if (cls.__module__, cls.__name__) == ("flax.ids", "FlaxId"):
        return {"flax": "id"}  # a count of the modules made so far in the process
    if cls.__module__.startswith("jaxlib.") and (described := _of_jax(walker, obj)) is not None:
        return described
    base = next(base for base in cls.__mro__ if not base.__flags__ & 1 << 9)  # the first that is not made at run time
    held: Json = None
    if base is not object:
        write = _HELD.get(base)
        if write is None:
            raise walker.refuse(obj)
        held = write[1](walker, write[0](obj))
    elif any(_holds_c_content(part) for part in cls.__mro__):
        raise walker.refuse(obj)
    return {"object": walker.class_name(cls), "vars": _attributes(walker, obj), **({} if held is None else {"content": held})}


def _of_jax(walker: Walker, obj: Any) -> Json:
    """Describe objects of C without attributes: a jitted function by what it wraps, arrays by elements, trees by their nodes."""
    walker.installed_module("jax")
    if hasattr(obj, "node_data"):
        return {
            "tree": [walker.inner("node", obj.node_data()), [walker.inner(i, child) for i, child in enumerate(obj.children())]]
        }
    if (wrapped := getattr(obj, "__wrapped__", None)) is not None:
        return {"jitted": walker.inner("__wrapped__", wrapped)}
    if not hasattr(obj, "weak_type"):
        return None
    data = np.asarray(obj)
    text = f"{data.dtype.name}{list(data.shape)}{' weak' if obj.weak_type else ''}"
    return {"array": f"{text} b3:{blake3(data.tobytes()).hexdigest()[:32]}"}


def _operator(walker: Walker, operator: Any) -> Json:
    """Describe an operator of torch by its name; one that the user made, by its functions and compiled libraries as well."""
    name = str(getattr(operator, "_qualified_op_name", ""))
    definition = OPDEFS.get(name)
    if definition is not None and package_of_file(definition._init_fn.__code__.co_filename) is None:
        return {"operator": str(operator), "definition": walker.inner("definition", definition)}
    own = name.startswith(("aten::", "prims::"))
    users = [] if own else [file for file in sorted(torch.ops.loaded_libraries) if package_of_file(file) is None]
    digests = [blake3(Path(file).read_bytes()).hexdigest() for file in users]
    return {"operator": str(operator), **({"libraries": digests} if digests else {})}


def _custom_operator(walker: Walker, definition: CustomOpDef) -> Json:
    parts = ("_schema", "_init_fn", "_backend_fns", "_abstract_fn", "_setup_context_fn", "_backward_fn", "_vmap_fn")
    return {"custom operator": {name: walker.inner(name, getattr(definition, name, None)) for name in parts}}


def _attributes(walker: Walker, obj: Any) -> Json:
    found: dict[str, Any] = dict(getattr(obj, "__dict__", {}))
    for cls in type(obj).__mro__:
        for key, slot in vars(cls).items():
            if isinstance(slot, types.MemberDescriptorType) and key not in ("__dict__", "__weakref__") and hasattr(obj, key):
                found.setdefault(key, getattr(obj, key))
    return {key: walker.inner(key, found[key]) for key in sorted(found)}


def _holds_c_content(cls: type[Any]) -> bool:
    """Tell whether objects of a class are larger than its slots explain: a C extension keeps something in them."""
    base = cls.__base__
    if base is None:
        return False
    words = sum(isinstance(value, types.MemberDescriptorType) for value in vars(cls).values())
    words += ("__dict__" in vars(cls)) + ("__weakref__" in vars(cls))
    return cls.__basicsize__ - base.__basicsize__ > words * ctypes.sizeof(ctypes.c_void_p)


_GETTERS: tuple[Any, ...] = (operator.itemgetter, operator.attrgetter, operator.methodcaller)
_EXACT: dict[type[Any], Callable[[Walker, Any], Json]] = {
    float: _plain,
    complex: _plain,
    bytes: _plain,
    range: _plain,
    slice: _as("slice", lambda value: [value.start, value.stop, value.step]),
    list: _sequence,
    tuple: _sequence,
    dict: _mapping,
    set: _set,
    frozenset: _set,
    deque: _deque,
    Counter: lambda walker, value: {"Counter": _mapping(walker, value)},
    OrderedDict: _ordered,
    defaultdict: _defaultdict,
    torch.Size: _plain,
    bytearray: _as("bytearray", bytes),
    type(Ellipsis): lambda walker, value: {"constant": "Ellipsis"},
    type(NotImplemented): lambda walker, value: {"constant": "NotImplemented"},
}
_HELD: dict[type[Any], tuple[Callable[[Any], Any], Callable[[Walker, Any], Json]]] = {
    **{kind: (kind, lambda walker, value: value) for kind in (int, str)},
    **{kind: (kind, _plain) for kind in (float, complex, bytes)},
    **{kind: (kind, _sequence) for kind in (list, tuple)},
    **{kind: (kind, _set) for kind in (set, frozenset)},
    dict: (dict, _mapping),
    deque: (lambda value: deque(value, value.maxlen), _deque),
    OrderedDict: (OrderedDict, _ordered),
    defaultdict: (lambda value: value, _defaultdict),
}
_KINDS: tuple[tuple[Any, Callable[[Walker, Any], Json]], ...] = (
    (torch.Tensor, _tensor),
    (torch.nn.Module, _network),
    (Enum, _enum),
    (np.generic, lambda walker, value: {"array": _ndarray(walker, np.asarray(value))["array"]}),
    (np.ndarray, _ndarray),
    (torch.dtype | torch.device, _plain),
    (torch.layout | torch.memory_format, _as("torch", str)),
    (torch.Generator, lambda walker, value: {"generator": walker.inner("state", value.get_state()), "device": str(value.device)}),
    (np.dtype, _as("dtype", lambda value: repr(value.descr) if value.names else value.str)),
    (np.ufunc, _as("ufunc", lambda value: value.__name__)),
    (random.Random, _as("generator", lambda value: value.getstate())),
    (PurePath, _as("path", lambda value: value.as_posix())),
    (re.Pattern, _as("pattern", lambda value: [value.pattern, value.flags])),
    (logging.Logger, _as("logger", lambda value: value.name)),
    (RemovableHandle, lambda walker, value: {"handle": None}),
    (weakref.ref, _as("weak", lambda value: value())),
    (types.SimpleNamespace, lambda walker, value: {"namespace": _attributes(walker, value)}),
    (types.MappingProxyType, _as("mapping", lambda value: dict(value))),
    # the classes of the old spellings are private, so the checker's advice to write int | None would lose them
    (types.GenericAlias | types.UnionType | type(typing.Optional[int]) | type(typing.List[int]), _generic),  # noqa: UP006, UP045
    (typing.TypeVar, _as("type variable", lambda value: value.__name__)),
    (array.array, _as("array", lambda value: [value.typecode, value.tobytes()])),
    (memoryview, _as("memory", lambda value: [value.format, list(value.shape or ()), value.tobytes()])),
    (datetime.date | datetime.time | datetime.timedelta | datetime.timezone, _reduced),
    ((decimal.Decimal, *_GETTERS), _reduced),
    (CustomOpDef, _custom_operator),
    (uuid.UUID, _as("uuid", lambda value: value.int)),
    (torch.finfo | torch.iinfo, _as("info", str)),
)


@cache
def _kinds(numpy_random: bool) -> tuple[tuple[Any, Callable[[Walker, Any], Json]], ...]:
    """Return the table. Without ``numpy.random``, which numpy imports when it is first used, nobody has its generators."""
    if not numpy_random:
        return _KINDS
    return (
        *_KINDS,
        (np.random.Generator, _as("generator", lambda value: value.bit_generator.state)),
        (np.random.BitGenerator | np.random.RandomState, _as("generator", lambda value: _legacy_state(value))),
    )


def _legacy_state(generator: Any) -> Any:
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.state
