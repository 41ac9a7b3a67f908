"""Fixtures that make trains of the tests fast: one thread, no capturing. A ``conftest.py`` takes them in by importing them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from purestate.core import _runners
from purestate.core._capture import Runner

__all__ = ["one_thread", "uncaptured"]


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
    monkeypatch.setattr(_runners, "Runner", functools.partial(Runner, capture_after=1_000_000))
