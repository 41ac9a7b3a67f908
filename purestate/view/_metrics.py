"""Charts of training: metrics over epochs, and the loss over the learning rate.

Plain data comes in, a `matplotlib.figure.Figure` goes out: nothing is shown, no window opens, no file is written. A notebook
shows the figure as the value of a cell; a script calls ``figure.savefig("metrics.png")``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from purestate.errors import MetricError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_lr_vs_loss", "plot_metrics"]

_PHASES = ("train", "val")
_MARKERS_UP_TO = 40  # epochs of a single history: more dots than that hide the line
_LEGEND_COLUMNS = 3

History = Mapping[str, Sequence[Any]]

_BEST: dict[str, Any] = dict(linestyle="", marker="o", markersize=7, markerfacecolor="white", markeredgewidth=1.8, zorder=3)


def plot_metrics(histories: Sequence[History], labels: Sequence[str] | None = None) -> Figure:
    """Draw one chart a metric, training and validation together, and the learning rate below.

    Args:
        histories: One or more histories, each a column of values by name, an entry an epoch:

            * ``epoch``: counted over all train calls; the evaluation before a call may repeat the last number
            * ``train_<metric>``, ``val_<metric>``: a number, or None where there is none; None is left out of the line
            * ``lr``, if there: a number or, for several parameter groups, a sequence of numbers
            * ``op``, if there: which train call the epoch belongs to; a thin line is drawn where it changes
            * ``best``, if there: whether a train call found its best state at that epoch; marked. Without the column the
              lowest ``val_loss`` is marked, or the lowest ``train_loss`` where there is no validation

            Other columns are not drawn.
        labels: What to call each history, if there is more than one.

    Returns:
        A figure. Several histories have a colour each; training is dashed.

    Raises:
        MetricError: There is nothing to draw, columns have different lengths, or epochs decrease.

    Example:
        >>> history = {"epoch": [1, 2], "train_loss": [0.9, 0.5], "val_loss": [0.8, 0.6], "lr": [0.1, 0.1]}
        >>> figure = plot_metrics([history])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss', 'learning rate']
    """
    from purestate.view._figure import INK, axes_column, epoch_axis

    runs = _runs(histories, labels)
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.metrics()))
    if not metrics:
        raise MetricError(
            f"plot_metrics expects a column that starts with 'train_' or 'val_', got {sorted(runs[0].history)!r}.",
            fix="Give it ck.history, or what train returned.",
        )
    with_lr = any("lr" in run.history for run in runs)
    figure, charts = axes_column([2.2] * len(metrics) + [1.1] * with_lr)
    for metric, axes in zip(metrics, charts, strict=False):
        axes.set_ylabel(metric.replace("_", " "), color=INK)
        for run in runs:
            _draw_metric(axes, run, metric, alone=len(runs) == 1)
    if with_lr:
        _draw_lr(charts[-1], runs)
    for axes in charts:
        for epoch in sorted({epoch for run in runs for epoch in run.starts()}):
            axes.axvline(epoch, color="#999999", linewidth=0.8, zorder=0.5)
    epoch_axis(charts[-1])
    figure.align_ylabels(charts)
    _legend(figure, runs)
    return figure


def plot_lr_vs_loss(
    rates: Sequence[float],
    losses: Sequence[float],
    suggestion: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Figure:
    """Draw the loss over the learning rate, on a logarithmic axis.

    Args:
        rates: Learning rates, positive.
        losses: The loss at each of them.
        suggestion: A learning rate to mark.
        start: The lowest rate to draw. The lowest there is if left out.
        end: The highest rate to draw. The highest there is if left out.

    Returns:
        A figure with one chart. Where the loss runs away at high rates it is cut off, so that its valley can be seen.

    Raises:
        MetricError: The two have different lengths, or no rate lies between ``start`` and ``end``.

    Example:
        >>> figure = plot_lr_vs_loss([1e-4, 1e-3, 1e-2], [2.3, 1.9, 2.8], suggestion=1e-3)
        >>> figure.axes[0].get_xscale()
        'log'
    """
    from purestate.view._figure import INK, PALETTE, axes_column

    if len(rates) != len(losses):
        raise MetricError(f"plot_lr_vs_loss expects a loss for each rate, got {len(rates)} rates and {len(losses)} losses.")
    low = min(rates, default=0.0) if start is None else start
    high = max(rates, default=0.0) if end is None else end
    points = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if low <= rate <= high]
    if not points:
        raise MetricError(f"plot_lr_vs_loss has none of {len(rates)} rates between {low!r} and {high!r}.")
    figure, (axes,) = axes_column([3.2], width=6.4)
    axes.plot(*zip(*points, strict=True), color=PALETTE[0], linewidth=1.8)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", color=INK)
    axes.set_ylabel("loss", color=INK)
    if suggestion is not None and low <= suggestion <= high:
        axes.axvline(suggestion, color=PALETTE[1], linewidth=1.4, linestyle="--", label=f"suggestion: {suggestion:.2g}")
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _cut_off(axes, [loss for _, loss in points])
    return figure


@dataclass(frozen=True)
class _Run:
    """A history, how its lines look, and what is read from it."""

    history: History
    label: str
    train_colour: str
    val_colour: str

    def metrics(self) -> Iterator[str]:
        for column in self.history:
            phase, _, metric = column.partition("_")
            if phase in _PHASES and metric:
                yield metric

    def points(self, column: str) -> list[tuple[int, Any]]:
        """Return ``(epoch, value)`` where there is a value."""
        values = self.history.get(column, ())
        return [(epoch, value) for epoch, value in zip(self.history["epoch"], values, strict=False) if value is not None]

    def starts(self) -> list[float]:
        """Return where a train call begins that is not the first: between its first epoch and the one before."""
        return [(last + epoch) / 2 for (last, before), (epoch, op) in pairwise(self.points("op")) if op != before]

    def best(self) -> list[int]:
        """Return the epochs to mark."""
        if "best" in self.history:
            return [epoch for epoch, best in self.points("best") if best]
        losses = [(loss, epoch) for epoch, loss in self.points(self._judge()) if not math.isnan(loss)]
        return [min(losses)[1]] if losses else []

    def best_label(self) -> str:
        return "best epoch" if "best" in self.history else f"lowest {self._judge()}"

    def _judge(self) -> str:
        return "val_loss" if self.points("val_loss") else "train_loss"


def _runs(histories: Sequence[History], labels: Sequence[str] | None) -> list[_Run]:
    from purestate.view._figure import PALETTE

    if not histories or isinstance(histories, Mapping):
        raise MetricError(
            f"plot_metrics expects a sequence of histories, got {type(histories).__name__} of {len(histories)}.",
            fix="plot_metrics([history])",
        )
    names = [str(i) for i in range(len(histories))] if labels is None else list(labels)
    if len(names) != len(histories):
        raise MetricError(f"plot_metrics expects a label for each history, got {len(names)} labels for {len(histories)}.")
    for i, history in enumerate(histories):
        _check(f"history {i}", history)
    if len(histories) == 1:
        return [_Run(histories[0], names[0], PALETTE[1], PALETTE[0])]
    colours = (PALETTE[i % len(PALETTE)] for i in range(len(histories)))
    return [_Run(history, name, colour, colour) for history, name, colour in zip(histories, names, colours, strict=True)]


def _check(where: str, history: History) -> None:
    if "epoch" not in history:
        raise MetricError(f"{where} has no column 'epoch', only {sorted(history)!r}.")
    epochs = history["epoch"]
    for before, after in pairwise(epochs):
        if after < before:
            raise MetricError(
                f"{where}: column 'epoch' goes from {before!r} to {after!r}, it must not decrease.",
                cause="Epochs are counted over all train calls of a checkpoint.",
            )
    for column, values in history.items():
        if len(values) != len(epochs) and column.partition("_")[0] in (*_PHASES, "lr", "op", "best"):
            raise MetricError(f"{where}: column {column!r} has {len(values)} entries for {len(epochs)} epochs.", metric=column)


def _draw_metric(axes: Axes, run: _Run, metric: str, *, alone: bool) -> None:
    train, val = run.points(f"train_{metric}"), run.points(f"val_{metric}")
    for phase, points, colour, style in (("train", train, run.train_colour, "--"), ("val", val, run.val_colour, "-")):
        if points:
            (line,) = axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=1.6, markersize=3)
            line.set_label(f"{run.label} {phase}_{metric}")
            line.set_alpha(1.0 if alone or phase == "val" else 0.6)
            if len(points) == 1 or (alone and len(points) <= _MARKERS_UP_TO):
                line.set_marker("o")
    judged, colour = (dict(val), run.val_colour) if val else (dict(train), run.train_colour)
    best = [(epoch, judged[epoch]) for epoch in run.best() if epoch in judged]
    if best:
        axes.plot(*zip(*best, strict=True), color=colour, label=f"{run.label} best", **_BEST)


def _draw_lr(axes: Axes, runs: Sequence[_Run]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from purestate.view._figure import INK

    drawn: list[float] = []
    for run in runs:
        rates = [(epoch, lr if isinstance(lr, Sequence) else [lr]) for epoch, lr in run.points("lr")]
        for group in range(max((len(lr) for _, lr in rates), default=0)):
            line = [(epoch, lr[group]) for epoch, lr in rates if group < len(lr)]
            drawn += [lr for _, lr in line]
            axes.plot(*zip(*line, strict=True), color=run.val_colour, linewidth=1.4, drawstyle="steps-mid")
    axes.set_ylabel("learning rate", color=INK)
    if drawn and 0 < 10 * min(drawn) <= max(drawn):
        axes.set_yscale("log")
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(figure: Figure, runs: Sequence[_Run]) -> None:
    from matplotlib.lines import Line2D

    from purestate.view._figure import INK

    first, alone = runs[0], len(runs) == 1
    entries: list[Line2D] = []
    if not alone:
        entries += [Line2D([], [], color=run.val_colour, linewidth=3, label=run.label) for run in runs]
        entries += [Line2D([], [], linestyle="", label="")] * (-len(entries) % _LEGEND_COLUMNS)
    columns = [column for run in runs for column in run.history]
    if any(column.startswith("train_") for column in columns):
        entries.append(Line2D([], [], color=first.train_colour if alone else INK, linestyle="--", label="training"))
    if any(column.startswith("val_") for column in columns):
        entries.append(Line2D([], [], color=first.val_colour if alone else INK, label="validation"))
    marked = [run for run in runs if run.best()]
    if marked:
        label = " / ".join(dict.fromkeys(run.best_label() for run in marked))
        epochs = f": {', '.join(map(str, first.best()))}" if alone else ""
        entries.append(Line2D([], [], color=first.val_colour if alone else INK, label=label + epochs, **_BEST))
    # matplotlib fills column by column; this order makes it read row by row
    entries = [entry for i in range(_LEGEND_COLUMNS) for entry in entries[i::_LEGEND_COLUMNS]]
    figure.legend(handles=entries, loc="outside upper left", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9, labelcolor=INK)


def _cut_off(axes: Axes, losses: Sequence[float]) -> None:
    """Bound the loss axis by what comes before the minimum, with some room, where the losses behind it run away."""
    losses = [loss for loss in losses if math.isfinite(loss)]
    if not losses:
        return
    lowest = min(range(len(losses)), key=losses.__getitem__)
    before = max(losses[: lowest + 1])
    ceiling = before + 0.5 * max(before - losses[lowest], 0.1 * abs(losses[lowest]))
    if max(losses) > 2 * ceiling:
        axes.set_ylim(losses[lowest] - 0.1 * (ceiling - losses[lowest]), ceiling)
