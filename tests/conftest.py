"""What every test gets: the guard against tests and code that leave traces, and a place for a store.

That warnings are errors is said in ``pyproject.toml``.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# What a shell runs in the background ignores SIGINT, and so do its children: tests that send one would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest writes the phase that it is in; torch._inductor and scikit-learn write the others when they are first imported
_NOT_OURS = {
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
}


def _generators() -> dict[str, Any]:
    kind, words, *rest = np.random.get_state()
    found = {"torch": torch.get_rng_state().tolist(), "numpy": (kind, words.tolist(), *rest), "random": random.getstate()}
    if torch.cuda.is_initialized():
        found |= {f"cuda:{i}": state.tolist() for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def _switches() -> dict[str, Any]:
    return {
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "number of threads": torch.get_num_threads(),
        "working directory": os.getcwd(),
    }


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_OURS}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@pytest.fixture(autouse=True)
def leaves_no_trace(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that moved a global generator, switched torch over or changed the environment."""
    generators, switches, environment = _generators(), _switches(), _environment()
    yield
    if not request.node.get_closest_marker("moves_generators"):
        assert _changed(generators, _generators()) == [], "a global generator was moved"
    assert _changed(switches, _switches()) == [], "a global switch was left in another position"
    assert _changed(environment, _environment()) == [], "os.environ was changed"


@pytest.fixture
def tmp_store_path(tmp_path: Path) -> Path:
    """Where a test may put a store. The folder does not exist yet."""
    return tmp_path / "store"
