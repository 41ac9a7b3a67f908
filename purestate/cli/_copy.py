"""``purestate copy``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._care import Done
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("copy")
@click.argument("run", type=RUN)
@click.argument("path", type=click.Path(path_type=Path))
@reported
def command(run: RunName, path: Path) -> Done:
    """Copy into another store.

    The checkpoint RUN, or all of a store, go into the store at PATH: every byte verified, what is there already left alone.
    """
    from purestate.report._act import copy

    return copy(run, path)
