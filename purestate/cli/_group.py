"""The group of commands: finds them by name, and turns errors into messages and exit statuses."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from purestate.core._version import VERSION
from purestate.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    InvalidIdError,
    PureStateError,
    ScriptError,
    SetupError,
    StateError,
    UsageError,
)

__all__ = ["cli"]

_COMMANDS = (
    *("accept", "audit", "bisect", "check", "copy", "diff", "export", "gc"),
    *("hash", "log", "ls", "rename", "repair", "reset", "rm", "show"),
)
_WRONG_CALL = (UsageError, CheckpointExistsError, CheckpointNotFoundError, InvalidIdError, ScriptError, SetupError, StateError)
"""What is no finding. Anything else that a store says is one."""
_STOPPED = 128 + 2
"""What shells return for a command that Ctrl-C ended."""


class _Finding(click.ClickException):
    """An error as a message without traceback."""

    exit_code = 1


class _WrongCall(_Finding):
    """One that the caller can mend by calling otherwise."""

    exit_code = 2


class _Commands(click.Group):
    """Commands by the name of their file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return import_module(f"purestate.cli._{cmd_name}").command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PureStateError as error:
            raise (_WrongCall if isinstance(error, _WRONG_CALL) else _Finding)(str(error)) from None
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            raise click.exceptions.Exit(_STOPPED) from None  # click would exit with 1, which is a finding
        except BrokenPipeError:
            raise  # click knows what to do with a reader that went away
        except OSError as error:
            raise _WrongCall(f"{error.filename or 'The system'}: {error.strerror or error}") from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, package_name="purestate")
def cli() -> None:
    """Look at runs, compare them, and look after stores.

    A run is named STORE[:CHECKPOINT[@OP]], as in ckpts:adam@0. The exit status is 0 where all is well, 1 where something was
    found, 2 where the call was wrong.
    """
