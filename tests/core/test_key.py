"""The key: frozen words, the same as JAX's, and no two uses of it alike."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purestate.core._key import Key, Tag
from purestate.errors import StateError

# The format: never regenerate these.
FOLDED = [
    (0, 0, (1797259609, 2579123966)),
    (0, 1, (928981903, 3453687069)),
    (1, 0, (507451445, 1853169794)),
    (42, 7, (2547012911, 1371500959)),
    (4294967296, 1, (3906887105, 1176396260)),
    (18446744073709551615, 4294967295, (2484572516, 2455711723)),
    (-1, 3, (1594713364, 113650303)),
    (1234567890123, 99, (140923457, 261658040)),
]
DERIVED_FROM_3_AT_2 = {
    "INIT": 0x454E7E083E6A4395,
    "ADVANCE": 0x30D024EFDBCB93FB,
    "ORDER": 0xF51F7ABFE1343574,
    "STEP": 0xB3FDB3A412C5DAAB,
    "SAMPLE": 0x6F2FC14DA94CFFD4,
    "VALIDATE": 0x1B0498B0E090BB3B,
    "EVALUATE": 0x06A6C2EEC838F619,
    "FIND_LR": 0xA0EC35D5149996FF,
    "PREDICT": 0xD5203DCAB6C96C78,
    "WORKER": 0x9F7FF483CF3C3034,
}
words = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("seed", "data", "expected"), FOLDED)
def test_frozen_words(seed: int, data: int, expected: tuple[int, int]) -> None:
    assert Key.from_seed(seed).fold_in(data) == Key(*expected)


def test_frozen_tags_and_derived_seeds() -> None:
    assert {tag.name: Key.from_seed(3).derive(tag, 2).seed for tag in Tag} == DERIVED_FROM_3_AT_2
    assert [int(tag) for tag in Tag] == list(range(1, 11))


def test_frozen_runs_of_seeds() -> None:
    assert Key.from_seed(7).seeds(0, 3).tolist() == [15571024786774969728, 837714335556982463, 4150233810675416579]


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_fold_in_is_that_of_jax() -> None:
    """In a process of its own: a process that imported JAX warns at every fork, and loaders fork."""
    rng = random.Random(0)
    cases = [(rng.getrandbits(32), rng.getrandbits(32), rng.getrandbits(32)) for _ in range(200)]
    cases += [(hi, lo, data) for hi in (0, 2**32 - 1) for lo in (0, 2**32 - 1) for data in (0, 1, 2**31, 2**32 - 1)]
    script = (
        "import json, sys, jax, numpy as np\n"
        "cases = np.array(json.load(sys.stdin), dtype=np.uint32)\n"
        "keys = jax.random.wrap_key_data(cases[:, :2])\n"
        "print(json.dumps(np.asarray(jax.random.key_data(jax.vmap(jax.random.fold_in)(keys, cases[:, 2]))).tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(cases),
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "jax" not in sys.modules
    ours = [Key(hi, lo).fold_in(data) for hi, lo, data in cases]
    assert json.loads(done.stdout) == [[key.hi, key.lo] for key in ours]


@given(words, words, st.integers(0, 2**32 + 5), st.integers(0, 20))
def test_seeds_are_folded_one_by_one(hi: int, lo: int, start: int, n: int) -> None:
    key = Key(hi, lo)
    seeds = key.seeds(start, start + n)
    assert seeds.dtype == np.uint64
    assert seeds.tolist() == [key.fold_in(i).seed for i in range(start, start + n)]


@given(words, words, words, words)
def test_other_data_give_other_keys(hi: int, lo: int, a: int, b: int) -> None:
    """Threefry is a bijection of the counter under each key."""
    assert (Key(hi, lo).fold_in(a) == Key(hi, lo).fold_in(b)) == (a == b)


@given(st.integers(-(2**70), 2**70))
def test_seed_is_taken_modulo_64_bits(seed: int) -> None:
    assert Key.from_seed(seed).seed == seed % 2**64


def test_key_is_a_value() -> None:
    key = Key(1, 2)
    assert key == Key(1, 2)
    assert hash(key) == hash(Key(1, 2))
    assert repr(key) == "Key(1, 2)"
    with pytest.raises(FrozenInstanceError):
        key.hi = 3  # type: ignore[misc]


@pytest.mark.parametrize("pair", [(-1, 0), (0, -1), (2**32, 0), (0, 2**32)])
def test_a_word_has_32_bits(pair: tuple[int, int]) -> None:
    with pytest.raises(StateError, match=r"two integers from 0 to 2\*\*32 - 1") as caught:
        Key(*pair)
    assert caught.value.path == "key"
