"""``purestate reset``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, confirmed, reported

if TYPE_CHECKING:
    from purestate.report._care import Done
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("reset")
@click.argument("run", type=RUN)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@reported
def command(run: RunName, yes: bool) -> Done:
    """Void a train and those behind it.

    RUN is a train, as in ckpts:adam@1. The records stay readable in the log.
    """
    from purestate.report._act import reset

    return reset(run, lambda question: confirmed(question, yes=yes))
