"""What the commands share: how a run is given and completed, ``--json``, and how a report is printed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from purestate.report._name import RunName
    from purestate.report._report import Report

__all__ = ["RUN", "RUN_OR_FILE", "STORE", "confirmed", "json_option", "reported"]


class _Run(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]: older versions of click take none
    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> RunName:
        from purestate.report._name import RunName

        return value if isinstance(value, RunName) else RunName.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from purestate.cli._complete import completions

        return [CompletionItem(found) for found in completions(incomplete)]


class _Store(_Run):
    name = "store"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> RunName:
        found = super().convert(value, param, ctx)
        if found.checkpoint is not None:
            self.fail(f"Expected a whole store, got the checkpoint {value!r}.", param, ctx)
        return found


class _RunOrFile(_Run):
    name = "run or file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


RUN = _Run()
"""A run: ``STORE[:CHECKPOINT[@OP]]``."""
STORE = _Store()
"""A store, as the same."""
RUN_OR_FILE = _RunOrFile()
"""A run, or the name of a file or a folder; as it was written."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def reported(command: Callable[..., Report]) -> Callable[..., None]:
    """Print the report that a command returns, as text or with ``--json``, and exit with 1 where it has a finding."""

    @json_option
    @functools.wraps(command)
    def wrapped(as_json: bool, **arguments: Any) -> None:
        report = command(**arguments)
        click.echo(report.to_json() if as_json else str(report))
        if not report.ok:
            click.get_current_context().exit(1)

    return wrapped


def confirmed(question: str, *, yes: bool) -> None:
    """Ask before something is removed.

    Raises:
        UsageError: The answer was no, or there was nobody to ask.
    """
    from purestate.errors import UsageError

    try:
        if yes or click.confirm(question, err=True):
            return
    except click.Abort:
        click.echo(err=True)
    raise UsageError("Nothing was removed: nobody said yes.", fix="Give --yes to be asked nothing.")
