"""The log of one checkpoint on disk: verify, read lazily, append durably.

Reading takes no lock and writes nothing. Appending needs the checkpoint's lock, so that a chain has one end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from purestate.errors import CorruptLogError, StoreLockedError
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


class DiskLog:
    """The records of checkpoint ``id`` of a store. See `purestate.store._backend.Log`."""

    def __init__(self, layout: Layout, id: str, prepare: Callable[[], None]) -> None:
        self.id = id
        self._prepare = prepare
        self._root, self.path = layout.root, layout.log(id)
        self._lock = FileLock(layout.checkpoint_lock(id), f"checkpoint {id!r}")
        self._forget()
        self.refresh()

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
        self._read()

    def lock(self, timeout: float | None = 10.0) -> AbstractContextManager[None]:
        """Return a context that holds the writer lock of the checkpoint. Re-entrant in this object and thread.

        Args:
            timeout: Seconds to wait for another writer; None waits for ever.

        Raises:
            StoreLockedError: Another writer still has it.
        """
        return self._lock.hold(timeout)

    def append(self, kind: str, body: dict[str, Any]) -> Record:
        """Append a record and return it once it is durable.

        Args:
            kind: A word of lower case letters, digits and underscores.
            body: JSON without tuples, inf and nan; not modified.

        Raises:
            StoreLockedError: The lock is not held.
            StoreWriteError: It could not be written; the log is as it was.
            CorruptLogError: Another process left a damaged log.

        Effects:
            Creates the checkpoint with its first record. A torn last line is copied to a file beside the log and cut off.
        """
        [record] = self._write(lambda: [encode(len(self._records), self.head, kind, body)])
        return record

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
        lines = b"".join(record.line + b"\n" for record in records)
        self._write(lambda: list(decode(lines, len(self._records), self.head)))

    def mend(self) -> int:
        """Cut a torn last line off, with a copy kept beside the log, and return how many bytes it had.

        Raises:
            StoreLockedError: The lock is not held.

        Effects:
            A file ``torn-…``, and a shorter log, if there is one.
        """
        if not self._lock.held:
            raise not_locked(self.id)
        with write_errors(self.path, f"the log of checkpoint {self.id!r}"):
            return self._cut(self._read())

    def _write(self, make: Callable[[], list[Record]]) -> list[Record]:
        """Append what ``make`` returns once the log is read and mended."""
        if not self._lock.held:
            raise not_locked(self.id)
        self._prepare()
        with write_errors(self.path, f"a record of checkpoint {self.id!r}"):
            must_be_inside(self.path.parent, self._root)
            make_folder(self.path.parent)
            self._cut(self._read())
            records = make()
            data = b"".join(record.line + b"\n" for record in records)
            append_line(self.path, data, self._offset, None if self._named else self._root)
            self._named = True
        self._records += records
        self._offset += len(data)
        self._file = _identity(self.path)
        return records

    def _cut(self, torn: bytes) -> int:
        if torn:
            write_file(self.path.with_name(unique("torn")), torn)
            os.truncate(self.path, self._offset)
            self.torn = 0
        return len(torn)

    def _forget(self) -> None:
        self._records: list[Record] = []
        self.torn = 0
        """Bytes of a last line that was never finished, as of the last look."""
        self._offset = 0
        self._file: tuple[int, int] | None = None
        self._named = False
        """Whether the names of this file and the folders above it are known to be durable."""

    def _read(self) -> bytes:
        """Take in what is new, and return the torn last line, if there is one."""
        try:
            with open(open_file(self.path, self._root), "rb") as file, read_errors(self.path):
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self._file or status.st_size < self._offset:
                    self._forget()
                file.seek(self._offset)
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            self._forget()
            return b""
        whole = len(data) - torn_tail(data)
        try:
            self._records += list(decode(data[:whole], len(self._records), self.head))
        except BadLineError as error:
            if self._offset:
                # a log that was deleted and begun anew may have got the number of the old file
                self._forget()
                return self._read()
            raise _corrupt(self.id, self.path, len(self._records) + error.number, str(error)) from None
        self._offset += whole
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
    return CorruptLogError(
        f"The log of checkpoint {id!r} is damaged at line {line}: {reason}.",
        cause=f"{os.fspath(path)!r} was edited, or the disk returned other bytes than were written.",
        fix=f"Put back a copy of the file, or keep its first {line - 1} lines, which are intact, and run the script again.",
        path=os.fspath(path),
        line=line,
    )
