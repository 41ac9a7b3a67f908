"""Batches of tensors in memory against the DataLoader's own: values, dtypes, strides and structure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    SequentialSampler,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)

from purestate.core._key import Key, Tag
from purestate.core._seeds import preserved_generators, seed_all
from purestate.data._feed import feed
from purestate.data._loader import MapFeed
from purestate.data._memory import MemoryFeed
from purestate.errors import BatchError, DataChangedError

N = 23
X = torch.arange(N * 6, dtype=torch.float32).reshape(N, 6)
Y = torch.arange(N)
IMAGES = torch.arange(N * 3 * 4 * 5, dtype=torch.float32).reshape(N, 3, 4, 5)

TENSORS: dict[str, torch.Tensor] = {
    "channels_last": IMAGES.to(memory_format=torch.channels_last),
    "channels_last, one channel": IMAGES[:, :1].to(memory_format=torch.channels_last),
    "channels_last 3d": IMAGES.reshape(N, 3, 2, 2, 5).to(memory_format=torch.channels_last_3d),
    "transposed": torch.arange(N * 6.0).reshape(6, N).t(),
    "permuted": IMAGES.permute(0, 3, 1, 2),
    "expanded": torch.arange(6.0).expand(N, 6),
    "sliced": torch.arange(N * 12.0).reshape(N, 12)[:, ::2],
    "every other": torch.arange(N * 6.0).reshape(N, 6)[::2],
    "no columns": torch.zeros(N, 0, 3),
    "conjugate": torch.complex(X, -X).conj(),
    "negative": torch.complex(X, -X).conj().imag,
    **{str(dtype): X.to(dtype) for dtype in (torch.bool, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64)},
}


def nested() -> Any:
    halves = random_split(TensorDataset(X, Y), [15, 8], generator=torch.Generator().manual_seed(0))
    return Subset(halves[0], torch.tensor([3, 1, -1, 14, 0, 7, 7, -15]))  # pyright: ignore[reportArgumentType]


DATASETS: dict[str, Callable[[], Any]] = {
    "TensorDataset": lambda: TensorDataset(X, Y),
    "Subset": lambda: Subset(TensorDataset(X, Y), range(20, 2, -3)),
    "nested": nested,
    "stacked": lambda: StackDataset(TensorDataset(X, Y), TensorDataset(Y)),
    "stacked by name": lambda: StackDataset(image=TensorDataset(X), pair=Subset(TensorDataset(X, Y), range(N))),
    "stacked tensors": lambda: StackDataset(X, Y),  # pyright: ignore[reportArgumentType]
    **{name: (lambda tensor=tensor: TensorDataset(tensor, tensor)) for name, tensor in TENSORS.items()},
}


def bits(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor) and batch.layout == torch.sparse_coo:
        return bits(batch.to_dense())
    if isinstance(batch, torch.Tensor):
        return batch.dtype, batch.shape, batch.stride(), batch.is_contiguous(), batch.tolist()
    if isinstance(batch, dict):
        return {name: bits(part) for name, part in batch.items()}
    return type(batch), [bits(part) for part in batch]


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("size", [1, 4])
def test_batches_are_those_of_the_loader(name: str, size: int) -> None:
    loader = DataLoader(DATASETS[name](), batch_size=size, shuffle=True)
    batches = feed(loader)
    assert isinstance(batches, MemoryFeed)
    key = Key.from_seed(2)
    with preserved_generators():
        seed_all(key.derive(Tag.ORDER).seed)
        expected = [bits(batch) for batch in loader]
    assert [bits(batch) for batch in batches.epoch(key)] == expected
    assert [bits(batch) for batch in batches.epoch(key, start=3)] == expected[3:]
    assert (batches.batches, batches.samples) == (len(loader), len(loader.dataset))  # pyright: ignore[reportArgumentType]


class Doubled(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return tuple(2 * tensor for tensor in super().__getitem__(index))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Doubled(X, Y), batch_size=4),
        DataLoader(Subset(Doubled(X, Y), range(5)), batch_size=4),
        DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=lambda samples: samples),
        DataLoader(TensorDataset(X.clone().requires_grad_()), batch_size=4),
        DataLoader(TensorDataset(torch.nn.Parameter(X)), batch_size=4),
        DataLoader(TensorDataset(X.to_sparse()), batch_size=None, sampler=range(3)),
        DataLoader(TensorDataset(X), batch_size=None, sampler=BatchSampler(SequentialSampler(X), 4, False)),
        DataLoader(ConcatDataset([TensorDataset(X), TensorDataset(X)]), batch_size=4),
    ],
)
def test_what_has_code_in_the_way_is_loaded(loader: DataLoader[Any]) -> None:
    batches = feed(loader)
    assert isinstance(batches, MapFeed)
    with preserved_generators(), torch.no_grad():
        assert bits(list(batches.epoch(Key(0, 0)))) == bits(list(loader))


def test_batches_are_no_views_of_the_data() -> None:
    data = TensorDataset(X.clone())
    for (x,) in feed(DataLoader(data, batch_size=N)).epoch(Key(0, 0)):
        x.zero_()
    assert torch.equal(data.tensors[0], X)


@pytest.mark.parametrize("where", ["tensors[0]", "dataset.tensors[1]", "datasets['image'].tensors[0]"])
def test_tensors_written_to_between_epochs_are_an_error(where: str) -> None:
    x, y = X.clone(), Y.clone()
    datasets: dict[str, Any] = {
        "tensors[0]": TensorDataset(x),
        "dataset.tensors[1]": Subset(TensorDataset(Y, x), range(5)),
        "datasets['image'].tensors[0]": StackDataset(image=TensorDataset(x), label=TensorDataset(y)),
    }
    batches = feed(DataLoader(datasets[where], batch_size=4))
    assert len(list(batches.epoch(Key(0, 0)))) == batches.batches
    x.add_(1)
    with pytest.raises(DataChangedError, match=re.escape(f"dataset.{where} was written to")):
        list(batches.epoch(Key(0, 0)))


def test_indices_that_are_no_rows() -> None:
    with pytest.raises(BatchError, match="below 23, the length of the dataset, got 23"):
        list(feed(DataLoader(TensorDataset(X), batch_size=4, sampler=[0, N])).epoch(Key(0, 0)))
    with pytest.raises(BatchError, match="give integers, got 'a'"):
        list(feed(DataLoader(TensorDataset(X), batch_size=4, sampler=["a"])).epoch(Key(0, 0)))  # pyright: ignore
    with pytest.raises(BatchError, match="Batch 1 of the order"):
        list(feed(DataLoader(TensorDataset(X), batch_sampler=[[1], []])).epoch(Key(0, 0)))
    rows = feed(DataLoader(TensorDataset(Y), batch_size=4, sampler=[-1, torch.tensor(2)])).epoch(Key(0, 0))  # pyright: ignore
    assert next(rows)[0].tolist() == [N - 1, 2]
