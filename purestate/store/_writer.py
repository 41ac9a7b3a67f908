"""The training side of the writer process: starts it, hands arrays over in shared memory, learns how it went.

`_worker` is the process itself. It takes no part in fork: a child that inherits a `Writer` starts a process of its own.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from select import select
from socket import send_fds, socketpair
from typing import IO, TYPE_CHECKING, Any

from purestate.store._files import write_error

if TYPE_CHECKING:
    from socket import socket

    from purestate.errors import StoreWriteError

__all__ = ["Job", "Writer"]

_SCRIPT = Path(__file__).with_name("_worker.py")


class _Process:
    """One running writer process and the jobs that it has not answered, oldest first."""

    def __init__(self) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        self.channel, theirs = socketpair()
        with theirs:
            # A session of its own: Ctrl-C in the terminal goes to the training process, which decides what to finish.
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", os.fspath(_SCRIPT), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.errors,
                stderr=self.errors,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.waiting: list[Job] = []
        self.received = b""

    def last_words(self) -> str:
        """Return the end of what the process wrote to its standard error."""
        size = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, size - 2000))
        return self.errors.read().decode("utf-8", "replace").strip()

    def abandon(self) -> None:
        """Let go of the process in a forked child, where it belongs to the parent."""
        self.channel.close()
        self.errors.close()
        self.popen.returncode = 0

    def stop(self) -> None:
        """End the process. Nothing is lost by killing it when no job waits."""
        self.popen.kill()
        self.popen.wait()
        self.channel.close()
        self.errors.close()


class Job:
    """What the writer process was asked to do."""

    def __init__(self, writer: Writer, path: Path, what: str) -> None:
        self._writer = writer
        self._path = path
        self._what = what
        self._answer: dict[str, Any] | None = None

    def done(self) -> bool:
        """Return whether it is finished, well or not. Does not wait."""
        return self._writer.poll(self)

    def result(self) -> None:
        """Wait until it is durable.

        Raises:
            StoreWriteError: It failed, or the process died.
        """
        answer = self._writer.wait(self)
        if "error" in answer:
            raise self._error(answer["error"], answer.get("errno"))

    def _error(self, cause: str, code: int | None) -> StoreWriteError:
        return write_error(self._path, self._what, cause, code)


class Writer:
    """The writer process, started when it is first needed and again after it died. Safe to use from several threads."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._process: list[_Process] = []
        self._finalizer = weakref.finalize(self, _close, self._process, self._pid)

    def warm(self) -> None:
        """Start the process, if it is not running, and return at once: its imports take two seconds.

        Effects:
            Starts a process.
        """
        with self._own():
            self._running()

    def submit(self, folders: list[dict[str, Any]], size: int, fill: Callable[[memoryview], None], path: Path, what: str, *, sync: list[Path], prune: Path | None = None) -> Job:
        """Hand a job over; the arrays may change as soon as this returns.

        Args:
            folders: What to write (see `_worker`).
            size: Bytes of all arrays.
            fill: Copies the arrays into the memory that it is given.
            path: What is written, for errors.
            what: The same for people.
            sync: Folders whose entries change.
            prune: Folder of which only the two newest generations stay.

        Raises:
            StoreWriteError: There is no memory, or no process could be started.

        Effects:
            Shared memory, freed by the kernel when neither process has it open.
        """
        job = {"sync": [os.fspath(path) for path in sync], "prune": prune and os.fspath(prune)}
        try:
            fd = _scratch()
            try:
                offset, length = _pack(fd, size, fill, folders, job)
                with self._own():
                    running = self._running()
                    send_fds(running.channel, [struct.pack("!QQ", offset, length)], [fd])
                    handle = Job(self, path, what)
                    running.waiting.append(handle)
                    return handle
            finally:
                os.close(fd)
        except OSError as error:
            raise write_error(path, what, f"{type(error).__name__}: {error}.", error.errno) from error

    def poll(self, job: Job) -> bool:
        """Return whether a job is answered, without waiting."""
        if job._answer is None and self._lock.acquire(blocking=False):
            try:
                while job._answer is None and self._receive(0.0):
                    pass
            finally:
                self._lock.release()
        return job._answer is not None

    def wait(self, job: Job) -> dict[str, Any]:
        """Return the answer to a job."""
        with self._own():
            while job._answer is None:
                self._receive(None)
        return job._answer

    def close(self) -> None:
        """Wait for the jobs that were handed over, then end the process. A later job starts another."""
        with self._own():
            _close(self._process, self._pid)

    def _own(self) -> threading.RLock:
        """Return the lock, after letting go of a process that belongs to the parent of a fork."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.RLock()
            _abandon(self._process)
            self._finalizer.detach()
            self._process = []
            self._finalizer = weakref.finalize(self, _close, self._process, self._pid)
        return self._lock

    def _running(self) -> _Process:
        if self._process and self._process[0].popen.poll() is not None:
            while self._process:
                self._receive(None)
        if not self._process:
            self._process.append(_Process())
        return self._process[0]

    def _receive(self, timeout: float | None) -> bool:
        """Take one answer in; False if there was none in time."""
        if not self._process:
            return False
        arrived = _receive(self._process[0], timeout)
        if arrived is None:
            self._process.pop().stop()
        return arrived is not False


def _receive(process: _Process, timeout: float | None) -> bool | None:
    """Give the oldest waiting job its answer. False: none came in time. None: the process is gone, all jobs know it."""
    while b"\n" not in process.received:
        if not select([process.channel], [], [], timeout)[0]:
            return False
        try:
            data = process.channel.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            text = process.last_words()
            for job in process.waiting:
                job._answer = {"error": f"The writer process ended early. {text}".strip()}
            process.waiting.clear()
            return None
        process.received += data
    line, _, process.received = process.received.partition(b"\n")
    process.waiting.pop(0)._answer = json.loads(line)
    return True


def _scratch() -> int:
    """Return a file in memory that has no name, so that it cannot be left behind."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("purestate")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _pack(fd: int, size: int, fill: Callable[[memoryview], None], folders: list[dict[str, Any]], job: dict[str, Any]) -> tuple[int, int]:
    """Write arrays and job into the file; return where the job is."""
    if size:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as memory, memoryview(memory) as view:
            fill(view)
    # After `fill`: it may still enter into the job what it learns while it copies.
    text = json.dumps({"folders": folders, **job}).encode("ascii")
    done = 0
    while done < len(text):
        done += os.pwrite(fd, text[done:], size + done)
    return size, len(text)


def _abandon(processes: list[_Process]) -> None:
    while processes:
        processes.pop().abandon()


def _close(processes: list[_Process], pid: int) -> None:
    if os.getpid() != pid:
        _abandon(processes)
        return
    while processes:
        process = processes[0]
        while process.waiting and _receive(process, None):
            pass
        processes.pop().stop()
