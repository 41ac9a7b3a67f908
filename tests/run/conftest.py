"""What the tests of `purestate.run` share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import purestate as ps
from tests.fast import one_thread, uncaptured

__all__ = ["one_thread", "uncaptured"]

ROOT = Path(__file__).parents[2]


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
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=600)

    return python
