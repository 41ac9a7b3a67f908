"""``purestate diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN_OR_FILE, reported

if TYPE_CHECKING:
    from purestate.report._diff import RunComparison
    from purestate.report._weights import WeightsComparison

__all__ = ["command"]


@click.command("diff")
@click.argument("a", type=RUN_OR_FILE)
@click.argument("b", type=RUN_OR_FILE)
@reported
def command(a: str, b: str) -> RunComparison | WeightsComparison:
    """Compare two runs, or with a file.

    Where the logs of A and B part and why, then the states that they ended on, leaf by leaf. If one of them is an Orbax folder,
    a safetensors file or a torch file of weights, its leaves by name. The exit status is 0 where they are equal, else 1.
    """
    from purestate.report._compare import compare

    return compare(a, b)
