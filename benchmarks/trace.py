"""What it costs to note the hashes of epochs and of steps while a train computes, and what that adds to its log."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

from torch import nn

import purestate as ps
from benchmarks._measure import Case, Row, compare, figure
from benchmarks._models import adam_state, digits
from purestate.run._trace import Level

__all__ = ["rows"]

GROUP = "trace"


class DigitsCNN(nn.Sequential):
    """Two convolutions with batch normalisation, for the digits of 8 by 8: 14,000 parameters in 10 leaves, 51 with Adam's."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)),
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 10)),
        )


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group: CPU time of the process, which other processes disturb less than the clock."""
    epochs, rounds = (4, 3) if quick else (20, 15)
    train_dl, val_dl = digits()
    state = adam_state(DigitsCNN)
    with tempfile.TemporaryDirectory() as folder, ps.Store(Path(folder) / "store") as store:
        numbers, sizes = itertools.count(), dict[Level | None, list[float]]()

        def train(trace: Level | None) -> Case:
            def case() -> float:
                id = f"run-{next(numbers)}"
                began = time.process_time()
                store.checkpoint(id, echo=None).train(state, train_dl, val_dl, epochs=epochs, trace=trace, progress=False)
                took = time.process_time() - began
                sizes.setdefault(trace, []).append((Path(folder) / "store" / "checkpoints" / id / "log.jsonl").stat().st_size)
                return took

            return case

        off = "without a trace"
        levels: tuple[Level, ...] = ("epoch", "step")
        found: list[Row] = []
        for level in levels:
            cases = {"purestate": train(level), off: train(None)}
            for case in cases.values():
                case()
            found += compare(GROUP, f'train {epochs} epochs, trace="{level}", CPU time', cases, rounds, unit="s")
    for level in levels:
        added = (sizes[level][0] - sizes[None][0]) / epochs
        found.append(figure(GROUP, f'bytes that an epoch of 45 steps adds to the log, trace="{level}"', [added], unit="bytes"))
    return found
