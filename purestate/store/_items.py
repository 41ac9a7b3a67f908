"""Items: subtrees at rest, each in a folder named by its hash.

An item is written into a folder of its own name, made durable, then renamed: what has its final name is complete. Every
leaf is checked against its hash when it is read, because Orbax stores no checksum of the data.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from purestate.core._digest import leaf_header
from purestate.core._hash import leaf_bytes, leaf_hash, short
from purestate.errors import CorruptItemError, MissingSnapshotError, StoreError, TreeMismatchError
from purestate.store._described import Description, corrupt, damaged_files, describe_item, missing, must_have_room, suspect
from purestate.store._files import (
    files_below,
    make_folder,
    must_be_inside,
    no_folder,
    read_errors,
    sync_folder,
    unique,
    write_errors,
)
from purestate.store._journal import Journal
from purestate.store._layout import ITEM_META, Layout
from purestate.store._taken import taken
from purestate.store._tensors import LeafMeta, describe, empty, place
from purestate.store._writer import Folder, Order, Write, Writer

__all__ = ["Items", "read_leaves", "unknown_leaf"]

_BYTES_A_JOB = 1 << 30
_BYTES_A_LOOK = 1 << 28
"""How much is read at once to verify an item that nobody wants to have in memory."""

Tree = Mapping[str, torch.Tensor]


class Items:
    """The items of a store."""

    def __init__(self, layout: Layout, writer: Writer) -> None:
        self._layout = layout
        self._writer = writer
        self._sound: set[str] = set()
        """What this process wrote, or read and verified."""
        self._named: set[str] = set()
        """What has a name that is known to be durable."""

    def __iter__(self) -> Iterator[str]:
        """Yield the digests of what is there, in no order."""
        for folder in _folders(self._layout.items, re.compile(r"[0-9a-f]{2}")):
            yield from (path.name for path in _folders(folder, re.compile(rf"{folder.name}[0-9a-f]{{62}}")))

    def has(self, digest: str) -> bool:
        """Return whether an item is there. One look at the disk; its bytes are checked when they are read."""
        return os.path.exists(self._layout.item(digest) / ITEM_META)

    def size(self, digest: str) -> int:
        """Return how many bytes its files have."""
        return sum(size for _, size in files_below(self._layout.item(digest)))

    def describe(self, digest: str, what: str) -> Description:
        """Return what is noted of an item, without reading a tensor."""
        folder = self._layout.item(digest)
        try:
            return describe_item(self._layout.root, folder, digest, what)
        except MissingSnapshotError:
            when = taken(Journal(self._layout).entries()).get(digest)
            raise missing(digest, what, when, path=os.fspath(folder)) from None

    def put(self, items: Mapping[str, Tree]) -> None:
        """Write the items that are not there, or are damaged. See `purestate.store._backend.Backend.put`."""
        for group in _groups({digest: leaves for digest, leaves in items.items() if not self._is_sound(digest)}):
            self._write(group)
            self._sound.update(group)
            self._named.update(group)
        self._sync_names(items.keys() - self._named)

    def get(self, digest: str, names: Iterable[str] | None, what: str) -> dict[str, torch.Tensor]:
        """Read an item, or some of its leaves. See `purestate.store._backend.Backend.get`."""
        sound = digest in self._sound
        self._sound.discard(digest)  # until it has proved so again
        about = self.describe(digest, what)
        wanted = list(about.leaves if names is None else names)
        for name in wanted:
            if name not in about.leaves:
                raise unknown_leaf(name, about.leaves, what)
        leaves = self._read(digest, about, wanted, what)
        for name, leaf in leaves.items():
            if (error := self._difference(digest, about, name, leaf, what)) is not None:
                raise error
        if sound or names is None:
            self._sound.add(digest)
        return leaves

    def faults(self, digest: str, what: str, *, hashed: bool) -> Iterator[StoreError]:
        """Yield what is wrong with an item: that it is missing, and each file and leaf that is damaged.

        Args:
            digest: Which item.
            what: What it is for people.
            hashed: Whether bytes are read; else only what is noted, and the sizes of files.
        """
        self._sound.discard(digest)
        try:
            folder = self._layout.item(digest)
            about = self.describe(digest, what)
            if not about.intact:
                yield corrupt(folder, what, digest, None, "its bytes differ from their digest", file=ITEM_META)
            must_be_inside(folder, self._layout.root)
            for name, reason in damaged_files(folder, about.files, hashed=hashed):
                yield corrupt(folder, what, digest, None, reason, file=name)
            must_have_room(self._layout.root, folder, about.leaves, what, digest, about.files)
            for names in _pieces(about.leaves) if hashed else ():
                yield from self._damaged_leaves(digest, about, names, what)
        except StoreError as error:
            yield error

    def _damaged_leaves(self, digest: str, about: Description, names: list[str], what: str) -> Iterator[CorruptItemError]:
        try:
            leaves = self._read(digest, about, names, what)
        except CorruptItemError as error:
            if len(names) == 1:
                yield error
                return
            for name in names:  # one at a time: the others may be whole
                yield from self._damaged_leaves(digest, about, [name], what)
            return
        for name, leaf in leaves.items():
            if (error := self._difference(digest, about, name, leaf, what)) is not None:
                yield error

    def _read(self, digest: str, about: Description, names: Iterable[str], what: str) -> dict[str, torch.Tensor]:
        metas = {name: about.leaves[name] for name in names}
        return read_leaves(self._layout.root, self._layout.item(digest), metas, what, digest, about.files)

    def _difference(self, digest: str, about: Description, name: str, leaf: torch.Tensor, what: str) -> CorruptItemError | None:
        expected, actual = about.leaves[name].hash, leaf_hash(leaf)
        if actual == expected:
            return None
        folder = self._layout.item(digest)
        reason = f"its hash is {short(actual)}, not {short(expected)}"
        return corrupt(folder, what, digest, name, reason, actual, file=suspect(folder, about.files, reason, leaf))

    def _is_sound(self, digest: str) -> bool:
        """Whether an item is there and whole. A record is going to name it, so bytes that nobody here has seen are read."""
        if not self.has(digest):
            return False
        if digest not in self._sound and next(self.faults(digest, "an item", hashed=True), None) is None:
            self._sound.add(digest)
        return digest in self._sound

    def _sync_names(self, digests: Collection[str]) -> None:
        """Make the names of items durable that another process wrote: it may have been killed before it did so."""
        if not digests:
            return
        with write_errors(self._layout.items, "the name of an item"):
            for folder in {*(self._layout.item(digest).parent for digest in digests), self._layout.items, self._layout.root}:
                sync_folder(folder)
        self._named.update(digests)

    def _write(self, group: dict[str, Tree]) -> None:
        what = f"{len(group)} item{'s' * (len(group) > 1)}"
        folders: list[Folder] = []
        size = 0
        for digest, leaves in group.items():
            metas = {name: describe(name, leaf) for name, leaf in leaves.items()}
            arrays, size = place(metas, size)
            tmp, final = self._layout.items / unique("tmp"), self._layout.item(digest)
            meta = {"format": 1, "leaves": {name: _noted(leaves[name], leaf) for name, leaf in metas.items()}}
            headers = {name: leaf_header(metas[name].dtype, metas[name].shape).decode("ascii") for name, *_ in arrays}
            # one that is there was found damaged; one that another process writes meanwhile is as good as this
            replace = os.path.lexists(final)
            folders.append(Folder(os.fspath(tmp), os.fspath(final), ITEM_META, meta, arrays, headers, digest, replace))

        def fill(write: Write) -> None:
            for folder, leaves in zip(folders, group.values(), strict=True):
                for name, *_, offset in folder.arrays:
                    write(leaf_bytes(leaves[name]), offset)

        parents = list(dict.fromkeys(self._layout.item(digest).parent for digest in group))
        with write_errors(self._layout.items, what):
            for path in parents:
                must_be_inside(path, self._layout.root)
                make_folder(path)
        # `items` too: another process may have made a folder in it just now, and not synced it yet.
        sync = [*parents, self._layout.items, self._layout.root]
        self._writer.submit(Order(self._layout.items, what, folders, size, fill, sync)).result()


def read_leaves(
    root: Path,
    folder: Path,
    metas: Mapping[str, LeafMeta],
    what: str,
    digest: str | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, torch.Tensor]:
    """Return leaves in the order of ``metas``, not yet checked against their hashes.

    Raises:
        CorruptItemError: A leaf cannot be read, or claims more bytes than there are.
        StoreError: The folder leads out of the store.
    """
    from purestate.store._reader import UnreadableLeafError, read_arrays

    must_have_room(root, folder, metas, what, digest, files or {})
    try:
        arrays = read_arrays(folder, {name: meta for name, meta in metas.items() if meta.size})
    except UnreadableLeafError as error:
        file = suspect(folder, files or {}, error.detail)
        raise corrupt(folder, what, digest, error.leaf, str(error), file=file) from None
    return {name: arrays[name] if meta.size else empty(meta) for name, meta in metas.items()}


def unknown_leaf(name: str, known: Iterable[str], what: str) -> TreeMismatchError:
    """Return the error for a leaf that an item does not have."""
    known = sorted(known)
    return TreeMismatchError(
        f"{what[0].upper()}{what[1:]} has no leaf {name!r}.",
        cause=f"It has {', '.join(known[:8])}{', …' * (len(known) > 8)}.",
        path=name,
    )


def _noted(leaf: torch.Tensor, meta: LeafMeta) -> dict[str, Any]:
    """Return what is noted of a leaf. The writer process hashes what it writes, which a leaf without elements is not."""
    return (meta if meta.size else dataclasses.replace(meta, hash=leaf_hash(leaf))).to_json()


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


def _pieces(leaves: Mapping[str, LeafMeta]) -> Iterator[list[str]]:
    """Split the leaves of an item into pieces of bounded memory."""
    piece: list[str] = []
    size = 0
    for name, leaf in leaves.items():
        if piece and size + leaf.size > _BYTES_A_LOOK:
            yield piece
            piece, size = [], 0
        piece.append(name)
        size += leaf.size
    if piece:
        yield piece


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return the folders in a folder whose names are of a kind, without following links."""
    try:
        with read_errors(folder), os.scandir(folder) as entries:
            return [Path(entry) for entry in entries if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise no_folder(folder) from None
