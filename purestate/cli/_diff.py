"""``purestate diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._diff import RunComparison
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("diff")
@click.argument("a", type=RUN)
@click.argument("b", type=RUN)
@reported
def command(a: RunName, b: RunName) -> RunComparison:
    """Compare two runs.

    Where the logs of A and B part and why, then the states that they ended on, leaf by leaf. The exit status
    is 0 where they are equal, else 1.
    """
    from purestate.report._diff import compare

    return compare(a, b)
