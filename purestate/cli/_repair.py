"""``purestate repair``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import STORE, reported

if TYPE_CHECKING:
    from purestate.report._care import Cleaned
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("repair")
@click.argument("store", type=STORE)
@reported
def command(store: RunName) -> Cleaned:
    """Clear what killed writers left.

    What is damaged stays as it is: `purestate check` says what to do.
    """
    from purestate.report._care import clean

    return clean(store)
