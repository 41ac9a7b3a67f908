"""Items: subtrees at rest, each in a folder named by its hash.

An item is written into a folder of its own name, made durable, then renamed: what has its final name is complete. Every
leaf is checked against its hash when it is read, because Orbax stores no checksum of the data.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from purestate.core._hash import leaf_hash, short, tree_hash
from purestate.errors import CorruptItemError, MissingSnapshotError, MutatedStateError, TreeMismatchError
from purestate.store._files import make_folder, unique, writing
from purestate.store._layout import ITEM_META, Layout
from purestate.store._tensors import LeafMeta, copy_bytes, describe, empty, from_bytes, place
from purestate.store._writer import Folder, Order, Writer

__all__ = ["Items", "corrupt", "read_leaves", "unknown_leaf"]

_BYTES_A_JOB = 1 << 30

Tree = Mapping[str, torch.Tensor]


class Items:
    """The items of a store."""

    def __init__(self, layout: Layout, writer: Writer) -> None:
        self._layout = layout
        self._writer = writer

    def has(self, digest: str) -> bool:
        """Return whether an item is there. One look at the disk; its bytes are checked when they are read."""
        return os.path.exists(self._layout.item(digest) / ITEM_META)

    def put(self, items: Mapping[str, Tree]) -> None:
        """Write the items that are not there. See `purestate.store._backend.Backend.put`."""
        missing = {digest: leaves for digest, leaves in items.items() if not self.has(digest)}
        for group in _groups(missing):
            self._write(group)

    def get(self, digest: str, names: Iterable[str] | None, what: str) -> dict[str, torch.Tensor]:
        """Read an item, or some of its leaves. See `purestate.store._backend.Backend.get`."""
        folder = self._layout.item(digest)
        metas = _read_metas(folder, digest, what)
        wanted = list(metas if names is None else names)
        for name in wanted:
            if name not in metas:
                raise unknown_leaf(name, metas, what)
        leaves = read_leaves(folder, {name: metas[name] for name in wanted}, what, digest)
        for name, leaf in leaves.items():
            if (actual := leaf_hash(leaf)) != metas[name].hash:
                raise corrupt(folder, what, digest, name, f"its hash is {short(actual)}, not {short(metas[name].hash)}", actual)
        return leaves

    def _write(self, group: dict[str, Tree]) -> None:
        what = f"{len(group)} item{'s' * (len(group) > 1)}"
        folders: list[Folder] = []
        size = 0
        for digest, leaves in group.items():
            metas = {name: describe(name, leaf) for name, leaf in leaves.items()}
            arrays, size = place(metas, size)
            tmp, final = self._layout.items / unique("tmp"), self._layout.item(digest)
            folders.append(Folder(os.fspath(tmp), os.fspath(final), ITEM_META, {"format": 1, "leaves": {}}, False, arrays))

        def fill(memory: memoryview) -> None:
            for folder, (digest, leaves) in zip(folders, group.items(), strict=True):
                folder.meta["leaves"] = _copy(memory, folder, leaves, digest)

        parents = list(dict.fromkeys(self._layout.item(digest).parent for digest in group))
        with writing(self._layout.items, what):
            for path in parents:
                make_folder(path)
        # `items` too: another process may have made a folder in it just now, and not synced it yet.
        sync = [*parents, self._layout.items]
        self._writer.submit(Order(self._layout.items, what, folders, size, fill, sync)).result()


def read_leaves(folder: Path, metas: Mapping[str, LeafMeta], what: str, digest: str | None = None) -> dict[str, torch.Tensor]:
    """Return leaves in the order of ``metas``, not yet checked against their hashes."""
    from purestate.store._reader import UnreadableLeafError, read_arrays

    try:
        arrays = read_arrays(folder, {name: meta for name, meta in metas.items() if meta.size})
    except UnreadableLeafError as error:
        raise corrupt(folder, what, digest, error.leaf, str(error)) from None
    return {name: arrays[name] if meta.size else empty(meta) for name, meta in metas.items()}


def corrupt(
    folder: Path, what: str, digest: str | None, leaf: str | None, reason: str, actual: str | None = None
) -> CorruptItemError:
    """Return the error for bytes that are not what they were."""
    place = f"leaf {leaf!r}" if leaf is not None else "the description of its leaves"
    return CorruptItemError(
        f"{what[0].upper()}{what[1:]} is damaged at {place}: {reason}.",
        cause=f"A file under {os.fspath(folder)!r} was changed, or the disk returned other bytes than were written.",
        fix="Put back a copy of that folder; or remove it, and the next run that needs it computes it again.",
        path=os.fspath(folder),
        leaf=leaf,
        digest=digest,
        actual=actual,
    )


def unknown_leaf(name: str, known: Iterable[str], what: str) -> TreeMismatchError:
    """Return the error for a leaf that an item does not have."""
    known = sorted(known)
    return TreeMismatchError(
        f"{what[0].upper()}{what[1:]} has no leaf {name!r}.",
        cause=f"It has {', '.join(known[:8])}{', …' * (len(known) > 8)}.",
        path=name,
    )


def _copy(memory: memoryview, folder: Folder, leaves: Tree, digest: str) -> dict[str, dict[str, Any]]:
    """Copy the leaves of an item to where the writer reads them, and return what is noted of each.

    What is hashed is the copy: a leaf that is changed meanwhile cannot be stored under another content's name.
    """
    offsets = {name: at for name, *_, at in folder.arrays}
    metas: dict[str, LeafMeta] = {}
    for name, leaf in leaves.items():
        meta = describe(name, leaf)
        if name in offsets:
            copy_bytes(leaf, memory, offsets[name])
            leaf = from_bytes(memory, offsets[name], meta)
        metas[name] = dataclasses.replace(meta, hash=leaf_hash(leaf))
    if (actual := tree_hash({name: meta.hash for name, meta in metas.items()})) != digest:
        raise MutatedStateError(
            f"Expected leaves that hash to {short(digest)}, got {short(actual)}: they changed after they were hashed.",
            cause="A tensor of a state was modified in place, perhaps through .data, a numpy view or the module it came from.",
            fix="Call state.verify() to see which.",
        )
    return {name: dataclasses.asdict(meta) for name, meta in metas.items()}


def _groups(items: dict[str, Tree]) -> Iterator[dict[str, Tree]]:
    """Split items into jobs of bounded memory. Together they are written faster than one after the other."""
    group: dict[str, Tree] = {}
    size = 0
    for digest, leaves in items.items():
        more = sum(leaf.numel() * leaf.element_size() for leaf in leaves.values())
        if group and size + more > _BYTES_A_JOB:
            yield group
            group, size = {}, 0
        group[digest] = leaves
        size += more
    if group:
        yield group


def _read_metas(folder: Path, digest: str, what: str) -> dict[str, LeafMeta]:
    try:
        data = (folder / ITEM_META).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingSnapshotError(
            f"{what[0].upper()}{what[1:]} is not in the store: there is no item {short(digest)}.",
            cause=f"Its bytes were deleted, or the store was copied without {os.fspath(folder)!r}.",
            fix="Copy that folder back, or void the record, and the next run computes it again.",
            path=os.fspath(folder),
            digest=digest,
        ) from None
    try:
        metas = {name: LeafMeta.from_json(fields) for name, fields in json.loads(data)["leaves"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise corrupt(folder, what, digest, None, f"it is not readable ({error})") from None
    if (actual := tree_hash({name: meta.hash for name, meta in metas.items()})) != digest:
        raise corrupt(folder, what, digest, None, f"its leaves hash to {short(actual)}, not {short(digest)}", actual)
    return metas
