"""How two leaves differ, held against counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from purestate.report._numbers import compare_leaves, largest_ulps

IN_ORDER = [*range(0xFC00, 0x7FFF, -1), *range(0x7C01)]
"""The bits of all numbers of float16, from -inf over -0.0 and 0.0 to inf."""


def rank(value: float) -> int:
    return IN_ORDER.index(int(np.array(value, np.float16).view(np.uint16)))


@pytest.mark.parametrize(
    ("a", "b"),
    [(1.0, 1.0009765625), (0.0, 6e-8), (-0.0, 0.0), (1.0, 2.0), (-1e-7, 1e-7), (65504.0, math.inf), (-2.0, -2.5), (-6e-8, -0.0)],
)
def test_ulps_are_numbers_in_between(a, b):
    x, y = (torch.tensor([value, 1.0], dtype=torch.float16) for value in (a, b))
    assert largest_ulps(x, y) == largest_ulps(y, x) == abs(rank(a) - rank(b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_ulp_is_one(dtype):
    a = torch.tensor([3.0, -0.7, 0.0, 1e-3], dtype=dtype)
    unsigned = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    for i in (0, 1, 3):
        bits = a.clone().view(unsigned)
        bits[i] += 1
        found = compare_leaves("w", a, bits.view(dtype))
        assert (found.changed, found.elements, found.ulps) == (1, 4, 1)
        assert found.largest > 0


def test_where_nan_came_or_went_ulps_mean_nothing():
    found = compare_leaves("w", torch.tensor([1.0, 2.0]), torch.tensor([math.nan, 2.0]))
    assert (found.changed, found.largest, found.ulps) == (1, math.inf, None)


def test_other_shapes_and_dtypes_are_not_compared():
    found = compare_leaves("w", torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    assert (found.a, found.b) == ("float32[2]", "int64[3]")
    assert (found.changed, found.ulps, found.elements) == (None, None, None)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_what_is_no_ieee_float_has_no_ulps(dtype):
    a, b = (torch.tensor(values).to(dtype) for values in ([0.0, 1.0], [1.0, 1.0]))
    found = compare_leaves("w", a, b)
    assert (found.changed, found.largest, found.ulps) == (1, 1.0, None)


def test_complex_numbers_are_two_each():
    found = compare_leaves("w", torch.tensor([1 + 2j]), torch.tensor([1 + 2.0000002384185791j]))
    assert (found.changed, found.ulps) == (1, 1)


def test_the_norms_are_those_of_each():
    assert compare_leaves("w", torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0])).norms == (5.0, 5.0)
    assert compare_leaves("w", torch.tensor([5.0, 12.0]), torch.tensor([0.0, 1.0])).norms == (13.0, 1.0)
