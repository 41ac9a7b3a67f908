"""The training side of the writer process: starts it, hands arrays over in shared memory, learns how it went.

`_worker` is the process itself. It takes no part in fork: a child that inherits a `Writer` starts a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
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

import numpy as np

from purestate.store._files import write_error

if TYPE_CHECKING:
    from purestate.errors import StoreWriteError

__all__ = ["Folder", "Job", "Order", "Step", "Writer", "shared_writer"]

_SCRIPT = Path(__file__).with_name("_worker.py")

_MOST_BYTES = 1 << 30
"""How much shared memory orders may hold that are not done. One that is larger waits until it is alone."""


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
        self.numbers = itertools.count()
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


@dataclasses.dataclass
class Folder:
    """A folder of arrays to write. Its fields are those of a request (see `_worker`)."""

    tmp: str
    final: str
    meta_name: str
    meta: dict[str, Any]
    seal: bool
    arrays: list[tuple[str, str, str, list[int], int]]
    replace: bool = False
    """Whether a folder that has the final name is replaced, in one step, and not taken for the same."""


@dataclasses.dataclass
class Step:
    """A step of an Orbax CheckpointManager to write. Its fields are those of a request."""

    path: str
    number: int
    arrays: list[tuple[str, str, str, list[int], int]]
    """Subtree, key, dtype, shape and offset of each."""


@dataclasses.dataclass
class Order:
    """Folders that are written together."""

    path: Path
    """What is written, for errors."""
    what: str
    """The same for people."""
    folders: list[Folder]
    size: int
    """Bytes of all arrays."""
    fill: Callable[[memoryview], None]
    """Copies the arrays into the memory that it is given."""
    sync: list[Path]
    """Folders whose entries change."""
    prune: Path | None = None
    """Folder of which only the two newest generations stay."""
    again: bool = False
    """Another of this size will come: its memory is kept until `Writer.trim`. Fresh memory is seven times slower to fill."""
    step: Step | None = None
    """What is written for others, beside the folders."""


class _Memory:
    """A file in memory that has no name, so that it cannot be left behind."""

    def __init__(self) -> None:
        self.fd = _scratch()
        self._map: mmap.mmap | None = None

    def of(self, size: int) -> mmap.mmap | bytes:
        """Return at least ``size`` bytes. What was there is lost if it has to grow."""
        if not size:
            return b""
        if self._map is None or len(self._map) < size:
            if self._map is not None:
                self._map.close()
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        return self._map

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        os.close(self.fd)


class Job:
    """An order that was handed over."""

    def __init__(self, writer: Writer, number: int, path: Path, what: str, size: int) -> None:
        self._writer = writer
        self.number = number  # among those of its process
        self._path = path
        self._what = what
        self.size = size
        self.answer: dict[str, Any] | None = None

    def done(self) -> bool:
        """Return whether it is finished, well or not. Does not wait."""
        return self._writer.poll(self)

    @property
    def seconds(self) -> float:
        """How long the process worked on it; 0 until it is finished."""
        return (self.answer or {}).get("seconds", 0.0)

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
        self._kept: list[_Memory] = []
        self._finalizer = weakref.finalize(self, _close, self._process, self._pid)

    def warm(self) -> None:
        """Start the process, if it is not running, and return at once: its imports take two seconds.

        Effects:
            Starts a process.
        """
        with self._own():
            self._running()

    def reserve(self, size: int) -> None:
        """Get the memory for orders of ``size`` bytes that come again, from the kernel too: most of the time goes there."""
        with self._own(), contextlib.suppress(OSError):  # the order that needs it says so
            if self._kept:
                return
            memory = _Memory()
            try:
                with memoryview(memory.of(size)) as view:
                    np.frombuffer(view, np.uint8)[:: mmap.PAGESIZE] = 0
            except BaseException:
                memory.close()
                raise
            self._kept.append(memory)

    def submit(self, order: Order) -> Job:
        """Hand an order over; its tensors may change as soon as this returns.

        Raises:
            StoreWriteError: There is no memory, or no process could be started.

        Effects:
            Takes shared memory, which the kernel frees when neither process has it open.
        """
        try:
            with self._own():
                while self._held() and self._held() + order.size > _MOST_BYTES and self._receive(None):
                    pass
                running = self._running()
                memory = self._memory(order)
                try:
                    place = _pack(memory, order)
                    job = Job(self, next(running.numbers), order.path, order.what, order.size)
                    try:
                        running.waiting.append(job)
                        send_fds(running.channel, [struct.pack("!QQQ", job.number, *place)], [memory.fd])
                    except BaseException:
                        # interrupted: nobody knows whether it was sent, nobody waits for it, and the process may be reading
                        running.waiting.remove(job)
                        with contextlib.suppress(ValueError):
                            self._kept.remove(memory)
                        raise
                    return job
                finally:
                    if memory not in self._kept:
                        memory.close()
        except OSError as error:
            raise write_error(order.path, order.what, f"{type(error).__name__}: {error}.", error.errno) from error

    def trim(self) -> None:
        """Free the memory that was kept for orders that come again."""
        with self._own():
            self._release()

    def poll(self, job: Job) -> bool:
        """Return whether a job is answered, without waiting."""
        lock = self._own()
        if job.answer is None and lock.acquire(blocking=False):
            try:
                while job.answer is None and self._receive(0.0):
                    pass
            finally:
                lock.release()
        return job.answer is not None

    def wait(self, job: Job) -> dict[str, Any]:
        """Return the answer to a job."""
        with self._own():
            while job.answer is None and self._receive(None):
                pass
        if job.answer is None:
            return {"error": "It was handed over by the process that this one was forked from."}
        return job.answer

    def close(self) -> None:
        """Wait for the jobs that were handed over, then end the process. A later job starts another."""
        with self._own():
            _close(self._process, self._pid)
            self._release()

    def _own(self) -> threading.RLock:
        """Return the lock, after letting go of a process that belongs to the parent of a fork."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.RLock()
            _abandon(self._process)
            self._finalizer.detach()
            self._process = []
            self._release()  # it is shared with the parent, which goes on using it
            self._finalizer = weakref.finalize(self, _close, self._process, self._pid)
        return self._lock

    def _memory(self, order: Order) -> _Memory:
        """Return memory for an order: what was kept, if the process is not reading it."""
        while self._kept and self._receive(0.0):
            pass
        if self._kept and not (self._process and self._process[0].waiting):
            return self._kept[0]
        memory = _Memory()
        if order.again and not self._kept:
            self._kept.append(memory)
        return memory

    def _held(self) -> int:
        """Bytes of the orders that are not done."""
        return sum(job.size for process in self._process for job in process.waiting)

    def _release(self) -> None:
        while self._kept:
            self._kept.pop().close()

    def _running(self) -> _Process:
        if self._process and self._process[0].popen.poll() is not None:
            while self._process:
                self._receive(None)
        if not self._process:
            self._process.append(_Process())
        return self._process[0]

    def _receive(self, timeout: float | None) -> bool:
        """Take one answer in; False if there was none in time, or no process is left to give one."""
        if not self._process:
            return False
        arrived = _receive(self._process[0], timeout)
        if arrived is None:
            self._process.pop().stop()
        return bool(arrived)


@functools.cache
def shared_writer() -> Writer:
    """Return the writer that all stores of this process share: it takes 300 MB."""
    return Writer()


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
                job.answer = {"error": f"The writer process ended early. {text}".strip()}
            process.waiting.clear()
            return None
        process.received += data
    line, _, process.received = process.received.partition(b"\n")
    answer = json.loads(line)
    if process.waiting and process.waiting[0].number == answer["number"]:  # else its order was interrupted
        process.waiting.pop(0).answer = answer
    return True


def _scratch() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("purestate")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _pack(memory: _Memory, order: Order) -> tuple[int, int]:
    """Write the arrays and the order itself into memory; return where the latter is."""
    with memoryview(memory.of(order.size)) as view:
        order.fill(view)
    text = json.dumps(  # after `fill`, which may still note in a folder what it learns while it copies
        {
            "folders": [vars(folder) for folder in order.folders],
            "sync": [os.fspath(path) for path in order.sync],
            "prune": order.prune and os.fspath(order.prune),
            "step": order.step and vars(order.step),
        }
    ).encode("ascii")
    done = 0
    while done < len(text):
        done += os.pwrite(memory.fd, text[done:], order.size + done)
    return order.size, len(text)


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
