"""What a store can do, whatever keeps its bytes: the protocols that `DiskBackend`, `MemoryBackend` and `NullBackend` share.

A backend stores records and tensors by name. It knows nothing of states, ops or training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from purestate.errors import CheckpointNotFoundError
from purestate.store._record import Record

__all__ = ["Backend", "Handle", "Log", "not_found"]


class Handle(Protocol):
    """Something that is written in the background."""

    def done(self) -> bool:
        """Return whether it is finished, well or not. Does not wait."""
        ...

    @property
    def seconds(self) -> float:
        """How long writing took; 0 until it is finished."""
        ...

    def result(self) -> None:
        """Wait until it is durable.

        Raises:
            StoreWriteError: It failed.
        """
        ...


class Log(Protocol):
    """The records of one checkpoint, in the order in which they were appended."""

    id: str

    @property
    def records(self) -> Sequence[Record]:
        """The records as of the last `refresh` or `append`. Not to be modified."""
        ...

    @property
    def head(self) -> str:
        """The digest of the last record; 64 zeros if there is none."""
        ...

    def exists(self) -> bool:
        """Return whether the checkpoint is there, which it is from its first record on."""
        ...

    def refresh(self) -> None:
        """Take in what others appended.

        Raises:
            CorruptLogError: The log is damaged before its last line.
        """
        ...

    def lock(self, timeout: float | None = 10.0) -> AbstractContextManager[None]:
        """Return a context that makes this the only writer of the checkpoint. Re-entrant in this object and thread.

        Args:
            timeout: Seconds to wait for another writer; None waits for ever.

        Raises:
            StoreLockedError: Another writer still has it; says who.
        """
        ...

    def append(self, kind: str, body: dict[str, Any]) -> Record:
        """Append a record and return it once it is durable.

        Args:
            kind: A word of lower case letters, digits and underscores.
            body: JSON without tuples, inf and nan. Not modified.

        Raises:
            StoreLockedError: The lock is not held.
            StoreWriteError: It could not be written, and is not in the log.
            UnsupportedError: JSON would change ``body``.

        Effects:
            Creates the checkpoint with its first record.
        """
        ...


class Backend(Protocol):
    """A place for logs, items and resume points."""

    def log(self, id: str, *, must_exist: bool = False) -> Log:
        """Return the log of a checkpoint. Reads, and creates nothing.

        Args:
            id: Letters, digits, ``.``, ``_``, ``-``, at most 128, not starting with a dot.
            must_exist: Whether one without records is an error.

        Raises:
            InvalidIdError: ``id`` cannot name a checkpoint.
            CheckpointNotFoundError: There is none; lists those that are there.
            CorruptLogError: The log is damaged before its last line.
        """
        ...

    def ids(self) -> list[str]:
        """Return the ids of the checkpoints, sorted."""
        ...

    def writing(self, timeout: float | None = 60.0) -> AbstractContextManager[None]:
        """Return a context in which no item disappears. Hold it from `has` or `put` until the record that names them is durable.

        Args:
            timeout: Seconds to wait for a garbage collection; None waits for ever.

        Raises:
            StoreLockedError: It still runs.
        """
        ...

    def has(self, digest: str) -> bool:
        """Return whether an item is there."""
        ...

    def put(self, items: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Write the items that are not there, and return once they are durable.

        Args:
            items: Flat trees of dense tensors, by their digest: ``tree_hash({name: leaf_hash(leaf)})``. Not modified;
                they may be on any device and have any strides, which are not stored.

        Raises:
            MutatedStateError: Tensors do not hash to their digest. Nothing of that call was written.
            StoreWriteError: They could not be written.
        """
        ...

    def get(self, digest: str, names: Iterable[str] | None = None, *, what: str = "an item") -> dict[str, torch.Tensor]:
        """Return an item, or some leaves of it, as contiguous CPU tensors of which each has its recorded hash.

        Args:
            digest: Which item.
            names: Which leaves, and in what order; all of them by default.
            what: What it is for people, as in ``"params of train 1 in checkpoint 'adam'"``.

        Raises:
            MissingSnapshotError: It is not there.
            CorruptItemError: Its bytes are not what they were; names the leaf.
            TreeMismatchError: It has no leaf of that name.
        """
        ...

    def warm(self) -> None:
        """Prepare for a `put` or `save_resume` that will come, and return at once."""
        ...

    def save_resume(self, id: str, body: dict[str, Any], leaves: Mapping[str, Mapping[str, torch.Tensor]]) -> Handle:
        """Start writing a resume point in the background. Two are kept: the newest complete one and the one before.

        Args:
            id: The checkpoint, whose lock is held.
            body: JSON without tuples, inf and nan.
            leaves: Flat trees of tensors, by name. They may change as soon as this returns.

        Raises:
            StoreWriteError: It could not be handed over. What fails later is raised by the handle.
        """
        ...

    def load_resume(self, id: str) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]] | None:
        """Return ``(body, leaves)`` of the newest resume point of which every byte verifies, or None."""
        ...

    def clear_resume(self, id: str) -> None:
        """Remove the resume points of a checkpoint. Waits for one that is being written."""
        ...

    def delete(self, id: str, timeout: float | None = 10.0) -> None:
        """Remove a checkpoint: its log and resume points. Items stay until they are collected.

        Args:
            id: Which one.
            timeout: Seconds to wait for somebody who writes it; None waits for ever.

        Raises:
            CheckpointNotFoundError: There is none.
            StoreLockedError: Somebody is writing it.
        """
        ...

    def journal(self, act: str, **details: Any) -> None:
        """Note an act on the store: who, when, and ``details``, which are JSON."""
        ...

    def acts(self) -> list[dict[str, Any]]:
        """Return what `journal` noted, oldest first."""
        ...

    def close(self) -> None:
        """Wait for what is written in the background and free what is held. The backend can still be used."""
        ...


def not_found(id: str, available: Sequence[str], where: str) -> CheckpointNotFoundError:
    """Return the error for a checkpoint that is not there."""
    return CheckpointNotFoundError(
        f"There is no checkpoint {id!r} in {where}.",
        cause=f"It has {', '.join(map(repr, available))}." if available else "It has no checkpoint.",
        fix="A checkpoint is there from its first record on.",
        id=id,
        available=tuple(available),
    )
