"""``python -m purestate``: the command line, where the command is not on the path."""

from __future__ import annotations

from purestate.cli import main

main()
