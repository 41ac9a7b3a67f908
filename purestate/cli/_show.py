"""``purestate show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._name import RunName
    from purestate.report._report import Report

__all__ = ["command"]


@click.command("show")
@click.argument("run", type=RUN)
@click.option("--code", metavar="[NAME]", is_flag=False, flag_value="*", help="Show the source text that it depends on.")
@reported
def command(run: RunName, code: str | None) -> Report:
    """Show a run, or an op of it.

    Arguments, environment, answers, hashes, times and sizes, and who recorded them. With --json also everything that was asked,
    and the metrics of every epoch.

    With --code the functions and classes of the user that it depends on, as they were hashed. NAME, which may have * in it,
    selects from them.
    """
    if code is not None:
        from purestate.report._code import show_code

        return show_code(run, code)
    from purestate.report._detail import show

    return show(run)
