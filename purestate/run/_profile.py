"""Where the time of a `train` goes: seconds by phase, told as a table."""

from __future__ import annotations

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


class Profile:
    """Adds up the seconds between laps. On an accelerator each lap waits for it, which costs time of its own.

    Args:
        device: Where the op computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._waits = device.type != "cpu"
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
        return text_table(rows, ["phase", "time", "share", "an epoch", "what"])
