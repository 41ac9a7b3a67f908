"""A store that is read and never written to: its logs by meaning, and what its items weigh."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from purestate.errors import StoreError, UsageError
from purestate.report._name import RunName, is_store, stores_below
from purestate.run._chain import Chain, RecordLike, Trajectory, as_recorded
from purestate.store._backend import Backend, Log
from purestate.store._disk import DiskBackend
from purestate.store._files import files_below

__all__ = ["Run", "bytes_of", "environment_of", "open_run", "open_run_or_file", "open_store", "time_of"]


@dataclass(frozen=True)
class Run:
    """A checkpoint that was named.

    Args:
        name: How.
        backend: The store.
        log: Its records.
    """

    name: RunName
    backend: Backend
    log: Log

    @property
    def id(self) -> str:
        """The checkpoint."""
        return self.log.id

    @property
    def folder(self) -> Path:
        """Where the store is.

        Raises:
            UsageError: It is in memory.
        """
        if not isinstance(self.backend, DiskBackend):
            raise UsageError(f"Expected a store in a folder, got {self.name}, which is in memory.")
        return self.backend.path

    @cached_property
    def chain(self) -> Chain:
        """The records by meaning."""
        chain = Chain()
        chain.update(self.log.records)
        return chain

    @property
    def records(self) -> Sequence[RecordLike]:
        """The records, in their order."""
        return self.log.records

    def train(self) -> tuple[int, Trajectory]:
        """Return the train that was named, or the last one.

        Raises:
            UsageError: There is none of that number, or none at all.
        """
        trains = self.chain.binding()
        op = len(trains) - 1 if self.name.op is None else self.name.op
        if op not in range(len(trains)):
            there = tuple(f"{self.name.store}:{self.id}@{n}" for n in range(len(trains)))
            raise UsageError(
                f"Checkpoint {self.id!r} has no train{'' if self.name.op is None else f' {op}'} with an epoch.",
                cause=f"It has {', '.join(there)}." if there else "It has none.",
                available=there,
            )
        return op, trains[op]

    def answer(self) -> tuple[int, Trajectory, RecordLike, dict[str, Any]]:
        """Return the named train, or the last finished one, its newest answer and the snapshot of that.

        Raises:
            UsageError: No such train is finished.
        """
        finished = {op: (train, record) for op, train, record in self.chain.finished()}
        op = max(finished, default=-1) if self.name.op is None else self.name.op
        if op not in finished:
            there = tuple(f"{self.name.store}:{self.id}@{n}" for n in finished)
            raise UsageError(
                f"Checkpoint {self.id!r} has no finished train{'' if self.name.op is None else f' {op}'}.",
                cause=f"It has {', '.join(there)}." if there else "It has none: nothing is recorded of a state yet.",
                available=there,
            )
        train, record = finished[op]
        return op, train, record, record.body["out"]


def open_store(path: Path) -> DiskBackend:
    """Return a store that is there.

    Raises:
        UsageError: There is none; lists those nearby. Or this user may not read it.
        FormatVersionError: It is of a newer version.
    """
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
        raise UsageError(f"Cannot read the folder {str(path)!r}.", fix="This user may not. Change its mode, or ask whose it is.")
    if not is_store(path):
        near = tuple(stores_below(path if path.is_dir() else path.parent))
        raise UsageError(
            f"There is no store at {str(path)!r}.",
            cause=f"Nearby are {', '.join(near)}." if near else "A store is a folder with a file format.json.",
            available=near,
        )
    return DiskBackend(path)


def open_run(name: RunName) -> Run:
    """Return the checkpoint that is named; of a store with a single one its name may be left out.

    Raises:
        UsageError: There is no such store or checkpoint, or several; lists those that there are.
        CorruptLogError: Its log is damaged.
    """
    backend = open_store(name.store)
    ids = backend.ids()
    id = name.checkpoint or (ids[0] if len(ids) == 1 else None)
    if id is None or id not in ids:
        there = tuple(f"{name.store}:{other}" for other in ids)
        problem = f"The store {str(name.store)!r} has {len(ids)} checkpoints, expected the name of one."
        raise UsageError(
            problem if id is None else f"There is no checkpoint {id!r} in the store {str(name.store)!r}.",
            cause=f"It has {', '.join(there)}." if there else "It has no checkpoint.",
            available=there,
        )
    return Run(RunName(name.store, id, name.op), backend, backend.log(id))


def open_run_or_file(text: str) -> Run | Path:
    """Return what a text names: a file or folder if there is one that is no store, else a run.

    Raises:
        UsageError: There is neither.
        CorruptLogError: The run's log is damaged.
    """
    path = Path(text)
    try:
        return path if text and path.exists() and not is_store(path) else open_run(RunName.parse(text))
    except UsageError:
        if ":" not in text and not path.parent.is_dir():
            raise UsageError(f"There is neither a store nor a file {text!r}: there is no folder {str(path.parent)!r}.") from None
        raise


def bytes_of(backend: Backend, digests: Iterable[str]) -> int:
    """Return how many bytes the files of items have. What is missing, or cannot be looked at, has none, and so has memory."""
    size = 0
    if not isinstance(backend, DiskBackend):
        return 0
    for digest in digests:
        try:
            size += sum(bytes for _, bytes in files_below(backend.item_path(digest)))
        except (OSError, StoreError):
            continue  # `check` says what is wrong with it
    return size


def environment_of(record: RecordLike) -> dict[str, Any]:
    """Return in what environment a record was computed; nothing where it does not say.

    Raises:
        CorruptLogError: It says something else.
    """
    with as_recorded(record):
        found = record.body.get("environment")
        if not isinstance(found, dict | None):
            raise TypeError(f"{found!r} is no environment")
        return found or {}


def time_of(train: Trajectory) -> float:
    """Return how many seconds the recorded epochs of a train took.

    Raises:
        CorruptLogError: An epoch does not say.
    """
    total = 0.0
    for record in train.epochs.values():
        with as_recorded(record):
            total += float(record.body["seconds"])
    return total
