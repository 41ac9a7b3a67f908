"""What the journal says that a collection removed, for whoever looks for it later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["taken"]


def taken(acts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return when each item was removed, by digest, from the acts of a store. It may have been written anew since."""
    found: dict[str, str] = {}
    for act in acts:
        items = act.get("items")
        if act.get("act") == "gc" and isinstance(items, list):
            found |= {digest: str(act.get("time")) for digest in items if isinstance(digest, str)}
    return found
