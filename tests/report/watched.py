"""Which files somebody opens, as the kernel tells it: TensorStore opens them without Python knowing."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["opened"]

_IN_OPEN = 0x20
_IN_NONBLOCK = os.O_NONBLOCK


@contextmanager
def opened(folder: Path) -> Iterator[set[str]]:
    """Put the files below a folder that are opened inside of the block into a set, by their path below it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(_IN_NONBLOCK)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    found: set[str] = set()
    try:
        folders = {
            libc.inotify_add_watch(fd, os.fsencode(path), _IN_OPEN): path
            for path in [folder, *folder.rglob("*")]
            if path.is_dir()
        }
        assert min(folders) >= 0, os.strerror(ctypes.get_errno())
        yield found
        for watch, name in _events(fd):
            path = folders[watch] / name
            if name and path.is_file():
                found.add(os.fspath(path.relative_to(folder)))
    finally:
        os.close(fd)


def _events(fd: int) -> Iterator[tuple[int, str]]:
    while True:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, _, _, size = struct.unpack_from("iIII", data, at)
            yield watch, os.fsdecode(data[at + 16 : at + 16 + size].rstrip(b"\0"))
            at += 16 + size
