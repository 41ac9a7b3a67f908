"""``purestate hash``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from purestate.cli._shared import RUN, reported

if TYPE_CHECKING:
    from purestate.report._hashed import Hashes

__all__ = ["command"]


class _RunOrFile(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]: older versions of click take none
    name = "run or file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        return RUN.shell_complete(ctx, param, incomplete)


@click.command("hash")
@click.argument("run_or_file", type=_RunOrFile())
@reported
def command(run_or_file: str) -> Hashes:
    """Print the hashes of a run or a file.

    RUN_OR_FILE is a run, an Orbax folder, a safetensors file or a torch file of weights.
    The same bits have the same hashes in all of them, so that a file can be compared with a run.
    """
    from purestate.report._hashed import hashes

    return hashes(run_or_file)
