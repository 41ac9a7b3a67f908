"""What a power cut can leave: states of a disk, derived from the system calls that somebody made.

The model is stricter than any file system in use. A file's bytes and size are durable after its fsync or fdatasync, the
names in a folder after the folder's fsync, and nothing else ever is: a synced file whose folder was not synced has no name.
What is pending may have reached the disk in any combination. A rename within a folder is one change; between folders it is
two, each durable with its own folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.faults.shim import Call

__all__ = ["Disk", "Tree", "states", "write_tree"]

Tree = dict[str, bytes | None]
"""Contents by path below the root; None for a folder."""

SECTOR = 512
_EXCHANGE = 2  # of renameat2


class _File:
    def __init__(self, data: bytes = b"") -> None:
        self.data = data


class _Folder:
    def __init__(self) -> None:
        self.names: dict[str, _Node] = {}


_Node = _File | _Folder


@dataclasses.dataclass(frozen=True, eq=False)
class _Write:
    """Bytes written into a file; ``data`` None cuts or grows it to ``offset``."""

    file: _File
    offset: int
    data: bytes | None


@dataclasses.dataclass(frozen=True, eq=False)
class _Names:
    """Names of a folder that came, changed or went (None) at once."""

    folder: _Folder
    changes: dict[str, _Node | None]


_Change = _Write | _Names


class Disk:
    """What is durable, what is pending, and what processes see.

    Args:
        root: The folder as it was before, all of it durable.
        place: The path of the folder in the calls.
    """

    def __init__(self, root: Path, place: str) -> None:
        self._place = place
        self._root = _load(root)
        self.pending: list[_Change] = []

    def apply(self, call: Call) -> None:
        """Let a call happen."""
        if not call.worked or call.path.endswith(" (deleted)"):
            return
        if call.name in ("open", "mkdir"):
            self._create(call)
        elif call.name in ("write", "ftruncate", "truncate"):
            node = self._find(call.path)
            assert isinstance(node, _File)
            self.pending.append(_Write(node, call.offset, call.data if call.name == "write" else None))
        elif call.name in ("fsync", "fdatasync"):
            self._sync(self._find(call.path))
        elif call.name in ("unlink", "rmdir"):
            folder, name = self._parent(call.path)
            self.pending.append(_Names(folder, {name: None}))
        elif call.name == "rename":
            self._rename(call)
        else:
            raise NotImplementedError(call.name)

    def after(self, changes: Iterable[_Change]) -> Tree:
        """Return what is on the disk if of the pending changes these reached it."""
        files: dict[_File, bytearray] = {}
        folders: dict[_Folder, dict[str, _Node]] = {}
        for change in changes:
            if isinstance(change, _Write):
                _overwrite(files.setdefault(change.file, bytearray(change.file.data)), change)
            else:
                _rename_in(folders.setdefault(change.folder, dict(change.folder.names)), change)
        tree: Tree = {}

        def walk(folder: _Folder, path: str, depth: int) -> None:
            assert depth < 40
            for name, node in folders.get(folder, folder.names).items():
                if isinstance(node, _File):
                    tree[path + name] = bytes(files.get(node, node.data))
                else:
                    tree[path + name] = None
                    walk(node, f"{path}{name}/", depth + 1)

        walk(self._root, "", 0)
        return tree

    def _create(self, call: Call) -> None:
        folder, name = self._parent(call.path)
        there = self._names(folder).get(name)
        if there is not None:  # opened to be emptied
            assert isinstance(there, _File)
            self.pending.append(_Write(there, 0, None))
        else:
            self.pending.append(_Names(folder, {name: _Folder() if call.name == "mkdir" else _File()}))

    def _rename(self, call: Call) -> None:
        before, old = self._parent(call.path)
        after, new = self._parent(call.to)
        node = self._names(before)[old]
        if call.flags & _EXCHANGE:
            other = self._names(after)[new]
            if before is after:
                self.pending.append(_Names(before, {new: node, old: other}))
            else:
                self.pending += [_Names(after, {new: node}), _Names(before, {old: other})]
        elif before is after:
            self.pending.append(_Names(before, {new: node, old: None}))
        else:
            self.pending += [_Names(after, {new: node}), _Names(before, {old: None})]

    def _sync(self, node: _Node) -> None:
        rest: list[_Change] = []
        for change in self.pending:
            if isinstance(change, _Write) and change.file is node:
                data = bytearray(node.data)
                _overwrite(data, change)
                node.data = bytes(data)
            elif isinstance(change, _Names) and change.folder is node:
                _rename_in(node.names, change)
            else:
                rest.append(change)
        self.pending = rest

    def _names(self, folder: _Folder) -> dict[str, _Node]:
        names = dict(folder.names)
        for change in self.pending:
            if isinstance(change, _Names) and change.folder is folder:
                _rename_in(names, change)
        return names

    def _find(self, path: str) -> _Node:
        node: _Node = self._root
        for name in filter(None, path.removeprefix(self._place).split("/")):
            assert isinstance(node, _Folder)
            node = self._names(node)[name]
        return node

    def _parent(self, path: str) -> tuple[_Folder, str]:
        above, _, name = path.rstrip("/").rpartition("/")
        folder = self._find(above)
        assert isinstance(folder, _Folder)
        return folder, name


def states(disk: Disk, calls: Iterable[Call], *, each: bool, draws: int, seed: int) -> Iterator[tuple[int, str, Tree]]:
    """Yield what a power cut can leave after each call, as ``(number of calls, variant, tree)``.

    Args:
        disk: The disk before them. It changes.
        calls: What happened.
        each: Also leave out each single pending change.
        draws: How many random combinations of pending changes, after each call.
        seed: For those.
    """
    generator = random.Random(seed)
    for number, call in enumerate(calls, 1):
        disk.apply(call)
        pending = disk.pending
        names = [change for change in pending if isinstance(change, _Names)]
        writes = [change for change in pending if isinstance(change, _Write)]
        yield number, "nothing", disk.after([])
        yield number, "everything", disk.after(pending)
        yield number, "names", disk.after(names)
        yield number, "names and sizes", disk.after(_zeros(change) for change in pending)
        yield number, "data", disk.after(writes)
        if writes:
            torn = _Write(writes[-1].file, writes[-1].offset, (writes[-1].data or b"")[: len(writes[-1].data or b"") // 2])
            yield number, "last write torn", disk.after(torn if change is writes[-1] else change for change in pending)
        if each:
            for i in range(len(pending)):
                yield number, f"all but {i}", disk.after(pending[:i] + pending[i + 1 :])
        for i in range(draws):
            drawn = [_torn(change, generator) for change in pending if generator.random() < 0.5]
            yield number, f"drawn {i}", disk.after(drawn)


def fingerprint(tree: Tree) -> bytes:
    """Return the same bytes for states that differ in nothing that counts: what a lock file says is for people."""
    told = hashlib.blake2b(digest_size=16)
    for path in sorted(tree):
        data = tree[path]
        content = b"folder" if data is None else b"" if "/locks/" in path else hashlib.blake2b(data).digest()
        told.update(path.encode() + b"\0" + content)
    return told.digest()


def write_tree(tree: Tree, folder: Path) -> None:
    """Write a state into a folder that is not there yet."""
    folder.mkdir()
    for path, data in tree.items():  # a folder comes before what is in it
        if data is None:
            os.mkdir(folder / path)
        else:
            with open(folder / path, "wb", buffering=0) as file:
                file.write(data)


def _load(path: Path) -> _Folder:
    folder = _Folder()
    for entry in os.scandir(path):
        folder.names[entry.name] = _load(Path(entry.path)) if entry.is_dir() else _File(Path(entry.path).read_bytes())
    return folder


def _overwrite(data: bytearray, change: _Write) -> None:
    if change.data is None:
        del data[change.offset :]
        data.extend(bytes(change.offset - len(data)))
    else:
        data.extend(bytes(max(change.offset - len(data), 0)))
        data[change.offset : change.offset + len(change.data)] = change.data


def _rename_in(names: dict[str, _Node], change: _Names) -> None:
    for name, node in change.changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _zeros(change: _Change) -> _Change:
    return _Write(change.file, change.offset, bytes(len(change.data))) if isinstance(change, _Write) and change.data else change


def _torn(change: _Change, generator: random.Random) -> _Change:
    """Cut some writes at the end of a sector, or in the middle of a short one."""
    if not isinstance(change, _Write) or not change.data or generator.random() < 0.75:
        return change
    sectors = len(change.data) // SECTOR
    end = generator.randrange(1, sectors + 1) * SECTOR if sectors else len(change.data) // 2
    return _Write(change.file, change.offset, change.data[:end])
