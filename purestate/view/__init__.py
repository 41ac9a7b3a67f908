"""Plain data as pictures and tables. No state, no store, no disk; matplotlib is imported when the first chart is drawn."""

from __future__ import annotations

from purestate.view._metrics import plot_lr_vs_loss as plot_lr_vs_loss
from purestate.view._metrics import plot_metrics as plot_metrics
from purestate.view._table import html_table as html_table
from purestate.view._table import text_table as text_table
