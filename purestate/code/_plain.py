"""Plain values as a question holds them: JSON that people can read, and that two share only if code cannot tell them apart.

It is the encoding that states have, in core's ``_plain``, but for what does not matter there and does to code that goes
through a value: the order of a dict, what makes the missing values of a ``defaultdict``, the bits of a nan. Whatever is not
plain is for `_walk`.
"""

from __future__ import annotations

import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from purestate.core._plain import encode

__all__ = ["plain"]

Json = Any
_NAN = struct.pack("<d", math.nan)


def plain(value: Any, describe: Callable[[Any], Json]) -> Json:
    """Return the JSON of a plain value.

    Args:
        value: Numbers, texts, and containers of them.
        describe: Returns the JSON of the function that makes the missing values of a ``defaultdict``.

    Raises:
        UnsupportedError: Something else is in it.

    Example:
        >>> plain({"a": 1, "b": (2,)}, repr), plain({"b": 2, "a": 1}, repr)
        ({'a': 1, 'b': {'~': 'tuple', 'v': [2]}}, {'~': 'dict', 'v': [['b', 2], ['a', 1]]})
    """
    kind = type(value)
    if kind is float:
        bits = struct.pack("<d", value)
        # a nan has a sign and a payload, which torch and numpy take over
        return encode(value) if value == value or bits == _NAN else {"~": "float", "v": "nan", "bits": bits.hex()}
    if kind is list:
        return [plain(item, describe) for item in value]
    if kind is tuple:
        return {"~": "tuple", "v": [plain(item, describe) for item in value]}
    if kind is deque:
        return {"~": "deque", "v": [[plain(item, describe) for item in value], value.maxlen]}
    if kind is dict and "~" not in value and all(type(key) is str for key in value) and list(value) == sorted(value):
        return {key: plain(item, describe) for key, item in value.items()}
    if kind in (dict, OrderedDict, Counter):
        return {"~": kind.__name__, "v": _pairs(value, describe)}
    if kind is defaultdict:
        return {"~": "defaultdict", "v": _pairs(value, describe), "default": describe(value.default_factory)}
    return encode(value)


def _pairs(mapping: Any, describe: Callable[[Any], Json]) -> list[list[Json]]:
    return [[plain(key, describe), plain(item, describe)] for key, item in mapping.items()]
