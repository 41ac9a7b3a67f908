"""`tree_hash` for arrays of anybody: the same bits have the same hash, whoever holds them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import purestate as ps
from purestate.core._arrays import array_hash, tree_hash
from purestate.core._hash import leaf_hash
from purestate.errors import UnsupportedError
from tests.helpers import Mlp, build

NUMPY = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
FLOATS = ["float16", "float32", "float64", "complex64", "complex128"]


class Foreign:
    """An array of somebody else, as JAX's are."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self._array


@pytest.mark.parametrize("dtype", NUMPY + FLOATS)
def test_numpy_and_torch_agree(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    assert array_hash(array) == leaf_hash(torch.from_numpy(array))
    assert array_hash(Foreign(array)) == array_hash(array)


EIGHT_BITS = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("dtype", ["bfloat16", *EIGHT_BITS])
def test_the_dtypes_of_jax_agree(dtype):
    """Every bit pattern of theirs, nan with all payloads among them."""
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    array, tensor = data.view(getattr(ml_dtypes, dtype)), torch.from_numpy(data).view(getattr(torch, dtype))
    assert array_hash(array) == array_hash(Foreign(array)) == leaf_hash(tensor)
    assert array_hash(array.reshape(2, -1)) == leaf_hash(tensor.reshape(2, -1)) != leaf_hash(tensor)


def test_a_nested_tree_is_hashed_by_its_names():
    tree = {"a": {"b": np.ones(2, np.float32), "c": {"0": torch.ones(1)}}}
    assert tree_hash(ps.flatten(tree)) == tree_hash({"a.b": torch.ones(2), "a.c.0": np.ones(1, np.float32)})
    with pytest.raises(UnsupportedError, match=r"expected an array at 'a', got a dict: give ps\.flatten\(tree\)"):
        tree_hash(tree)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3, 4)])
def test_shapes_count(shape):
    array = np.ones(shape, np.float32)
    assert array_hash(array) == leaf_hash(torch.ones(shape))
    assert array_hash(array) != array_hash(array.reshape((*shape, 1)))


def test_strides_and_byte_order_do_not_count():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    for same in (np.asfortranarray(array), array.astype(">i4"), np.stack([array, array], 2)[:, :, 0]):
        assert array_hash(same) == array_hash(array)


def test_bits_count():
    assert array_hash(np.array([0.0])) != array_hash(np.array([-0.0]))
    assert array_hash(np.array([1.0])) != array_hash(np.array([1.0], np.float32))


def test_a_state_dict_has_one_hash_wherever_it_is():
    tensors = build(Mlp).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in reversed(tensors.items())}
    assert tree_hash(tensors) == tree_hash(arrays)
    arrays["net.0.bias"] = np.nextafter(arrays["net.0.bias"], np.float32(np.inf))
    assert tree_hash(tensors) != tree_hash(arrays)


def test_the_hash_is_frozen():
    tree = {"b": np.array([True, False]), "a": np.array(3)}
    assert tree_hash(tree) == "b3:2c04d46202a937df598baaa031e0a09fe2b3e3d5a0d6603eb1964c54f2bafa8f"


@pytest.mark.parametrize(
    "tree",
    [
        {1: np.ones(1)},
        {"a": [1.0]},
        {"a": 1.0},
        {"a": {"b": np.ones(1)}},
        {"a": np.array(["x"])},
        {"a": np.array([object()])},
        {"a": np.ones(1, np.longdouble)},
        {"a": np.array("2026-01-01", "datetime64")},
    ],
)
def test_what_is_no_array_of_numbers_is_refused(tree):
    with pytest.raises(UnsupportedError, match="tree_hash: expected"):
        tree_hash(tree)
