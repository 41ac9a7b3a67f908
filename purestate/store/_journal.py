"""The journal of a store: acts on the store itself, such as deleting a checkpoint, which no checkpoint's log can hold.

Each line is sealed, as a record is, but stands alone: one that is damaged is left out, and told by `Journal.bad_lines`.
"""

from __future__ import annotations

import json
import os
from typing import Any, cast

from purestate.store._files import append_line, read_file, write_errors
from purestate.store._layout import Layout
from purestate.store._locks import FileLock
from purestate.store._record import seal, to_json, unseal
from purestate.store._who import host, now, user

__all__ = ["Journal", "entry"]

_UNSEALED = b'{"act":'
"""How lines begin that were written before they had a digest."""


class Journal:
    """The journal of the store at ``layout``. Lines are only ever appended."""

    def __init__(self, layout: Layout) -> None:
        self._root, self._path, self._anonymous = layout.root, layout.journal, layout.anonymous
        self._lock = FileLock(layout.journal_lock, "the journal", anonymous=layout.anonymous)
        self._named = False

    def append(self, act: str, details: dict[str, Any], *, durable: bool = True) -> None:
        """Note an act.

        Args:
            act: What was done.
            details: To what.
            durable: Whether to wait for the disk. Else it is durable with the next act for which somebody waits.

        Effects:
            A line in the journal. A last line that a crash cut short is ended first, and stays as it is.
        """
        line = (
            seal(to_json(entry(act, details, anonymous=self._anonymous), "an entry of the journal")[1:].encode("ascii")) + b"\n"
        )
        with self._lock.hold(10.0), write_errors(self._path, "a line of the journal"):
            old = self._read()
            names = () if self._named or not durable else (self._root,)
            append_line(self._path, line if old.endswith(b"\n") or not old else b"\n" + line, len(old), names, durable=durable)
            self._named |= durable

    def entries(self) -> list[dict[str, Any]]:
        """Return what was noted, oldest first, without lines that a crash cut short or that were damaged."""
        return [found for found in map(_parse, self._read().split(b"\n")) if found is not None]

    def bad_lines(self) -> list[int]:
        """Return the numbers, from 1, of lines that hold no act: a crash cut them short, or they were damaged or edited."""
        lines = self._read().split(b"\n")
        return [number for number, line in enumerate(lines, 1) if line and _parse(line) is None]

    def _read(self) -> bytes:
        try:
            return read_file(self._path, self._root)
        except (FileNotFoundError, NotADirectoryError):
            return b""


def entry(act: str, details: dict[str, Any], *, anonymous: bool = False) -> dict[str, Any]:
    """Return an act with who and when; without who, if nobody is to know."""
    who = {} if anonymous else {"user": user(), "host": host(), "pid": os.getpid()}
    return {"act": act, **details, "time": now(), **who}


def _parse(line: bytes) -> dict[str, Any] | None:
    if line.startswith(_UNSEALED):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return None
    else:
        found = unseal(line)
    return cast(dict[str, Any], found) if type(found) is dict and type(found.get("act")) is str else None
