"""The order of an epoch: what a loader's samplers give, as a pure function of a key.

The samplers are copied, the dataset behind them is not, and the copies' generators are seeded from the key. What comes
out is bit for bit what the `DataLoader` itself gives after its generators were seeded with the same seeds.
Nothing is loaded here.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from purestate.core._key import Key, Tag
from purestate.core._seeds import preserved_generators, seed_all
from purestate.data._generators import (
    OwnGenerator,
    find_generators,
    generator_state,
    is_generator,
    seed_generator,
    set_generator_state,
    walk,
)
from purestate.errors import BatchError, EmptyLoaderError, HiddenStateError, UnsupportedError

__all__ = ["Order", "length_of", "loader_length"]

_STATELESS = (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    list,
    range,
    tuple,
)
"""Samplers that hold nothing but arguments and a generator, and draw from no generator but torch's."""

_EPOCH_BITS = 31


def length_of(data: Any) -> int | None:
    """Return the length of something; None where there is no ``__len__``, or one that only a subclass is to write."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # the latter is what torch's abstract samplers and datasets raise
        return None


def loader_length(loader: DataLoader[Any]) -> int:
    """Return the number of batches of an epoch as the loader tells it.

    Raises:
        UnsupportedError: A sampler has no ``__len__``.
        EmptyLoaderError: The length is zero.
    """
    length = length_of(loader)
    if length is None:
        raise UnsupportedError(
            f"Expected a loader with a length, but its sampler {_name(_index_sampler(loader))!r} has none.",
            cause="Schedulers, progress and resuming need the number of batches of an epoch.",
            fix="Give the sampler a __len__.",
        )
    if length == 0:
        raise EmptyLoaderError(
            f"Expected a loader with at least one batch, got {len(loader.dataset)} samples"  # pyright: ignore[reportArgumentType]
            f" in batches of {loader.batch_size!r} with drop_last={loader.drop_last!r}.",
            cause="An incomplete batch is dropped, and there is no complete one." if loader.drop_last else None,
            fix="Use a smaller batch_size, or drop_last=False." if loader.drop_last else None,
        )
    return length


class Order:
    """The order of a map-style loader's epochs.

    Seeds come from the epoch's key: ``key.derive(Tag.ORDER, 0)`` seeds the process-wide generators, which samplers
    without a generator draw from, and ``key.derive(Tag.ORDER, 1 + i)`` the i-th generator found, the loader's own first.
    A sampler with a ``set_epoch`` method, such as `DistributedSampler`, is given a number of 31 bits drawn from the key
    in place of a count, so that all ranks agree and no two ops repeat each other's order.

    A sampler of another class than torch's starts every epoch from a fresh copy of what it was when this was made.

    Args:
        loader: A map-style loader. Neither it nor its samplers and generators are ever moved.

    Raises:
        UnsupportedError: A sampler cannot be copied, or has no length.
        HiddenStateError: A sampler is, or holds, an iterator or something that cannot be seeded.
        EmptyLoaderError: The loader has no batch.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.batches = loader_length(loader)
        self._batched = loader.batch_sampler is not None
        root = (loader.generator, _index_sampler(loader))
        self._shared = _datasets(root) | {id(loader.dataset): loader.dataset}
        self._callers = {id(generator) for generator in find_generators(root, "loader", self._shared)}
        self._source = self._copy(root)
        self._generators = find_generators(self._source, "loader", self._shared)
        self._stateless = all(type(sampler) in _STATELESS for sampler in _chain(root[1]))
        self._checked = self._stateless

    def draw(self, key: Key) -> list[Any]:
        """Return the order of the epoch of a key: a list of indices a batch, or an index where batching is off.

        Raises:
            HiddenStateError: The sampler holds state that the key does not decide; found in the first epoch drawn.
            BatchError: The samplers give another number of batches than the loader's length.
        """
        if not self._checked:
            self._refuse_hidden_state(key)
            self._checked = True
        order = self._draw(self._source if self._stateless else self._copy(self._source), key)
        if len(order) != self.batches:
            raise BatchError(
                f"Expected {self.batches} batches, the length of the loader, but its samplers give {len(order)}.",
                cause="The dataset or a sampler changed its length, or its __len__ counts something else.",
                fix="Let __len__ give what __iter__ yields, or make a new loader.",
            )
        return order

    def samples(self) -> int:
        """Return the number of samples of an epoch: its length where that is fixed, else that of one epoch drawn."""
        sampler = self._source[1]
        if not self._batched:
            return self.batches
        if type(sampler) is BatchSampler and isinstance(sampler.sampler, Sized):
            return self.batches * sampler.batch_size if sampler.drop_last else len(sampler.sampler)
        return sum(len(batch) for batch in self.draw(Key(0, 0)))

    def _draw(self, samplers: tuple[torch.Generator | None, Any], key: Key) -> list[Any]:
        base_generator, sampler = samplers
        own = self._generators if samplers is self._source else find_generators(samplers, "loader", self._shared)
        with _torch_preserved() if self._stateless else preserved_generators(), self._callers_preserved(own):
            seed = key.derive(Tag.ORDER, 0)
            if self._stateless:
                torch.default_generator.manual_seed(seed.seed)
            else:
                seed_all(seed.seed)
            for i, generator in enumerate(own):
                seed_generator(generator, key.derive(Tag.ORDER, 1 + i))
            _set_epoch(sampler, seed.seed >> (64 - _EPOCH_BITS))
            iterator = iter(sampler)
            # a DataLoader draws the seed of its workers between asking for the iterator and using it
            torch.empty((), dtype=torch.int64).random_(generator=base_generator)
            if self._batched:
                return [batch if isinstance(batch, Sized) else list(batch) for batch in iterator]
            return list(iterator)

    @contextmanager
    def _callers_preserved(self, generators: list[OwnGenerator]) -> Generator[None]:
        """Preserve the generators that a copy shares with the caller, because functions and bound methods are not copied."""
        states = [(generator, generator_state(generator)) for generator in generators if id(generator) in self._callers]
        try:
            yield
        finally:
            for generator, state in states:
                set_generator_state(generator, state)

    def _copy(self, root: Any) -> Any:
        try:
            return copy.deepcopy(root, dict(self._shared))
        except (TypeError, ValueError, RuntimeError, AttributeError, copy.Error) as error:
            raise UnsupportedError(
                f"Expected a sampler that can be copied, but {_name(root[1])!r} cannot: {error}.",
                cause="An op works on copies of the samplers, so that the caller's are never moved.",
                fix="Give the sampler a __deepcopy__, or keep what cannot be copied (an open file, a generator) out of it.",
            ) from None

    def _refuse_hidden_state(self, key: Key) -> None:
        """Draw an epoch twice from one copy and once from another, under equal seeds: nothing may differ."""
        for path, item in walk(self._source[1], "sampler", self._shared):
            if id(item) not in self._shared and hasattr(type(item), "__next__"):
                raise HiddenStateError(
                    f"{path} is a {type(item).__name__}, an iterator, whose position cannot be set.",
                    cause="It is used up in one epoch.",
                    fix="Give the sampler a list, or make the iterator in __iter__.",
                )
        used, other = self._copy(self._source), self._copy(self._source)
        first = self._draw(used, key)
        before = _attributes(used[1], self._shared)
        second = self._draw(used, key)
        after = _attributes(used[1], self._shared)
        moved = [path for path in before.keys() | after.keys() if not _same(before.get(path), after.get(path))]
        name = _name(used[1])
        if moved or not _same(first, second):
            raise HiddenStateError(
                f"Two epochs of {name!r} under equal seeds differ"
                + (f": it moves {', '.join(map(repr, sorted(moved)[:4]))}." if moved else " in their order."),
                cause="It counts its epochs, or keeps something from one epoch for the next, which no key can set.",
                fix="Draw from torch's, numpy's or Python's generators instead; or take the epoch from a set_epoch method.",
            )
        if not _same(first, self._draw(other, key)):
            raise HiddenStateError(
                f"Two copies of {name!r} give two orders under equal seeds.",
                cause="It draws from something else than torch's, numpy's or Python's generators, such as the clock.",
                fix="Keep a generator as an attribute, or draw from the process-wide ones.",
            )


def _index_sampler(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _chain(sampler: Any) -> Iterator[Any]:
    while sampler is not None:
        yield sampler
        sampler = getattr(sampler, "sampler", None)


def _name(sampler: Any) -> str:
    """Return the class of the first sampler in the chain that is not torch's, for it is what an error is about."""
    kinds = [type(part) for part in _chain(sampler)]
    return next((kind for kind in kinds if kind not in _STATELESS), kinds[0]).__qualname__


def _datasets(root: Any) -> dict[int, Any]:
    """Return what a copy of samplers must share with them: the data that they are over."""
    shared: dict[int, Any] = {}
    for _, item in walk(root, "sampler", shared):
        if isinstance(item, Dataset):
            shared[id(item)] = item
        source = getattr(item, "__dict__", {}).get("data_source")
        if source is not None:
            shared[id(source)] = source
    return shared


def _set_epoch(sampler: Any, epoch: int) -> None:
    for part in _chain(sampler):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def _attributes(sampler: Any, shared: dict[int, Any]) -> dict[str, Any]:
    """Return the plain values that a sampler holds, by path, as copies."""
    values: dict[str, Any] = {}
    for path, item in walk(sampler, type(sampler).__name__, shared):
        if id(item) in shared or is_generator(item):
            continue
        for name, value in getattr(item, "__dict__", {}).items():
            if isinstance(value, bool | int | float | str | torch.Tensor | np.ndarray | list | tuple | dict | set):
                values[f"{path}.{name}"] = copy.copy(value)
    return values


def _same(a: Any, b: Any) -> bool:
    """Compare plain values and containers of them; of other objects only the class, their attributes are walked."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, bool | int | float | str | set | np.generic):
        return bool(a == b) or (a != a and b != b)
    return True


@contextmanager
def _torch_preserved() -> Generator[None]:
    """Preserve the one generator that torch's own samplers draw from: 1 us, where all of them take 130."""
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
