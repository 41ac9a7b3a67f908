"""``purestate export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._care import Done
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("export")
@click.argument("run", type=RUN)
@click.argument("path", type=click.Path(path_type=Path))
@reported
def command(run: RunName, path: Path) -> Done:
    """Write answers for Orbax.

    PATH becomes what Orbax's CheckpointManager writes, a step an op of RUN; of ckpts:adam@0 the kept epochs of that op.
    """
    from purestate.report._act import export

    return export(run, path)
