"""What the tests of `purestate.run` share."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import purestate as ps
from purestate.core import _ops
from purestate.core._capture import Runner

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Spare tiny tensors the hand-over to threads, which takes a hundred times as long as they do on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave capturing out: it changes no bit (see ``tests/core/test_capture.py``) and costs half a second a train.

    Scripts that run in processes of their own capture as users' do.
    """
    monkeypatch.setattr(_ops, "Runner", functools.partial(Runner, capture_after=1_000_000))


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_store_path: Path) -> ps.MemoryStore | ps.Store:
    """Each store that remembers."""
    return ps.MemoryStore() if request.param == "memory" else ps.Store(tmp_store_path)


@pytest.fixture
def memory() -> ps.MemoryStore:
    return ps.MemoryStore()


@pytest.fixture
def disk(tmp_store_path: Path) -> ps.Store:
    return ps.Store(tmp_store_path)


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a file, or code, in another interpreter."""

    def python(what: Path | str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *([os.fspath(what)] if isinstance(what, Path) else ["-c", what]), *map(str, arguments)]
        given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)

    return python
