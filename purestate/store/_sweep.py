"""What lies about in the folder of a store, and the removal of it.

That is what killed writers left, what no store put there, and items that no record names.
Nothing is removed in place: it goes to ``trash/`` in one step, so that a kill leaves it there whole, or gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purestate.errors import StoreError
from purestate.store._files import (
    files_below,
    make_folder,
    must_be_inside,
    read_errors,
    read_file,
    sync_folder,
    unique,
    write_errors,
)
from purestate.store._layout import ITEM_META, RESUME_META, Layout, is_id
from purestate.store._record import unseal
from purestate.store._report import Finding

__all__ = [
    "Emptied",
    "Leftover",
    "empty_trash",
    "leftovers",
    "must_know_every_log",
    "points",
    "size_of",
    "strays",
    "throw_away",
    "trash",
]

_TMP = re.compile(r"tmp-[0-9a-f]{24}")
_TORN = re.compile(r"torn-[0-9a-f]{24}")
_HEX2 = re.compile(r"[0-9a-f]{2}")
_NUMBER = re.compile(r"[0-9]+")
_KNOWN = {"format.json", "items", "checkpoints", "journal.jsonl", "locks", "trash"}


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a process left that was killed, or is writing now."""

    path: Path
    what: str
    id: str | None
    """The checkpoint whose lock its writer holds; None for the lock of the store."""


@dataclass(frozen=True, slots=True)
class Emptied:
    """What became of the trash."""

    gone: tuple[str, ...]
    """The names of what is no longer there."""
    left: tuple[str, ...]
    """The names of those that could not be removed, or not whole."""
    bytes: int
    """How many bytes are free again."""


def leftovers(layout: Layout) -> Iterator[Leftover]:
    """Yield what killed writers left, except for the trash."""
    for folder in (layout.root, layout.items):
        for name in _names(folder, _TMP):
            yield Leftover(folder / name, "was being written when its writer was killed, or is just now", None)
    for id in filter(is_id, _names(layout.checkpoints)):
        for folder in (layout.checkpoint(id), layout.resume(id)):
            for name in _names(folder, _TMP):
                yield Leftover(folder / name, "was being written when its writer was killed, or is just now", id)


def points(layout: Layout, id: str) -> list[Mapping[str, Any]]:
    """Return the bodies of the resume points of a checkpoint that can be read, without their tensors."""
    bodies: list[Mapping[str, Any]] = []
    for name in _names(layout.resume(id), _NUMBER):
        with contextlib.suppress(StoreError, OSError):
            point = unseal(read_file(layout.resume(id) / name / RESUME_META, layout.root).removesuffix(b"\n"))
            if point is not None and isinstance(point.get("body"), dict):
                bodies.append(point["body"])
    return bodies


def strays(layout: Layout, named: Collection[str] | None) -> Iterator[Finding]:
    """Yield what is in the folder of a store and does no harm.

    Args:
        layout: The store's.
        named: The items that records name; None if that is not known, since a log is damaged.
    """
    for leftover in leftovers(layout):
        yield Finding("rubbish", _below(layout, leftover.path), leftover.what, "store.repair() removes it.")
    for name in trash(layout):
        yield Finding("rubbish", f"trash/{name}", "was being removed when its remover was killed, or is just now", _REPAIR)
    for path in _foreign(layout):
        remedy = "Nothing of purestate reads or removes it. Move it out of the store."
        yield Finding("foreign", _below(layout, path), "is not part of a store", remedy)
    for digest in _items(layout):
        if named is not None and digest not in named:
            what = "no record names it: its checkpoint was deleted, or its writer was killed or is about to append"
            yield Finding("rubbish", f"items/{digest[:2]}/{digest}", what, "store.gc() removes it.")


_REPAIR = "store.repair() removes the rest."


def must_know_every_log(layout: Layout) -> None:
    """Refuse to say what is named where a folder that cannot be a checkpoint has a log.

    Raises:
        StoreError: There is one.
    """
    for name in _names(layout.checkpoints):
        if not is_id(name) and os.path.lexists(layout.checkpoints / name / "log.jsonl"):
            path = os.fspath(layout.checkpoints / name)
            raise StoreError(
                f"There is a log in {path!r}, and {name!r} cannot name a checkpoint.",
                cause="It may be a copy that somebody made by hand; the items that its records name would be removed.",
                fix="Give it a name of letters, digits, '.', '_' and '-', or move it out of the store.",
                path=path,
            )


def throw_away(layout: Layout, paths: Collection[Path]) -> None:
    """Move files or folders to the trash, each in one step, durably.

    Raises:
        StoreWriteError: One cannot be moved; those before it are.
        StoreError: A symbolic link leads out of the store.
    """
    for path in paths:
        away = layout.trash / unique(path.name[:100])
        with write_errors(path, "a removal"):
            make_folder(away.parent)
            must_be_inside(away, layout.root)
            must_be_inside(path.parent, layout.root)
            path.rename(away)
    for parent in {path.parent for path in paths}:
        with write_errors(parent, "a removal"):
            sync_folder(parent)


def trash(layout: Layout) -> list[str]:
    """Return the names of what is in the trash."""
    return _names(layout.trash)


def empty_trash(layout: Layout) -> Emptied:
    """Remove what is in the trash, as far as the system lets us. Another process may be doing the same."""
    gone, left = list[str](), list[str]()
    freed = 0
    if os.path.lexists(layout.trash):
        must_be_inside(layout.trash / "x", layout.root)
    for name in trash(layout):
        path = layout.trash / name
        before = size_of(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
        stays = os.path.lexists(path)
        (left if stays else gone).append(name)
        freed += before - (size_of(path) if stays else 0)
    return Emptied(tuple(gone), tuple(left), freed)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder, as far as they can be seen."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        return sum(size for _, size in files_below(path))
    return 0


def _foreign(layout: Layout) -> Iterator[Path]:
    root = layout.root
    yield from (root / name for name in _names(root) if name not in _KNOWN and not _TMP.fullmatch(name))
    for name in _names(layout.items):
        if _HEX2.fullmatch(name):
            folder = layout.items / name
            yield from (folder / item for item in _names(folder) if not re.fullmatch(rf"{name}[0-9a-f]{{62}}", item))
        elif not _TMP.fullmatch(name):
            yield layout.items / name
    for id in _names(layout.checkpoints):
        folder = layout.checkpoint(id)
        if not is_id(id) or not os.path.lexists(layout.log(id)):
            yield folder
            continue
        kinds = (_TMP, _TORN, re.compile(r"log\.jsonl|resume"))
        yield from (folder / name for name in _names(folder) if not any(kind.fullmatch(name) for kind in kinds))
        points = layout.resume(id)
        yield from (points / name for name in _names(points) if not _TMP.fullmatch(name) and not _NUMBER.fullmatch(name))


def _items(layout: Layout) -> Iterator[str]:
    for name in _names(layout.items, _HEX2):
        yield from (digest for digest in _names(layout.items / name) if os.path.lexists(layout.items / name / digest / ITEM_META))


def _names(folder: Path, pattern: re.Pattern[str] | None = None) -> list[str]:
    """Return the names in a folder, sorted; nothing if it is none, or leads elsewhere."""
    if folder.is_symlink():
        return []
    try:
        with read_errors(folder):
            names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if pattern is None or pattern.fullmatch(name)]


def _below(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()
