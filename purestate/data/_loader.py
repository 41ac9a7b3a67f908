"""Batches of any `DataLoader`, loaded by a private one whose randomness comes from the key alone.

Every sample is loaded under seeds of its own (see `_samples`), so that its value does not depend on how many workers load,
which samples were skipped, or what the training step drew in between.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterDataPipe, default_collate

from purestate.core._batch import Batch, owned, to_device
from purestate.core._key import Key, Tag
from purestate.data._order import Order, loader_length
from purestate.data._samples import MapCollate, MapSamples, Requests, Seeder, StreamSamples, WorkerInit
from purestate.errors import BatchError, EmptyLoaderError, UnsupportedError

__all__ = ["IterableFeed", "MapFeed"]


class _Feed:
    """What both kinds of loader share: the private loader, one epoch open at a time, the end of the workers."""

    def __init__(self, loader: DataLoader[Any], device: torch.device | None, samples: Any, **sampling: Any) -> None:
        self._device = device
        # without workers a collate function may give tensors of the dataset itself; the default one copies
        self._shares = loader.num_workers == 0 and loader.collate_fn is not default_collate
        self._seeder: Seeder = samples.seeder
        self._worker_init = WorkerInit(loader.worker_init_fn)
        self._open: _Epoch | None = None
        self._base_generator = torch.Generator()
        workers = loader.num_workers
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            num_workers=workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=self._worker_init,
            multiprocessing_context=loader.multiprocessing_context,
            generator=self._base_generator,
            prefetch_factor=loader.prefetch_factor if workers else None,
            **sampling,
        )
        if workers:
            _WITH_WORKERS.add(self)

    def _start(self, key: Key) -> _Epoch:
        if self._open is not None:
            self._open.replace()
        self._worker_init.key = key
        self._base_generator.manual_seed(key.fold_in(Tag.WORKER).seed)
        self._open = _Epoch(self._loader, self._seeder, self._device, self._shares)
        return self._open

    def close(self) -> None:
        """End the open epoch, and the workers."""
        if self._open is not None:
            self._open.close()
            self._open = None
        _end_workers(self._loader._iterator)  # pyright: ignore[reportPrivateUsage]
        self._loader._iterator = None  # pyright: ignore[reportPrivateUsage]


class MapFeed(_Feed):
    """The feed of a map-style loader. See `purestate.data._feed.Feed`.

    The sample at position ``i`` of an epoch is loaded under ``key.derive(Tag.SAMPLE, i)``. A dataset with a
    ``__getitems__`` of its own loads a batch at once, under the seed of the batch's first sample.

    A dataset that keeps something else between samples than generators, such as a counter, is not noticed.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | None) -> None:
        self._order = Order(loader)
        self._requests = Requests()
        self._requests.batched = loader.batch_sampler is not None
        collate_fn: Any = loader.collate_fn
        samples = MapSamples(loader.dataset, Seeder(loader.dataset, collate_fn))
        batched = self._requests.batched
        sampling = {"batch_sampler": self._requests} if batched else {"sampler": self._requests, "batch_size": None}
        super().__init__(
            loader,
            device,
            samples,
            collate_fn=MapCollate(collate_fn, samples.seeder),
            persistent_workers=loader.persistent_workers,
            **sampling,
        )
        self.batches = self._order.batches
        self.samples = self._order.samples()

    def epoch(self, key: Key, start: int = 0) -> _Epoch:
        """Return an iterator over the batches of the epoch of a key from number ``start`` on.

        Close it where it is left early: with ``num_workers=0`` the process-wide generators are put back when it ends.
        """
        order = self._order.draw(key)
        self._requests.order, self._requests.key, self._requests.start = order, key, start
        return self._start(key)


class IterableFeed(_Feed):
    """The feed of a loader over an `IterableDataset`. See `purestate.data._feed.Feed`.

    The order is the dataset's own, and depends on the number of workers. Workers are started anew for every epoch, from
    the dataset as it is in the main process; without workers a dataset that changes while it is iterated over (a list
    shuffled in place) is changed for the next epoch, which is not noticed. ``start`` loads and drops what it skips.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | None) -> None:
        if isinstance(loader.dataset, IterDataPipe):
            pipe = getattr(loader.dataset, "_datapipe", loader.dataset)  # a DataLoader wraps the pipe that it was given
            raise UnsupportedError(
                f"Expected a dataset, got the data pipe {type(pipe).__qualname__!r}.",
                cause="Data pipes share random state among themselves in a way that no key can set.",
                fix="Write it as an IterableDataset, or give a list of batches.",
            )
        self._expected = loader_length(loader) if hasattr(loader.dataset, "__len__") else None
        self._counts: tuple[int, int] | None = None
        self._stream = StreamSamples(loader.dataset, Seeder(loader.dataset, loader.collate_fn))
        super().__init__(
            loader,
            device,
            self._stream,
            collate_fn=loader.collate_fn,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
        )

    @property
    def batches(self) -> int:
        """Batches an epoch: the loader's length; for a dataset without one, counted by going through it once."""
        if self._expected is None:
            self._expected = sum(1 for _ in self.epoch(Key(0, 0)))
        return self._expected

    @property
    def samples(self) -> int:
        """Samples an epoch, as far as the length tells; an incomplete last batch without a length counts in full."""
        size = self._loader.batch_size or 1
        dataset: Any = self._stream.dataset
        if hasattr(dataset, "__len__") and not self._loader.drop_last and self._loader.batch_size is not None:
            return len(dataset)
        return self.batches * size

    def epoch(self, key: Key, start: int = 0) -> _Counted:
        """Return an iterator over the batches of the epoch of a key from number ``start`` on."""
        self._stream.key = key
        return _Counted(self._start(key), self._expected, start)


class _Epoch(Iterator[Batch]):
    """One pass over a private loader.

    No ``__del__``, unlike a generator function: what the caller's generators held is put back when the pass ends, fails
    or is closed, never at the odd moment at which a traceback that holds it is let go.
    """

    def __init__(self, loader: DataLoader[Any], seeder: Seeder, device: torch.device | None, shares: bool) -> None:
        self._loader = loader
        self._seeder = seeder
        self._device = device
        self._shares = shares
        self._batches: Any = None
        self._states: Any = None
        self._closed = self._replaced = False

    def __next__(self) -> Batch:
        if self._replaced:
            raise BatchError(
                "Expected one epoch of a feed at a time, but another one was begun before this one ended.",
                fix="Make a second feed of the loader.",
            )
        if self._closed:
            raise StopIteration
        try:
            if self._batches is None:
                if self._loader.num_workers == 0:
                    self._states = self._seeder.states()
                self._batches = iter(self._loader)
            batch = next(self._batches)
            return to_device(owned(batch) if self._shares else batch, self._device)
        except BaseException:
            self.close()
            raise

    def replace(self) -> None:
        """Close the pass because another one begins; where it had not ended, going on with it is an error."""
        self._replaced = not self._closed
        self.close()

    def close(self) -> None:
        """End the pass: put the generators back, end workers that do not persist. Nothing where it has ended."""
        if self._closed:
            return
        self._closed = True
        if self._states is not None:
            self._seeder.put_back(self._states)
        if not self._loader.persistent_workers:
            _end_workers(self._batches)
        self._batches = None


class _Counted(Iterator[Batch]):
    """An epoch whose number of batches must be the expected one, and whose first batches are dropped."""

    def __init__(self, epoch: _Epoch, expected: int | None, start: int) -> None:
        self._epoch = epoch
        self._expected = expected
        self._start = start
        self._given = 0

    def __next__(self) -> Batch:
        while True:
            try:
                batch = next(self._epoch)
            except StopIteration:
                self._check_end()
                raise
            self._given += 1
            if self._expected is not None and self._given > self._expected:
                self._epoch.close()
                raise self._mismatch("at least ")
            if self._given > self._start:
                return batch

    def close(self) -> None:
        """End the epoch."""
        self._epoch.close()
        self._expected = self._given = 1

    def _check_end(self) -> None:
        if self._given == 0:
            raise EmptyLoaderError("Expected a loader with at least one batch, but its dataset gave none.")
        if self._expected is not None and self._given != self._expected:
            raise self._mismatch("")

    def _mismatch(self, bound: str) -> BatchError:
        return BatchError(
            f"Expected {self._expected} batches, the length of the loader, but it gave {bound}{self._given}.",
            cause="The dataset's __len__ counts something else, or workers that share it leave incomplete batches.",
            fix="Let __len__ give what __iter__ yields, or leave __len__ out to have the batches counted.",
        )


_WITH_WORKERS: weakref.WeakSet[_Feed] = weakref.WeakSet()


def _end_workers(batches: Any) -> None:
    """Ask workers to end, and kill those that do not: they ignore SIGTERM, which is all that torch would send."""
    if not hasattr(batches, "_shutdown_workers"):
        return
    batches._shutdown_workers()
    for worker in batches._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


@atexit.register
def _close_all() -> None:
    # before multiprocessing's own exit function, which would wait for workers that ignore its SIGTERM
    for feed in list(_WITH_WORKERS):
        feed.close()
