"""State that hides: what a module keeps in plain attributes instead of buffers.

A State has the parameters and buffers of a module. A counter, a list or a generator in an attribute is in none of them, so a
step that moves one is not a function of its inputs, and no captured step. `Attributes` notices.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Attributes"]

_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_OF_TORCH = frozenset(vars(nn.Module()))
_DEEPEST = 5


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
            for path, value in _walk(owner, "", 0, set()):
                if isinstance(value, Tensor):
                    tensors[path] = value, value._version
                else:
                    values[path] = value
        return values, tensors


def _walk(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
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
        for name, item in vars(value).items():
            if name not in _OF_TORCH:
                yield from _walk(item, f"{path}.{name}".lstrip("."), depth + 1, seen)
        for name, item in value._modules.items():
            # submodules are no nesting of attributes: however deep they are, they are looked at
            yield from _walk(item, f"{path}.{name}".lstrip("."), 0, seen)
    else:
        seen.add(id(value))
        yield from _inside(value, path, depth + 1, seen)


def _modules(owner: Any) -> Iterator[nn.Module]:
    for found in (owner, *vars(owner).values()):
        if isinstance(found, nn.Module):
            yield from found.modules()


def _inside(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield path, len(value)
        for key, item in value.items():
            yield from _walk(item, f"{path}[{key!r}]", depth, seen)
    elif isinstance(value, (list, tuple, deque)):
        yield path, len(value)
        for i, item in enumerate(value):
            yield from _walk(item, f"{path}[{i}]", depth, seen)
    elif isinstance(value, (set, frozenset)):
        yield path, sorted(map(repr, value))
    elif isinstance(value, np.ndarray):
        yield path, (value.dtype.str, value.shape, value.tobytes())
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        for name, item in vars(value).items():
            yield from _walk(item, f"{path}.{name}".lstrip("."), depth, seen)


def _generator(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    return None
