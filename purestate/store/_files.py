"""Making files and folders durable, and turning what the system refuses into a `StoreWriteError`."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from purestate.errors import StoreError, StoreWriteError

__all__ = [
    "append_line",
    "files_below",
    "make_folder",
    "must_be_inside",
    "no_folder",
    "open_file",
    "outside",
    "read_errors",
    "read_file",
    "sync_folder",
    "unique",
    "write_error",
    "write_errors",
    "write_file",
]

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

_READ_ADVICE = {
    errno.EACCES: "This user may not read it. Change its mode, or ask whose it is.",
    errno.EPERM: "This user may not read it. Change its mode, or ask whose it is.",
    errno.EMFILE: "This process has too many files open. Close some, or raise the limit (ulimit -n).",
}

_AGAIN = "Run the script again: what was recorded before is intact."


def must_be_inside(path: Path, root: Path) -> None:
    """Refuse a path of a store that a symbolic link leads out of it: the folder may come from a stranger.

    Raises:
        StoreError: It leads somewhere else.
    """
    if not os.path.join(os.path.realpath(path), "").startswith(os.path.join(os.path.realpath(root), "")):
        raise outside(path)


def outside(path: Path) -> StoreError:
    """Return the error for something in a store that is no plain file or folder of it."""
    place = os.fspath(path)
    return StoreError(
        f"{place!r} is a symbolic link out of the store, or no plain file.",
        cause="A store holds plain files and folders; whoever made this one wants something else to be read or written.",
        fix="Look at where it leads, and remove it or put a copy of the file in its place.",
        path=place,
    )


def open_file(path: Path, root: Path) -> int:
    """Open a plain file of a store to read it, and return the descriptor.

    Raises:
        FileNotFoundError, NotADirectoryError: It is not there.
        StoreError: It cannot be opened, is no plain file, or lies outside of the store.
    """
    try:
        with read_errors(path):
            # without O_NONBLOCK a pipe of that name would keep us waiting for ever
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except StoreError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise outside(path) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise outside(path)
        must_be_inside(path, root)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_file(path: Path, root: Path, most: int = -1) -> bytes:
    """Return the bytes of a plain file of a store, at most so many of them. Raises what `open_file` raises."""
    with open(open_file(path, root), "rb") as file, read_errors(path):
        return file.read(most)


def files_below(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield ``(path below folder, size)`` of each file.

    Raises:
        StoreError: Something there is neither a plain file nor a folder.
    """
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(Path(entry.path))
                elif stat.S_ISREG(status.st_mode):
                    yield os.path.relpath(entry.path, folder), status.st_size
                else:
                    raise outside(Path(entry.path))


@contextlib.contextmanager
def read_errors(path: Path) -> Generator[None, None, None]:
    """Raise `StoreError` in place of an `OSError` of the block, unless it says that there is no such file."""
    try:
        yield
    except (StoreError, FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        place = os.fspath(path)
        said = StoreError(
            f"Cannot read {place!r}.",
            cause=f"{type(error).__name__}: {error}.",
            fix=_READ_ADVICE.get(error.errno or 0, "Look after the disk. The file may be whole: nothing was changed."),
            path=place,
        )
        said.errno = error.errno
        raise said from error


def no_folder(path: Path) -> StoreError:
    """The error for something else where a store has a folder."""
    place = os.fspath(path)
    return StoreError(f"Expected a folder, got {place!r}, which is none.", fix="Move it out of the store.", path=place)


@contextlib.contextmanager
def write_errors(path: Path, what: str) -> Generator[None, None, None]:
    """Raise `StoreWriteError` in place of an `OSError` of the block.

    Args:
        path: What is written.
        what: The same for people, as in ``"a record of checkpoint 'adam'"``.
    """
    try:
        yield
    except StoreError:  # says what is wrong already
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


def append_line(path: Path, line: bytes, at: int, names: Iterable[Path], *, durable: bool = True) -> None:
    """Write ``line`` at the end of a file, which is at byte ``at``, durably, or leave the file as it was.

    Args:
        path: The file. It is created if it is not there and ``at`` is 0.
        line: What to write.
        at: Where it ends.
        names: Folders of which the entries are made durable first, unless this process did so already. That the names are
            there does not say it: who made them may have been killed before the sync.
        durable: Whether to wait for the disk.

    Raises:
        OSError: The write or the sync failed. It is not tried again: after a failed sync the system may report success
            for bytes that are lost.
    """
    create = 0 if at else os.O_CREAT  # one that somebody removed meanwhile must not come back with a hole
    fd = os.open(path, os.O_WRONLY | create | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        for folder in names:
            sync_folder(folder)
        done = 0
        while done < len(line):
            done += os.pwrite(fd, line[done:], at + done)
        if durable:
            os.fdatasync(fd)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more; a torn line is cut off by the next writer
            os.ftruncate(fd, at)
        raise
    finally:
        os.close(fd)
