"""What the file beside an item says of it, whether the folder can hold that, and which of its files is damaged.

A description may come from a stranger. The names and hashes in it are what the item's own name was computed from; shapes and
dtypes are believed as far as the folder has the bytes for them, before anything of that size is asked of the memory.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from purestate.core._hash import leaf_bytes, short, tree_hash
from purestate.errors import CorruptItemError, MissingSnapshotError
from purestate.store._files import files_below, must_be_inside, open_file, read_file
from purestate.store._layout import ITEM_META
from purestate.store._record import unseal
from purestate.store._tensors import LeafMeta

__all__ = ["Description", "corrupt", "damaged_files", "describe_item", "missing", "must_have_room", "suspect"]

_UNSEALED = b'{"format":1,"leaves":'
"""How descriptions begin that were written before they had a digest."""

_INLINE = 1 << 10
"""Leaves of so few bytes may be packed in the nodes of Orbax's tree, so the files can be smaller than they are together."""

_SHORTEST_NEEDLE, _LONGEST_NEEDLE = 16, 1 << 16
"""How many bytes of a leaf, which is stored as it is, are looked for in the files."""


@dataclass(frozen=True, slots=True)
class Description:
    """What ``purestate.json`` says of an item."""

    leaves: dict[str, LeafMeta]
    """By name."""
    files: dict[str, dict[str, Any]]
    """Size, and of small ones the hash, of Orbax's files; nothing where that is not known to be what was noted."""
    intact: bool
    """Whether every byte is as it was written. The leaves are in any case: the item is named by them."""


def describe_item(root: Path, folder: Path, digest: str, what: str) -> Description:
    """Return what is noted of an item, once its leaves are found to be those that the item is named by.

    Raises:
        MissingSnapshotError: There is no such folder.
        CorruptItemError: It is noted in another way than a store does.
        StoreError: A symbolic link leads out of the store.
    """
    try:
        data = read_file(folder / ITEM_META, root)
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir():
            raise corrupt(folder, what, digest, None, "the file is missing", file=ITEM_META) from None
        raise missing(digest, what, path=os.fspath(folder)) from None
    try:
        intact = data.startswith(_UNSEALED) or unseal(data.removesuffix(b"\n")) is not None
        found = json.loads(data)
        leaves = {name: LeafMeta.from_json(fields) for name, fields in found["leaves"].items()}
        files = {name: _file(fields) for name, fields in found.get("files", {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise corrupt(folder, what, digest, None, f"it is not readable ({_said(error)})", file=ITEM_META) from None
    if (actual := tree_hash({name: meta.hash for name, meta in leaves.items()})) != digest:
        reason = f"its leaves hash to {short(actual)}, not {short(digest)}"
        raise corrupt(folder, what, digest, None, reason, actual, file=ITEM_META)
    return Description(leaves, files if intact else {}, intact)


def must_have_room(
    root: Path,
    folder: Path,
    leaves: Mapping[str, LeafMeta],
    what: str,
    digest: str | None,
    files: Mapping[str, Mapping[str, Any]],
) -> None:
    """Refuse leaves that claim more bytes than the files of their folder have: they are stored uncompressed.

    Raises:
        CorruptItemError: They do.
        StoreError: Something in the folder is no plain file, or the folder is not in the store.
    """
    must_be_inside(folder, root)
    there = sum(size for _, size in files_below(folder))
    claimed = sum(leaf.size for leaf in leaves.values() if leaf.size > _INLINE)
    if claimed > there:
        reason = f"{claimed} bytes are noted, and the folder has {there}"
        largest = max(leaves, key=lambda name: leaves[name].size)
        raise corrupt(folder, what, digest, largest, reason, file=suspect(folder, files, reason))


def damaged_files(folder: Path, files: Mapping[str, Mapping[str, Any]], *, hashed: bool) -> Iterator[tuple[str, str]]:
    """Yield ``(file, what is wrong)`` of each file that is not as it was noted.

    Args:
        folder: Of the item.
        files: What was noted of them.
        hashed: Whether small ones are hashed.
    """
    there = dict(files_below(folder))
    for name, noted in files.items():
        if name not in there:
            yield name, "it is missing"
        elif there[name] != noted["size"]:
            yield name, f"it has {there[name]} bytes, not {noted['size']}"
        elif hashed and "hash" in noted and blake3(read_file(folder / name, folder)).hexdigest() != noted["hash"]:
            yield name, "its bytes differ from their hash"


def suspect(folder: Path, files: Mapping[str, Mapping[str, Any]], reason: str, leaf: torch.Tensor | None = None) -> str | None:
    """Return which file of a folder is damaged, or holds a leaf that is, as far as that can be told.

    Args:
        folder: Of an item or a resume point.
        files: What was noted of its files, if it was.
        reason: What the reader said, which may name one.
        leaf: The damaged leaf, as it was read.
    """
    with_names = [name for name, _ in damaged_files(folder, files, hashed=True)]
    with_names += [name for name in re.findall(rf'"{re.escape(os.fspath(folder))}/([^"]+)"', reason) if (folder / name).is_file()]
    if with_names:
        return with_names[0]
    needle = b"" if leaf is None else bytes(leaf_bytes(leaf)[:_LONGEST_NEEDLE])
    return _holder(folder, needle) if len(needle) >= _SHORTEST_NEEDLE else None


def corrupt(
    folder: Path,
    what: str,
    digest: str | None,
    leaf: str | None,
    reason: str,
    actual: str | None = None,
    *,
    file: str | None = None,
) -> CorruptItemError:
    """Return the error for bytes that are not what they were."""
    place = f"leaf {leaf!r}" if leaf is not None else "the description of its leaves" if file in (None, ITEM_META) else "a file"
    shown = f" (file {file!r})" if file is not None else ""
    return CorruptItemError(
        f"{what[0].upper()}{what[1:]} is damaged at {place}{shown}: {reason}.",
        cause=f"A file under {os.fspath(folder)!r} was changed, or the disk returned other bytes than were written.",
        fix="Put back a copy of that folder; or void the record with ck.reset(op), and the next run computes it again and "
        "writes it anew.",
        path=os.fspath(folder),
        leaf=leaf,
        file=file,
        digest=digest,
        actual=actual,
    )


def missing(digest: str, what: str, when: str | None = None, *, path: str | None = None) -> MissingSnapshotError:
    """Return the error for an item that is not there.

    Args:
        digest: Which item.
        what: The same for people.
        when: When a collection removed it, if one did.
        path: Where it would be.
    """
    cause = f"store.gc() removed it at {when}: no record named it then, or only voided ones."
    if when is None:
        cause = "Its bytes were deleted, or the store was copied without them" + (f": {path!r}." if path else ".")
    return MissingSnapshotError(
        f"{what[0].upper()}{what[1:]} is not in the store: there is no item {short(digest)}.",
        cause=cause,
        fix="Copy it back, or void the record with ck.reset(op), and the next run computes it again.",
        path=path,
        digest=digest,
    )


def _file(fields: Any) -> dict[str, Any]:
    if type(fields["size"]) is not int or type(fields.get("hash", "")) is not str:
        raise ValueError("there is a file that is none")
    return fields


def _said(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _holder(folder: Path, needle: bytes) -> str | None:
    """Return the file that holds some bytes."""
    for name, size in files_below(folder):
        if size >= len(needle):
            fd = open_file(folder / name, folder)
            try:
                with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as data:
                    if data.find(needle) >= 0:
                        return name
            finally:
                os.close(fd)
    return None
