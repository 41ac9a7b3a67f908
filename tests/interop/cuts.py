"""Trains that are cut after each of their batches, and compared with one that nobody cut."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from typing import Any

import pytest

import purestate as ps
from purestate.run._resume import ResumePoints

__all__ = ["answer", "cut_everywhere"]


def answer(ck: ps.Checkpoint, state: ps.State) -> list[Any]:
    """All that a run leaves: hashes and metrics of its epochs, and what it returned."""
    epochs = [record.body for record in ck._ledger.log.records if record.kind == "epoch"]
    return [state.hash, *([body["n"], body["hash"], body["metrics"], body["lr"]] for body in epochs)]


def cut_everywhere(train: Callable[[ps.Checkpoint], ps.State], batches: int) -> None:
    """Assert that a train which is interrupted after any of its batches, and called again, leaves what it leaves uncut."""
    original = ResumePoints.between

    def checkpoint(store: ps.MemoryStore) -> ps.Checkpoint:
        return store.checkpoint("a", echo=None, notify=None)

    def cut(ck: ps.Checkpoint, n: int) -> bool:
        behind = itertools.count(1)

        def between(self: ResumePoints, *args: Any, **options: Any) -> None:
            if next(behind) == n:
                signal.raise_signal(signal.SIGINT)
            original(self, *args, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ResumePoints, "between", between)
            try:
                train(ck)
            except KeyboardInterrupt:
                return True
        return False

    whole = checkpoint(ps.MemoryStore())
    expected = answer(whole, train(whole))
    for n in range(1, batches + 1):
        store = ps.MemoryStore()
        assert cut(checkpoint(store), n)
        again = checkpoint(store)
        assert answer(again, train(again)) == expected, f"cut after batch {n}"
    assert not cut(checkpoint(ps.MemoryStore()), batches + 1)
