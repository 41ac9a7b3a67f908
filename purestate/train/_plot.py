"""Charts of plain data, under the names that users of this face know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from purestate import run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from purestate.train._checkpoint import ModelCheckpoint

__all__ = ["plot_lr_vs_loss", "plot_metrics"]


def plot_metrics(hist: Mapping[str, Sequence[Any]] | ModelCheckpoint | Sequence[ModelCheckpoint]) -> Figure:
    """Return a figure of a history: one chart a metric, training and validation together. Opens no window.

    Args:
        hist: What `train` returned, or the ``history`` of a checkpoint; or checkpoints of a model, which are compared.
    """
    from purestate import view

    if not isinstance(hist, Mapping):
        several = hist if isinstance(hist, Sequence) else [hist]
        return run.plot_metrics([checkpoint._log for checkpoint in several])
    return view.plot_metrics([{name: values for name, values in hist.items() if name != "log"}])


def plot_lr_vs_loss(rates: Sequence[float], losses: Sequence[float]) -> Figure:
    """Return a figure of the loss over the learning rate, on a logarithmic axis. Opens no window.

    Args:
        rates: Learning rates, positive.
        losses: The loss at each of them.
    """
    from purestate import view

    return view.plot_lr_vs_loss(rates, losses)
