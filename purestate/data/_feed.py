"""The one way in which batches reach an op: a `Feed`, batches of a loader as a pure function of a key.

`feed` decides from the loader's class which of the rooms' feeds serves it; nothing here loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset

from purestate.core._batch import Batch, Feed, batch_size, owned, to_device
from purestate.core._key import Key
from purestate.data._fingerprint import is_torchdata
from purestate.data._loader import MapFeed
from purestate.data._memory import MemoryFeed, in_memory
from purestate.data._position import Numbered
from purestate.data._stream import IterableFeed
from purestate.data._unchanged import Unchanged
from purestate.errors import BatchError, EmptyLoaderError, UnsupportedError

__all__ = ["feed"]


class ListFeed:
    """The feed of a list of batches, which come in the order of the list whatever the key."""

    def __init__(self, batches: Sequence[Batch], device: torch.device | None) -> None:
        if not batches:
            raise EmptyLoaderError(f"Expected a list with at least one batch, got {batches!r}.")
        if isinstance(batches, tuple) and all(isinstance(batch, torch.Tensor) for batch in batches):
            raise BatchError(
                f"Expected a loader, got a tuple of {len(batches)} tensors, which could be one batch or {len(batches)}.",
                fix="Write [(x, y)] for one batch, or DataLoader(TensorDataset(x, y), batch_size=...) for many.",
            )
        self._batches = batches
        self._device = device
        self._unchanged = Unchanged(batches, "list")
        self.batches = len(batches)
        self.samples = sum(map(batch_size, batches))

    def epoch(self, key: Key, start: int = 0, position: None = None) -> Numbered:
        """Return the batches from number ``start`` on."""
        self._unchanged.check()
        return Numbered(to_device(owned(batch), self._device) for batch in self._batches[start:])

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def feed(
    loader: Any,
    *,
    device: torch.device | None = None,
    notify: Callable[[str], object] = lambda text: None,
    batches: int | None = None,
) -> Feed:
    """Return the feed of a loader.

    Args:
        loader: A `torch.utils.data.DataLoader`, map-style or iterable, torchdata's ``StatefulDataLoader``, which is taken
            for one, or a list or tuple of batches. Never moved.
        device: Where the batches are to be. None and the CPU leave them where they are.
        notify: Told before batches are read again because an epoch goes on in the middle, and why that has to be.
        batches: What `Feed.batches` was for the same data. An iterable dataset without a length is else read once to count
            them.

    Raises:
        UnsupportedError: Something else was given, the loader's class iterates in its own way, or a
            ``StatefulDataLoader`` was told to go on in the middle.
        EmptyLoaderError: The loader has no batch.
        HiddenStateError: A sampler holds state that no key can set; some are found when the first epoch is drawn.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.arange(5)), batch_size=2, shuffle=True)
        >>> batches = feed(loader)
        >>> batches.batches, batches.samples
        (3, 5)
        >>> order = [x.tolist() for (x,) in batches.epoch(Key.from_seed(0))]
        >>> order == [x.tolist() for (x,) in batches.epoch(Key.from_seed(0))]
        True
        >>> order[2:] == [x.tolist() for (x,) in batches.epoch(Key.from_seed(0), start=2)]
        True
    """
    if isinstance(loader, DataLoader):
        _refuse_own_iteration(loader)
        if isinstance(loader.dataset, IterableDataset):
            return IterableFeed(loader, device, notify, batches)
        return (MemoryFeed if in_memory(loader) else MapFeed)(loader, device)
    if isinstance(loader, list | tuple):
        return ListFeed(cast("Sequence[Batch]", loader), device)
    raise UnsupportedError(
        f"Expected a DataLoader or a list of batches, got {type(loader).__qualname__!r}.",
        cause="The order and the randomness of anything else cannot be set from a key, nor can it be read twice.",
        fix="Wrap it in a torch.utils.data.DataLoader (over an IterableDataset if need be), or pass list(loader).",
    )


def _refuse_own_iteration(loader: DataLoader[Any]) -> None:
    for name in ("__iter__", "__len__", "_get_iterator"):
        owner = next(cls for cls in type(loader).__mro__ if name in vars(cls))
        if owner is not DataLoader and not is_torchdata(owner):
            raise UnsupportedError(
                f"Expected a DataLoader, got {type(loader).__qualname__!r}, which has a {name} of its own.",
                cause="What it does there would be left out, as an op iterates over the dataset with samplers of its own.",
                fix="Move it to the dataset, the sampler or the collate_fn, or pass list(loader).",
            )
    if getattr(loader, "next_iter_state", None) is not None:
        raise UnsupportedError(
            f"Expected a loader at its beginning, got a {type(loader).__qualname__} that was told to go on in the middle.",
            cause="An op begins its epochs at their beginning, and goes on from resume points of its own.",
            fix="Leave load_state_dict() out, or make a new loader.",
        )
