"""Making files and folders durable, and turning what the system refuses into a `StoreWriteError`."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator
from pathlib import Path

from purestate.errors import StoreWriteError

__all__ = ["append_line", "make_folder", "sync_folder", "unique", "write_error", "write_file", "writing"]

_ADVICE = {
    errno.ENOSPC: "The disk is full. Free some space and run the script again: what was recorded is intact.",
    errno.EDQUOT: "The quota is used up. Free some space and run the script again: what was recorded is intact.",
    errno.EFBIG: "The file would exceed the limit of the process (ulimit -f). Raise it and run the script again.",
    errno.EROFS: "The file system is mounted read-only. Open the store only to read, or give another folder.",
    errno.EACCES: "This user may not write there. Change the folder's mode, or give another folder.",
    errno.EPERM: "This user may not write there. Change the folder's mode, or give another folder.",
    errno.ENOTDIR: "There is a file where a folder should be. Move it, or give another folder.",
    errno.EEXIST: "There is a file where a folder should be. Move it, or give another folder.",
}

_AGAIN = "Run the script again: what was recorded before is intact."


@contextlib.contextmanager
def writing(path: Path, what: str) -> Generator[None, None, None]:
    """Raise `StoreWriteError` in place of an `OSError` of the block.

    Args:
        path: What is written.
        what: The same for people, as in ``"a record of checkpoint 'adam'"``.
    """
    try:
        yield
    except StoreWriteError:
        raise
    except OSError as error:
        raise write_error(path, what, f"{type(error).__name__}: {error}.", error.errno) from error


def write_error(path: Path, what: str, cause: str, code: int | None) -> StoreWriteError:
    """Return the error for a failed write, with the way out if the system's error number tells it."""
    if code is None:  # TensorStore reports the system's errors as texts
        code = next((number for number in _ADVICE if os.strerror(number) in cause), None)
    place = os.fspath(path)
    error = StoreWriteError(f"Cannot write {what} at {place!r}.", cause=cause, fix=_ADVICE.get(code or 0, _AGAIN), path=place)
    error.errno = code
    return error


def unique(stem: str) -> str:
    """Return a name that no other process uses, such as ``tmp-1b9d…``."""
    return f"{stem}-{os.urandom(12).hex()}"


def sync_folder(path: Path) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Create a folder and what is missing above it, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
    sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Create or replace a file, durably: a reader sees the old bytes or the new ones."""
    tmp = path.with_name(unique("tmp"))
    try:
        with open(tmp, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: bytes, at: int) -> None:
    """Write ``line`` at the end of a file, which is at byte ``at``, durably, or leave the file as it was.

    Raises:
        OSError: The write or the sync failed. It is not tried again: after a failed sync the system may report success
            for bytes that are lost.
    """
    fresh = not path.exists()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        done = 0
        while done < len(line):
            done += os.pwrite(fd, line[done:], at + done)
        os.fdatasync(fd)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more; a torn line is cut off by the next writer
            os.ftruncate(fd, at)
        raise
    finally:
        os.close(fd)
    if fresh:
        sync_folder(path.parent)
        sync_folder(path.parent.parent)  # a process that was killed may have made the folder and not synced it
