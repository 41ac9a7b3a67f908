"""The log of one checkpoint on disk: verify, read lazily, append durably.

Reading takes no lock and writes nothing. Appending needs the checkpoint's lock, so that a chain has one end.

A record is in the chain as soon as it is appended, and `DiskLog._end` says how much of the chain is in the file. Whoever
writes the rest, a thread behind `append_soon` or the caller of `append`, holds `DiskLog._io` for it, and writes and syncs all
of it before anybody writes more: a power cut must not leave the end of a log without what comes before it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from purestate.errors import CorruptLogError, StoreError, StoreLockedError
from purestate.store._files import (
    append_line,
    make_folder,
    must_be_inside,
    open_file,
    read_errors,
    unique,
    write_errors,
    write_file,
)
from purestate.store._layout import Layout
from purestate.store._locks import FileLock
from purestate.store._record import EMPTY_HEAD, BadLineError, Record, decode, encode, torn_tail

__all__ = ["DiskLog", "not_locked"]

_TOGETHER = 0.1
"""Seconds in which the records of `append_soon` are collected for one write: short epochs must not pay for one each."""


class DiskLog:
    """The records of checkpoint ``id`` of a store. See `purestate.store._backend.Log`."""

    def __init__(self, layout: Layout, id: str, prepare: Callable[[], None]) -> None:
        self.id = id
        self._prepare = prepare
        self._root, self.path = layout.root, layout.log(id)
        self._lock = FileLock(layout.checkpoint_lock(id), f"checkpoint {id!r}", anonymous=layout.anonymous)
        self._forget()
        self._begin()
        self._read()

    @property
    def records(self) -> Sequence[Record]:
        """The records as of the last `refresh` or `append`."""
        return self._records

    @property
    def head(self) -> str:
        """The digest of the last record, or 64 zeros."""
        return self._records[-1].digest if self._records else EMPTY_HEAD

    def exists(self) -> bool:
        """Return whether the checkpoint is there, which it is from its first record on."""
        return self.path.exists()

    def refresh(self) -> None:
        """Read and verify what was appended since the last time.

        Raises:
            CorruptLogError: A line is damaged. A last line that was never finished is not an error: it is left out.
        """
        if not (self._lock.held and self._mended):  # else nobody else can append, and our own may not be in the file yet
            self._read()

    @contextmanager
    def lock(self, timeout: float | None = 10.0) -> Generator[None, None, None]:
        """Return a context that holds the writer lock of the checkpoint. Re-entrant in this object and thread.

        What was appended is durable when it is left.

        Args:
            timeout: Seconds to wait for another writer; None waits for ever.

        Raises:
            StoreLockedError: Another writer still has it.
            StoreWriteError: On leaving: what `append_soon` took could not be written, and nobody was told yet.
        """
        with self._lock.hold(timeout):
            if self._lock.depth > 1:
                yield
                return
            self._begin()
            try:
                yield
            finally:
                self._leave()

    def append(self, kind: str, body: dict[str, Any]) -> Record:
        """Append a record and return it once it is durable, as is all that was appended before.

        Args:
            kind: A word of lower case letters, digits and underscores.
            body: JSON without tuples, inf and nan; not modified.

        Raises:
            StoreLockedError: The lock is not held.
            StoreWriteError: It, or one that was appended before, could not be written; the log is as it was.
            CorruptLogError: Another process left a damaged log.

        Effects:
            Creates the checkpoint with its first record. A torn last line is copied to a file beside the log and cut off.
        """
        [record] = self.append_all([(kind, body)])
        return record

    def append_all(self, bodies: Sequence[tuple[str, dict[str, Any]]]) -> list[Record]:
        """Append several records at once: all of them or none. See `append`.

        Args:
            bodies: Kind and body of each.
        """
        records = self._add(bodies)
        self._settle()
        return records

    def append_soon(self, kind: str, body: dict[str, Any]) -> Record:
        """Append a record and return it at once: a thread makes it durable. See `append`.

        Raises:
            StoreWriteError: One that was appended before could not be written. It, and what came after it, is not in the log,
                and nothing more is appended until the lock is taken anew.
        """
        [record] = self._add([(kind, body)])
        self._promised = len(self._records)
        try:
            with self._guard:
                if not self._asked:
                    self._hurry = threading.Event()
                    thread = threading.Thread(target=self._write_behind, name=f"purestate log {self.id}")
                    thread.start()  # which cannot end before this block does
                    self._thread, self._asked = thread, True
                    _written_behind.add(self)
        except RuntimeError:  # the process may have no more threads: then it is made durable here
            self._settle()
        return record

    def flush(self) -> None:
        """Make durable what `append_soon` took so far. From any thread; what fails is raised by the next append."""
        with self._io:
            self._write()

    def extend(self, records: Sequence[Record]) -> None:
        """Append records of another log as they are, durably, and all of them or none.

        Args:
            records: Those that follow the last one here.

        Raises:
            BadLineError: They do not follow.
            StoreLockedError, StoreWriteError, CorruptLogError: As for `append`.

        Effects:
            As of `append`.
        """
        self._make_ready()
        lines = b"".join(record.line + b"\n" for record in records)
        self._records += list(decode(lines, len(self._records), self.head, self.id))
        self._settle()

    def mend(self) -> int:
        """Cut a torn last line off, with a copy kept beside the log, and return how many bytes it had.

        Raises:
            StoreLockedError: The lock is not held.

        Effects:
            A file ``torn-…``, and a shorter log, if there is one.
        """
        if not self._lock.held:
            raise not_locked(self.id)
        self._settle()
        with write_errors(self.path, f"the log of checkpoint {self.id!r}"):
            return self._cut(self._read())

    # ---------------------------------------------------------------- from the chain to the file

    def _add(self, bodies: Sequence[tuple[str, dict[str, Any]]]) -> list[Record]:
        self._make_ready()
        records: list[Record] = []
        head = self.head
        for kind, body in bodies:
            records.append(encode(len(self._records) + len(records), head, kind, body, self.id))
            head = records[-1].digest
        self._records += records
        return records

    def _make_ready(self) -> None:
        """Read and mend the log, once while the lock is held: nobody else appends until it is left."""
        if not self._lock.held:
            raise not_locked(self.id)
        self._tell()
        if self._mended:
            return
        self._prepare()
        with write_errors(self.path, f"a record of checkpoint {self.id!r}"):
            must_be_inside(self.path.parent, self._root)
            make_folder(self.path.parent)
            self._cut(self._read())
        self._mended = True

    def _write(self) -> None:
        """Write what is in the chain and not in the file; `_io` is held. A failure is kept for `_tell`, and never tried again.

        It may be interrupted anywhere and called again: the same bytes go to the same place.
        """
        while self._failure is None and self._end[1] < len(self._records):
            at, count = self._end
            records = self._records[count:]
            data = b"".join(record.line + b"\n" for record in records)
            try:
                with write_errors(self.path, f"a record of checkpoint {self.id!r}"):
                    append_line(self.path, data, at, () if self._named else self.path.parents[:2])
                    self._file = self._file or _identity(self.path)
            except StoreError as error:
                self._failure = error
                return
            self._named = True
            self._end = at + len(data), count + len(records)

    def _write_behind(self) -> None:
        """What the thread does: write, not too often, until nothing is left, and end."""
        while True:
            self._hurry.wait(_TOGETHER)
            with self._io:
                self._write()
            with self._guard:
                if self._failure is not None or self._end[1] == len(self._records):
                    self._asked = False
                    return

    def finish(self) -> None:
        """Wait until what was appended is in the file, or failed. Raises only what a signal's handler raises, and only then."""
        interrupted: BaseException | None = None
        self._hurry.set()
        while self._lock.held:
            try:
                with self._io:
                    self._write()
                if (thread := self._thread) is not None:
                    thread.join()
                break
            except BaseException as error:  # whoever interrupts must not let go of the lock while the thread is writing
                interrupted = interrupted or error
        if interrupted is not None:
            raise interrupted

    def _settle(self) -> None:
        with self._io:
            self._write()
        self._tell()

    def _tell(self) -> None:
        """Raise what failed. What was not written is not in the chain then."""
        if self._failure is None:
            return
        with self._io:
            failure, self._told, self._mended = self._failure, True, False
            del self._records[self._end[1] :]
            if self._promised <= self._end[1]:  # only the caller's own: it knows, and can go on
                self._failure, self._told = None, False
        raise failure

    def _begin(self) -> None:
        """Start anew: the lock was taken just now, perhaps in a fork of who had it before."""
        del self._records[self._end[1] :]
        self._mended = False
        """Whether the log was read and mended since the lock was taken."""
        self._failure: StoreError | None = None
        self._told = False
        self._promised = 0
        """How many records were taken by `append_soon`, or are before one that was."""
        self._thread: threading.Thread | None = None
        self._asked = False
        """Whether the thread will look at the chain once more."""
        self._hurry = threading.Event()
        self._io, self._guard = threading.Lock(), threading.Lock()
        """Held by who writes or takes back; held to ask for the thread."""

    def _leave(self) -> None:
        self.finish()
        _written_behind.discard(self)
        if self._failure is not None and not self._told:
            self._tell()

    def _cut(self, torn: bytes) -> int:
        if torn:
            write_file(self.path.with_name(unique("torn")), torn)
            os.truncate(self.path, self._end[0])
            self.torn = 0
        return len(torn)

    def _forget(self) -> None:
        self._records: list[Record] = []
        self.torn = 0
        """Bytes of a last line that was never finished, as of the last look."""
        self._end = 0, 0
        """Bytes and records of the file that were read or made durable; one attribute, so no interrupt comes between them."""
        self._file: tuple[int, int] | None = None
        self._named = False
        """Whether the names of this file and its folder are known to be durable."""

    def _read(self) -> bytes:
        """Take in what is new, and return the torn last line, if there is one."""
        try:
            with open(open_file(self.path, self._root), "rb") as file, read_errors(self.path):
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self._file or status.st_size < self._end[0]:
                    self._forget()
                file.seek(self._end[0])
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            self._forget()
            return b""
        whole = len(data) - torn_tail(data)
        try:
            self._records += list(decode(data[:whole], len(self._records), self.head, self.id))
        except BadLineError as error:
            if self._end[0]:
                # a log that was deleted and begun anew may have got the number of the old file
                self._forget()
                return self._read()
            raise _corrupt(self.id, self.path, len(self._records) + error.number, str(error)) from None
        self._end = self._end[0] + whole, len(self._records)
        self.torn = len(data) - whole
        self._file = (status.st_dev, status.st_ino)
        return data[whole:]


def not_locked(id: str) -> StoreLockedError:
    """Return the error for an append without the lock, which is a mistake of the caller."""
    return StoreLockedError(
        f"A record was appended to checkpoint {id!r} without holding its lock.",
        fix="Append inside `with log.lock():`.",
    )


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _corrupt(id: str, path: Path, line: int, reason: str) -> CorruptLogError:
    whole = "line, which is" if line == 2 else f"{line - 1} lines, which are"
    rest = f"keep its first {whole} intact" if line > 1 else "delete the checkpoint"
    return CorruptLogError(
        f"The log of checkpoint {id!r} is damaged at line {line}: {reason}.",
        cause=f"{os.fspath(path)!r} was edited, or the disk returned other bytes than were written.",
        fix=f"Put back a copy of the file, or {rest}, and run the script again.",
        path=os.fspath(path),
        line=line,
    )


_written_behind: set[DiskLog] = set()
"""The logs that may have a thread."""


def _before_fork() -> None:
    # A child has no such thread, and Python warns of forks beside one.
    for log in list(_written_behind):
        log.finish()


os.register_at_fork(before=_before_fork)
