"""Where the folders are that users name: there, but in processes that run a script once more and leave what is there alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["are_elsewhere", "elsewhere", "placed"]

_moved: list[Callable[[Path], Path]] = []
_stays: list[bool] = []


def placed(path: str | os.PathLike[str], *, store: bool = True) -> Path:
    """Return where a folder is that a user named, as an absolute path.

    Args:
        path: What was named.
        store: Whether it is that of a store.
    """
    folder = Path(path).absolute()
    return _moved[-1](folder) if _moved and (store or not any(_stays)) else folder


def elsewhere(moved: Callable[[Path], Path], *, stores: bool = False) -> None:
    """Put every folder that this process names from now on in another place. For a process that was started for that.

    Args:
        moved: Says where.
        stores: Only those of stores.
    """
    _moved.append(moved)
    _stays.append(stores)


def are_elsewhere() -> bool:
    """Return whether this is such a process."""
    return bool(_moved)
