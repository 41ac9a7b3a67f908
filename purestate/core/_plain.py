"""Plain values: Python's numbers, texts and containers as JSON that loses nothing, with tensors split off.

Schedulers, parameter groups and whatever users keep in ``extra`` are trees of Python values with tensors in between.
`split` takes such a tree apart into a skeleton, which is JSON, and the tensors by path; `join` puts it together again,
equal in value and type. Plain JSON would not do: it turns integer keys into texts (a ``MultiStepLR`` restored from it
never decays again), tuples into lists, and has no inf or nan.

A value that JSON cannot tell is written ``{"~": kind, "v": content}``.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from purestate.core._hash import canonical_json, dtype_name
from purestate.errors import UnsupportedError

__all__ = ["decode", "encode", "join", "split"]

Json = Any
_MAPPINGS = {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}
_SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset}


def split(value: Any, where: str = "") -> tuple[Json, dict[str, torch.Tensor]]:
    """Take a tree of plain values and tensors apart.

    Args:
        value: Any nesting of None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, Counter,
            OrderedDict, deque, range, slice, numpy scalars and arrays, torch dtypes, devices and sizes, and tensors.
        where: What the tree is called in an error.

    Returns:
        ``(skeleton, leaves)``: JSON, and each tensor by its path, such as ``'groups.0.lr'``. No two places share a path: a
        key that is neither an ASCII identifier nor an integer is written as JSON in brackets, as ``'["a.b"]'``. Tensors
        are not copied; numpy arrays are, because nobody counts changes of theirs.

    Raises:
        UnsupportedError: Something else is in the tree, or a tensor is a key or in a set; the message names its path.

    Example:
        >>> split({"milestones": Counter({30: 1}), "lr": torch.tensor(0.1)})[0]
        {'milestones': {'~': 'Counter', 'v': [[30, 1]]}, 'lr': {'~': 'tensor', 'v': 'lr'}}
    """
    leaves: dict[str, torch.Tensor] = {}

    def leaf(path: str, tensor: torch.Tensor, kind: str) -> Json:
        while path in leaves:
            path += "'"  # two keys that are nan differ, and their JSON does not
        leaves[path] = tensor
        return {"~": kind, "v": path}

    return _encode(value, "", where, leaf), leaves


def encode(value: Any, where: str = "") -> Json:
    """Return the JSON of a plain value without tensors. See `split`."""
    return _encode(value, "", where, _refuser(where))


def join(skeleton: Json, leaves: Mapping[str, torch.Tensor]) -> Any:
    """Put together what `split` took apart; ``join(*split(tree))`` equals ``tree``."""
    if isinstance(skeleton, list):
        return [join(item, leaves) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    kind = skeleton.get("~")
    if kind is None:
        return {key: join(item, leaves) for key, item in skeleton.items()}
    content = skeleton["v"]
    if kind == "tensor":
        return leaves[content]
    if kind == "ndarray":
        return leaves[content].detach().cpu().numpy().copy()
    if kind in _MAPPINGS:
        return _MAPPINGS[kind]({join(k, leaves): join(v, leaves) for k, v in content})
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](join(item, leaves) for item in content)
    if kind == "deque":
        return deque((join(item, leaves) for item in content[0]), content[1])
    return _DECODE[kind](content)


def decode(skeleton: Json) -> Any:
    """Return the value that `encode` wrote."""
    return join(skeleton, {})


def _encode(value: Any, path: str, where: str, leaf: Callable[[str, torch.Tensor, str], Json]) -> Json:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"~": "float", "v": repr(value)}
    if isinstance(value, torch.Tensor):
        return leaf(path, value, "tensor")
    if kind is np.ndarray and (tensor := _from_numpy(value)) is not None:
        return leaf(path, tensor, "ndarray")

    def inner(item: Any, key: object) -> Json:
        return _encode(item, _below(path, key, where), where, leaf)

    def hashed(item: Any, key: object) -> Json:
        return _encode(item, _below(path, key, where), where, _refuser(where))

    if kind is list:
        return [inner(item, i) for i, item in enumerate(value)]
    if kind is dict and all(type(key) is str for key in value) and "~" not in value:
        return {key: inner(item, key) for key, item in value.items()}
    if kind is defaultdict:
        kind = dict  # what makes missing values is code; a component that needs it makes it again
    if kind in _MAPPINGS.values():
        return {"~": kind.__name__, "v": [[hashed(k, k), inner(v, k)] for k, v in value.items()]}
    if kind is tuple:
        return {"~": "tuple", "v": [inner(item, i) for i, item in enumerate(value)]}
    if kind in (set, frozenset):
        return {"~": kind.__name__, "v": sorted((hashed(item, "item") for item in value), key=repr)}
    if kind is deque:
        return {"~": "deque", "v": [[inner(item, i) for i, item in enumerate(value)], value.maxlen]}
    for name, (cls, write) in _ENCODE.items():
        if isinstance(value, cls):
            return {"~": name, "v": write(value)}
    raise UnsupportedError(
        f"{_place(where, path)} is a {kind.__module__}.{kind.__qualname__}, which cannot be part of a state.",
        cause="A state holds tensors, numpy arrays, numbers, texts and containers of them.",
        fix="Keep it out of the object's attributes, or give it as a factory argument, which belongs to the recipe.",
    )


def _below(path: str, key: object, where: str) -> str:
    """The path of an entry. List positions and integer keys look alike, and are never in one container."""
    if type(key) is int or (type(key) is str and key.isascii() and key.isidentifier()):
        segment = str(key)
    else:
        segment = f"[{canonical_json(encode(key, f'a key of {_place(where, path)}')).decode()}]"
    return f"{path}.{segment}" if path else segment


def _refuser(where: str) -> Callable[[str, torch.Tensor, str], Json]:
    def refuse(path: str, tensor: torch.Tensor, kind: str) -> Json:
        raise UnsupportedError(
            f"{_place(where, path)} is {'an' if kind == 'ndarray' else 'a'} {kind} of shape {tuple(tensor.shape)} "
            "where a plain value is expected."
        )

    return refuse


def _from_numpy(array: np.ndarray) -> torch.Tensor | None:
    """A copy as a tensor; None for what torch has no dtype for: objects, texts, times, foreign byte orders."""
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except (TypeError, ValueError):
        return None


def _place(where: str, path: str) -> str:
    return ".".join(part for part in (where, path) if part) or "the value"


def _npscalar(text: list[str]) -> Any:
    return np.ndarray((), np.dtype(text[0]), base64.b64decode(text[1]))[()]


_ENCODE: dict[str, tuple[type | tuple[type, ...], Callable[[Any], Json]]] = {
    "numpy": (np.generic, lambda v: [v.dtype.str, base64.b64encode(v.tobytes()).decode()]),
    "complex": (complex, lambda v: [repr(v.real), repr(v.imag)]),
    "bytes": (bytes, lambda v: base64.b64encode(v).decode()),
    "range": (range, lambda v: [v.start, v.stop, v.step]),
    "slice": (slice, lambda v: [v.start, v.stop, v.step]),
    "dtype": (torch.dtype, dtype_name),
    "device": (torch.device, str),
    "size": (torch.Size, list),
}
_DECODE: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "numpy": _npscalar,
    "complex": lambda v: complex(float(v[0]), float(v[1])),
    "bytes": base64.b64decode,
    "range": lambda v: range(*v),
    "slice": lambda v: slice(*v),
    "dtype": lambda v: getattr(torch, v),
    "device": torch.device,
    "size": torch.Size,
}
