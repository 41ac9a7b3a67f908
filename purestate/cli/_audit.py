"""``purestate audit``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._audit import AuditReport
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("audit")
@click.argument("run", type=RUN)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--script",
    required=True,
    type=click.Path(),
    metavar="FILE",
    help="The script that recorded it; MODULE, as for python -m; or MODULE:FUNCTION.",
)
@click.option("--op", metavar="OP", help="Only this train, by its number; or all of evaluate, find_lr or predict.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only N of the ops.")
@click.option("--seed", type=int, default=0, show_default=True, help="Picks which.")
@reported
def command(run: RunName, arguments: tuple[str, ...], script: str, op: str | None, sample: int | None, seed: int) -> AuditReport:
    """Compute a run again and compare it.

    In a fresh process the script runs once more: the ops of RUN are computed from their recorded input states, and hashes,
    metrics and answers compared with their records; all else is answered from the logs, and nothing is recorded.
    What the script prints goes to stderr. Its own ARGUMENTS come last, behind "--".
    """
    from purestate.report._audit import audit

    named = int(op) if op is not None and op.isascii() and op.isdecimal() else op
    return audit(run, script, args=arguments, op=named, sample=sample, seed=seed)
