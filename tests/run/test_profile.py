"""The advice under a profile: where data takes much of the time, and loading ahead would help."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from purestate.run._profile import Profile


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(2)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(range(4))


def told(loader: Any, data: float) -> str:
    profile = Profile(torch.device("cpu"), loader)
    profile.seconds, profile.epochs = {"data": data, "step": 1 - data}, 2
    return str(profile)


def test_workers_are_advised_where_data_takes_much_of_the_time() -> None:
    workers = min(4, os.cpu_count() or 1)
    assert told(DataLoader(Images()), 0.63).splitlines()[-1] == (
        f"data is 63% of the time: DataLoader(num_workers={workers}, persistent_workers=True) loads ahead, "
        "and gives the same batches"
    )


def test_what_workers_change_of_an_iterable_dataset_is_told() -> None:
    assert told(DataLoader(Stream()), 0.5).endswith("workers, which is another question")


@pytest.mark.parametrize(
    ("loader", "data"),
    [
        (DataLoader(Images()), 0.2),
        (DataLoader(Images(), num_workers=1), 0.9),
        (DataLoader(TensorDataset(torch.zeros(4))), 0.9),
        ([torch.zeros(4)], 0.9),
    ],
)
def test_there_is_no_advice_where_it_would_not_help(loader: Any, data: float) -> None:
    assert "data is" not in told(loader, data)
