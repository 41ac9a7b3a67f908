"""``purestate check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._care import Checked
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("check")
@click.argument("run", type=RUN)
@click.option("--level", type=click.Choice(["records", "items", "bytes"]), default="items", show_default=True)
@click.option("--expect-head", metavar="HASH", help="A head of the checkpoint's log that was noted before: `purestate log`.")
@reported
def command(run: RunName, level: Any, expect_head: str | None) -> Checked:
    """Look for damage, and change nothing.

    "records" verifies every line of every log, "items" also looks for the files that they name, "bytes" reads and hashes those.
    A log cannot show by itself that its end was cut off: give --expect-head.
    """
    from purestate.report._care import check

    return check(run, level, expect_head)
