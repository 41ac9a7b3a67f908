"""``purestate bisect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._name import RunName
    from purestate.report._parting import Bisection

__all__ = ["command"]


@click.command("bisect")
@click.argument("a", type=RUN)
@click.argument("b", type=RUN)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--script", metavar="SCRIPT", help="What made A, and B: a path, MODULE as for python -m, or MODULE:FUNCTION.")
@click.option("--script-b", metavar="SCRIPT", help="What made B, where that is another.")
@click.option("--anyway", is_flag=True, help="Look also where A and B were asked other questions.")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long a step, or the way to the first, may take.")
@reported
def command(
    a: RunName, b: RunName, args: tuple[str, ...], script: str | None, script_b: str | None, anyway: bool, timeout: float | None
) -> Bisection:
    """Find the step at which two runs part.

    By the hashes that are recorded: down to the train and the epoch, and to step and leaf where both were trained with
    trace="step". With --script what is missing is computed again, each run in a process of its own, from the last epoch before
    that is kept; no store is written to. ARGS, behind --, are for the scripts.
    """
    from purestate.report._bisect import bisect

    return bisect(a, b, script, script_b, args=args, anyway=anyway, timeout=timeout)
