"""`tree_hash` for arrays of anybody: numpy, JAX, torch, or whatever numpy takes for an array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from purestate.core._digest import bytes_hash
from purestate.core._digest import tree_hash as digest_of
from purestate.core._hash import dtype_name, leaf_hash
from purestate.errors import UnsupportedError

__all__ = ["array_hash", "tree_hash"]

_DTYPES = frozenset(dtype_name(value) for value in vars(torch).values() if isinstance(value, torch.dtype))


def tree_hash(tree: Mapping[str, Any]) -> str:
    """Return the hash of arrays by name: the same for the same bits in numpy, JAX and torch, in every process.

    The tensors of a ``state_dict`` have the hash that ``purestate hash`` prints for a file of them. How it is computed is
    described in ``purestate/store/README.md``, with examples, so that it can be written in another language.

    Args:
        tree: Arrays or tensors, by name. Not modified. Neither device, strides, byte order nor the order of names count.

    Returns:
        ``'b3:'`` and 64 hexadecimal digits.

    Raises:
        UnsupportedError: A name is no text, or a value is no array of numbers that torch has a dtype for.

    Example:
        >>> import numpy as np, torch
        >>> tree_hash({"w": np.ones(2, "float32")}) == tree_hash({"w": torch.ones(2)})
        True
        >>> tree_hash({"w": np.ones(2, "float32")}) == tree_hash({"w": np.ones(2)})
        False
    """
    for name in tree:
        if type(name) is not str:
            raise UnsupportedError(f"tree_hash: expected texts as names, got {name!r}.")
    return f"b3:{digest_of({name: array_hash(value, name) for name, value in tree.items()})}"


def array_hash(value: Any, name: str = "") -> str:
    """Return the digest of an array or a tensor: 64 hexadecimal digits.

    Raises:
        UnsupportedError: It is none.
    """
    if isinstance(value, torch.Tensor):
        return leaf_hash(value)
    if not hasattr(value, "__array__"):
        what = "a dict: give ps.flatten(tree)" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise UnsupportedError(f"tree_hash: expected an array at {name!r}, got {what}.")
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError) as error:  # of JAX: a key, a tracer, an array that was donated
        raise UnsupportedError(f"tree_hash: expected an array with elements at {name!r}: {str(error).splitlines()[0]}") from None
    if array.dtype.name not in _DTYPES:
        raise UnsupportedError(f"tree_hash: expected numbers at {name!r}, got the dtype {array.dtype.name}.")
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return bytes_hash(array.dtype.name, array.shape, little.reshape(-1).view(np.uint8).data if array.size else b"")
