"""The journal of a store: acts on the store itself, such as deleting a checkpoint, which no checkpoint's log can hold."""

from __future__ import annotations

import json
import os
import pwd
import socket
import time
from typing import Any

from purestate.store._files import append_line, writing
from purestate.store._layout import Layout
from purestate.store._locks import FileLock
from purestate.store._record import to_json

__all__ = ["Journal", "entry"]


class Journal:
    """The journal of the store at ``layout``. Lines are only ever appended."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.journal
        self._lock = FileLock(layout.journal_lock, "the journal")

    def append(self, act: str, details: dict[str, Any]) -> None:
        """Note an act, durably.

        Effects:
            A line in the journal. A last line that a crash cut short is ended first, and stays as it is.
        """
        line = to_json(entry(act, details), "an entry of the journal").encode("ascii") + b"\n"
        with self._lock.hold(10.0), writing(self._path, "a line of the journal"):
            old = self._path.read_bytes() if self._path.exists() else b""
            append_line(self._path, line if old.endswith(b"\n") or not old else b"\n" + line, len(old))

    def entries(self) -> list[dict[str, Any]]:
        """Return what was noted, oldest first, without lines that a crash cut short."""
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [found for found in map(_parse, lines) if found is not None]


def entry(act: str, details: dict[str, Any]) -> dict[str, Any]:
    """Return an act with who and when."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"act": act, **details, "time": now, "user": _user(), "host": socket.gethostname(), "pid": os.getpid()}


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
