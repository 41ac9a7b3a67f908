"""``purestate accept``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._care import Done
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("accept")
@click.argument("run", type=RUN)
@reported
def command(run: RunName) -> Done:
    """Take a changed question as the same.

    The next question that differs from the train RUN has its answer: after a refactoring, for example.
    """
    from purestate.report._act import accept

    return accept(run)
