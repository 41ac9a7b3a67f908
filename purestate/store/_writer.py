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
from select import POLLIN, poll
from socket import MSG_DONTWAIT, send_fds, socket, socketpair
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from purestate.core._digest import short
from purestate.errors import MutatedStateError
from purestate.store._files import write_error

if TYPE_CHECKING:
    from purestate.errors import StoreWriteError
    from purestate.store._tensors import Array

__all__ = ["Folder", "Job", "Order", "Step", "Write", "Writer", "shared_writer"]

Write = Callable[[memoryview, int], None]
"""Puts bytes at an offset."""

_SCRIPT = Path(__file__).with_name("_worker.py")

_MOST_BYTES = 1 << 30
"""How much shared memory orders may hold that are not done. One that is larger waits until it is alone."""

_LOOK_AGAIN_SECONDS = 1.0
"""How long to wait for an answer before looking whether the handler of a signal, which wrote meanwhile, has taken it in."""


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
        self.received: list[bytes] = []

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
    arrays: list[Array]
    headers: dict[str, str]
    """What the bytes of each array are hashed behind; ``meta`` gets the hashes."""
    digest: str | None = None
    """The tree hash that its leaves must have. What is hashed is what is written: a leaf that was changed meanwhile cannot be
    stored under another content's name. None where nobody knows it."""
    replace: bool = False
    """Whether a folder that has the final name is replaced, in one step, and not taken for the same."""


@dataclasses.dataclass
class Step:
    """A step of an Orbax CheckpointManager to write. Its fields are those of a request."""

    path: str
    number: int
    arrays: list[Array]
    """The subtree in place of the name."""


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
    fill: Callable[[Write], None]
    """Hands the bytes of each array to the function that it is given, with the offset where they go."""
    sync: list[Path]
    """Folders whose entries change."""
    prune: Path | None = None
    """Folder of which only the two newest generations stay."""
    again: bool = False
    """Another of this size will come: its memory is kept until `Writer.trim`. Fresh memory is seven times slower to fill."""
    step: Step | None = None
    """What is written for others, beside the folders."""


class _Memory:
    """A file in memory that has no name, so that it cannot be left behind.

    Two ways lead into it: into fresh memory, writing takes half the time of copying into pages that are mapped; into memory
    that is there and mapped, copying takes half the time of writing.
    """

    def __init__(self, size: int = 0) -> None:
        """Take none yet, or ``size`` bytes that are kept: mapped, and got from the kernel, where most of the time goes."""
        self.fd = _scratch()
        self._map: mmap.mmap | None = None
        try:
            if size:
                os.ftruncate(self.fd, size)
                self._map = mmap.mmap(self.fd, size)
                np.frombuffer(self._map, np.uint8)[:: mmap.PAGESIZE] = 0
        except BaseException:
            self.close()
            raise

    @property
    def is_kept(self) -> bool:
        """Whether it is mapped, for orders that come again."""
        return self._map is not None

    def write(self, data: memoryview | bytes, offset: int) -> None:
        """Put bytes at an offset."""
        if self._map is not None and offset + len(data) <= len(self._map):
            np.frombuffer(self._map, np.uint8, len(data), offset)[:] = np.frombuffer(data, np.uint8)
            return
        done = 0
        while done < len(data):
            done += os.pwrite(self.fd, data[done:], offset + done)

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
            MutatedStateError: What was handed over has another hash than it was to be written under.
        """
        answer = self._writer.wait(self)
        if "changed" in answer:
            raise _changed(*answer["changed"])
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
            self._kept.append(_Memory(size))

    def submit(self, order: Order) -> Job:
        """Hand an order over; its tensors may change as soon as this returns.

        Raises:
            StoreWriteError: There is no memory, or no process could be started.

        Effects:
            Takes shared memory, which the kernel frees when neither process has it open.
        """
        try:
            with self._own():
                while (held := self._held()) and held + order.size > _MOST_BYTES:
                    self._receive(_LOOK_AGAIN_SECONDS)
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
                        raise
                    if memory.is_kept and not self._kept:
                        self._kept.append(memory)
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
            while any(job in process.waiting for process in self._process):
                self._receive(_LOOK_AGAIN_SECONDS)
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
        """Return memory for an order: what was kept, if the process is not reading it. Nobody else gets it until it is sent."""
        while self._kept and self._receive(0.0):
            pass
        if self._kept and not (self._process and self._process[0].waiting):
            return self._kept.pop()
        return _Memory(order.size if order.again and not self._kept else 0)

    def _held(self) -> int:
        """Bytes of the orders that are not done."""
        return sum(job.size for process in self._process for job in process.waiting)

    def _release(self) -> None:
        while self._kept:
            self._kept.pop().close()

    def _running(self) -> _Process:
        if self._process and self._process[0].popen.poll() is not None:
            while self._process:
                self._receive(_LOOK_AGAIN_SECONDS)
        if not self._process:
            self._process.append(_Process())
        return self._process[0]

    def _receive(self, timeout: float) -> bool:
        """Take answers in; False if there was none in time, or no process is left to give one."""
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


def _receive(process: _Process, timeout: float) -> bool | None:
    """Give waiting jobs their answers. False: none came in time. None: the process is gone, all jobs know it.

    An interrupt may end this between any two steps, and a handler of a signal may write there, which takes answers in as well.
    So nothing is lost between two of them, and none goes wrong when it is done twice.
    """
    if not (process.received or _readable(process.channel, timeout)):
        return False
    try:
        process.received.extend(map(process.channel.recv, [1 << 16], [MSG_DONTWAIT]))  # taken and kept in one step
    except BlockingIOError:
        pass
    except ConnectionError:
        process.received.append(b"")
    taken = tuple(process.received)
    if not all(taken):
        text = process.last_words()
        for job in process.waiting:
            job.answer = {"error": f"The writer process ended early. {text}".strip()}
        process.waiting.clear()
        return None
    if (lines := b"".join(taken)).endswith(b"\n"):
        answers = {answer["number"]: answer for answer in map(json.loads, lines.splitlines())}
        for job in tuple(process.waiting):  # one whose order was interrupted does not wait
            if job.number in answers:
                job.answer = answers[job.number]
                with contextlib.suppress(ValueError):
                    process.waiting.remove(job)
        del process.received[: len(taken)]
    return True


def _readable(channel: socket, timeout: float) -> bool:
    poller = poll()  # `select` takes no descriptor above 1023
    poller.register(channel, POLLIN)
    return bool(poller.poll(timeout * 1000))


def _scratch() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("purestate")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _pack(memory: _Memory, order: Order) -> tuple[int, int]:
    """Write the arrays and the order itself into memory; return where the latter is."""
    order.fill(memory.write)
    text = json.dumps(
        {
            "folders": [vars(folder) for folder in order.folders],
            "sync": [os.fspath(path) for path in order.sync],
            "prune": order.prune and os.fspath(order.prune),
            "step": order.step and vars(order.step),
        }
    ).encode("ascii")
    memory.write(text, order.size)
    return order.size, len(text)


def _changed(expected: str, actual: str) -> MutatedStateError:
    return MutatedStateError(
        f"Expected leaves that hash to {short(expected)}, got {short(actual)}: they changed after they were hashed.",
        cause="A tensor of a state was modified in place, perhaps through .data, a numpy view or the module it came from.",
        fix="Call state.verify() to see which.",
    )


def _abandon(processes: list[_Process]) -> None:
    while processes:
        processes.pop().abandon()


def _close(processes: list[_Process], pid: int) -> None:
    if os.getpid() != pid:
        _abandon(processes)
        return
    while processes:
        process = processes[0]
        while process.waiting:
            _receive(process, _LOOK_AGAIN_SECONDS)
        processes.pop().stop()
