"""What the journal says that should be in a store, and what a collection removed, for whoever looks for it later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["begun", "taken"]


def begun(acts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the checkpoints that were begun, and neither deleted nor renamed since, from the acts of a store."""
    found: dict[str, None] = {}
    for act in acts:
        if act.get("act") in ("create", "copy", "rename"):
            found[str(act.get("to", act.get("checkpoint")))] = None
        if act.get("act") in ("delete", "rename"):
            found.pop(str(act.get("checkpoint")), None)
    return list(found)


def taken(acts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return when each item was removed, by digest, from the acts of a store. It may have been written anew since."""
    found: dict[str, str] = {}
    for act in acts:
        items = act.get("items")
        if act.get("act") == "gc" and isinstance(items, list):
            found |= {digest: str(act.get("time")) for digest in items if isinstance(digest, str)}
    return found
