"""What the tests of `purestate.train` share: a root folder of their own, digits, one thread, no capturing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from purestate.train import _place
from tests.fast import one_thread, uncaptured
from tests.train.tiny import fresh_seeds

__all__ = ["one_thread", "uncaptured"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root folder, where models of the test are kept. What a test sets of it, of namespace and separator ends with it."""
    monkeypatch.setattr(_place, "_place", _place.Place(root=tmp_path))
    fresh_seeds()
    return tmp_path


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with 144 digits, for `tests.train.tiny.digits`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data[:144] / 16, dtype=torch.float32)
    path = tmp_path_factory.mktemp("digits") / "digits.pt"
    torch.save((x, torch.tensor(data.target[:144])), path)
    return path


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a file in another interpreter, with a root folder. What it prints on standard error fails the test."""

    def python(script: Path, *arguments: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
        given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", os.fspath(script), *map(str, arguments)]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)
        assert fails == (done.returncode != 0), done.stdout + done.stderr
        return done

    return python


@pytest.fixture
def start() -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """Start a file in another interpreter; kill it at the end."""

    @contextmanager
    def start(script: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", os.fspath(script), *map(str, arguments)]
        with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    return start
