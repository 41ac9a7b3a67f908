"""``purestate rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, confirmed, reported

if TYPE_CHECKING:
    from purestate.report._care import Done
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("rm")
@click.argument("run", type=RUN)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@reported
def command(run: RunName, yes: bool) -> Done:
    """Remove a checkpoint.

    That is its log and its resume points. Its items stay until `purestate gc`.
    """
    from purestate.report._act import remove

    return remove(run, lambda question: confirmed(question, yes=yes))
