"""Who recorded something, when and from what, as a record says it, and as people read it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from purestate.run._chain import RecordLike, as_recorded

__all__ = ["by", "provenance_of"]

_SHOWN = 8
"""Digits of a commit."""


def provenance_of(record: RecordLike) -> dict[str, Any]:
    """Return what a record says of who wrote it; nothing of one that was written before records did.

    Raises:
        CorruptLogError: It says something else.
    """
    with as_recorded(record):
        found = record.body.get("provenance") or {}
        git, command = found.get("git") or {}, found.get("command") or []
        texts = [found.get(name) for name in ("time", "user", "host", "cwd")] + [git.get("commit"), *command]
        if not isinstance(command, list) or not all(isinstance(text, str | None) for text in texts):
            raise TypeError("there is a provenance that is none")
        return dict(found)


def by(provenance: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Yield what is said of it in a line; nothing where nothing is known.

    Args:
        provenance: As a record says it.
        before: What was said already: where only the time is another, only the time is said.

    Example:
        >>> list(by({"time": "2026-01-31T12:00:00Z", "user": "ada", "host": "lab", "git": {"commit": "ab" * 20, "dirty": True}}))
        ['2026-01-31T12:00:00Z, by ada on lab, commit abababab with changes']
    """
    told = [provenance["time"]] if provenance.get("time") else []
    if before is not None and {**provenance, "time": None} == {**before, "time": None}:
        provenance = {}
    if provenance.get("user"):
        told.append(f"by {provenance['user']} on {provenance.get('host')}")
    git: Mapping[str, Any] = provenance.get("git") or {}
    if git.get("commit"):
        state = {True: " with changes", False: "", None: ", changes unknown"}[git.get("dirty")]
        told.append(f"commit {git['commit'][:_SHOWN]}{state}")
    if provenance.get("command"):
        told.append(f"{shlex.join(provenance['command'])} in {provenance.get('cwd')}")
    if told:
        yield ", ".join(told)
