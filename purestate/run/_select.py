"""Selections: which epoch of a trajectory a `train` returns, and when it stops.

A trajectory is what the epochs of an op would be without end. `Selection` picks from it, as a pure function of the recorded
metrics: so a re-run with other epochs, patience or another metric to watch needs no training where the epochs are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from purestate.errors import MetricError, SetupError

__all__ = ["Choice", "Selection", "choose", "unknown_metric"]


@dataclass(frozen=True, slots=True)
class Selection:
    """What to pick from a trajectory.

    Args:
        epochs: How many epochs at most.
        watch: The metric to watch, as in ``'accuracy'`` for ``val_accuracy``.
        load_best: Whether the answer is the best epoch; else it is the last.
        patience: Stop after so many epochs without a new best; 0 for never.
    """

    epochs: int
    watch: str = "loss"
    load_best: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience"):
            value = getattr(self, name)
            if isinstance(value, np.integer):
                object.__setattr__(self, name, value := int(value))
            if type(value) is not int or value < 0:
                raise SetupError(f"train: {name} must be an integer of at least 0, got {value!r}.", argument=name)

    def must_fit(self, names: Sequence[str], *, validated: bool) -> None:
        """Raise if nobody measures the metric that is watched, or nothing decides what is best.

        Raises:
            MetricError: ``watch`` is none of these names.
            SetupError: There is no validation, and the best epoch is asked for.
        """
        if self.watch not in names:
            raise unknown_metric(self.watch, names)
        if not validated and (self.load_best or self.patience):
            raise SetupError(
                f"train: {'load_best' if self.load_best else 'patience'} needs validation, and there is no val_dl.",
                cause="What is best is decided by validation metrics.",
                fix="Give one: ck.train(state, train_dl, val_dl, ...).",
                argument="val_dl",
            )

    def json(self) -> dict[str, object]:
        """Return it as a record holds it."""
        return {"epochs": self.epochs, "watch": self.watch, "load_best": self.load_best, "patience": self.patience}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a selection picks from the epochs that are there.

    Args:
        last: The last epoch that the selection reaches, counted within the op.
        best: The best of them; 0 is the evaluation before the first epoch. None without validation.
        complete: Whether no further epoch is needed.
    """

    last: int
    best: int | None
    complete: bool

    def returned(self, selection: Selection) -> int:
        """The epoch whose parameters the op returns."""
        return self.best if selection.load_best and self.best is not None else self.last


def choose(history: Sequence[Mapping[str, float]], selection: Selection, *, higher_is_better: bool) -> Choice:
    """Pick from a trajectory.

    Args:
        history: Metrics by epoch; the entry at 0 is the evaluation before the first epoch (empty without validation).
        selection: What to pick.
        higher_is_better: The direction of the watched metric. Better means strictly better; nan never is.

    Returns:
        The choice among ``history[: selection.epochs + 1]``.

    Raises:
        MetricError: The watched metric is not in the history.

    Example:
        >>> choose([{"val_loss": 3.0}, {"val_loss": 1.0}, {"val_loss": 2.0}], Selection(5), higher_is_better=False)
        Choice(last=2, best=1, complete=False)
    """
    name, best, value, waited = f"val_{selection.watch}", None, None, 0
    for n, metrics in enumerate(history[: selection.epochs + 1]):
        now = metrics.get(name)
        if now is None:
            if any(key.startswith("val_") for key in metrics):
                raise unknown_metric(selection.watch, metrics)
        elif now == now and (value is None or (now > value if higher_is_better else now < value)):
            best, value, waited = n, now, 0
        elif n > 0:
            waited += 1
        if selection.patience and n > 0 and waited >= selection.patience:
            return Choice(n, best, True)
    last = min(len(history) - 1, selection.epochs)
    return Choice(last, best, last >= selection.epochs)


def unknown_metric(watch: str, available: Mapping[str, object] | Sequence[str]) -> MetricError:
    """Return the error for a watched metric that nobody computes."""
    names = sorted(name.removeprefix("val_") for name in available if name.startswith("val_")) or sorted(available)
    return MetricError(
        f"train: watch={watch!r} is not computed; there is {', '.join(map(repr, names))}.",
        cause="Only the loss and the metrics of the call can be watched.",
        fix=f"Give it: train(..., watch={watch!r}, metrics=[...]), or watch one of those.",
        metric=watch,
    )
