"""Every name, suffix and version on disk, in one place. `README.md` beside this file describes the format to the byte.

Pure: paths come in and go out, nothing is opened here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeGuard

from purestate.errors import InvalidIdError

__all__ = [
    "FORMAT_FILE",
    "FORMAT_VERSION",
    "ITEM_META",
    "RESUME_META",
    "Layout",
    "check_id",
    "escape",
    "is_id",
]

FORMAT_VERSION = 1
FORMAT_FILE = "format.json"
ITEM_META = "purestate.json"
"""Beside Orbax's files in an item: name, dtype, shape and hash of each leaf."""
RESUME_META = "point.json"

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_UNSAFE = re.compile(rb"[^A-Za-z0-9_.-]")


class Layout:
    """Where everything of the store at ``root`` lies.

    Args:
        root: Its folder.
        anonymous: Whether what is written says nothing of who writes it and where.

    Example:
        >>> Layout(Path("runs")).log("adam").as_posix()
        'runs/checkpoints/adam/log.jsonl'
    """

    def __init__(self, root: Path, *, anonymous: bool = False) -> None:
        self.root, self.anonymous = root, anonymous
        self.format = root / FORMAT_FILE
        self.items = root / "items"
        self.checkpoints = root / "checkpoints"
        self.journal = root / "journal.jsonl"
        self.locks = root / "locks"
        self.trash = root / "trash"
        self.store_lock = self.locks / "store"
        self.journal_lock = self.locks / "journal"

    def item(self, digest: str) -> Path:
        """Return the folder of an item.

        Raises:
            InvalidIdError: ``digest`` is no digest, and must not become a path.
        """
        if not _DIGEST.fullmatch(digest):
            raise InvalidIdError(f"{digest!r} cannot name an item: expected 64 hexadecimal digits.", id=digest)
        return self.items / digest[:2] / digest

    def checkpoint(self, id: str) -> Path:
        """Return the folder of a checkpoint."""
        return self.checkpoints / id

    def log(self, id: str) -> Path:
        """Return the log of a checkpoint."""
        return self.checkpoints / id / "log.jsonl"

    def resume(self, id: str) -> Path:
        """Return the folder that holds the generations of a checkpoint's resume point."""
        return self.checkpoints / id / "resume"

    def generation(self, id: str, number: int) -> Path:
        """Return the folder of one generation of a resume point."""
        return self.resume(id) / f"{number:08d}"

    def checkpoint_lock(self, id: str) -> Path:
        """Return the lock of a checkpoint. It lies outside of its folder, which may be deleted and made again."""
        return self.locks / f"checkpoint.{id}"


def is_id(id: object) -> TypeGuard[str]:
    """Return whether ``id`` can name a checkpoint."""
    return isinstance(id, str) and _ID.fullmatch(id) is not None


def check_id(id: object) -> str:
    """Return ``id`` if it can name a checkpoint.

    Raises:
        InvalidIdError: It has other characters than letters, digits, ``.``, ``_`` and ``-``, starts with a dot, is empty
            or has more than 128 characters.

    Example:
        >>> check_id("adam-lr_0.01")
        'adam-lr_0.01'
    """
    if is_id(id):
        return id
    raise InvalidIdError(
        f"{id!r} cannot name a checkpoint.",
        cause="An id has 1 to 128 letters, digits, '.', '_' or '-', and does not start with a dot: it names a folder.",
        fix="Choose another id; a description may hold any text.",
        id=id,
    )


def escape(name: str) -> str:
    """Return the key under which Orbax keeps a leaf: each byte outside of ``[A-Za-z0-9_.-]`` as ``%XX``.

    Names that consist of dots, which Orbax and file systems read as folders, have their dots escaped, and the empty name
    is ``%``.

    Example:
        >>> escape("layers.0/weight"), escape(".."), escape("")
        ('layers.0%2Fweight', '%2E%2E', '%')
    """
    data = name.encode("utf-8", "surrogatepass")
    if not data.strip(b"."):
        return "%2E" * len(data) or "%"
    return _UNSAFE.sub(lambda match: b"%%%02X" % match.group()[0], data).decode("ascii")
