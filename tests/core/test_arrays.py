"""`tree_hash` for arrays of anybody: the same bits have the same hash, whoever holds them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_the_dtypes_of_jax_agree(dtype):
    array = np.array([1.5, -2.0, 0.25], getattr(ml_dtypes, dtype))
    assert array_hash(array) == leaf_hash(torch.tensor([1.5, -2.0, 0.25]).to(getattr(torch, dtype)))


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
