"""Batches of loaders over an `IterableDataset`: whose order is the dataset's own, and whose position it has to tell itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterDataPipe

from purestate.core._batch import Batch
from purestate.core._key import Key
from purestate.data._loader import Pass, Private, changed, is_behind
from purestate.data._order import loader_length
from purestate.data._position import Given, Numbered, batch_digest
from purestate.data._reading import Home, missing
from purestate.data._samples import Read, Seeder, StreamCollate, StreamSamples
from purestate.errors import BatchError, EmptyLoaderError, UnsupportedError

__all__ = ["IterableFeed"]

_Places = list[str | None]


class IterableFeed(Private):
    """The feed of a loader over an `IterableDataset`. See `purestate.core._batch.Feed`.

    The order is the dataset's own, and depends on the number of workers. Workers are started anew for every epoch, from
    the dataset as it is in the main process. Without workers a dataset with ``state_dict()`` and ``load_state_dict()``
    begins every epoch where it was found; another one that changes while it is iterated over (a list shuffled in place)
    is changed for the next epoch, which is not noticed.

    An epoch goes on from the dataset's ``state_dict()``, asked after every batch, in every worker. Where there is none,
    where it is no plain data, or where it does not bring back the batch before the cut, what was behind is read again
    and dropped, which ``notify`` is told.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        device: torch.device | None,
        notify: Callable[[str], object] = lambda text: None,
        batches: int | None = None,
    ) -> None:
        if isinstance(loader.dataset, IterDataPipe):
            pipe = getattr(loader.dataset, "_datapipe", loader.dataset)  # a DataLoader wraps the pipe that it was given
            raise UnsupportedError(
                f"Expected a dataset, got the data pipe {type(pipe).__qualname__!r}.",
                cause="Data pipes share random state among themselves in a way that no key can set.",
                fix="Write it as an IterableDataset, or give a list of batches.",
            )
        self._notify = notify
        self._expected = loader_length(loader) if hasattr(loader.dataset, "__len__") else batches
        self._stream = StreamSamples(loader.dataset, Seeder(loader.dataset, loader.collate_fn))
        self._home = Home(loader.dataset) if loader.num_workers == 0 else None
        super().__init__(
            loader,
            device,
            self._stream,
            collate_fn=StreamCollate(loader.collate_fn, self._stream),
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

    def epoch(self, key: Key, start: int = 0, position: dict[str, Any] | None = None) -> _StreamEpoch | Numbered:
        """Return an iterator over the batches of the epoch of a key from number ``start`` on."""
        if start and is_behind(start, self.batches):
            return Numbered(())
        workers = max(1, self._loader.num_workers)
        if position is not None and len(position["before"]) != workers:
            raise BatchError(
                f"Expected num_workers={len(position['before'])}, with which the epoch began, got {self._loader.num_workers}.",
                cause="The number of workers decides the order of an iterable dataset.",
                fix="Give the loader as many again, or void the train with ck.reset(op).",
            )
        source = _Source(partial(self._begin, key), workers, self._expected)
        return _StreamEpoch(source, self._give, self._notify, start, position)

    def _begin(self, key: Key, places: _Places, first: int) -> Pass:
        """Begin a pass in which each worker begins where ``places`` says, and ``first`` is asked first."""
        self._stream.key, self._stream.places, self._worker_init.first = key, places, first
        return self._start(key)

    def _go_home(self) -> None:
        self._stream.reading = None
        if self._home is not None:
            self._home.go()


class _Source(Iterator[Batch]):
    """The batches of an epoch as the private loader gives them, counted, and where the readers of the dataset stand.

    Args:
        begin: Begins a pass at places.
        readers: How many processes read the dataset.
        expected: How many batches the epoch has, if that is known.
    """

    def __init__(self, begin: Callable[[_Places, int], Pass], readers: int, expected: int | None) -> None:
        self._begin, self._readers, self._expected = begin, readers, expected
        self._pass: Pass | None = None
        self._given, self._closed = 0, False
        self.before: _Places = []
        """Where each reader stood before the last batch that it gave; None is the beginning."""
        self._behind: _Places = []
        self.digests: list[str | None] = []
        """What each reader gave last, where a worker told it."""
        self.last = 0
        """Who gave the last batch."""

    def go_to(self, position: dict[str, Any] | None, given: int) -> None:
        """Begin with what is behind ``given`` batches, where a position says; without one at the beginning."""
        self.close()
        self._closed, self._given = False, given
        places: _Places = [None] * self._readers if position is None else position["before"]
        self.before, self._behind, self.digests = list(places), list(places), [None] * self._readers
        self._pass = self._begin(places, 0 if position is None else _first(position))

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        if self._pass is None:
            self.go_to(None, 0)
        assert self._pass is not None
        try:
            read: Read = next(self._pass)
        except StopIteration:
            self._check_end()
            raise
        self._given += 1
        if self._expected is not None and self._given > self._expected:
            self.close()
            raise self._mismatch("at least ")
        self.last = reader = read.reader
        self.before[reader], self._behind[reader], self.digests[reader] = self._behind[reader], read.place, read.digest
        return read.batch

    def close(self) -> None:
        """End the pass."""
        self._closed = True
        if self._pass is not None:
            self._pass.close()

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


def _first(position: dict[str, Any]) -> int:
    """Return who is asked first, so that each reader's last batch comes again before anything new does.

    Readers take turns. In the first round those behind the last one have given nothing yet.
    """
    last, digests = position["last"], position["digests"]
    return (last + 1) % len(digests) if any(digests[last + 1 :]) else 0


class _StreamEpoch(Iterator[Batch]):
    """The batches of an epoch from one on: gone to by the dataset's own state, or by reading again what is before it.

    Where a position is given, what each reader gave last is read again and compared. Where the dataset's state leads to
    something else, it is not trusted and the epoch read again; where that does as well, the data has changed.
    """

    def __init__(
        self,
        source: _Source,
        give: Callable[[Batch], Batch],
        notify: Callable[[str], object],
        start: int,
        position: dict[str, Any] | None,
    ) -> None:
        self._source, self._give, self._notify = source, give, notify
        self._start, self._position = start, position
        self._given: Given | None = None
        self._opened = False

    def __next__(self) -> Batch:
        self._given = None
        if not self._opened:
            self._opened = True
            if self._start:
                self._go()
        batch = next(self._source)
        self._given, self._position = Given(batch), None
        return self._give(batch)

    def position(self) -> dict[str, Any] | None:
        """Return where the epoch goes on behind the batch that was given last; None before the first."""
        if self._given is None:
            return self._position
        source, digests = self._source, list(self._source.digests)
        if digests[source.last] is None:
            digests[source.last] = self._given.digest()
        return {"before": list(source.before), "digests": digests, "last": source.last}

    def close(self) -> None:
        """End the epoch."""
        self._opened = True
        self._source.close()

    def _go(self) -> None:
        """Go to the batch of number ``start``."""
        position = self._position
        reason = "nothing was kept of where the dataset was" if position is None else missing(position["before"])
        if position is not None and reason is None:
            again = sum(digest is not None for digest in position["digests"]) or 1
            self._source.go_to(position, self._start - again)
            if self._skip(again, position) == again:
                return
            reason = "the state_dict() of the dataset does not bring it back to where it was"
        self._notify(f"resuming in the middle of an epoch reads again the {self._start:,} batches before it: {reason}")
        self._source.go_to(None, 0)
        if self._skip(self._start - 1, None) + self._skip(1, position) < self._start:
            self._source.close()
            raise changed(self._start)

    def _skip(self, batches: int, position: dict[str, Any] | None) -> int:
        """Read batches and drop them. Returns how many there were up to the first that is not what the position says."""
        for n in range(batches):
            try:
                batch = next(self._source)
            except (StopIteration, BatchError):  # it ends here: it is another dataset, or was led to another place
                return n
            expected = position and position["digests"][self._source.last]
            if expected is not None and expected != batch_digest(batch):
                return n
        return batches
