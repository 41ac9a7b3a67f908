"""Data that can be taken for other data: what a class holds beside its attributes, where an order is all that differs."""

from __future__ import annotations

import functools
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from purestate.code import describe
from purestate.data._fingerprint import describe_data

ROWS = [(torch.tensor([float(i)]), i % 2) for i in range(4)]


class Held(Dataset):
    def __init__(self, held):
        self.held = held

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return i, 0


class Slots(Held):
    __slots__ = ("hidden",)

    def __init__(self, hidden):
        self.hidden = hidden


class Rows(list):
    pass


class Doubled(torch.Tensor):
    pass


class Order(Sampler):
    __slots__ = ("step",)

    def __init__(self, step, generator=None):
        self.step = step
        self.generator = generator

    def __iter__(self):
        return iter(range(4))

    def __len__(self):
        return 4


PAIRS = {
    "slots": (Slots(1), Slots(2)),
    "a subclass of list": (Rows(ROWS), Rows(ROWS[::-1])),
    "the class of a tensor": (TensorDataset(torch.ones(4)), TensorDataset(torch.ones(4).as_subclass(Doubled))),
    "the order of a dict": (Held({"a": 0, "b": 1}), Held({"b": 1, "a": 0})),
    "what makes missing values": (Held(defaultdict(int)), Held(defaultdict(lambda: 1))),
    "the mask of an array": tuple(Held(np.ma.masked_array([1.0, 2.0], mask=mask)) for mask in ([0, 1], [1, 0])),
    "the order of an array in memory": tuple(Held(np.array([[1.0, 2.0], [3.0, 4.0]], order=order)) for order in "CF"),
    "keys that read alike": (Held({1: torch.ones(2)}), Held({"1": torch.ones(2)})),
    "1 and True": (Held([1]), Held([True])),
    "0.0 and -0.0": (Held(0.0), Held(-0.0)),
    "slots of a sampler": tuple(DataLoader(ROWS, sampler=Order(step)) for step in (1, 2)),
    "what a sampler calls generator": tuple(DataLoader(ROWS, sampler=Order(1, generator)) for generator in (1, 2)),
    "an array of batches": tuple(DataLoader(ROWS, batch_sampler=np.array(rows)) for rows in ([[0, 1]], [[1, 0]])),
    "a tensor of indices": tuple(DataLoader(ROWS, batch_size=None, sampler=torch.tensor(rows)) for rows in ([0, 1], [1, 0])),
}


def digest(data):
    return describe_data(data if isinstance(data, DataLoader) else DataLoader(data), describe).digest


@pytest.mark.parametrize("name", PAIRS)
def test_two_that_look_alike(name):
    one, other = PAIRS[name]
    assert digest(one) == digest(one) != digest(other)


def test_what_declares_itself_does_not_depend_on_the_order_in_which_it_says_so():
    class Declared(Held):
        def __purestate_fingerprint__(self):
            return self.held

    assert digest(Declared({"a": 1, "b": 2})) == digest(Declared({"b": 2, "a": 1})) != digest(Declared({"a": 1, "b": 2.0}))


@pytest.mark.parametrize("hold", ["object", "partial", "closure", "default", "method"])
def test_a_file_that_something_callable_reads(tmp_path, hold):
    file = str(tmp_path / "noise.txt")

    class Reads:
        def __init__(self):
            self.file = file

        def __call__(self, x):
            return x

    reads = {
        "object": Reads(),
        "partial": functools.partial(max, file),
        "closure": lambda x: file,
        "default": lambda x, path=file: x,
        "method": Reads().__call__,
    }[hold]
    (tmp_path / "noise.txt").write_text("1")
    before = digest(Held([reads]))
    assert digest(Held([reads])) == before
    (tmp_path / "noise.txt").write_text("22")
    assert digest(Held([reads])) != before


def test_files_of_several_folders_and_behind_links(tmp_path):
    for name in ("one", "two", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")  # a link in a circle ends
    held = Held(None)
    held.folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    found = [digest(held)]
    for name in ("two/a.txt", "elsewhere/b.txt"):
        (tmp_path / name).write_text("1")
        found.append(digest(held))
    assert len(set(found)) == 3


def test_an_array_that_looks_into_a_tensor_and_changes_it_afterwards():
    x = torch.zeros(4, 2)
    data = TensorDataset(x)
    before = digest(data)
    assert digest(data) == before
    x.numpy()[0, 0] = 5
    assert digest(data) != before
