"""``purestate log``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from purestate.cli._shared import RUN, json_option

if TYPE_CHECKING:
    from purestate.report._name import RunName

__all__ = ["command"]

_EVERY = 0.5
"""Seconds between two looks at a log that is followed."""


@click.command("log")
@click.argument("run", type=RUN)
@click.option("--follow", "-f", is_flag=True, help="Go on as records are appended, until Ctrl-C.")
@json_option
def command(run: RunName, follow: bool, as_json: bool) -> None:
    """Show the records of a run.

    A line each: arguments, metrics, hashes and times.

    With --follow and --json every line is an object of its own.
    """
    from purestate.report._history import history

    if follow:
        _follow(run, as_json=as_json)
    else:
        found = history(run)
        click.echo(found.to_json() if as_json else str(found))


def _follow(name: RunName, *, as_json: bool) -> None:
    from purestate.report._history import entries
    from purestate.report._opened import Run, open_run
    from purestate.report._report import plain

    run, seen = open_run(name), 0
    try:
        while True:
            head = run.log.records[seen - 1].digest if seen else ""
            for entry in entries(Run(run.name, run.backend, run.log), seen):
                if name.op is None or entry.op == name.op:
                    click.echo(json.dumps(plain(entry)) if as_json else str(entry))
            seen, head = len(run.log.records), run.log.head
            time.sleep(_EVERY)
            run.log.refresh()
            if len(run.log.records) < seen or (seen and run.log.records[seen - 1].digest != head):
                click.echo("the checkpoint was deleted, or begun anew", err=True)
                seen = 0
    except KeyboardInterrupt:
        return
