"""Loaders of every kind, for what holds of each: a row is a loader by its number of workers, and what is said of a resume.

Run as a program it is the fresh process of `test_data_resume`: positions come in as JSON, the batches behind them go out.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, get_worker_info

from purestate.core._key import Key
from purestate.core._seeds import preserved_generators
from purestate.data._feed import feed

__all__ = ["KEY", "LOADERS", "Row", "digests", "go_on", "whole"]

N = 22
KEY = Key.from_seed(5)
SIZE = 4


@dataclass(frozen=True)
class Row:
    """A kind of loader.

    Args:
        make: Returns it.
        cuts: After how many batches it is cut.
        replays: A piece of what is said where batches are read again; None where none are.
        fresh: Whether a fresh process goes on as well.
    """

    make: Callable[[], Any]
    cuts: tuple[int, ...] = (1, 2, 5)
    replays: str | None = None
    fresh: bool = True


def draws() -> torch.Tensor:
    return torch.tensor([float(torch.rand(())), np.random.rand(), random.random()], dtype=torch.float64)


class Noisy(Dataset[Any]):
    """Augments with torch, numpy and `random`."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return index, draws()


class OwnGenerators(Noisy):
    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.python = random.Random(0)

    def __getitem__(self, index: int) -> Any:
        own = [float(torch.rand((), generator=self.torch)), self.numpy.random(), self.python.random()]
        return index, torch.tensor(own, dtype=torch.float64)


class Batched(Noisy):
    def __getitems__(self, indices: list[int]) -> Any:
        noise = draws()
        return [(index, noise) for index in indices]


def noisy_collate(samples: list[Any]) -> Any:
    return [torch.tensor([index for index, _ in samples]), torch.stack([noise for _, noise in samples]), draws()]


class Backwards:
    """A sampler of nobody's class, which shuffles with the process-wide generator of numpy."""

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(N).tolist())

    def __len__(self) -> int:
        return N


class Stream(IterableDataset[Any]):
    """Shared among the workers, the first of which has most of it; says nothing of where it is."""

    def __init__(self) -> None:
        self.read = 0

    def share(self) -> list[int]:
        info = get_worker_info()
        if info is None or info.num_workers == 1:
            return list(range(N))
        return list(range(13)) if info.id == 0 else list(range(13, N))

    def __iter__(self) -> Iterator[Any]:
        order = self.share()
        random.shuffle(order)
        for index in order:
            self.read += 1
            yield index, draws()


class Stateful(Stream):
    """Tells where it is, with all that is random about it."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[int] | None = None
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        if self.order is None:
            self.order = self.share()
            random.shuffle(self.order)
        while self.at < len(self.order):
            self.read += 1
            self.at += 1
            yield self.order[self.at - 1], draws()
        self.order, self.at = None, 0

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.at = state["order"], state["at"]


class Cursor:
    """A stateful iterator: what it holds are tensors, arrays, bytes and integer keys."""

    def __init__(self, share: list[int]) -> None:
        self.order = torch.tensor(share)[torch.randperm(len(share))]
        self.seen: dict[int, Any] = {}
        self.at = 0

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> Any:
        if self.at == len(self.order):
            raise StopIteration
        index = int(self.order[self.at])
        before = self.seen.get(self.at - 1, np.zeros(2))
        self.seen = {self.at: before + np.random.rand(2)}
        self.at += 1
        return index, torch.from_numpy(self.seen[self.at - 1].copy()), draws()

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "at": self.at, "seen": self.seen, "extra": (b"\0", float("inf"), torch.empty(0))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["extra"][:2] == (b"\0", float("inf"))
        self.order, self.at, self.seen = state["order"], state["at"], state["seen"]


class Cursors(Stream):
    def __iter__(self) -> Iterator[Any]:
        return Cursor(self.share())


class Itself(Stateful):
    """Its own iterator."""

    def __iter__(self) -> Iterator[Any]:
        self.order, self.at = self.share(), 0
        random.shuffle(self.order)
        return self

    def __next__(self) -> Any:
        assert self.order is not None
        if self.at == len(self.order):
            raise StopIteration
        self.at += 1
        return self.order[self.at - 1], draws()


class Forgets(Stateful):
    """Its state lacks the order, which is another one after a resume."""

    def state_dict(self) -> dict[str, Any]:
        return {"order": None, "at": self.at}


class Opaque(Stateful):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "file": object}


class SizedStream(Stateful):
    def __len__(self) -> int:
        return N


def loader(dataset: Any, workers: int = 0, *, cls: Any = DataLoader, **arguments: Any) -> Any:
    arguments = {"batch_size": SIZE, **arguments}
    if arguments.get("batch_sampler") is not None:
        del arguments["batch_size"]
    return cls(dataset(), num_workers=workers, **arguments)


def stateful_loader(*args: Any, **arguments: Any) -> Any:
    with warnings.catch_warnings(), preserved_generators():  # its sampler draws a seed, which the key replaces
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata 0.11 calls it, torch 2.13 warns
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(*args, **arguments)


def memory() -> Any:
    return DataLoader(TensorDataset(torch.arange(2.0 * N).reshape(N, 2), torch.arange(N)), batch_size=SIZE, shuffle=True)


def samplers(workers: int) -> Any:
    return loader(Noisy, workers, batch_sampler=BatchSampler(RandomSampler(range(N)), SIZE, False))


def workers_of(make: Callable[..., Any], numbers: tuple[int, ...] = (0, 1, 2), **options: Any) -> dict[str, Row]:
    return {f", {n} workers": Row(partial(make, n), **options) for n in numbers}


def rows() -> dict[str, Row]:
    spawned = {"multiprocessing_context": "spawn"}
    no_state = "the dataset has no state_dict()"
    kinds: dict[str, dict[str, Row]] = {
        "memory": {"": Row(memory)},
        "list": {"": Row(lambda: [(torch.tensor([i]), torch.tensor([-i])) for i in range(6)])},
        "map, shuffled": workers_of(partial(loader, Noisy, shuffle=True)),
        "map, own generators": workers_of(partial(loader, OwnGenerators, shuffle=True), (0, 2)),
        "map, by batch": workers_of(partial(loader, Batched, shuffle=True), (0, 2)),
        "map, unbatched": workers_of(partial(loader, Noisy, batch_size=None, shuffle=True), (0, 2), cuts=(1, 21)),
        "map, sampler": workers_of(partial(loader, Noisy, sampler=Backwards()), (0, 2)),
        "map, batch sampler": workers_of(samplers, (0, 2)),
        "map, collate": workers_of(partial(loader, Noisy, collate_fn=noisy_collate), (0, 2)),
        "map, shuffled, persistent": workers_of(partial(loader, Noisy, shuffle=True, persistent_workers=True), (2,)),
        "map, shuffled, spawned": workers_of(partial(loader, Noisy, shuffle=True, **spawned), (1,), cuts=(2,), fresh=False),
        "stream": workers_of(partial(loader, Stream), replays=no_state),
        "stream, drop_last": workers_of(partial(loader, Stream, drop_last=True), (0, 2), cuts=(1, 4), replays=no_state),
        "stream, forgets": workers_of(partial(loader, Forgets), (0, 2), replays="does not bring it back"),
        "stream, opaque": workers_of(partial(loader, Opaque), (0, 2), replays="state_dict().file is a builtins.type"),
        "stateful": workers_of(partial(loader, Stateful)),
        "stateful, three workers": workers_of(partial(loader, Stateful), (3,), cuts=(1, 2, 3, 4, 5, 6)),
        "stateful, sized": workers_of(partial(loader, SizedStream, drop_last=False), (0, 1)),
        "stateful, drop_last": workers_of(partial(loader, Stateful, drop_last=True), (0, 2), cuts=(1, 4)),
        "stateful, unbatched": workers_of(partial(loader, Stateful, batch_size=None), (0, 2), cuts=(1, 21)),
        "stateful, collate": workers_of(partial(loader, Stateful, collate_fn=noisy_collate), (0, 2)),
        "stateful, persistent": workers_of(partial(loader, Stateful, persistent_workers=True), (2,)),
        "stateful, spawned": workers_of(partial(loader, Stateful, **spawned), (1,), cuts=(2,), fresh=False),
        "stateful iterator": workers_of(partial(loader, Cursors), (0, 2)),
        "stateful, its own iterator": workers_of(partial(loader, Itself), (0, 2)),
    }
    if find_spec("torchdata") is not None:
        kinds |= {
            "StatefulDataLoader, map": workers_of(partial(loader, Noisy, cls=stateful_loader, shuffle=True), (0, 2)),
            "StatefulDataLoader, stream": workers_of(partial(loader, Stream, cls=stateful_loader), (0, 2), replays=no_state),
            "StatefulDataLoader, stateful": workers_of(partial(loader, Stateful, cls=stateful_loader), (0, 2)),
        }
    return {kind + suffix: row for kind, found in kinds.items() for suffix, row in found.items()}


LOADERS = rows()


def digests(batches: list[Any]) -> list[str]:
    """Return one text a batch that equal batches share, dtype by dtype and bit by bit."""

    def plain(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return [str(item.dtype), list(item.shape), item.numpy().tobytes().hex()]
        return [plain(part) for part in item] if isinstance(item, list | tuple) else repr(item)

    return [hashlib.sha256(json.dumps(plain(batch)).encode()).hexdigest() for batch in batches]


def whole(row: Row) -> tuple[list[str], list[Any]]:
    """Return the digests of an epoch's batches, and the position behind each as a file would keep it."""
    found: list[str] = []
    positions: list[Any] = []
    with closing(feed(row.make())) as batches, closing(batches.epoch(KEY)) as epoch:
        assert epoch.position() is None
        for batch in epoch:
            found += digests([batch])
            positions.append(json.loads(json.dumps(epoch.position())))
    return found, positions


def go_on(row: Row, cut: int, position: Any, size: int) -> tuple[list[str], list[Any], list[str]]:
    """Return the digests of the batches behind a cut, the positions behind each, and what was said."""
    said: list[str] = []
    found: list[str] = []
    positions: list[Any] = []
    source = feed(row.make(), notify=said.append, batches=size)
    with closing(source), closing(source.epoch(KEY, cut, position)) as epoch:
        assert epoch.position() == position
        for batch in epoch:
            found += digests([batch])
            positions.append(json.loads(json.dumps(epoch.position())))
    return found, positions, said


if __name__ == "__main__":
    answers: dict[str, Any] = {}
    for name, (size, positions_of_row) in json.load(sys.stdin).items():
        answers[name] = {cut: go_on(LOADERS[name], int(cut), position, size) for cut, position in positions_of_row.items()}
    print(json.dumps(answers))
