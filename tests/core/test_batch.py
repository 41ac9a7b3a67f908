"""How many samples a batch has, and where its tensors are."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from purestate.core._batch import batch_size, to_device
from purestate.errors import BatchError


class Pair(NamedTuple):
    x: Any
    y: Any


META = torch.device("meta")
X = torch.zeros(5, 2)


class Encoding(UserDict[str, Any]):
    """A mapping that carries more than its entries, as tokenizers return."""

    def __init__(self, data: dict[str, Any], encodings: str) -> None:
        super().__init__(data)
        self.encodings = encodings


class Movable:
    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def to(self, device: torch.device) -> Movable:
        return Movable(device)


PACKED = pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(1, 2)])


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (X, 5),
        ([X, torch.zeros(3)], 5),
        (("names", {"scale": torch.tensor(1.0), "x": [X]}), 5),
        (Pair(torch.tensor(0), X), 5),
        (Encoding({"x": X}, "e"), 5),
        (PACKED, 3),
        ([PACKED, X], 3),
        (torch.zeros(0, 2), 0),
    ],
)
def test_batch_size_is_the_first_leading_dimension(batch: Any, size: int) -> None:
    assert batch_size(batch) == size


@pytest.mark.parametrize(
    ("batch", "described"),
    [
        ([1, "a"], r"a list of \['int', 'str'\]"),
        ({"a": 1}, r"a dict with the keys \['a'\]"),
        (torch.tensor(1.0), r"tensor\(1\.\)"),
    ],
)
def test_batch_without_samples_is_an_error(batch: Any, described: str) -> None:
    with pytest.raises(BatchError, match=described):
        batch_size(batch)


def test_moving_keeps_the_structure() -> None:
    batch: list[Any] = [
        X,
        {"a": (X, "name", 1)},
        Pair(X, None),
        Encoding({"x": X}, "kept"),
        OrderedDict(x=X),
        MappingProxyType({"x": X}),
        Movable(),
        PACKED,
        torch.Size([3]),
    ]
    moved = to_device(batch, META)
    assert [type(part) for part in moved] == [type(part) for part in batch]
    assert moved[0].device == moved[1]["a"][0].device == moved[2].x.device == META
    assert moved[3]["x"].device == moved[4]["x"].device == moved[5]["x"].device == moved[6].device == moved[7].data.device == META
    assert moved[1]["a"][1:] == ("name", 1)
    assert moved[3].encodings == "kept"
    assert isinstance(moved[7], PackedSequence)
    assert batch[0] is X
    assert batch[3]["x"] is X
    assert batch[4]["x"] is X


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_nothing_is_done_on_the_cpu(device: torch.device | None) -> None:
    batch = {"x": [X]}
    assert to_device(batch, device) is batch
