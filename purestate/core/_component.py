"""Optimizers and schedulers as plain data: what a live one knows, taken out and written back.

torch's ``state_dict`` is not used: it forgets attributes of user classes, fails on functions, and ``load_state_dict``
casts fp32 moments of bf16 parameters. `Survey` walks the attributes of a live object instead. Numbers and containers
become JSON, tensors become leaves, and what has no bytes (functions, classes, the optimizer a scheduler drives) becomes
a reference ``built:<place>``: the factory makes it again at the same place. Objects inside are walked in turn, each under
the expression by which it is reached, such as ``scheduler._schedulers[1]``.

`write` does the way back: it surveys a freshly built object and replaces its attributes. This file knows what attributes
hold; which object is built when is for `_optim` and `_sched`.
"""

from __future__ import annotations

import math
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from purestate.core._plain import encode, join
from purestate.errors import TreeMismatchError

__all__ = ["Component", "Json", "Survey", "escape", "write"]

Json = Any
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, weakref.ref)
_MAPPINGS = (Counter, OrderedDict, defaultdict, dict)


@dataclass(frozen=True, eq=False, slots=True)
class Component:
    """An optimizer or a scheduler between ops: immutable data.

    Attributes:
        skeleton: JSON. ``skeleton['objects'][place]`` holds the attributes of one object in the typed encoding of `_plain`;
            a tensor node names a leaf or, as ``built:<place>``, something that the factory makes.
        leaves: Each distinct tensor by path. Two places that held one tensor name one leaf.
    """

    skeleton: Json
    leaves: Mapping[str, torch.Tensor]

    def value(self) -> Any:
        """Return what ``extra`` was given: its plain values, and its tensors, which are not copied.

        Example:
            >>> import purestate as ps
            >>> state = ps.init(lambda: nn.Linear(2, 1), seed=0).replace(extra={"count": 3, "sum": {"fc.bias": torch.ones(1)}})
            >>> state.extra.value()
            {'count': 3, 'sum': {'fc.bias': tensor([1.])}}
        """
        return join(self.skeleton, self.leaves)

    def cloned(self) -> Component:
        """Return the same component with leaves of its own."""
        return Component(self.skeleton, own(self.leaves))


def own(leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of the leaves, strides included."""
    return {path: leaf.detach().clone() for path, leaf in leaves.items()}


def escape(name: str) -> str:
    """Return a name as one segment of a leaf path: ``~`` and ``/`` as in JSON pointers (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1") if "~" in name or "/" in name else name


class Survey:
    """One walk over a live object, in the order of names, so that equal objects give equal paths.

    Args:
        references: Ids of what belongs to somebody else, such as parameters; places that hold it become ``built:``.

    Attributes:
        values: Attributes as JSON, by place of the object.
        objects: The objects themselves, by place.
        leaves: Tensors (not copied) by path.
        built: What has no bytes, by ``built:<place>``.
    """

    def __init__(self, references: Collection[int] = ()) -> None:
        self.values: dict[str, dict[str, Json]] = {}
        self.objects: dict[str, Any] = {}
        self.leaves: dict[str, torch.Tensor] = {}
        self.built: dict[str, Any] = {}
        self._references = references
        self._paths: dict[int, str] = {}
        self._seen: set[int] = set()

    def object(self, thing: Any, place: str, skip: Collection[str] = ()) -> None:
        """Enter an object's attributes."""
        self._seen.add(id(thing))
        self.objects[place] = thing
        attributes = vars(thing)
        self.values[place] = {
            name: self.value(attributes[name], f"{place}.{name}") for name in sorted(attributes.keys() - set(skip))
        }

    def value(self, value: Any, place: str) -> Json:
        """Return a value as JSON; enter the tensors, references and objects in it."""
        kind = type(value)
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if id(value) in self._references or id(value) in self._seen:
            return self._refer(value, place)
        if isinstance(value, torch.Tensor):
            return {"~": "tensor", "v": self._leaf(value, value, place)}
        if kind is list:
            return [self.value(item, f"{place}[{i}]") for i, item in enumerate(value)]
        if kind is tuple:
            return {"~": "tuple", "v": [self.value(item, f"{place}[{i}]") for i, item in enumerate(value)]}
        if kind is dict and all(type(key) is str for key in value) and "~" not in value:
            return {key: self.value(value[key], f"{place}[{key!r}]") for key in sorted(value)}
        if kind in _MAPPINGS:
            name = "dict" if kind is defaultdict else kind.__name__
            return {"~": name, "v": [[encode(k, place), self.value(v, f"{place}[{k!r}]")] for k, v in value.items()]}
        if kind is deque:
            return {"~": "deque", "v": [[self.value(item, f"{place}[{i}]") for i, item in enumerate(value)], value.maxlen]}
        if kind is np.ndarray and value.dtype != object:
            tensor = torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
            return {"~": "ndarray", "v": self._leaf(value, tensor, place)}
        return self._other(value, place)

    def _other(self, value: Any, place: str) -> Json:
        if isinstance(value, partial):
            for name in ("func", "args", "keywords"):
                self.value(getattr(value, name), f"{place}.{name}")
        elif isinstance(value, types.MethodType):
            self.value(value.__self__, f"{place}.__self__")
        elif not isinstance(value, _CODE):
            if not isinstance(value, Optimizer | LRScheduler) and not _is_all_in_its_attributes(value):
                return encode(value, place)
            self.object(value, place)
        return self._refer(value, place)

    def _refer(self, value: Any, place: str) -> Json:
        self.built[f"built:{place}"] = value
        return {"~": "tensor", "v": f"built:{place}"}

    def _leaf(self, owner: Any, tensor: torch.Tensor, place: str) -> str:
        path = self._paths.setdefault(id(owner), place)
        self.leaves.setdefault(path, tensor)
        return path


def _is_all_in_its_attributes(value: Any) -> bool:
    """Whether ``vars(value)`` is all there is to an object: not so for slots, C types, own pickling, and modules."""
    cls = type(value)
    if isinstance(value, nn.Module) or cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return False
    if cls.__getstate__ is not object.__getstate__ or not hasattr(value, "__dict__"):
        return False
    try:
        _, args, attributes, items, pairs = object.__reduce_ex__(value, 2)
    except TypeError:  # CPython found memory in the object that no attribute shows
        return False
    return args == (cls,) and items is None and pairs is None and (attributes is None or isinstance(attributes, dict))


class Sources(dict[str, Any]):
    """Leaves and built things by the names that a skeleton uses."""

    def __missing__(self, name: str) -> Any:
        place = name.removeprefix("built:")
        raise TreeMismatchError(
            f"{place} was there when the component was kept, and the factory makes nothing at that place now.",
            cause="Functions and objects come from the factory, so it has to make all of them at once.",
            path=place,
        )


def write(survey: Survey, values: Mapping[str, Mapping[str, Json]], sources: Sources, skip: Collection[str] = ()) -> None:
    """Replace the attributes of the surveyed objects.

    Args:
        survey: Of the freshly built object.
        values: Attributes by place, as another survey wrote them.
        sources: Leaves that may be given away, and ``survey.built``.
        skip: Attributes of any object that stay as they are.

    Raises:
        TreeMismatchError: The built object has not the objects that ``values`` speaks of.
    """
    if values.keys() != survey.objects.keys():
        place = min(values.keys() ^ survey.objects.keys())
        kept = "was kept and is not made" if place in values else "is made and was not kept"
        raise TreeMismatchError(
            f"{place} {kept} by the factory now.", path=place, expected=sorted(values), actual=sorted(survey.objects)
        )
    for place, attributes in values.items():
        target = vars(survey.objects[place])
        new = {name: join(node, sources) for name, node in attributes.items() if name not in skip}
        for name in target.keys() - new.keys() - set(skip):
            del target[name]
        target.update(new)
