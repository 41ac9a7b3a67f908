"""What a batch is, any nesting of lists, tuples, named tuples and mappings that holds tensors; and what a `Feed` of them is.

Two questions are asked of a batch, wherever it came from: how many samples it has, and that it be on a device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import PackedSequence

from purestate.core._key import Key
from purestate.errors import BatchError

__all__ = ["Batch", "Batches", "Feed", "batch_size", "owned", "to_device"]

Batch = Any


def batch_size(batch: Batch) -> int:
    """Return the number of samples in a batch: the leading dimension of its first tensor.

    Tensors without dimensions are passed over. A packed sequence counts its sequences.

    Args:
        batch: Any nesting of lists, tuples and mappings of tensors. Not modified.

    Raises:
        BatchError: No tensor in the batch has a leading dimension.

    Example:
        >>> batch_size({"weight": torch.tensor(0.5), "pair": (torch.zeros(8, 3), torch.zeros(8))})
        8
    """
    for size in _sizes(batch):
        return size
    raise BatchError(
        f"Expected a batch that holds a tensor with a leading dimension, got {_describe(batch)}.",
        cause="The number of samples is read off the first tensor, and losses are weighted by it.",
        fix="Give the loader a collate_fn that makes tensors.",
    )


def to_device(batch: Batch, device: torch.device | None) -> Batch:
    """Return a batch whose tensors are on a device.

    Pinned tensors are copied without waiting. Objects that are no container but have a ``to`` method are asked to move
    themselves; whatever else is in the batch stays as it is.

    Args:
        batch: Any nesting of lists, tuples, named tuples and mappings. Never modified.
        device: Where to. For None and for the CPU the batch itself is returned.

    Example:
        >>> batch = [torch.zeros(2), {"name": "a"}]
        >>> to_device(batch, torch.device("cpu")) is batch
        True
        >>> to_device(batch, torch.device("meta"))[0].device
        device(type='meta')
    """
    if device is None or device.type == "cpu":
        return batch
    return _map(batch, lambda item: _moved(item, device))


def owned(batch: Batch) -> Batch:
    """Return a batch whose tensors share no memory with the given one, for forward may write into what it is given.

    Args:
        batch: As the user holds it. Never modified.

    Example:
        >>> batch = [torch.zeros(2)]
        >>> _ = owned(batch)[0].add_(1)
        >>> batch
        [tensor([0., 0.])]
    """
    return _map(batch, _copy)


def _copy(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return item.clone()
    return item._replace(data=item.data.clone()) if isinstance(item, PackedSequence) else item


def _moved(item: Any, device: torch.device) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(device, non_blocking=item.device.type == "cpu" and item.is_pinned())
    move = getattr(item, "to", None)
    return move(device) if callable(move) else item


def _map(item: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to whatever in a batch is no container."""
    if isinstance(item, torch.Tensor | PackedSequence):
        return function(item)
    if isinstance(item, Mapping):
        new = {key: _map(value, function) for key, value in item.items()}
        if isinstance(item, MutableMapping) and type(item) is not dict:
            clone = copy.copy(item)  # a mapping class may carry more than its entries
            clone.update(new)
            return clone
        return new if type(item) is dict else type(item)(new)  # pyright: ignore[reportCallIssue]
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(_map(value, function) for value in item))
    if type(item) in (list, tuple):
        return type(item)(_map(value, function) for value in item)
    return function(item)


def _sizes(item: Any) -> Iterator[int]:
    if isinstance(item, torch.Tensor):
        if item.dim():
            yield item.size(0)
    elif isinstance(item, PackedSequence):
        yield int(item.batch_sizes[0])
    elif isinstance(item, Mapping):
        yield from _sizes_of(item.values())
    elif isinstance(item, list | tuple):
        yield from _sizes_of(item)


def _sizes_of(items: Iterable[Any]) -> Iterator[int]:
    for item in items:
        yield from _sizes(item)


def _describe(batch: Batch) -> str:
    kind = type(batch).__name__
    if isinstance(batch, list | tuple):
        return f"a {kind} of {[type(item).__name__ for item in batch[:4]]!r}"
    if isinstance(batch, Mapping):
        return f"a {kind} with the keys {list(batch)[:4]!r}"
    return f"{batch!r}" if isinstance(batch, str | int | float | torch.Tensor) else f"a {kind}"


class Batches(Iterator[Batch], Protocol):
    """The batches of one epoch: an iterator that has to be closed where it is left early (`contextlib.closing`)."""

    def position(self) -> dict[str, Any] | None:
        """Return what `Feed.epoch` needs to go on behind the batch that was given last, besides its number.

        Asked between two batches, as often as anybody likes: it moves nothing.

        Returns:
            Plain JSON; None where the number is all there is, before the first batch, and when the epoch has ended.
        """
        ...

    def close(self) -> object:
        """End the epoch: put generators back, end workers that do not persist. Nothing where it has ended."""
        ...


class Feed(Protocol):
    """Batches of a loader as a pure function of a key.

    Neither the loader nor its samplers, generators and dataset are moved, nor the process-wide generators, once an epoch
    has ended or was closed. Batches are to be read, not written to: those of a list are the caller's own.
    """

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        ...

    @property
    def samples(self) -> int:
        """Samples an epoch."""
        ...

    def epoch(self, key: Key, start: int = 0, position: Any = None) -> Batches:
        """Return the batches of one epoch.

        Args:
            key: The epoch's own key: its order, per-sample seeds and worker seeds derive from it.
            start: The first batch to give.
            position: What `Batches.position` told after the batch before ``start``, in this process or another one. That
                batch is read again and compared. Of a map-style dataset nothing else before ``start`` is; an iterable one
                goes on from its own state, or is read again from its beginning. Without a position nothing is compared.

        Returns:
            The batches from ``start`` on, bit for bit those of the whole epoch. A second epoch of a feed ends the first.

        Raises:
            DataChangedError: The data is not what it was when the feed was made, or, found when the first batch is asked
                for, when the position was told.
        """
        ...

    def close(self) -> None:
        """End workers that persist. A closed feed may be used again."""
        ...
