"""What can be fed, and what is refused with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from purestate.core._key import Key
from purestate.data._feed import ListFeed, feed
from purestate.data._loader import MapFeed
from purestate.data._memory import MemoryFeed
from purestate.data._stream import IterableFeed
from purestate.errors import BatchError, EmptyLoaderError, UnsupportedError
from tests.helpers import assert_trees_identical

X, Y = torch.arange(6.0).reshape(3, 2), torch.arange(3)
KEY = Key.from_seed(0)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("loader", "kind"),
    [
        (DataLoader(TensorDataset(X, Y)), MemoryFeed),
        (DataLoader(TensorDataset(X, Y), num_workers=1), MemoryFeed),
        (DataLoader([1, 2, 3]), MapFeed),  # pyright: ignore[reportArgumentType]
        (DataLoader(Stream()), IterableFeed),
        ([(X, Y)], ListFeed),
        (((X, Y), (X, Y)), ListFeed),
        ([X, X], ListFeed),
    ],
)
def test_kinds_of_loaders(loader: Any, kind: type) -> None:
    batches = feed(loader)
    assert type(batches) is kind
    assert len(list(batches.epoch(KEY))) == batches.batches
    batches.close()
    assert len(list(batches.epoch(KEY))) == batches.batches


def test_list_is_given_as_it_is() -> None:
    loader = [(X, Y), (X[:1], Y[:1])]
    batches = feed(loader)
    assert (batches.batches, batches.samples) == (2, 4)
    given = list(batches.epoch(KEY))
    assert_trees_identical(given, loader)
    assert_trees_identical(list(batches.epoch(KEY, start=1)), loader[1:])
    loader.append((X, Y))
    with pytest.raises(BatchError, match=r"Expected 2 batches.*has 3"):
        next(batches.epoch(KEY))


def test_batches_are_moved() -> None:
    meta = torch.device("meta")
    for loader in (DataLoader(TensorDataset(X, Y)), DataLoader([X, X]), [(X, Y)]):  # pyright: ignore[reportArgumentType]
        with closing(feed(loader, device=meta).epoch(KEY)) as batches:
            assert next(batches)[0].device == meta


@pytest.mark.parametrize("loader", [[], (), DataLoader(TensorDataset(X), batch_size=4, drop_last=True)])
def test_empty_loaders(loader: Any) -> None:
    with pytest.raises(EmptyLoaderError, match="at least one batch"):
        feed(loader)


class Prefetching(DataLoader[Any]):
    def __iter__(self) -> Any:
        return super().__iter__()


@pytest.mark.parametrize(
    ("loader", "named"),
    [
        ((batch for batch in [X]), "'generator'"),
        (X, "'Tensor'"),
        (TensorDataset(X), "'TensorDataset'"),
        ({"x": X}, "'dict'"),
        (Prefetching(TensorDataset(X)), "'Prefetching', which has a __iter__"),
    ],
)
def test_anything_else_is_refused_with_the_ways_out(loader: Any, named: str) -> None:
    with pytest.raises(UnsupportedError, match=named) as error:
        feed(loader)
    assert "DataLoader" in str(error.value)
    assert "list(loader)" in str(error.value)


def test_one_batch_taken_for_a_loader() -> None:
    with pytest.raises(BatchError, match="tuple of 2 tensors"):
        feed((X, Y))


@pytest.mark.parametrize("kind", ["list", "batch_size=None", "collate"])
def test_what_forward_writes_does_not_reach_the_data(kind):
    x, y = torch.ones(4, 2), torch.zeros(4)
    loaders = {
        "list": [(x, y)],
        "batch_size=None": DataLoader(TensorDataset(x[None], y[None]), batch_size=None),
        "collate": DataLoader(TensorDataset(x[None], y[None]), collate_fn=lambda samples: samples[0]),
    }
    for batch in feed(loaders[kind]).epoch(Key.from_seed(0)):
        batch[0].mul_(0)
    assert torch.equal(x, torch.ones(4, 2))
