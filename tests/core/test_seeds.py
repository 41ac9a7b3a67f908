"""The process-wide generators are set from a seed, read and put back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from purestate.core._key import Key
from purestate.core._seeds import global_states, preserved_generators, put_back, seed_all


def draws() -> list[float]:
    # an odd number of normals leaves one in numpy's generator, which is part of its state
    return [
        float(torch.rand(())),
        float(torch.randn(())),
        np.random.rand(),
        np.random.randn(),
        random.random(),
        random.gauss(0, 1),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 + 5, 2**64 - 1, Key(928981903, 3453687069).seed])
def test_seed_decides_all_draws(seed: int) -> None:
    with preserved_generators():
        seed_all(seed)
        first = draws()
        seed_all(seed)
        assert draws() == first
        assert torch.initial_seed() == seed
        seed_all(seed ^ 1)
        assert not set(draws()) & set(first)


def fail_under(seed: int) -> None:
    with preserved_generators():
        seed_all(seed)
        draws()
        raise KeyError


def test_put_back_after_an_exception() -> None:
    with preserved_generators():
        seed_all(1)
        draws()
        states = global_states()
        expected = draws()
        put_back(states)
        with pytest.raises(KeyError):
            fail_under(2)
        assert draws() == expected


def test_reading_does_not_move() -> None:
    with preserved_generators():
        seed_all(1)
        expected = draws()
        seed_all(1)
        global_states()
        assert draws() == expected
