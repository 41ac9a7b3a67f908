"""Batches of tensors that are in memory, by `index_select` in place of a `DataLoader`.

Taken where the answer is the same bit for bit, strides included: a `TensorDataset`, and `Subset` and `StackDataset` of
such, under torch's own collate function. Anything with code of its own in the way goes through `_loader`.

Each batch is selected by itself. Selecting many batches at once and cutting views was measured and is slower; and views
begin at addresses that a batch of its own would not have, on which the bits of some kernels depend.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import chain
from operator import index as as_int
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, StackDataset, Subset, TensorDataset, default_collate
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

from purestate.core._batch import Batch, to_device
from purestate.core._key import Key
from purestate.data._order import Order
from purestate.data._position import Numbered
from purestate.data._unchanged import Unchanged
from purestate.errors import BatchError

__all__ = ["MemoryFeed", "in_memory"]

_DTYPES = frozenset(
    getattr(torch, name)
    for name in "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128".split()
)


def in_memory(loader: DataLoader[Any]) -> bool:
    """Return whether `MemoryFeed` gives what the loader gives: decided by classes, without loading a sample."""
    return (
        loader.batch_sampler is not None
        and loader.collate_fn is default_collate
        and default_collate_fn_map.get(torch.Tensor) is collate_tensor_fn
        and _plain(loader.dataset)
    )


class MemoryFeed:
    """The feed of a loader over tensors in memory. See `purestate.core._batch.Feed`.

    Workers are not used.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | None) -> None:
        self._order = Order(loader)
        self._unchanged = Unchanged(loader.dataset, "dataset")
        self._dataset = loader.dataset
        self._pin = loader.pin_memory and device is not None and device.type == "cuda"
        self._device = device
        self.batches = self._order.batches
        self.samples = self._order.samples()

    def epoch(self, key: Key, start: int = 0, position: None = None) -> Numbered:
        """Return the batches of the epoch of a key from number ``start`` on."""
        return Numbered(self._epoch(key, start))

    def _epoch(self, key: Key, start: int) -> Generator[Batch]:
        self._unchanged.check()
        order = self._order.draw(key)[start:]
        rows = _Rows(_integers(list(chain.from_iterable(order)), _size(self._dataset)), [len(batch) for batch in order])
        batch_of = _selector(self._dataset, rows)
        for i in range(len(order)):
            batch = batch_of(i)
            yield to_device(_pinned(batch) if self._pin else batch, self._device)

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


class _Rows:
    """The rows of an epoch, and where it is cut into batches."""

    def __init__(self, rows: np.ndarray, sizes: list[int]) -> None:
        if 0 in sizes:
            raise BatchError(f"Batch {sizes.index(0)} of the order that the sampler gives has no sample.")
        self.rows = rows
        self.sizes = sizes
        self._cut: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def cut(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the rows of each batch, on a device."""
        if device not in self._cut:
            self._cut[device] = torch.from_numpy(self.rows).to(device).split(self.sizes)
        return self._cut[device]


def _selector(dataset: Any, rows: _Rows) -> Callable[[int], Any]:
    """Return the function from the number of a batch to the batch."""
    if isinstance(dataset, torch.Tensor):
        cut = rows.cut(dataset.device)
        return lambda i: dataset.index_select(0, cut[i])
    if isinstance(dataset, Subset):
        chosen = np.asarray(dataset.indices)[rows.rows].tolist()
        return _selector(dataset.dataset, _Rows(_integers(chosen, _size(dataset.dataset)), rows.sizes))
    if isinstance(dataset, StackDataset) and isinstance(dataset.datasets, dict):
        named = {name: _selector(part, rows) for name, part in dataset.datasets.items()}
        return lambda i: {name: select(i) for name, select in named.items()}
    parts = [_selector(part, rows) for part in (dataset.datasets if isinstance(dataset, StackDataset) else dataset.tensors)]
    return lambda i: [select(i) for select in parts]


def _plain(dataset: Any) -> bool:
    kind = type(dataset)
    if kind is torch.Tensor:
        return dataset.layout == torch.strided and dataset.dtype in _DTYPES and dataset.dim() > 0 and not dataset.requires_grad
    if kind is TensorDataset:
        return all(map(_plain, dataset.tensors))
    if kind is Subset:
        return _plain(dataset.dataset) and type(dataset.dataset) is not torch.Tensor
    if kind is StackDataset:
        return all(map(_plain, dataset.datasets.values() if isinstance(dataset.datasets, dict) else dataset.datasets))
    return False


def _integers(indices: list[Any], size: int) -> np.ndarray:
    """Return indices as they address a tensor of ``size`` rows: integers counted from the front."""
    if set(map(type, indices)) <= {int}:
        rows = np.fromiter(indices, np.int64, len(indices))
    else:
        try:
            rows = np.fromiter(map(as_int, indices), np.int64, len(indices))
        except TypeError:
            odd = next(index for index in indices if not isinstance(index, int))
            raise BatchError(f"Expected the sampler of a dataset of {size} samples to give integers, got {odd!r}.") from None
    rows[rows < 0] += size
    if len(rows) and not (0 <= rows.min() and rows.max() < size):
        wrong = int(rows[(rows < 0) | (rows >= size)][0])
        raise BatchError(
            f"Expected the sampler to give indices below {size}, the length of the dataset, got {wrong}.",
            cause="The sampler was made for another dataset.",
        )
    return rows


def _size(dataset: Any) -> int:
    return len(dataset)


def _pinned(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch if batch.device.type != "cpu" else batch.pin_memory()
    if isinstance(batch, dict):
        return {name: _pinned(part) for name, part in batch.items()}
    return [_pinned(part) for part in batch]
