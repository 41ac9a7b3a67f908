"""The order of an epoch against the one that the DataLoader itself gives under the same seeds."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    random_split,
)

from purestate.core._key import Key, Tag
from purestate.core._seeds import preserved_generators, seed_all
from purestate.data._feed import feed
from purestate.data._order import Order
from purestate.errors import BatchError, DataChangedError, EmptyLoaderError, HiddenStateError, UnsupportedError

N = 23


class Squares(Dataset[int]):
    """Sample ``i`` is ``i``, so that a batch shows its indices."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: Any) -> Any:
        return index


class GlobalTorch(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(N).tolist())

    def __len__(self) -> int:
        return N


class GlobalNumpyAndRandom(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        order = np.random.permutation(N).tolist()
        random.shuffle(order)
        yield from order

    def __len__(self) -> int:
        return N


class Buckets(Sampler[list[int]]):
    """A batch sampler that keeps its batches, eager, with a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __iter__(self) -> Iterator[list[int]]:
        self.batches = [chunk.tolist() for chunk in torch.randperm(N, generator=self.generator).split(4)]
        return iter(self.batches)

    def __len__(self) -> int:
        return -(-N // 4)


class Nested(Sampler[int]):
    """Two samplers in a list, each with a generator."""

    def __init__(self) -> None:
        self.parts = [RandomSampler(range(10), generator=generator()), RandomSampler(range(13), generator=generator())]

    def __iter__(self) -> Iterator[int]:
        for part in self.parts:
            yield from part

    def __len__(self) -> int:
        return N


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def split() -> Dataset[Any]:
    return random_split(Squares(), [15, 8], generator=generator())[0]


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "sequential": lambda: DataLoader(Squares(), batch_size=4),
    "shuffle": lambda: DataLoader(Squares(), batch_size=4, shuffle=True),
    "shuffle, generator": lambda: DataLoader(Squares(), batch_size=4, shuffle=True, generator=generator()),
    "drop_last": lambda: DataLoader(Squares(), batch_size=4, shuffle=True, drop_last=True),
    "replacement": lambda: DataLoader(Squares(), batch_size=4, sampler=RandomSampler(Squares(), replacement=True)),
    "num_samples": lambda: DataLoader(Squares(), batch_size=4, sampler=RandomSampler(Squares(), num_samples=50)),
    "weighted": lambda: DataLoader(Squares(), batch_size=4, sampler=WeightedRandomSampler([0.1] * 20 + [2.0] * 3, 30)),
    "weighted, generator": lambda: DataLoader(
        Squares(), batch_size=4, sampler=WeightedRandomSampler([0.3] * N, 9, replacement=False, generator=generator())
    ),
    "subset random": lambda: DataLoader(Squares(), batch_size=4, sampler=SubsetRandomSampler(range(3, 17))),
    "subset random, generator": lambda: DataLoader(
        Squares(), batch_size=4, sampler=SubsetRandomSampler(range(3, 17), generator=generator())
    ),
    "batch sampler": lambda: DataLoader(Squares(), batch_sampler=BatchSampler(RandomSampler(Squares()), 5, True)),
    "batch sampler of batches": lambda: DataLoader(
        Squares(), batch_size=None, sampler=BatchSampler(SequentialSampler(Squares()), 5, False), collate_fn=str
    ),
    "batch_size None": lambda: DataLoader(Squares(), batch_size=None, shuffle=True),
    "list sampler": lambda: DataLoader(Squares(), batch_size=4, sampler=[5, 1, 2, 2, 19]),
    "list batch sampler": lambda: DataLoader(Squares(), batch_sampler=[[1, 2], [5], [7, 8, 9]]),
    "Subset": lambda: DataLoader(Subset(Squares(), range(2, 20, 3)), batch_size=4, shuffle=True),
    "random_split": lambda: DataLoader(split(), batch_size=4, shuffle=True),
    "ConcatDataset": lambda: DataLoader(ConcatDataset([Squares(), Squares()]), batch_size=4, shuffle=True),
    "own, global torch": lambda: DataLoader(Squares(), batch_size=4, sampler=GlobalTorch()),
    "own, global numpy and random": lambda: DataLoader(Squares(), batch_size=4, sampler=GlobalNumpyAndRandom()),
    "own batch sampler": lambda: DataLoader(Squares(), batch_sampler=Buckets(generator())),
    "own batch sampler, loader's generator": lambda: (lambda g: DataLoader(Squares(), batch_sampler=Buckets(g), generator=g))(
        generator()
    ),
    "nested": lambda: DataLoader(Squares(), batch_size=4, sampler=Nested()),
}


def shown(batch: Any) -> Any:
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def seeded(loader: DataLoader[Any], key: Key) -> list[Any]:
    """Return an epoch of the DataLoader itself, after its generators were seeded as `Order` documents it."""
    found: list[torch.Generator] = []
    nested = [part.generator for part in loader.sampler.parts] if isinstance(loader.sampler, Nested) else []
    for candidate in (loader.generator, getattr(loader.batch_sampler, "generator", None), loader.sampler, *nested):
        own = candidate if isinstance(candidate, torch.Generator) else getattr(candidate, "generator", None)
        if own is not None and not any(own is other for other in found):
            found.append(own)
    with preserved_generators():
        seed_all(key.derive(Tag.ORDER, 0).seed)
        for i, own in enumerate(found):
            own.manual_seed(key.derive(Tag.ORDER, 1 + i).seed)
        return [shown(batch) for batch in loader]


@pytest.mark.parametrize("name", LOADERS)
def test_order_is_that_of_the_seeded_loader(name: str) -> None:
    batches = feed(LOADERS[name]())
    for epoch in range(3):
        key = Key.from_seed(5).derive(Tag.ORDER, epoch)
        expected = seeded(LOADERS[name](), key)
        assert [shown(batch) for batch in batches.epoch(key)] == expected
        assert [shown(batch) for batch in batches.epoch(key, start=2)] == expected[2:]
        assert len(expected) == batches.batches
        if "batch_size" not in name and "batches" not in name:
            assert batches.samples == sum(map(len, expected))


@pytest.mark.parametrize("name", LOADERS)
def test_callers_loader_is_not_moved(name: str) -> None:
    def epochs(loader: DataLoader[Any]) -> list[Any]:
        with preserved_generators():
            seed_all(3)
            return [[shown(batch) for batch in loader] for _ in range(2)]

    used = LOADERS[name]()
    list(feed(used).epoch(Key.from_seed(0)))
    assert epochs(used) == epochs(LOADERS[name]())


def test_orders_of_two_keys_differ_and_all_samples_come() -> None:
    batches = feed(DataLoader(Squares(), batch_size=4, shuffle=True))
    orders = [torch.cat(list(batches.epoch(Key.from_seed(seed)))).tolist() for seed in range(2)]
    assert orders[0] != orders[1]
    assert [sorted(order) for order in orders] == [list(range(N))] * 2


def test_set_epoch_is_given_a_number_from_the_key() -> None:
    def orders(key: Key) -> list[list[int]]:
        return [
            torch.cat(
                list(feed(DataLoader(Squares(), 4, sampler=DistributedSampler(Squares(), 2, rank))).epoch(key))  # pyright: ignore
            ).tolist()
            for rank in range(2)
        ]

    first, second = orders(Key.from_seed(0)), orders(Key.from_seed(1))
    assert first != second
    assert set(first[0] + first[1]) == set(range(N))


class CountsEpochs(GlobalTorch):
    epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(range(N))


class TurnsAround(GlobalTorch):
    __slots__ = ("turned",)

    def __iter__(self) -> Iterator[int]:
        self.turned = not getattr(self, "turned", False)
        return iter(range(N) if self.turned else range(N - 1, -1, -1))


class Unseeded(GlobalTorch):
    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng().permutation(N).tolist())


class HoldsIterator(GlobalTorch):
    def __init__(self) -> None:
        self.source = iter(range(N))


class FromSystem(GlobalTorch):
    def __init__(self) -> None:
        self.rng = random.SystemRandom()


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        (CountsEpochs, r"CountsEpochs.*sampler\.epoch"),
        (TurnsAround, "TurnsAround"),
        (Unseeded, "Unseeded"),
        (HoldsIterator, r"sampler\.sampler\.source"),
    ],
)
def test_hidden_state_is_refused_by_name(sampler: type[Sampler[int]], named: str) -> None:
    batches = feed(DataLoader(Squares(), batch_size=4, sampler=sampler()))
    with pytest.raises(HiddenStateError, match=named):
        list(batches.epoch(Key.from_seed(0)))


def test_system_random_is_refused() -> None:
    with pytest.raises(HiddenStateError, match=r"sampler\.rng is a random\.SystemRandom"):
        feed(DataLoader(Squares(), batch_size=4, sampler=FromSystem()))


@pytest.mark.parametrize(
    "make", [lambda: np.random.default_rng(1), lambda: np.random.RandomState(1), lambda: random.Random(1), np.random.PCG64]
)
def test_own_generators_of_every_kind_are_seeded(make: Callable[[], Any]) -> None:
    class Own(GlobalTorch):
        def __init__(self) -> None:
            self.rng = make()

        def __iter__(self) -> Iterator[int]:
            rng = np.random.Generator(self.rng) if isinstance(self.rng, np.random.BitGenerator) else self.rng
            order = list(range(N))
            rng.shuffle(order)
            return iter(order)

    sampler = Own()
    list(sampler)
    orders = [
        torch.cat(list(feed(DataLoader(Squares(), 4, sampler=chosen)).epoch(Key.from_seed(seed)))).tolist()
        for chosen, seed in ((sampler, 0), (Own(), 0), (Own(), 1))
    ]
    assert orders[0] == orders[1] != orders[2]


def test_generators_that_a_copy_shares_are_seeded_and_put_back() -> None:
    def sampler() -> tuple[Any, random.Random, torch.Generator]:
        class Shares(GlobalTorch):
            def __init__(self) -> None:
                own = generator()
                self.bound = python.shuffle
                self.drawn = python.random
                self.closure = lambda: torch.randperm(N, generator=own).tolist()
                kept.append(own)

            def __iter__(self) -> Iterator[int]:
                order = self.closure()
                self.bound(order)
                return iter([*order[1:], int(N * self.drawn())])

        python, kept = random.Random(4), []
        return Shares(), python, kept[0]

    made, python, own = sampler()
    before = python.getstate(), own.get_state().tolist()
    batches = feed(DataLoader(Squares(), batch_size=4, sampler=made))
    orders = [torch.cat(list(batches.epoch(Key.from_seed(seed)))).tolist() for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert (python.getstate(), own.get_state().tolist()) == before


def test_dataset_is_not_copied() -> None:
    class Uncopied(Squares):
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            raise AssertionError("the dataset was copied")

    class OverDataset(GlobalTorch):
        def __init__(self, anything: Any) -> None:
            self.anything = anything

    data = Uncopied()
    for sampler in (RandomSampler(data), OverDataset(data), OverDataset([data])):
        assert len(Order(DataLoader(data, batch_size=4, sampler=sampler)).draw(Key(0, 0))) == 6
    with pytest.raises(AssertionError):
        copy.deepcopy(data)


def test_length_that_changes_is_an_error() -> None:
    class Grows(Squares):
        size = 8

        def __len__(self) -> int:
            return self.size

    class Counts(GlobalTorch):
        def __len__(self) -> int:
            return data.size

        def __iter__(self) -> Iterator[int]:
            return iter(range(data.size))

    data = Grows()
    batches, sampled = feed(DataLoader(data, batch_size=4, shuffle=True)), feed(DataLoader(Squares(), 4, sampler=Counts()))
    data.size = 9
    with pytest.raises(DataChangedError, match=r"Expected 8 samples, the length of the dataset when the op began.* has 9"):
        batches.epoch(Key(0, 0))
    with pytest.raises(BatchError, match=r"Expected 2 batches.*give 3"):
        list(sampled.epoch(Key(0, 0)))


def test_unusable_samplers() -> None:
    with pytest.raises(EmptyLoaderError, match="got 23 samples in batches of 24 with drop_last=True"):
        feed(DataLoader(Squares(), batch_size=24, drop_last=True))
    with pytest.raises(UnsupportedError, match="has none"):
        feed(DataLoader(Squares(), batch_sampler=(list(b) for b in [[1], [2]])))  # pyright: ignore[reportArgumentType]

    class Locked(GlobalTorch):
        def __init__(self) -> None:
            self.cannot = (i for i in range(3))

    with pytest.raises(UnsupportedError, match=r"'test_unusable_samplers\.<locals>\.Locked' cannot"):
        feed(DataLoader(Squares(), batch_size=4, sampler=Locked()))
