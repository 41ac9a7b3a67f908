"""The process that `purestate audit` starts: a user's script, of whose ops some are audited and the others answered from the log.

Its stores are only read. What it names by another path than the one that is audited stands for that where their logs agree, or
where nothing is. What was found is told in lines of JSON; what that means for people is in `purestate.report._audit`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from purestate.errors import StoreError
from purestate.run._audit import audit_reader, audit_train, note
from purestate.run._audited import Audited
from purestate.run._chain import RecordLike, Trajectory
from purestate.run._ledger import Ledger
from purestate.run._mode import audited_by
from purestate.run._readers import Reader
from purestate.run._script import play
from purestate.run._training import Training
from purestate.store._disk import DiskBackend
from purestate.store._placed import elsewhere

__all__ = ["main"]


def main(orders: Mapping[str, Any]) -> None:
    """Run the target of the orders as this process's script.

    Args:
        orders: What `purestate.run._script.command` wrote, and: ``store``: the folder that is audited. ``checkpoint``: in
            which checkpoint. ``head``: the digest of its last record. ``chosen``: the numbers of the records that are audited.
            ``whole``: whether the script runs to its end, not only as far as that takes. ``events``: the file that says what
            was found, a line of JSON each.
    """
    ours = _Chosen(orders)
    elsewhere(ours.moved, stores=True)
    audited_by(ours)
    try:
        play(orders, orders["store"])
    except _EnoughError:
        return
    except Exception as error:  # the script may raise anything: it is told to who asked
        ours.tell(error=f"{type(error).__name__}: {error}", where=_where(error, orders["folder"]))
        sys.exit(1)


class _EnoughError(BaseException):
    """Ends the script where there is nothing left to audit. Nobody's ``except Exception`` is to catch it."""


class _Chosen:
    """Audits the ops that were chosen, and tells. See `purestate.run._mode.Auditor`."""

    def __init__(self, orders: Mapping[str, Any]) -> None:
        self._store, self._checkpoint, self._head = Path(orders["store"]), orders["checkpoint"], orders["head"]
        self._left, self._whole = set(orders["chosen"]), orders["whole"]
        self._events = Path(orders["events"])
        self._places: dict[Path, Path] = {}

    def tell(self, **event: Any) -> None:
        """Note what happened; there even if this process is killed next."""
        with self._events.open("a") as file:
            file.write(json.dumps(event) + "\n")

    def train(self, call: Training, train: Trajectory | None) -> str | None:
        if train is None or not self._takes(call.ledger, train.start):
            return None
        call.ledger.refresh()
        return self._found(call.ledger, audit_train(call, train, len(train.history()) - 1), train.start)

    def reader(self, reader: Reader, ledger: Ledger, record: RecordLike | None) -> str | None:
        if record is None or not self._takes(ledger, record):
            return None
        return self._found(ledger, audit_reader(reader, ledger, record), record)

    def missing(self, ledger: Ledger, op: str, why: str, train: Trajectory | None) -> NoReturn:
        name = op if train is None else ledger.chain.index(train)
        if not self._is_ours(ledger):
            self.tell(stopped=f"checkpoint {ledger.id!r} of {_store_of(ledger)}, {op}", because=why)
        elif train is not None and not train.done:
            self.tell(unfinished=name, because=why)
        else:
            self.tell(audited=asdict(note(ledger, Audited(ledger.id, name, None, "unrecorded", (why,)))))
        raise _EnoughError

    def moved(self, path: Path) -> Path:
        """Return which store is read for one that the script names."""
        if path not in self._places:
            self._places[path] = path  # it is looked at as it is
            self._places[path] = self._place_of(path)
        return self._places[path]

    def _place_of(self, path: Path) -> Path:
        with contextlib.suppress(OSError):
            if path.samefile(self._store):
                return self._store
        try:
            there = DiskBackend(path)
            ids = there.ids()
            head = there.log(self._checkpoint).head if self._checkpoint in ids else None
        except StoreError as error:
            self.tell(other=os.fspath(path), because=error.problem)
            return path
        if ids and head != self._head:
            because = "has no such checkpoint" if head is None else f"has another log, which ends with {head[:8]}"
            self.tell(other=os.fspath(path), because=because)
            return path
        self.tell(mapped=os.fspath(path), because="has the same log" if ids else "holds no checkpoint")
        return self._store

    def _is_ours(self, ledger: Ledger) -> bool:
        return ledger.id == self._checkpoint and isinstance(ledger.backend, DiskBackend) and ledger.backend.path == self._store

    def _takes(self, ledger: Ledger, record: RecordLike) -> bool:
        return self._is_ours(ledger) and record.seq in self._left

    def _found(self, ledger: Ledger, audited: Audited, record: RecordLike) -> str:
        audited = note(ledger, audited)
        self.tell(audited=asdict(audited))
        self._left.discard(record.seq)
        if not self._left and not self._whole:
            raise _EnoughError
        return audited.said


def _store_of(ledger: Ledger) -> str:
    return repr(os.fspath(ledger.backend.path)) if isinstance(ledger.backend, DiskBackend) else "a store in memory"


def _where(error: Exception, folder: str) -> str:
    """Return the last line of the script, or of a file beside it, that an error came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    return f"{os.path.relpath(frames[-1].filename, folder)}:{frames[-1].lineno}" if frames else ""
