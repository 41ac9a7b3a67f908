"""Where an epoch stands, as plain data that fits into JSON: what the last batch was, and what a data set says of itself.

A position says where the batch before the cut begins. Whoever goes on reads that batch again and compares it, so that data
which changed in between, or a data set that does not come back to where it was, is found before anything is trained on it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from purestate.core._batch import Batch
from purestate.core._digest import joined_hash, leaf_header
from purestate.core._hash import dtype_name, leaf_bytes, leaf_hash, scalar_hash
from purestate.core._plain import join, split
from purestate.errors import UnsupportedError

__all__ = ["Given", "Numbered", "batch_bits", "batch_digest", "freeze", "is_stateful", "thaw"]

Json = Any

_READ = 1 << 18
"""About how many bytes of a tensor are read for a digest: every n-th sample, so that it takes a fraction of a millisecond."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Numbered(Iterator[Batch]):
    """Batches of data that was hashed in full: the number of a batch says where the epoch is."""

    __slots__ = ("_batches",)

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)

    def __next__(self) -> Batch:
        return next(self._batches)

    def position(self) -> None:
        """Return None: the number is all there is."""

    def close(self) -> None:
        """End the epoch."""
        self._batches = iter(())


class Given:
    """The batch that was given last. Forward may write to it, so its digest is there as long as nobody has."""

    __slots__ = ("_batch", "_versions")

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._versions = _versions(batch)

    def digest(self) -> str | None:
        """Return the digest of the batch; None if it was written to, or if nobody can tell."""
        if self._versions is None or self._versions != _versions(self._batch):
            return None
        return batch_digest(self._batch)


def batch_digest(batch: Batch) -> str:
    """Return 32 hexadecimal digits over what a batch holds; of long tensors some of the samples.

    Objects that are neither tensors nor plain count by their class.

    Example:
        >>> batch_digest([torch.zeros(2), "a"]) == batch_digest([torch.zeros(2), "a"]) != batch_digest([torch.ones(2), "a"])
        True
    """
    return scalar_hash(_content(batch))[:32]


def batch_bits(batch: Batch) -> bytes:
    """Return a digest over all that a batch holds, of long tensors too.

    Objects that are neither tensors nor plain count by their class, tensors that are not dense by dtype and shape.

    Args:
        batch: Not modified.

    Returns:
        32 bytes.

    Example:
        >>> batch_bits([torch.zeros(2)]) == batch_bits([torch.zeros(2)]) != batch_bits([torch.ones(2)])
        True
    """
    pieces: list[bytes | memoryview] = []
    _add(pieces, batch)
    return joined_hash(*pieces)


def _add(pieces: list[bytes | memoryview], item: Any) -> None:
    if isinstance(item, torch.Tensor):
        pieces.append(_header(item.dtype, item.shape if not item.is_nested else torch.Size()))
        with suppress(UnsupportedError):  # sparse or without elements: dtype and shape have to do
            pieces.append(leaf_bytes(item))
    elif isinstance(item, list | tuple):
        pieces.append(b"[%d]" % len(item))
        for value in item:
            _add(pieces, value)
    else:
        pieces.append(scalar_hash(_content(item)).encode())


@lru_cache(maxsize=256)
def _header(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return leaf_header(dtype_name(dtype), shape)


def is_stateful(item: Any) -> bool:
    """Whether an object tells its position and goes back to one: ``state_dict()`` and ``load_state_dict(state)``."""
    return all(callable(getattr(item, name, None)) for name in ("state_dict", "load_state_dict"))


def freeze(state: Any) -> Json:
    """Return what a ``state_dict()`` gave as JSON that loses nothing and shares no memory with it.

    Raises:
        UnsupportedError: It holds something else than tensors, arrays, numbers, texts and containers of them.

    Example:
        >>> thaw(freeze({"at": 3, "generator": torch.tensor([1, 2])}))
        {'at': 3, 'generator': tensor([1, 2])}
    """
    skeleton, leaves = split(state, "state_dict()")
    bits = {
        name: [dtype_name(leaf.dtype), list(leaf.shape), base64.b64encode(leaf_bytes(leaf)).decode()]
        for name, leaf in leaves.items()
    }
    return [skeleton, bits]


def thaw(frozen: Json) -> Any:
    """Return the value that `freeze` wrote."""
    skeleton, bits = frozen
    return join(skeleton, {name: _tensor(*leaf) for name, leaf in bits.items()})


def _tensor(dtype: str, shape: list[int], text: str) -> torch.Tensor:
    if not text:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8).view(getattr(torch, dtype)).reshape(shape)


def _versions(batch: Batch) -> list[int] | None:
    found: list[int] = []
    for tensor in _tensors(batch):
        if tensor.is_inference():  # nobody counts how often it is written to
            return None
        found.append(tensor._version)
    return found


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, PackedSequence):
        yield item.data
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _tensors(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _tensors(value)


def _content(item: Any) -> Json:
    if isinstance(item, torch.Tensor):
        return [dtype_name(item.dtype), item.dim() if item.is_nested else list(item.shape), _bits(item)]
    if isinstance(item, PackedSequence):
        return [_content(item.data), item.batch_sizes.tolist()]
    if isinstance(item, Mapping):
        return [[repr(key), _content(value)] for key, value in item.items()]
    if isinstance(item, list | tuple):
        return [_content(value) for value in item]
    return repr(item) if isinstance(item, _PLAIN) else type(item).__qualname__


def _bits(tensor: torch.Tensor) -> str | None:
    if tensor.dim() and tensor.layout is torch.strided and not tensor.is_nested:
        tensor = tensor[:: max(1, tensor.numel() * tensor.element_size() // _READ)]
    try:
        return leaf_hash(tensor)
    except UnsupportedError:  # sparse or without elements: dtype and shape have to do
        return None
