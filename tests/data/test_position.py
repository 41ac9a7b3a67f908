"""Where an epoch stands: states that survive JSON, digests of batches, and what is found when an epoch goes on."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from purestate.core._key import Key
from purestate.data._feed import feed
from purestate.data._position import Given, batch_digest, freeze, thaw
from purestate.errors import BatchError, DataChangedError, UnsupportedError
from tests.contracts.loaders import Forgets, Noisy, Stateful, Stream
from tests.helpers import assert_trees_identical

KEY = Key.from_seed(1)
STATE = {
    "at": 3,
    "order": [1, 2],
    "tuple": (1, (2.5, float("-inf"))),
    "by number": {1: "a", 2: b"\0\xff"},
    "torch": torch.Generator().manual_seed(3).get_state(),
    "half": torch.arange(3).to(torch.bfloat16),
    "none": torch.empty(0, 2),
    "numpy": np.random.RandomState(0).get_state(),
    "bits": np.random.default_rng(0).bit_generator.state,
    "ordered": OrderedDict(b=None, a=True),
}


def test_states_survive_json() -> None:
    back = thaw(json.loads(json.dumps(freeze(STATE))))
    np.testing.assert_equal(back["numpy"], STATE["numpy"])
    assert back["numpy"][1].dtype == np.uint32
    assert back.pop("numpy") is not None
    assert_trees_identical(back, {name: value for name, value in STATE.items() if name != "numpy"})


def test_a_frozen_state_is_a_copy() -> None:
    state = {"seen": [1], "tensor": torch.zeros(1)}
    frozen = freeze(state)
    state["seen"].append(2)
    state["tensor"].add_(1)
    assert_trees_identical(thaw(frozen), {"seen": [1], "tensor": torch.zeros(1)})


def test_what_is_no_plain_data_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"state_dict\(\)\.file is a io\.TextIOWrapper|state_dict\(\)\.file is a _io"):
        with open(os.devnull) as file:
            freeze({"file": file})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        ([torch.zeros(2), torch.ones(2)], [torch.ones(2), torch.zeros(2)]),
        ({"x": torch.zeros(2)}, {"y": torch.zeros(2)}),
        ([torch.zeros(2), "a"], [torch.zeros(2), "b"]),
        (pack_sequence([torch.zeros(2), torch.zeros(1)]), pack_sequence([torch.zeros(2), torch.ones(1)])),
        (torch.zeros(300_000), torch.zeros(300_000).index_fill(0, torch.tensor([0]), 1)),
        (torch.zeros(3).to_sparse(), torch.zeros(4).to_sparse()),
    ],
)
def test_digests_tell_batches_apart(one: Any, other: Any) -> None:
    assert batch_digest(one) == batch_digest(one) != batch_digest(other)


def test_a_batch_that_was_written_to_has_no_digest() -> None:
    batch = {"x": [torch.zeros(3)]}
    given = Given(batch)
    assert given.digest() == batch_digest(batch)
    batch["x"][0].add_(1)
    assert given.digest() is None
    with torch.inference_mode():
        assert Given(torch.zeros(1)).digest() is None


def position_after(loader: Any, batches: int) -> Any:
    with closing(feed(loader)) as source, closing(source.epoch(KEY)) as epoch:
        for _ in range(batches):
            next(epoch)
        return json.loads(json.dumps(epoch.position()))


class Values(Dataset[Any]):
    """A list of numbers that somebody may change, which counts what is loaded."""

    def __init__(self) -> None:
        self.values = torch.arange(10.0)
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.loaded.append(index)
        return self.values[index]


def test_of_map_style_data_one_batch_before_the_cut_is_loaded() -> None:
    data = Values()
    position = position_after(DataLoader(data, batch_size=2), 3)
    data.loaded.clear()
    assert torch.equal(torch.cat(list(feed(DataLoader(data, batch_size=2)).epoch(KEY, 3, position))), torch.arange(6.0, 10.0))
    assert data.loaded == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("workers", [0, 2])
def test_map_style_data_that_changed_between_cut_and_resume_is_an_error(workers: int) -> None:
    data = Values()
    position = position_after(DataLoader(data, batch_size=2, num_workers=workers), 3)
    data.values[4] = -1
    with closing(feed(DataLoader(data, batch_size=2, num_workers=workers))) as source:
        with pytest.raises(DataChangedError, match="Batch 2 of the epoch, read again to go on behind it, is not what was given"):
            next(source.epoch(KEY, 3, position))
        assert len(list(source.epoch(KEY, 3))) == 2  # without a position nothing is compared


def test_a_sampler_that_gives_another_order_than_before_the_cut_is_an_error() -> None:
    order = list(range(10))
    position = position_after(DataLoader(Values(), batch_size=2, sampler=order), 3)
    with pytest.raises(DataChangedError, match="Batch 2"):
        next(feed(DataLoader(Values(), batch_size=2, sampler=order[::-1])).epoch(KEY, 3, position))


@pytest.mark.parametrize("cls", [Stream, Stateful])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_that_changed_between_cut_and_resume_is_an_error(cls: Any, workers: int) -> None:
    class Changed(cls):  # pyright: ignore[reportUntypedBaseClass]
        def share(self) -> list[int]:
            return [index + 100 for index in super().share()]

        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict({**state, "order": self.share()})

    position = position_after(DataLoader(cls(), batch_size=4, num_workers=workers), 4)
    said: list[str] = []
    with closing(feed(DataLoader(Changed(), batch_size=4, num_workers=workers), notify=said.append)) as source:
        with pytest.raises(DataChangedError, match="Batch 3"):
            next(source.epoch(KEY, 4, position))
    assert len(said) == 1


def test_an_iterable_that_became_shorter_is_an_error() -> None:
    class Short(Stream):
        def share(self) -> list[int]:
            return super().share()[:6]

    class Claims(Short):
        def __len__(self) -> int:
            return 22

    position = position_after(DataLoader(Stream(), batch_size=4), 3)
    with pytest.raises(DataChangedError, match=r"Expected at least 3 batches.*has 2"):
        feed(DataLoader(Short(), batch_size=4)).epoch(KEY, 3, position)
    with pytest.raises(DataChangedError, match="Batch 2"):
        next(feed(DataLoader(Claims(), batch_size=4)).epoch(KEY, 3, position))


def test_another_number_of_workers_is_another_order_of_an_iterable() -> None:
    position = position_after(DataLoader(Stateful(), batch_size=4, num_workers=2), 3)
    with pytest.raises(BatchError, match="Expected num_workers=2, with which the epoch began, got 0"):
        feed(DataLoader(Stateful(), batch_size=4)).epoch(KEY, 3, position)


def test_a_stateful_dataset_reads_nothing_twice_but_the_batch_before_the_cut() -> None:
    position = position_after(DataLoader(Stateful(), batch_size=4), 4)
    data = Stateful()
    rest = list(feed(DataLoader(data, batch_size=4), batches=6).epoch(KEY, 4, position))
    assert (len(rest), data.read) == (2, 22 - 3 * 4)


def test_a_stateful_dataset_begins_every_epoch_where_it_was_found() -> None:
    data = Stateful()
    data.load_state_dict({"order": list(range(22)), "at": 2})
    with closing(feed(DataLoader(data, batch_size=4))) as source:
        whole = [index.tolist() for index, _ in source.epoch(KEY)]
        assert whole[0] == [2, 3, 4, 5]
        left = source.epoch(KEY)
        next(left)
        assert data.at == 6
        left.close()
        assert data.at == 2
        data.at = 9  # by somebody else, between two epochs
        assert [index.tolist() for index, _ in source.epoch(KEY)] == whole


def test_a_state_that_does_not_bring_it_back_is_not_trusted() -> None:
    whole = [index.tolist() for index, _ in feed(DataLoader(Forgets(), batch_size=4)).epoch(KEY)]
    position = position_after(DataLoader(Forgets(), batch_size=4), 3)
    said: list[str] = []
    rest = feed(DataLoader(Forgets(), batch_size=4), notify=said.append).epoch(KEY, 3, position)
    assert [index.tolist() for index, _ in rest] == whole[3:]
    cost, reason = "reads again the 3 batches before it", "the state_dict() of the dataset does not bring it back to where it was"
    assert said == [f"resuming in the middle of an epoch {cost}: {reason}"]


def test_positions_at_the_ends_of_an_epoch() -> None:
    for loader in (
        DataLoader(Noisy(), batch_size=4),
        DataLoader(Stateful(), batch_size=4),
        DataLoader(TensorDataset(torch.ones(3))),
    ):
        source = feed(loader)
        epoch = source.epoch(KEY)
        assert epoch.position() is None
        assert len(list(epoch)) == source.batches
        assert epoch.position() is None
        assert list(source.epoch(KEY, source.batches)) == []


def test_forward_that_writes_into_a_batch_leaves_a_position_without_a_digest() -> None:
    for data in (Noisy(), Stateful()):
        whole = [noise.clone() for _, noise in feed(DataLoader(data, batch_size=4)).epoch(KEY)]
        with closing(feed(DataLoader(data, batch_size=4)).epoch(KEY)) as epoch:
            for _ in range(2):
                next(epoch)[1].mul_(0)
            position = epoch.position()
        rest = [noise for _, noise in feed(DataLoader(data, batch_size=4)).epoch(KEY, 2, position)]
        assert_trees_identical(rest, whole[2:])


def test_a_loader_that_was_told_to_go_on_is_refused() -> None:
    class Told(DataLoader[Any]):
        next_iter_state: dict[str, Any] | None = None

    loader = Told(Noisy(), batch_size=4)
    feed(loader)
    loader.next_iter_state = {"_snapshot": {}}
    with pytest.raises(UnsupportedError, match=r"at its beginning, got a .*Told that was told to go on"):
        feed(loader)


def test_an_error_in_a_worker_while_it_goes_on_is_the_datasets_own() -> None:
    class Broken(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield 0
            raise KeyError("the file is gone")

    source = feed(DataLoader(Broken(), batch_size=1))
    with pytest.raises(KeyError, match="the file is gone"):
        list(source.epoch(KEY))
