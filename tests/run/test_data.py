"""A `train` that is interrupted in the middle of an epoch, by kind of data: what it reads again, says and refuses."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import purestate as ps
from purestate.errors import DataChangedError
from tests.run.tiny import start

SAMPLES, SIZE, BATCHES = 22, 4, 6


class Rows(Dataset[Any]):
    """Augmented, and declared: its content is not looked at. Interrupts the run when it is asked for a sample the n-th time."""

    def __init__(self, interrupt: int = 0, shift: float = 0.0) -> None:
        self.read, self.interrupt, self.shift = 0, interrupt, shift

    def __purestate_fingerprint__(self) -> str:
        return "rows"

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        if self.read == self.interrupt:
            signal.raise_signal(signal.SIGINT)
        return torch.full((3,), index / SAMPLES + self.shift) + 0.1 * torch.randn(3), index % 2


class Stream(Rows, IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        order = list(range(SAMPLES))
        random.shuffle(order)
        yield from map(self.__getitem__, order)


class Stateful(Rows, IterableDataset[Any]):
    def __init__(self, interrupt: int = 0, shift: float = 0.0) -> None:
        super().__init__(interrupt, shift)
        self.order: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        if not self.order:
            self.order = random.sample(range(SAMPLES), SAMPLES)
        while self.order:
            yield self[self.order.pop()]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = state["order"]


def train(store: Any, data: Any, said: list[str] | None = None) -> ps.State:
    ck = store.checkpoint("a", echo=(said if said is not None else []).append)
    shuffle = {} if isinstance(data, IterableDataset) else {"shuffle": True}
    return ck.train(start(), DataLoader(data, batch_size=SIZE, **shuffle), epochs=2)


CUT = SAMPLES + 3 * SIZE + 1
"""The first sample of the fourth batch of the second epoch: the signal waits until that batch is behind."""


@pytest.mark.parametrize(
    ("cls", "read", "said"),
    [
        (Rows, SAMPLES - 3 * SIZE, None),
        (Stateful, SAMPLES - 3 * SIZE, None),
        (
            Stream,
            SAMPLES,
            "resuming in the middle of an epoch reads again the 4 batches before it: the dataset has no state_dict()",
        ),
    ],
)
def test_what_is_read_again_when_an_epoch_goes_on(cls: Any, read: int, said: str | None) -> None:
    expected = train(ps.MemoryStore(), cls())
    store, heard = ps.MemoryStore(), list[str]()
    with pytest.raises(KeyboardInterrupt):
        train(store, cls(CUT))
    data = cls()
    assert train(store, data, heard).hash == expected.hash
    assert data.read == read
    assert [text for text in heard if "reads again" in text] == ([] if said is None else [f"a: {said}"])


@pytest.mark.parametrize("cls", [Rows, Stateful, Stream])
def test_data_that_changed_unseen_by_its_fingerprint_is_refused(cls: Any) -> None:
    store = ps.MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        train(store, cls(CUT))
    with pytest.raises(DataChangedError, match="Batch 3 of the epoch"):
        train(store, cls(shift=1.0))
    assert train(store, cls()).hash == train(ps.MemoryStore(), cls()).hash


def test_changed_data_is_trained_on_once_what_it_was_is_voided() -> None:
    store = ps.MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        train(store, Rows(CUT))
    with pytest.raises(DataChangedError, match=r"ck\.reset"):
        train(store, Rows(shift=1.0))
    store.checkpoint("a", echo=None).reset(0)
    assert train(store, Rows(shift=1.0)).hash == train(ps.MemoryStore(), Rows(shift=1.0)).hash


@pytest.mark.parametrize("workers", [0, 1])
def test_a_record_says_how_many_workers_loaded(workers: int) -> None:
    ck = ps.MemoryStore().checkpoint("a", echo=None)
    ck.train(start(), DataLoader(Rows(), batch_size=SIZE, num_workers=workers), epochs=1)
    begun = next(record for record in ck._ledger.log.records if record.kind == "train")
    assert begun.body["environment"]["workers"] == [workers, None]
