"""What the tests of `purestate.train` share: a root folder of their own, digits, one thread, no capturing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from purestate.core import _ops
from purestate.core._capture import Runner
from purestate.train import _place
from tests.train.tiny import fresh_seeds

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
