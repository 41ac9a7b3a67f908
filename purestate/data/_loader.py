"""Batches of any `DataLoader`, loaded by a private one whose randomness comes from the key alone.

Every sample is loaded under seeds of its own (see `_samples`), so that its value does not depend on how many workers load,
which samples were skipped, or what the training step drew in between. Iterable datasets are in `_stream`.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from purestate.core._batch import Batch, owned, to_device
from purestate.core._key import Key, Tag
from purestate.data._order import Order
from purestate.data._position import Given, Numbered, batch_digest
from purestate.data._samples import MapCollate, MapSamples, Requests, Seeder, WorkerInit
from purestate.data._unchanged import Unchanged
from purestate.errors import BatchError, DataChangedError

__all__ = ["MapFeed", "Pass", "Private", "changed", "is_behind"]


class Private:
    """What the feeds of both kinds of loader share: the private loader, one epoch open at a time, the end of the workers."""

    def __init__(self, loader: DataLoader[Any], device: torch.device | None, samples: Any, **sampling: Any) -> None:
        self._device = device
        # without workers a collate function may give tensors of the dataset itself; the default one copies
        self._shares = loader.num_workers == 0 and loader.collate_fn is not default_collate
        self._seeder: Seeder = samples.seeder
        self._worker_init = WorkerInit(loader.worker_init_fn)
        self._open: Pass | None = None
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

    def _start(self, key: Key) -> Pass:
        if self._open is not None:
            self._open.replace()
        self._worker_init.key = key
        self._base_generator.manual_seed(key.fold_in(Tag.WORKER).seed)
        self._open = Pass(self._loader, self._seeder, self._go_home)
        return self._open

    def _go_home(self) -> None:
        """Bring a dataset that a pass in this process moved back to where it was."""

    def _give(self, batch: Batch) -> Batch:
        return to_device(owned(batch) if self._shares else batch, self._device)

    def close(self) -> None:
        """End the open epoch, and the workers."""
        if self._open is not None:
            self._open.close()
            self._open = None
        _end_workers(self._loader._iterator)  # pyright: ignore[reportPrivateUsage]
        self._loader._iterator = None  # pyright: ignore[reportPrivateUsage]


class MapFeed(Private):
    """The feed of a map-style loader. See `purestate.core._batch.Feed`.

    The sample at position ``i`` of an epoch is loaded under ``key.derive(Tag.SAMPLE, i)``. A dataset with a
    ``__getitems__`` of its own loads a batch at once, under the seed of the batch's first sample.

    A dataset that keeps something else between samples than generators, such as a counter, is not noticed.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | None) -> None:
        self._order = Order(loader)
        self._unchanged = Unchanged(loader.dataset, "dataset")
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

    def epoch(self, key: Key, start: int = 0, position: dict[str, Any] | None = None) -> _MapEpoch | Numbered:
        """Return an iterator over the batches of the epoch of a key from number ``start`` on.

        Close it where it is left early: with ``num_workers=0`` the process-wide generators are put back when it ends.
        """
        self._unchanged.check()
        if is_behind(start, self.batches):
            return Numbered(())
        order = self._order.draw(key)
        self._requests.order, self._requests.key = order, key
        self._requests.start = start if position is None else start - 1
        return _MapEpoch(self._start(key), self._give, start, position)


class _MapEpoch(Iterator[Batch]):
    """The batches of an epoch; where it goes on, the batch before the cut is loaded again and compared."""

    def __init__(self, batches: Pass, give: Callable[[Batch], Batch], start: int, position: dict[str, Any] | None) -> None:
        self._batches, self._give = batches, give
        self._start, self._position = start, position
        self._compare = position is not None
        self._given: Given | None = None

    def __next__(self) -> Batch:
        self._given = None
        if self._compare:
            self._compare = False
            assert self._position is not None
            expected, again = self._position["digest"], next(self._batches)
            if expected not in (None, batch_digest(again)):
                self._batches.close()
                raise changed(self._start)
        batch = next(self._batches)
        self._given, self._position = Given(batch), None
        return self._give(batch)

    def position(self) -> dict[str, Any] | None:
        """Return the digest of the batch that was given last; before the first, where the epoch was gone on from."""
        return self._position if self._given is None else {"digest": self._given.digest()}

    def close(self) -> None:
        """End the epoch: put the generators back, end workers that do not persist."""
        self._batches.close()


class Pass(Iterator[Any]):
    """One pass over a private loader.

    No ``__del__``, unlike a generator function: what the caller's generators held is put back when the pass ends, fails
    or is closed, never at the odd moment at which a traceback that holds it is let go.
    """

    def __init__(self, loader: DataLoader[Any], seeder: Seeder, go_home: Callable[[], None]) -> None:
        self._loader = loader
        self._seeder = seeder
        self._go_home = go_home
        self._batches: Any = None
        self._states: Any = None
        self._closed = self._replaced = False

    def __next__(self) -> Any:
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
                    self._go_home()
                self._batches = iter(self._loader)
            return next(self._batches)
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
        if not self._loader.persistent_workers:
            _end_workers(self._batches)
        self._batches = None
        if self._states is not None:
            self._go_home()
            self._seeder.put_back(self._states)


_CHANGED = "Bring the data back as it was; or void the train with ck.reset(op), and train on the data as it is now."


def is_behind(start: int, batches: int) -> bool:
    """Tell whether an epoch is over before batch ``start``, and raise if it never had so many batches."""
    if start > batches:
        raise DataChangedError(
            f"Expected at least {start} batches, for so many were given before the interruption, but the epoch has {batches}.",
            cause="The data became shorter.",
            fix=_CHANGED,
        )
    return start == batches


def changed(start: int) -> DataChangedError:
    """Return the error of an epoch that cannot go on with batch ``start``, for the one before is not what it was."""
    return DataChangedError(
        f"Batch {start - 1} of the epoch, read again to go on behind it, is not what was given before the interruption.",
        cause="The data, the sampler or a transform changed since, or it draws from what no key seeds, such as the clock.",
        fix=_CHANGED,
    )


_WITH_WORKERS: weakref.WeakSet[Private] = weakref.WeakSet()


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
