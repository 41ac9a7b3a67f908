"""The command line: arguments in, a report out, an exit status. One file a subcommand, each imported when it is called.

``0`` nothing to look after, ``1`` a finding, ``2`` a wrong call. What is computed is computed in `report` and `run`.
"""

from __future__ import annotations

import os

__all__ = ["main"]


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit."""
    from purestate.cli._group import cli

    if "_PURESTATE_COMPLETE" in os.environ:
        from purestate.cli import _complete as _complete  # bash is told in another way than click does

    cli.main(prog_name="purestate")
