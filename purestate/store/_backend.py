"""What a store can do, whatever keeps its bytes: the protocols that `DiskBackend`, `MemoryBackend` and `NullBackend` share.

A backend stores records and tensors by name. It knows nothing of states, ops or training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from purestate.errors import CheckpointExistsError, CheckpointNotFoundError, StoreError
from purestate.store._record import Record

if TYPE_CHECKING:
    import torch

    from purestate.store._report import Finding, GcReport, RepairReport

__all__ = ["Backend", "Handle", "Leaf", "Log", "Outlived", "Point", "not_found", "taken_name"]

Point = tuple[dict[str, Any], dict[str, "dict[str, torch.Tensor]"]]
"""A resume point: its body, and flat trees of tensors by name."""

Outlived = Callable[[Sequence[Record], Mapping[str, Any]], bool]
"""Returns whether a resume point, of which it gets the body, is of no use any more, as the records of its checkpoint tell."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is known of a leaf of an item without reading it.

    Args:
        dtype: ``'float32'``.
        shape: Its shape.
        size: Its bytes.
        hash: What it was hashed to, see `purestate.core._hash.leaf_hash`.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    hash: str


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
    torn: int
    """Bytes of a last line that was never finished, as of the last look."""

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

        When it is left, everything that was appended is durable.

        Args:
            timeout: Seconds to wait for another writer; None waits for ever.

        Raises:
            StoreLockedError: Another writer still has it; says who.
            StoreWriteError: On leaving: something that `append_soon` took could not be written, and nobody was told yet.
        """
        ...

    def append(self, kind: str, body: dict[str, Any]) -> Record:
        """Append a record and return it once it is durable, as is everything before it.

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

    def append_all(self, bodies: Sequence[tuple[str, dict[str, Any]]]) -> list[Record]:
        """Append several records at once, durably, and all of them or none. For the rest see `append`.

        Args:
            bodies: Kind and body of each.
        """
        ...

    def append_soon(self, kind: str, body: dict[str, Any]) -> Record:
        """Append a record and return it at once; it becomes durable within moments. For the rest see `append`.

        Records that come while others are written become durable together. They do so in their order: what a crash leaves is
        always a beginning of the log.

        Raises:
            StoreWriteError: One that was appended before could not be written. It is not in the log, nor is what came after
                it, and nothing more is appended until the lock is taken anew.
        """
        ...

    def flush(self) -> None:
        """Make durable what `append_soon` took so far. From any thread; what fails is raised by the next append."""
        ...

    def extend(self, records: Sequence[Record]) -> None:
        """Append records of another log as they are, durably, and all of them or none.

        Args:
            records: Those that follow the last one here.

        Raises:
            BadLineError: They do not follow.
            StoreLockedError: The lock is not held.
            StoreWriteError: They could not be written.

        Effects:
            As of `append`.
        """
        ...


class Backend(Protocol):
    """A place for logs, items and resume points."""

    anonymous: bool
    """Whether nothing that is written is to say who writes it, and where."""

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

    def items(self) -> Iterator[str]:
        """Yield the digests of the items that are there, in no order."""
        ...

    def put(self, items: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Write the items that are not there or are damaged, and return once they are durable.

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

    def describe(self, digest: str, *, what: str = "an item") -> dict[str, Leaf]:
        """Return what is noted of the leaves of an item, by name, without reading a tensor.

        Raises:
            MissingSnapshotError: It is not there.
            CorruptItemError: What is noted is not of this item.
        """
        ...

    def faults(self, digest: str, what: str, *, hashed: bool) -> Iterator[StoreError]:
        """Yield what is wrong with an item: that it is missing, and every file and leaf that is damaged. Raises none of it.

        Args:
            digest: Which item.
            what: What it is for people.
            hashed: Whether its bytes are read; else only what is noted of it, and the sizes of its files.
        """
        ...

    def warm(self, size: int = 0) -> None:
        """Prepare for a `put` that will come, and return at once; or for a `save_resume` of ``size`` bytes, and wait for that."""
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

    def load_resume(self, id: str, damaged: list[StoreError] | None = None) -> Point | None:
        """Return the newest resume point of which every byte verifies, or None.

        Args:
            id: The checkpoint.
            damaged: What is wrong with newer ones is appended here.
        """
        ...

    def clear_resume(self, id: str) -> None:
        """Remove the resume points of a checkpoint. Waits for one that is being written."""
        ...

    def rename(self, old: str, new: str, timeout: float | None = 10.0) -> None:
        """Give a checkpoint another name.

        Args:
            old: Which one.
            new: Its name from now on.
            timeout: Seconds to wait for somebody who writes it; None waits for ever.

        Raises:
            CheckpointNotFoundError: There is none.
            CheckpointExistsError: There is one of the new name.
            InvalidIdError: The new name cannot be one.
            StoreLockedError: Somebody is writing it.
        """
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

    def oddities(self) -> Iterator[Finding]:
        """Yield what is odd about the journal."""
        ...

    def strays(self, named: Collection[str] | None, outlived: Outlived | None = None) -> Iterator[Finding]:
        """Yield what lies about and belongs to nothing.

        Args:
            named: The items that records name; None if that is not known.
            outlived: As for `repair`.
        """
        ...

    def repair(self, outlived: Outlived | None = None) -> RepairReport:
        """Mend what can be mended in one way only: torn last lines, and what killed writers left.

        Args:
            outlived: Tells of resume points whether they have outlived their op; they stay if left out.
        """
        ...

    def collect(self, named: Callable[[], Collection[str]], *, dry_run: bool, timeout: float | None, **details: Any) -> GcReport:
        """Remove the items that are not named, while nobody can begin to name one.

        Args:
            named: Returns the items to keep; asked when nobody can append.
            dry_run: Whether to remove none.
            timeout: Seconds to wait for writers; None waits for ever.
            **details: What the journal notes beside the items.

        Raises:
            StoreLockedError: Somebody is writing.
        """
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


def taken_name(id: str, where: str) -> CheckpointExistsError:
    """Return the error for a name that another checkpoint has."""
    return CheckpointExistsError(
        f"There is already a checkpoint {id!r} in {where}.",
        fix="Take another name, or delete that one first: store.delete(id).",
        id=id,
    )
