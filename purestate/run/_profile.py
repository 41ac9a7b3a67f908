"""Where the time of a `train` goes: seconds by phase, told as a table, and what could be done where data takes most of it."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

__all__ = ["Profile"]

_PHASES = {
    "data": "fetching batches",
    "step": "forward, backward, metrics of a batch",
    "optimizer": "the optimizer's step",
    "metrics": "adding up, schedulers of a step",
    "validation": "all of it",
    "saving": "hashing, the best state, records, resume points, the answer",
    "other": "working copies, imports",
}


_MUCH = 1 / 3
"""The share of data from which on there is advice: loading ahead saves at most that."""

_WORKERS = 4
"""How many workers are advised at most; beyond that it depends on what else the machine does."""


class Profile:
    """Adds up the seconds between laps. On an accelerator each lap waits for it, which costs time of its own.

    Args:
        device: Where the op computes.
        loader: Where the batches come from: what advice is about.
    """

    def __init__(self, device: torch.device, loader: Any = None) -> None:
        self._waits = device.type != "cpu"
        self._loader = loader
        self.seconds: dict[str, float] = {}
        self.epochs = 0
        self._clock = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count what has passed since the last lap as time of a phase."""
        if self._waits:
            torch.accelerator.synchronize()
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._clock
        self._clock = now

    def __str__(self) -> str:
        if not self.epochs:
            return "profile: nothing was computed"
        from purestate.view import text_table

        whole = sum(self.seconds.values())
        rows: list[list[Any]] = []
        for phase in (name for name in _PHASES if name in self.seconds):
            seconds = self.seconds[phase]
            rows.append(
                [phase, f"{seconds:.3f} s", f"{seconds / whole:.0%}", f"{1e3 * seconds / self.epochs:.2f} ms", _PHASES[phase]]
            )
        rows.append(["all", f"{whole:.3f} s", "100%", f"{1e3 * whole / self.epochs:.2f} ms", f"{self.epochs} computed epochs"])
        table = text_table(rows, ["phase", "time", "share", "an epoch", "what"])
        share = self.seconds.get("data", 0.0) / whole
        return "\n".join(filter(None, (table, _advice(self._loader, share) if share > _MUCH else None)))


def _advice(loader: Any, share: float) -> str | None:
    """Return how less of the time would go into data; None where nothing loads ahead, as of tensors in memory."""
    from torch.utils.data import DataLoader, IterableDataset

    from purestate.data._memory import in_memory

    workers = min(_WORKERS, os.cpu_count() or 1)
    if not isinstance(loader, DataLoader) or loader.num_workers or in_memory(loader):
        return None
    advice = f"data is {share:.0%} of the time: DataLoader(num_workers={workers}"
    if isinstance(loader.dataset, IterableDataset):
        return f"{advice}) loads ahead, in the order that the dataset has with {workers} workers, which is another question"
    return f"{advice}, persistent_workers=True) loads ahead, and gives the same batches"
