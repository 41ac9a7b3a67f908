"""``purestate rename``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._care import Done
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("rename")
@click.argument("run", type=RUN)
@click.argument("new")
@reported
def command(run: RunName, new: str) -> Done:
    """Give a checkpoint another name.

    Its records stay as they are. NEW is the name alone, without the store.
    """
    from purestate.report._act import rename

    return rename(run, new)
