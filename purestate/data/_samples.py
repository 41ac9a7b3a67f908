"""What runs where samples are made, in the main process or in a worker: user code under seeds from the key.

A map-style dataset is handed requests (the indices of a batch and their seeds) and an iterable one is seeded before each
sample that it gives. The user's dataset, collate function and worker function are called as they are; none is copied.
Everything here goes through pickle, for workers that are spawned.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, IterableDataset, default_collate, default_convert, get_worker_info

from purestate.core._batch import Batch
from purestate.core._key import Key, Tag
from purestate.core._seeds import GlobalStates, global_states, put_back, seed_all
from purestate.data._generators import find_generators, generator_state, seed_generator, set_generator_state
from purestate.data._position import batch_digest
from purestate.data._reading import Reading

__all__ = ["MapCollate", "MapSamples", "Read", "Requests", "Seeder", "StreamCollate", "StreamSamples", "WorkerInit"]

_SEEDS_AT_ONCE = 256


class Seeder:
    """Seeds whatever a dataset draws from: the process-wide generators, and those it owns."""

    def __init__(self, dataset: Any, collate_fn: Any) -> None:
        self.generators = find_generators((dataset, collate_fn), "dataset")

    def __call__(self, seed: int) -> None:
        seed_all(seed)
        if self.generators:
            key = Key.from_seed(seed)
            for i, generator in enumerate(self.generators):
                seed_generator(generator, key.fold_in(i))

    def states(self) -> tuple[GlobalStates, list[Any]]:
        """Read all of them, without moving one."""
        return global_states(), [generator_state(generator) for generator in self.generators]

    def put_back(self, states: tuple[GlobalStates, list[Any]]) -> None:
        """Set all of them to what `states` read."""
        for generator, state in zip(self.generators, states[1], strict=True):
            set_generator_state(generator, state)
        put_back(states[0])


@dataclass(slots=True)
class Request:
    """What the private loader asks of the wrapped dataset in place of indices."""

    indices: Any
    seeds: list[int]
    collate_seed: int


@dataclass(slots=True)
class Loaded:
    """What the wrapped dataset gives to the wrapped collate function."""

    data: Any
    collate_seed: int


class Requests:
    """The index sampler of the private loader: a list that is exchanged every epoch."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.key = Key(0, 0)
        self.start = 0
        self.batched = True

    def __len__(self) -> int:
        return len(self.order) - self.start

    def __iter__(self) -> Iterator[Request]:
        sizes = [len(batch) if self.batched else 1 for batch in self.order]
        ends = np.cumsum([0, *sizes]).tolist()
        seeds = self.key.fold_in(Tag.SAMPLE).seeds(0, ends[-1] + 1)
        for batch in range(self.start, len(self.order)):
            own = seeds[ends[batch] : ends[batch + 1] + 1].tolist()
            yield Request(self.order[batch], own, Key.from_seed(own[0]).fold_in(Tag.WORKER).seed)


class MapSamples(Dataset[Any]):
    """A map-style dataset that is asked by `Request`."""

    def __init__(self, dataset: Any, seeder: Seeder) -> None:
        self.dataset = dataset
        self.seeder = seeder

    def __getitem__(self, request: Request) -> Loaded:
        self.seeder(request.seeds[0])
        return Loaded(self.dataset[request.indices], request.collate_seed)

    def __getitems__(self, request: Request) -> Loaded:
        dataset, seeder = self.dataset, self.seeder
        if getattr(dataset, "__getitems__", None):
            seeder(request.seeds[0])
            return Loaded(dataset.__getitems__(request.indices), request.collate_seed)
        samples: list[Any] = []
        for index, seed in zip(request.indices, request.seeds, strict=False):
            seeder(seed)
            samples.append(dataset[index])
        return Loaded(samples, request.collate_seed)


class MapCollate:
    """A collate function that is called under the seed of its batch; torch's own draw nothing and need none."""

    def __init__(self, collate_fn: Callable[[Any], Any], seeder: Seeder) -> None:
        self.collate_fn = collate_fn
        self.seeder = None if collate_fn in (default_collate, default_convert) else seeder

    def __call__(self, loaded: Loaded) -> Batch:
        if self.seeder is not None:
            self.seeder(loaded.collate_seed)
        return self.collate_fn(loaded.data)


class StreamSamples(IterableDataset[Any]):
    """An iterable dataset each sample of which is made under a seed: by worker, and number within the worker.

    Before an epoch is begun, ``places`` says where each worker begins, as `Reading.tell` told it; None is the beginning.
    """

    def __init__(self, dataset: Any, seeder: Seeder) -> None:
        self.dataset = dataset
        self.seeder = seeder
        self.key = Key(0, 0)
        self.places: list[str | None] = [None]
        self.reading: Reading | None = None

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker = info.id if info else 0
        key = self.key.derive(Tag.WORKER, worker)
        self.seeder(key.seed)
        reading = self.reading = Reading(self.dataset, self.places[worker])
        if reading.ended:
            return
        for first in count(reading.given, _SEEDS_AT_ONCE):
            for seed in key.fold_in(Tag.SAMPLE).seeds(first, first + _SEEDS_AT_ONCE).tolist():
                self.seeder(seed)
                try:
                    sample = next(reading.samples)
                except StopIteration:
                    reading.ended = True
                    return
                reading.given += 1
                yield sample


class Read(NamedTuple):
    """A batch of an iterable dataset, and where the one who read it stands now. A tuple, which a loader knows how to pin.

    Args:
        batch: As the user's collate function gave it.
        reader: The worker; 0 where there is none.
        place: What `Reading.tell` told behind it.
        digest: Its content, if a worker read it: there it costs the training nothing.
    """

    batch: Batch
    reader: int
    place: str
    digest: str | None


class StreamCollate:
    """A collate function whose batches come as `Read`."""

    def __init__(self, collate_fn: Callable[[Any], Any], stream: StreamSamples) -> None:
        self.collate_fn = collate_fn
        self.stream = stream

    def __call__(self, samples: Any) -> Read:
        batch, info = self.collate_fn(samples), get_worker_info()
        assert self.stream.reading is not None
        place = self.stream.reading.tell()
        return Read(batch, 0, place, None) if info is None else Read(batch, info.id, place, batch_digest(batch))


class WorkerInit:
    """What runs first in a worker: no signal but the main process ends it, and it is seeded from the key.

    A loader asks its worker 0 for the first batch. ``first`` is whose turn it was where an epoch was cut, so that worker 0
    takes the part of that one, worker 1 of the next, and so on.
    """

    def __init__(self, user_fn: Callable[[int], None] | None) -> None:
        self.user_fn = user_fn
        self.key = Key(0, 0)
        self.first = 0

    def __call__(self, worker: int) -> None:
        # a signal to the process group must not take the workers from under a main process that wants to save
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        info = get_worker_info()
        assert info is not None
        samples: Any = info.dataset
        seed, worker = info.seed - worker, (worker + self.first) % info.num_workers
        for name, value in (("dataset", samples.dataset), ("id", worker), ("seed", seed + worker)):
            object.__setattr__(info, name, value)
        samples.seeder(self.key.derive(Tag.WORKER, worker).seed)
        if self.user_fn is not None:
            self.user_fn(worker)
