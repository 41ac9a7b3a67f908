"""A figure that shows itself, and how every chart of purestate looks. The one module that imports matplotlib.

`matplotlib.pyplot` stays out: it keeps figures alive, opens windows and decides about a backend for the whole process.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["INK", "PALETTE", "Chart", "axes_column", "epoch_axis"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart with any kind of colour vision, most contrast first. The yellow is left out."""

INK = "#444444"
_GRID = "#E3E3E3"


class Chart(Figure):
    """A matplotlib figure that notebooks show even where nobody switched on an inline backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def axes_column(heights: list[float], width: float = 7.0) -> tuple[Chart, list[Axes]]:
    """Return a figure with one chart above the other, which share their x axis.

    Args:
        heights: Of each chart, in inches.
        width: Of the figure, in inches.
    """
    figure = Chart(figsize=(width, sum(heights) + 0.75), layout="constrained", facecolor="white")
    grid: Any = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    charts: list[Axes] = list(grid[:, 0])
    for axes in charts:
        axes.grid(True, color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK, labelsize=9)
    return figure, charts


def epoch_axis(axes: Axes) -> None:
    """Let an x axis count epochs."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axes.set_xlabel("epoch", color=INK)
