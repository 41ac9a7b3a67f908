"""``purestate hash``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN_OR_FILE, reported

if TYPE_CHECKING:
    from purestate.report._hashed import Hashes

__all__ = ["command"]


@click.command("hash")
@click.argument("run_or_file", type=RUN_OR_FILE)
@reported
def command(run_or_file: str) -> Hashes:
    """Print the hashes of a run or a file.

    RUN_OR_FILE is a run, an Orbax folder, a safetensors file or a torch file of weights.
    The same bits have the same hashes in all of them, so that a file can be compared with a run.
    """
    from purestate.report._hashed import hashes

    return hashes(run_or_file)
