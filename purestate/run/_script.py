"""A user's script, module or function that is run in a process of its own: how it is named, started and played.

For `_verify` and for audits. What is put in another place in such a process, `_cut` and `_audit_script` say.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purestate.errors import ScriptError, SetupError
from purestate.run._store import Store

__all__ = ["Target", "command", "play", "target"]

_BOOT = (
    "import signal; hears = signal.getsignal(signal.SIGINT); "
    "hears is signal.default_int_handler and signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "import importlib, json, sys; orders = json.load(open(sys.argv[1])); sys.path[0] = orders['folder']; "
    "sys.path += [path for path in orders['path'] if path not in sys.path]; "
    "entry = importlib.import_module(orders['entry']); signal.signal(signal.SIGINT, hears); entry.main(orders)"
)
"""What a process begins with: the script's folder comes first, as if it had been called by its name. Ctrl-C during its imports
ends it without a word: the traceback would be of ours."""


@dataclass(frozen=True)
class Target:
    """A script, a module or a function.

    Args:
        name: What messages call it.
        what: The path; or a module, and a name in it where that is a function.
        folder: What comes first in ``sys.path``.
        args: Of the command line.
    """

    name: str
    what: str | list[str]
    folder: str
    args: list[str]


def target(script: Any, args: Sequence[str], caller: str) -> Target:
    """Return what somebody was given as a script as something that a new process can run.

    Args:
        script: A path; ``'package.module'``, which runs as by ``python -m``; a function, or ``'package.module:name'``.
        args: Of its command line.
        caller: Who was given it, for messages.

    Raises:
        ScriptError: There is no such script, or the function is nothing that can be imported.
        SetupError: A function was given arguments.
    """
    if callable(script):
        module, name = getattr(script, "__module__", None), getattr(script, "__qualname__", "<")
        if module in (None, "__main__") or "<" in name:
            raise ScriptError(
                f"{caller}: {name} cannot be imported in another process.",
                fix="Define it at the top level of a module, or give the path of a script.",
            )
        script = f"{module}:{name}"
    text = os.fspath(script)
    if Path(text).is_file():
        path = Path(text).absolute()
        return Target(path.name, os.fspath(path), os.fspath(path.parent), [os.fspath(arg) for arg in args])
    module, colon, name = text.partition(":")
    if not colon and _is_module(module):
        return Target(text, [module], os.getcwd(), [os.fspath(arg) for arg in args])
    if not colon or not all(part.isidentifier() for part in f"{module}.{name}".split(".")):
        raise ScriptError(f"{caller}: there is no script {text!r} in {os.getcwd()!r}.", script=text)
    if args:
        raise SetupError(f"{caller}: {text} is a function and takes no args, got {list(args)!r}.", argument="args")
    return Target(text, [module, name], os.getcwd(), [])


def _is_module(name: str) -> bool:
    """Whether there is such a module, as far as can be told without importing the packages that it is in."""
    first, *rest = name.split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        return False
    at = importlib.machinery.PathFinder.find_spec(first, [os.getcwd(), *sys.path])
    for part in rest:
        if at is None or at.submodule_search_locations is None:
            return False
        at = importlib.machinery.PathFinder.find_spec(part, at.submodule_search_locations)
    return at is not None


def command(entry: str, what: Target, orders: Mapping[str, Any], told: Path) -> list[str]:
    """Return the command of a process that plays a target.

    Args:
        entry: The file of this room whose ``main`` is given the orders there.
        what: The target.
        orders: What else is to happen, as JSON.
        told: The file to write the orders to.

    Effects:
        Writes that file.
    """
    here = {"target": what.what, "args": what.args, "folder": what.folder, "path": [os.path.abspath(p) for p in sys.path]}
    told.write_text(json.dumps({**orders, **here, "entry": f"purestate.run.{entry}"}))
    return [sys.executable, "-u", "-c", _BOOT, os.fspath(told)]


def play(orders: Mapping[str, Any], store: str) -> None:
    """Run the target of the orders as this process's script.

    Args:
        orders: As `command` wrote them.
        store: The folder of the store that a function is given.
    """
    target: str | list[str] = orders["target"]
    if isinstance(target, str):
        sys.argv = [target, *orders["args"]]
        runpy.run_path(target, run_name="__main__")
        return
    if len(target) == 1:
        sys.argv = [target[0], *orders["args"]]
        runpy.run_module(target[0], run_name="__main__", alter_sys=True)
        return
    function: Any = importlib.import_module(target[0])
    for name in target[1].split("."):
        function = getattr(function, name)
    with Store(store) as given:
        function(given)
