"""``purestate gc``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from purestate.cli._shared import STORE, confirmed, reported

if TYPE_CHECKING:
    from purestate.report._care import Collected
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("gc")
@click.argument("store", type=STORE)
@click.option("--dry-run", is_flag=True, help="Remove nothing, and say what would be.")
@click.option("--voided", is_flag=True, help="Remove the states of voided answers too.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@reported
def command(store: RunName, dry_run: bool, voided: bool, yes: bool) -> Collected:
    """Remove items that no record names."""
    from purestate.report._care import collect

    planned = collect(store, dry_run=True, voided=voided)
    if dry_run:
        return planned
    if not planned.gc.items:  # nothing is asked, and nothing written
        return replace(planned, gc=replace(planned.gc, dry_run=False))
    confirmed(f"{planned}. Remove them?", yes=yes)
    return collect(store, dry_run=False, voided=voided)
