"""Whether a store is whole: every record, every item that one names, and everything that was acknowledged."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from purestate.store._disk import DiskBackend

__all__ = ["acknowledged", "files_of", "items_named", "whole"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def items_named(body: Any, key: str = "") -> Iterator[str]:
    """Yield the digests of items that the body of a record names, as ``item`` or in ``items``."""
    if isinstance(body, dict):
        for name, value in body.items():
            yield from items_named(value, name)
    elif isinstance(body, list):
        for value in body:
            yield from items_named(value, key)
    elif key in ("item", "items") and isinstance(body, str) and _DIGEST.fullmatch(body):
        yield body


def files_of(folder: Path) -> dict[str, str]:
    """Return the digests of the files in a folder, by path."""
    return {str(path.relative_to(folder)): blake3(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def whole(path: Path) -> DiskBackend:
    """Open a store, verify every record, and read every item that one names, every leaf against its hash.

    Raises:
        PureStateError: Something does not verify.
    """
    backend = DiskBackend(path)
    named: dict[str, str] = {}
    for id in backend.ids():
        for record in backend.log(id).records:
            named |= dict.fromkeys(items_named(record.body), f"record {record.seq} of checkpoint {id!r}")
    for digest, what in named.items():
        backend.get(digest, what=what)
    backend.acts()
    return backend


def acknowledged(backend: DiskBackend, said: Iterable[dict[str, Any]], may_go: Collection[str] = ()) -> None:
    """Assert that everything is there that somebody was told is there.

    Args:
        backend: The store.
        said: What was told, oldest first.
        may_go: Ids that are being deleted: whole or gone.
    """
    point: Any = "unknown"
    ids = backend.ids()
    for what in said:
        if "length" in what and (what["id"] not in may_go or what["id"] in ids):
            records = backend.log(what["id"]).records
            assert len(records) >= what["length"], f"{what['id']}: {len(records)} records, {what['length']} were acknowledged"
            assert records[what["length"] - 1].digest == what["head"], f"{what['id']}: another record {what['length']}"
        if "gone" in what:
            assert what["gone"] not in ids, f"{what['gone']} came back"
        point = what.get("point", point)
    if point != "unknown":
        loaded = backend.load_resume("a")
        if point is None:
            assert loaded is None, "a resume point came back"
        elif loaded is not None or point < 2:  # the last one may be on its way out
            assert loaded is not None, "an acknowledged resume point is lost"
            assert loaded[0]["n"] >= point, f"resume point {loaded[0]['n']}, {point} was acknowledged"
