"""Hashes: frozen vectors, written out once more by hand, and what must and must not count."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from purestate.core._component import Component
from purestate.core._hash import canonical_json, dtype_name, leaf_bytes, leaf_hash, leaf_hashes, scalar_hash, short, tree_hash
from purestate.core._key import Key
from purestate.core._plain import encode
from purestate.core._state import Counters, State, state_hash
from purestate.core._tree import Leaves
from purestate.errors import UnsupportedError

# The format: never regenerate these.
LEAVES = {
    "float32": (
        lambda: torch.tensor([[1.0, -0.0], [math.inf, 0.5]]),
        "29873f80fc1bcd42d7b33a6143348dccf13134c9135b1d2114bba39c860151cb",
    ),
    "0-d": (lambda: torch.tensor(3), "c3a6e374962a9bc6bc8eec7f5708e611dad517324efe95cbe74f2ad8d9d8930b"),
    "empty": (lambda: torch.zeros(0, 3), "e9d595ef2f06c03804ad12c761dd7de75e6b80f8f1e5f0a2d46cb64c2d9912ce"),
    "bool": (lambda: torch.tensor([True, False]), "af918e96f200740495d960383e437baa4e3bb8945663ad9ec3797f59e01e411f"),
    "bfloat16": (
        lambda: torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "747b458f1cd37c75801f1d54112137f87fc18b3c5032932ac873a62ddec66bb5",
    ),
    "complex64": (lambda: torch.tensor([1 + 2j]), "694d9d5aef4a5f72a9c74d3efe1e02a0fcba0028b62bb849ef24dbaef51dc8fd"),
    "uint8": (
        lambda: torch.arange(5, dtype=torch.uint8),
        "6c88a409c9a21bb404edcad07a59157e39fd04ccb9560a6e682a918f19ecea45",
    ),
    "float64": (
        lambda: torch.tensor([math.pi], dtype=torch.float64),
        "127ba3c694e9402040fb0dc705c6edc43d5ceadf0d26609de2f0fcd8d16addb0",
    ),
    "float8": (
        lambda: torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        "dbbdfd131342ec921dae59bb3e022806d8aaa70f3b6258bd72f2359a9adca143",
    ),
}
SCALARS = {
    "none": (None, "38b07d0fed86ca476322728e789baa83e368bbdd7f12bd1378610e2947f85de3"),
    "int": (1, "5ec1ab2085fea2241b23799caa37770bdf0da8006e4bdcf349527cf1bd73878e"),
    "float": (1.0, "5ccb7e2089010557ed9f63e0779b81495405fdeb13e3c1d689ae8a3d2fb41705"),
    "true": (True, "4846641bbfa5931fcf2aed6f3041fea0f03d0bf36a3341550877b668d43ca3ec"),
    "text": ("é", "7beede416fe61e926d7ee9643a5086a816dd0d6434e310b0df2361839e32ad6e"),
    "nested": ({"b": [1, 2.5, None], "a": "x"}, "e01b1112d6b191ff162d2e4457e2153742b1865102d7fcd247df0ed6ce96d20a"),
    "tuple": ((1, 2), "0d2149141de7dc2b90c061d8507c2860d3725b514a4987fd7f509e5fa348ebec"),
    "inf": (-math.inf, "b281967035fe441c05a74d6a5d21008145a7a20c2ea94a84c81fde495b9b58ba"),
    "nan": (math.nan, "a3179535862266c7fedf022a3a3617707aef32e230e3c8c835bbc80079d74bf7"),
    "counter": (Counter({30: 2, 5: 1}), "3585a36a5e44fb28d515eedd3078cab2e4291b087fa4f40e6b3c97608a60f53a"),
    "integer keys": ({1: "a"}, "059b76b029343c7debd54e8a1227d15e514aba7039e4063ad864ec01452164f7"),
    "complex": (1 - 2j, "db57fdcf94166ca93fc147e13090266be7fb0b4a4691d34781ea9d7250f9049e"),
    "set": ({3, 1}, "017691da47494e63b20455210bfee22f5adcb5767c9ab73e9023e1e16335d0bf"),
    "numpy": (np.float32(0.1), "446dd012e7ed014dba186c6f52a1bb660f1b0601e45f1c559f877170c4b12890"),
}
EMPTY_TREE = "975eef6d2b4db89054d85d0450ac70fd6b0570c8fbbbaa0d336ff2f6a93cefc3"
STATE = "b3:c48398588ad642b4abb10f3e15946852d65ef1a6cd6c439a4062796fe429b43d"


@pytest.mark.parametrize("name", LEAVES)
def test_frozen_leaves(name: str) -> None:
    make, digest = LEAVES[name]
    tensor = make()
    assert leaf_hash(tensor) == digest
    shape = "[" + ",".join(str(n) for n in tensor.shape) + "]"
    header = f'["purestate/leaf/1","{str(tensor.dtype)[6:]}",{shape}]'.encode() + b"\0"
    flat = tensor.reshape(-1)
    elements = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    assert blake3(header + elements).hexdigest() == digest


@pytest.mark.parametrize("name", SCALARS)
def test_frozen_scalars(name: str) -> None:
    value, digest = SCALARS[name]
    assert scalar_hash(encode(value)) == digest


def test_a_scalar_by_hand() -> None:
    text = b'purestate/scalar/1\0{"a":"x","b":[1,2.5,null]}'
    assert blake3(text).hexdigest() == SCALARS["nested"][1]


def test_frozen_trees() -> None:
    a, b = LEAVES["0-d"][1], LEAVES["bool"][1]
    tree = tree_hash({"b": b, "a": a})
    assert tree_hash({}) == EMPTY_TREE
    assert tree == "2c04d46202a937df598baaa031e0a09fe2b3e3d5a0d6603eb1964c54f2bafa8f"
    assert blake3(f'purestate/tree/1\0{{"a":"{a}","b":"{b}"}}'.encode()).hexdigest() == tree


def whole_state() -> State:
    return State(
        params=Leaves({"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([0.5, -0.5])}, "params"),
        frozen=Leaves({"embedding": torch.ones(2, 2, dtype=torch.bfloat16)}, "frozen"),
        buffers=Leaves({"steps": torch.tensor(7)}, "buffers"),
        optimizer=Component({"objects": {"optimizer": {"param_groups": [{"lr": 0.1}]}}}, {"state/fc.bias/m": torch.zeros(2)}),
        key=Key(1, 2),
        counters=Counters(3, 48),
        extra=Component({"note": "x", "t": {"~": "tensor", "v": "t"}}, {"t": torch.tensor(1.0)}),
    )


def test_frozen_state() -> None:
    state = whole_state()
    assert state_hash(state) == state.hash == STATE
    component = {
        "leaves": tree_hash({"state/fc.bias/m": leaf_hash(torch.zeros(2))}),
        "skeleton": scalar_hash({"objects": {"optimizer": {"param_groups": [{"lr": 0.1}]}}}),
    }
    extra = {
        "leaves": tree_hash({"t": leaf_hash(torch.tensor(1.0))}),
        "skeleton": scalar_hash({"note": "x", "t": {"~": "tensor", "v": "t"}}),
    }
    by_hand = {
        "params": tree_hash({name: leaf_hash(t) for name, t in state.params.items()}),
        "frozen": tree_hash({name: leaf_hash(t) for name, t in state.frozen.items()}),
        "buffers": tree_hash({name: leaf_hash(t) for name, t in state.buffers.items()}),
        "optimizer": tree_hash(component),
        "epoch_scheduler": EMPTY_TREE,
        "step_scheduler": EMPTY_TREE,
        "key": scalar_hash([1, 2]),
        "counters": scalar_hash({"epoch": 3, "step": 48}),
        "extra": tree_hash(extra),
    }
    assert dict(state.digests) == by_hand
    assert state.hash == f"b3:{tree_hash(by_hand)}"


def test_every_part_counts() -> None:
    state = whole_state()
    others = [
        state.replace(params={**state.params, "fc.bias": torch.tensor([0.5, 0.5])}),
        state.replace(frozen={"embedding": torch.zeros(2, 2, dtype=torch.bfloat16)}),
        state.replace(buffers={"steps": torch.tensor(8)}),
        state.replace(optimizer=None),
        state.replace(key=Key(1, 3)),
        state.replace(counters=Counters(3, 49)),
        state.replace(counters=Counters(4, 48)),
        state.replace(ema=dict(state.params)),
        state.replace(extra=None),
        state.replace(extra={"note": "y", "t": torch.tensor(1.0)}),
        state.replace(extra={"note": "x", "t": torch.tensor(2.0)}),
    ]
    assert len({state.hash, *(other.hash for other in others)}) == len(others) + 1
    assert state.replace(extra={"note": "x", "t": torch.tensor(1.0)}) == state


def test_strides_do_not_count() -> None:
    t = torch.arange(24.0).reshape(2, 3, 2, 2)
    layouts = [
        t,
        t.to(memory_format=torch.channels_last),
        t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        t.repeat(2, 1, 1, 1)[:2],
    ]
    assert len({x.stride() for x in layouts}) == 3
    assert {leaf_hash(x) for x in layouts} == {leaf_hash(t)}
    assert leaf_hash(torch.zeros(1).expand(4)) == leaf_hash(torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64, torch.uint16])
def test_one_element_with_any_stride(dtype: torch.dtype) -> None:
    """It is contiguous, whatever its stride is."""
    pair = torch.arange(1, 3).to(dtype)
    assert leaf_hash(pair[:1].as_strided((1,), (2,))) == leaf_hash(pair[:1].clone())
    assert leaf_hash(pair[1:].as_strided((1, 1), (5, 7), 1)) == leaf_hash(pair[1:].clone().reshape(1, 1))


def test_what_counts() -> None:
    a = torch.zeros(2)
    other = [
        -a,
        a.double(),
        a.reshape(1, 2),
        a.reshape(2, 1),
        a.to(torch.int32),
        a.bool(),
        torch.zeros(3),
        torch.tensor([0.0, math.nan]),
        torch.tensor([0, 0x7FC00001], dtype=torch.int32).view(torch.float32),  # a nan with another payload
        torch.zeros(0),
        torch.zeros(0, 2),
        torch.zeros(2, 0),
        torch.zeros(()),
    ]
    assert len({leaf_hash(t) for t in (a, *other)}) == len(other) + 1


def test_views_of_complex_numbers_are_resolved() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    assert leaf_hash(z.conj()) == leaf_hash(torch.tensor([1 - 2j, 3 + 4j]))
    assert leaf_hash(z.conj().imag) == leaf_hash(torch.tensor([-2.0, 4.0]))


def test_gradients_and_parameters_are_tensors() -> None:
    t = torch.ones(2)
    assert leaf_hash(nn.Parameter(t)) == leaf_hash(t.clone().requires_grad_() * 1) == leaf_hash(t)


def test_many_threads_give_the_same_digest() -> None:
    t = torch.arange(3 << 20, dtype=torch.int32)  # 12 MiB: hashed by several threads
    header = b'["purestate/leaf/1","int32",[3145728]]\0'
    assert leaf_hash(t) == blake3(header + t.numpy().tobytes(), max_threads=1).hexdigest()


def test_contiguous_bytes_are_not_copied() -> None:
    t = torch.zeros(4)
    view = leaf_bytes(t)
    t[0] = 1
    assert bytes(view) == t.numpy().tobytes()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse_coo"),
        (lambda: torch.zeros(2, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quant.*:DeprecationWarning", "ignore:.*quant.*:UserWarning")
def test_what_is_not_plain_bits_is_refused(make, kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"^expected a dense tensor with elements, got a {kind} one of dtype"):
        leaf_hash(make())


def test_canonical_json() -> None:
    assert (
        canonical_json({"b": [1, 1.0, True, None, -0.0], "a": "é\ud800"}) == rb'{"a":"\u00e9\ud800","b":[1,1.0,true,null,-0.0]}'
    )
    for value in (math.inf, math.nan, {"x": [-math.inf]}):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json(value)


@given(st.lists(st.floats(width=32), max_size=6), st.integers(0, 5))
def test_one_bit_is_another_digest(values: list[float], i: int) -> None:
    t = torch.tensor(values, dtype=torch.float32)
    assert leaf_hash(t) == leaf_hash(t.clone())
    if i < len(values):
        flipped = t.view(torch.int32) ^ torch.nn.functional.one_hot(torch.tensor(i), len(values)).to(torch.int32)
        assert leaf_hash(flipped.view(torch.float32)) != leaf_hash(t)


def test_how_digests_and_dtypes_are_shown() -> None:
    assert short("0123456789abcdef") == short("b3:0123456789abcdef") == "b3:01234567"
    assert [dtype_name(d) for d in (torch.float32, torch.bool, torch.float8_e5m2)] == ["float32", "bool", "float8_e5m2"]


@pytest.mark.parametrize("count", [3, 40])
def test_hashes_of_several_are_those_of_each(monkeypatch, count):
    """One after the other or at the same time, whatever the kind of tensor."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    leaves = {f"l{i}": torch.full((70_000,), float(i)) for i in range(count)}
    leaves |= {"t": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(3, dtype=torch.bfloat16), "e": torch.empty(0)}
    leaves |= {"p": torch.nn.Parameter(torch.ones(2)), "c": torch.tensor([1 + 2j]).conj(), "s": torch.tensor(True)}
    assert leaf_hashes(leaves) == {name: leaf_hash(leaf) for name, leaf in leaves.items()}
    assert list(leaf_hashes(leaves)) == list(leaves)


@pytest.mark.parametrize("size", [1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, (4 << 20) + 1])
def test_the_definition_at_every_size(size):
    tensor = torch.arange(size, dtype=torch.uint8)
    header = b'["purestate/leaf/1","uint8",[%d]]\0' % size
    assert leaf_hash(tensor) == blake3(header + tensor.numpy().tobytes()).hexdigest()
