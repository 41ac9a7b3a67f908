"""Where the folders are that users name: there, but in the processes of `verify_resume`, which leave what is there alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["are_elsewhere", "elsewhere", "placed"]

_moved: list[Callable[[Path], Path]] = []


def placed(path: str | os.PathLike[str]) -> Path:
    """Return where a folder is that a user named, as an absolute path."""
    folder = Path(path).absolute()
    return _moved[-1](folder) if _moved else folder


def elsewhere(moved: Callable[[Path], Path]) -> None:
    """Put every folder that this process names from now on in another place. For a process that was started for that."""
    _moved.append(moved)


def are_elsewhere() -> bool:
    """Return whether this is such a process."""
    return bool(_moved)
