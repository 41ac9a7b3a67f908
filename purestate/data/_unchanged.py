"""What data was when a feed was made, as far as that is known without reading it: how long it is, and who wrote to a tensor.

The fingerprint was taken before the first batch; what changes after that would be trained on and not be in the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import StackDataset, Subset, TensorDataset

from purestate.data._order import length_of
from purestate.errors import DataChangedError

__all__ = ["Unchanged"]


class Unchanged:
    """Raises once data is not what it was.

    Args:
        data: A data set or a list of batches. Neither read nor modified.
        what: What it is: ``'dataset'`` or ``'list'``.
    """

    def __init__(self, data: Any, what: str) -> None:
        self._data, self._what = data, what
        self._length = length_of(data)
        self._versions = [(path, tensor, tensor._version) for path, tensor in _tensors(data, what) if not tensor.is_inference()]

    def check(self) -> None:
        """Raise if the data has another length, or one of its tensors was written to.

        Raises:
            DataChangedError: It was.
        """
        length, unit = length_of(self._data), _UNITS[self._what]
        if length != self._length:
            raise DataChangedError(
                f"Expected {self._length} {unit}, the length of the {self._what} when the op began, but it has {length}.",
                cause="What was added or taken away since is not in the fingerprint of the data.",
                fix="Leave data alone while an op runs; train in two ops, each with its own loader.",
            )
        for path, tensor, version in self._versions:
            if tensor._version != version:
                raise DataChangedError(
                    f"{path} was written to after the op began.",
                    cause="Its content was part of the question, and is another now.",
                    fix="Leave data alone while an op runs; change a copy, or train in two ops.",
                )


_UNITS = {"dataset": "samples", "list": "batches"}


def _tensors(data: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that batches are made of, by path: of the classes that have no code in between, and of lists."""
    if isinstance(data, torch.Tensor):
        yield path, data
    elif type(data) is TensorDataset:
        yield from _members(enumerate(data.tensors), f"{path}.tensors")
    elif type(data) is Subset:
        yield from _tensors(data.dataset, f"{path}.dataset")
    elif type(data) is StackDataset:
        parts: Any = data.datasets
        yield from _members(parts.items() if isinstance(parts, dict) else enumerate(parts), f"{path}.datasets")
    elif isinstance(data, Mapping):
        yield from _members(data.items(), path)
    elif isinstance(data, list | tuple):
        yield from _members(enumerate(data), path)


def _members(items: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    for key, item in items:
        yield from _tensors(item, f"{path}[{key!r}]")
