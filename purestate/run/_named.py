"""Which items a snapshot names, and which a record names for its code.

Reads JSON and nothing else: whoever asks what a log needs is spared the import of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["code_of", "items_of"]


def items_of(json: Mapping[str, Any]) -> dict[str, str]:
    """Return the items that a snapshot names, by digest, and the subtree that each is.

    Raises:
        TypeError: It is no snapshot.
    """
    found: dict[str, str] = {}
    for name, part in json.items():
        if name not in ("hash", "key", "counters"):
            digest = part.get("item", "")
            if type(digest) is not str:
                raise TypeError(f"{digest!r} is no digest")
            if digest:
                found.setdefault(digest, name)  # an average that is not updated yet may be the item of the parameters
    return found


def code_of(body: Mapping[str, Any]) -> list[str]:
    """Return the items that the body of a record names for the source text behind its question.

    Raises:
        TypeError: It names something else.
    """
    found = body.get("code", {}).get("items", [])
    if not isinstance(found, list) or not all(type(digest) is str for digest in found):
        raise TypeError(f"{found!r} are no digests")
    return found
