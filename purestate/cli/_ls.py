"""``purestate ls``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purestate.cli._shared import STORE, reported

if TYPE_CHECKING:
    from purestate.report._listing import StoreListing
    from purestate.report._name import RunName

__all__ = ["command"]


@click.command("ls")
@click.argument("store", type=STORE)
@reported
def command(store: RunName) -> StoreListing:
    """List the checkpoints of a store.

    As a tree: where each came from, its metrics, its hash and what it weighs.

    "own" are bytes that no other checkpoint names, "shared" those that others name too.
    """
    from purestate.report._listing import list_store

    return list_store(store.store)
