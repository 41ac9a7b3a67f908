"""What a `train` prints, which is the same whether it trains or answers from the log; and the history that has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purestate.run import EpochView, Summary
from purestate.run._answers import History

__all__ = ["Lines", "TrainHistory"]


class TrainHistory(History):
    """What `train` returns: ``epoch`` (numbers over the life of the model), a list for each metric, ``lr``, ``seconds``, ``log``.

    ``log`` has the printed lines. The lists but that one have an entry an epoch. A notebook shows a table.
    """


class Lines:
    """Prints and collects the lines of one call.

    Args:
        epochs: How many were asked for.
        watch: The metric that is watched.
        load_best: Whether the best epoch is returned.
    """

    def __init__(self, epochs: int, watch: str, load_best: bool) -> None:
        self._epochs, self._watch, self._load_best = epochs, f"val_{watch}", load_best
        self._log: list[str] = []
        self._values: list[float | None] = []

    def epoch(self, view: EpochView) -> None:
        """Print the line of an epoch; number 0 is the evaluation before the first."""
        head = f"Epoch {view.n}/{self._epochs}: " if view.n else "Initial "
        self._say(head + said(view.metrics))
        if self._watch in view.metrics:
            self._values.append(view.metrics[self._watch])

    def finish(self, summary: Summary) -> TrainHistory:
        """Print which epoch is the best, and return the history.

        Args:
            summary: Of the call.
        """
        best, last = summary.best_epoch, summary.epochs or 0
        if best is not None:
            stopped = f"Stopped after {last} epochs. " if last < self._epochs else ""
            which = f"epoch {best}" if best else "before the first epoch"
            taken = ", which the model has now" if self._load_best and best != last else ""
            self._say(f"{stopped}Best: {which}, {self._watch}={self._values[best]:.4f}{taken}.")
        return TrainHistory(summary.history | {"log": self._log})

    def _say(self, line: str) -> None:
        self._log.append(line)
        print(line)


def said(metrics: Mapping[str, Any]) -> str:
    """Return metrics as they are printed: ``train_loss=0.1234, val_loss=0.2345``."""
    return ", ".join(f"{name}={value:.4f}" for name, value in metrics.items())
