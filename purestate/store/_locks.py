"""Locks between processes: ``flock`` on files that are never removed, freed by the kernel however a process ends.

Not between machines: network file systems are outside of the guarantee.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Generator
from pathlib import Path

from purestate.errors import StoreLockedError
from purestate.store._files import make_folder, outside, write_errors
from purestate.store._who import host

__all__ = ["FileLock"]

_SHORTEST_WAIT, _LONGEST_WAIT = 0.002, 0.05


class FileLock:
    """A lock on a file, exclusive or shared, between processes, threads and objects.

    It is re-entrant: the thread that holds it (for a shared lock: any thread) takes it again at once.

    Args:
        path: The lock file, created when it is first taken.
        what: What is locked, for people, as in ``"checkpoint 'adam'"``.
        shared: Others may hold it shared at the same time.
        anonymous: The holder does not write its host name into it.
    """

    def __init__(self, path: Path, what: str, *, shared: bool = False, anonymous: bool = False) -> None:
        self._path, self._anonymous = path, anonymous
        self._what = what
        self._shared = shared
        self._mutex = threading.Lock()
        self._fd = -1
        self._depth = 0
        self._owner: int | None = None
        _all.add(self)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._depth > 0

    @property
    def depth(self) -> int:
        """How often it is held, one inside of the other."""
        return self._depth

    @contextlib.contextmanager
    def hold(self, timeout: float | None) -> Generator[None, None, None]:
        """Hold the lock for the block.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            StoreLockedError: Somebody else still holds it; the message names who.
            StoreWriteError: The lock file cannot be made.

        Effects:
            Creates the lock file. The holder of an exclusive lock writes its process id and host name into it.
        """
        self._acquire(timeout)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        wait = _SHORTEST_WAIT
        while not self._try():
            if deadline is not None and time.monotonic() >= deadline:
                raise self._locked(timeout)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _try(self) -> bool:
        with self._mutex:
            if self._depth:
                if not self._shared and self._owner != threading.get_ident():
                    return False
                self._depth += 1
                return True
            with write_errors(self._path, f"the lock of {self._what}"):
                fd = self._open()
                try:
                    fcntl.flock(fd, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                    if not self._shared:
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, f"{os.getpid()} {'-' if self._anonymous else host()}\n".encode(), 0)
                except BlockingIOError:
                    os.close(fd)
                    return False
                except BaseException:
                    os.close(fd)
                    raise
            self._fd, self._depth, self._owner = fd, 1, threading.get_ident()
            return True

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        if self._path.parent.is_symlink():  # what is locked is overwritten with the holder's name
            raise outside(self._path.parent)
        try:
            return os.open(self._path, flags, 0o666)
        except FileNotFoundError:
            make_folder(self._path.parent)
            return os.open(self._path, flags, 0o666)

    def _release(self) -> None:
        with self._mutex:
            if not self._depth:  # a fork of the holder leaves the block too
                return
            self._depth -= 1
            if not self._depth:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
                os.close(self._fd)
                self._fd, self._owner = -1, None

    def _locked(self, timeout: float | None) -> StoreLockedError:
        pid, where = self._holder()
        who = f"process {pid} on {where}" if pid else "another process"
        mine = " (this process: another object or thread of it)" if pid == os.getpid() and where == host() else ""
        return StoreLockedError(
            f"{self._what[0].upper()}{self._what[1:]} is being written by {who}{mine}; waited {timeout:g} s.",
            cause="One process at a time computes and appends; answers that are recorded can be read meanwhile.",
            fix="Wait for it, end it, or use another checkpoint id.",
            path=os.fspath(self._path),
            pid=pid,
            host=where,
        )

    def _holder(self) -> tuple[int | None, str | None]:
        """Return who has it: as the kernel says, which knows those who share it too, else as the last holder signed."""
        found = holders(self._path)
        pid, where = None, None
        with contextlib.suppress(OSError, ValueError):  # the holder may not have signed yet
            number, where = self._path.read_text().split()
            pid = int(number)
        if found and (pid not in found or where != host()):
            return pid if pid in found else found[0], host()
        return pid, where

    def forget(self) -> None:
        """Give up, in a forked child, what the parent holds: closing does not unlock while the parent's file is open."""
        self._mutex = threading.Lock()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._depth, self._owner = -1, 0, None


def holders(path: Path) -> list[int]:
    """Return the processes of this machine that took a lock on a file, where ``/proc/locks`` tells."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return [int(fields[4]) for fields in lines if "->" not in fields and fields[1] == "FLOCK" and fields[5] == place]
    return []


_all: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _after_fork() -> None:
    # Otherwise a loader worker that outlives a killed trainer would keep its checkpoint locked.
    for lock in list(_all):
        lock.forget()


os.register_at_fork(after_in_child=_after_fork)
