"""The hash of leaves, scalars and trees: what makes two states the same.

Everything is BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs), 256 bits, written as 64 hexadecimal digits. Each kind
of value has a domain tag of its own, so that no leaf collides with a tree. The definition is frozen: vectors are in
``tests/core/test_hash.py`` and a change of it is a new version of the format.

* leaf: ``tag, dtype, shape`` as JSON, a zero byte, then the elements in row-major order, little-endian
* scalars: ``tag``, then the canonical JSON of their typed encoding (see `_plain`)
* tree: ``tag``, then the canonical JSON of ``{key path: digest of the child}``

Device, strides, process and Python's own hash seed do not enter. Bits decide: ``0.0`` and ``-0.0`` differ, and so do two
nans with other payloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from blake3 import blake3
from numpy.typing import NDArray

from purestate.core._digest import canonical_json, leaf_header, scalar_hash, short, tree_hash
from purestate.errors import UnsupportedError

__all__ = ["canonical_json", "dtype_name", "leaf_bytes", "leaf_hash", "leaf_hashes", "scalar_hash", "short", "tree_hash"]

_THREADED_ABOVE = 4 << 20
_TOGETHER = 128 << 10, 8 << 20
"""From how many bytes a leaf on the average, and in all, leaves are hashed by several threads: of smaller ones each thread mostly
waits for the interpreter's lock."""
_MOST_THREADS = 4
_HEAD = 128 << 10
"""How many bytes of header and leaf are copied into one piece: a hash that begins with a few bytes goes on slowly."""
_NUMPY = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)
"""The dtypes that Python's memoryview knows as well."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``'float32'`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def leaf_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the elements of a dense tensor in row-major order as bytes, without a copy where it is contiguous on CPU.

    Raises:
        UnsupportedError: The tensor is sparse, nested, quantized or without elements (on the meta device).
    """
    if (array := _array(tensor)) is not None and array.size:
        return array.data.cast("B")
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        raise UnsupportedError(
            f"expected a dense tensor with elements, got {_kind(tensor)} one of dtype {dtype_name(tensor.dtype)}.",
            cause="A state holds plain bits: what else such a tensor carries (indices, scales, a later value) would be lost.",
            fix="Keep it dense, tensor.to_dense() or tensor.dequantize(), or give it as a factory argument.",
        )
    flat = tensor.detach()
    if not flat.is_cpu or not flat.is_contiguous() or flat.is_conj() or flat.is_neg():
        flat = flat.cpu().contiguous().resolve_conj().resolve_neg()
    flat = flat.as_strided((flat.numel(),), (1,))  # one element is contiguous with any stride, and could not be viewed
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _array(tensor: torch.Tensor) -> NDArray[Any] | None:
    """What most leaves are, in a third of the time: an array that is contiguous; None for others."""
    if tensor.dtype in _NUMPY:
        try:
            array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
            return array if array.flags.c_contiguous else None
        except (RuntimeError, TypeError):  # not a dense tensor in memory
            pass
    return None


def _kind(tensor: torch.Tensor) -> str:
    kinds = {"nested": tensor.is_nested, "quantized": tensor.is_quantized, "meta": tensor.is_meta}
    return f"a {next((kind for kind, is_it in kinds.items() if is_it), str(tensor.layout).removeprefix('torch.'))}"


def leaf_hash(tensor: torch.Tensor) -> str:
    """Return the digest of one dense tensor.

    Args:
        tensor: Any shape, dtype, device and strides. Not modified.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> leaf_hash(torch.zeros(2)) == leaf_hash(torch.zeros(4)[::2])
        True
        >>> leaf_hash(torch.zeros(2)) == leaf_hash(-torch.zeros(2))
        False
    """
    header = _header(tensor.dtype, tensor.shape)
    if (array := _array(tensor)) is not None and array.nbytes <= _HEAD:
        return blake3(b"".join((header, array.data))).hexdigest()
    data = leaf_bytes(tensor)
    size, copied = len(data), _HEAD - len(header)
    if size <= copied or copied <= 0:
        return blake3(b"".join((header, data))).hexdigest()
    head, rest = b"".join((header, data[:copied])), data[copied:]
    hasher = blake3(head, max_threads=blake3.AUTO) if size > _THREADED_ABOVE else blake3(head)
    return hasher.update(rest).hexdigest()


def leaf_hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the digest of each of several tensors, by name; large ones at the same time.

    Example:
        >>> leaf_hashes({"a": torch.ones(2)}) == {"a": leaf_hash(torch.ones(2))}
        True
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    threads = min(torch.get_num_threads(), _MOST_THREADS)
    if threads < 2 or size < max(_TOGETHER[1], _TOGETHER[0] * len(tensors)) or len(tensors) < 2 * threads:
        return {name: leaf_hash(tensor) for name, tensor in tensors.items()}
    names = list(tensors)
    with ThreadPoolExecutor(threads) as pool:  # hashing lets go of the interpreter's lock
        parts = pool.map(lambda part: [leaf_hash(tensors[name]) for name in part], [names[i::threads] for i in range(threads)])
        found = {name: digest for i, part in enumerate(parts) for name, digest in zip(names[i::threads], part, strict=True)}
    return {name: found[name] for name in names}


@lru_cache(maxsize=4096)
def _header(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return leaf_header(dtype_name(dtype), shape)
