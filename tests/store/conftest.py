"""What the tests of the store share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from purestate.core._hash import leaf_hash, tree_hash
from purestate.store._disk import DiskBackend

ROOT = Path(__file__).parents[2]


def digest_of(leaves: dict[str, torch.Tensor]) -> str:
    return tree_hash({name: leaf_hash(leaf) for name, leaf in leaves.items()})


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start an interpreter that runs ``code`` and can import purestate."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


@pytest.fixture
def run() -> Callable[..., str]:
    """Run code in another interpreter and return what it printed."""

    def run(code: str, *arguments: object) -> str:
        with python(code, *arguments) as process:
            out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out
        return out

    return run


@pytest.fixture
def started() -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """Start code in another interpreter; enters when it printed a line, kills it at the end."""

    @contextmanager
    def started(code: str, *arguments: object, **options: object) -> Iterator[subprocess.Popen[str]]:
        with python(code, *arguments, **options) as process:
            try:
                assert process.stdout is not None
                process.first_line = process.stdout.readline().strip()  # pyright: ignore[reportAttributeAccessIssue]
                yield process
            finally:
                process.kill()

    return started


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so, at most as long as no machine takes."""

    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    return wait_until


@pytest.fixture
def backend(tmp_store_path: Path) -> DiskBackend:
    return DiskBackend(tmp_store_path)
