"""Resume points: what a killed `train` goes on from. Written in the background while it goes on; not records.

A point holds the state after a finished epoch and the best so far. It is offered at the end of every epoch and written when
the one before is durable and ten times what it took has passed since: so it costs little where epochs are
short, and every epoch has one where they are long.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from purestate.core._ops import Epoch
from purestate.core._recipe import Recipe
from purestate.core._state import State
from purestate.run._chain import Trajectory
from purestate.run._ledger import Ledger
from purestate.run._snapshot import Items, restore, snapshot

__all__ = ["ResumePoints"]

_TIMES_ITS_COST = 10
"""How many times what a point took must pass before the next: writing takes a tenth of the time at most."""


class ResumePoints:
    """The resume points of one `train` in progress.

    Args:
        ledger: Of the checkpoint that it belongs to.
        train: The trajectory.
        recipe: Its static half.
        device: Where loaded states go.
    """

    def __init__(self, ledger: Ledger, train: Trajectory, recipe: Recipe | None, device: torch.device) -> None:
        self._ledger, self._train = ledger, train
        self._recipe, self._device = recipe, device
        self._handle: Any = None
        self._handed = 0.0  # when the last point was handed to the writer, by the monotonic clock
        self._handing = 0.0  # how many seconds that kept the training waiting
        self._next = 0.0  # when the next is due

    def load(self) -> dict[int, State]:
        """Return the states of the newest point that is whole and belongs to this trajectory, by epoch."""
        found = self._ledger.backend.load_resume(self._ledger.id)
        if found is None or found[0]["of"] != self._train.start.digest:
            return {}
        body, items = found
        reader = _Held(items)
        return {int(n): restore(json, reader, recipe=self._recipe, device=self._device) for n, json in body["states"].items()}

    def offer(self, epoch: Epoch, best: int | None, best_state: State | None) -> None:
        """Write a point for this epoch if it is time for one.

        Effects:
            Hands copies to the writer process; they become durable in the background.
        """
        if epoch.n == 0 or not self._is_time():
            return
        states = {epoch.n: epoch.state} | ({best: best_state} if best is not None and best_state is not None else {})
        items: Items = {}
        body: dict[str, Any] = {"of": self._train.start.digest, "states": {}}
        for n, state in states.items():
            body["states"][str(n)], more = snapshot(state)
            items |= more
        began = time.monotonic()
        self._handle = self._ledger.backend.save_resume(self._ledger.id, body, items)
        self._handed, self._handing = began, time.monotonic() - began

    def _is_time(self) -> bool:
        if self._handle is None:
            return time.monotonic() >= self._next
        if not self._handle.done():
            return False
        self._handle.result()
        self._next = self._handed + (1 + _TIMES_ITS_COST) * (self._handing + self._handle.seconds)
        self._handle = None
        return time.monotonic() >= self._next

    def clear(self) -> None:
        """Remove the points: the op is done."""
        self.close()
        self._ledger.backend.clear_resume(self._ledger.id)

    def close(self) -> None:
        """Wait until what is on its way is durable."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            handle.result()


class _Held:
    """Items that are in memory already."""

    def __init__(self, items: Items) -> None:
        self._items = items

    def get(self, digest: str) -> dict[str, torch.Tensor]:
        return self._items[digest]
