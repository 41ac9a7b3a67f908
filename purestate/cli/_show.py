"""``purestate show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._detail import RunDetail
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("show")
@click.argument("run", type=RUN)
@reported
def command(run: RunName) -> RunDetail:
    """Show a run, or an op of it.

    Arguments, environment, answers, hashes, times and sizes. With --json also everything that was asked, and the metrics
    of every epoch.
    """
    from purestate.report._detail import show

    return show(run)
