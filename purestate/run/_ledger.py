"""A checkpoint's log with its chain: what was recorded, and the one way to record more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from purestate.core._recipe import Recipe
from purestate.core._state import State
from purestate.errors import CorruptItemError, MissingSnapshotError
from purestate.run._answers import Asked
from purestate.run._chain import READERS, Chain, RecordLike, Trajectory
from purestate.run._mode import mode_of, must_record
from purestate.run._snapshot import Items, restore
from purestate.store._backend import Backend

__all__ = ["Ledger"]

_BEGIN_OR_END = frozenset({"checkpoint", "root", "train", "done", *READERS})
"""The kinds of records that say who computed what they hold, where and when: those that begin or end an op."""


class Ledger:
    """The records of one checkpoint.

    Args:
        backend: Where they are.
        id: The checkpoint's name.
        description: Recorded with the first record.
        must_exist: Refuse a checkpoint that has no record.
        asked: What was asked of the checkpoint in this process, by op and question; shared with others who ask.
    """

    def __init__(
        self,
        backend: Backend,
        id: str,
        *,
        description: str | None = None,
        must_exist: bool = False,
        asked: dict[tuple[str, str], Asked] | None = None,
    ) -> None:
        self.backend, self.id = backend, id
        self.asked = {} if asked is None else asked
        self.log = backend.log(id, must_exist=must_exist)
        self.chain = Chain()
        self._description = description
        self._unnamed = ExitStack()
        self.chain.update(self.log.records)

    @property
    def description(self) -> str | None:
        """What the checkpoint is about."""
        return self.chain.description or self._description

    def refresh(self) -> Chain:
        """Fold in what was appended since, by whomever, and return the chain."""
        self.log.refresh()
        records, seen = self.log.records, self.chain.seen
        if seen and (len(records) < seen or records[seen - 1].digest != self.chain.head):
            self.chain = Chain()  # the checkpoint was deleted, and perhaps begun anew
        self.chain.update(records)
        return self.chain

    def note(self, asked: Asked, question: str) -> None:
        """Remember what came of an op that was asked. What was computed stays so when it is asked again.

        Args:
            asked: What came of it.
            question: The digest of what was asked, with what was picked of it.
        """
        before = self.asked.get((asked.op, question))
        if before is None or before.outcome != "computed" or asked.outcome == "computed":
            self.asked[asked.op, question] = asked

    @contextmanager
    def writing(self) -> Iterator[Chain]:
        """Hold the checkpoint's lock, for an op that computes. Yields the chain as it is then.

        Raises:
            OfflineError: The mode says that nothing is written.
            StoreLockedError: Another process is writing this checkpoint.
        """
        if mode_of(self.backend) != "record":
            must_record(f"What is asked of checkpoint {self.id!r}", self.id)
        with self.log.lock(), self._unnamed:
            yield self.refresh()

    def append(self, kind: str, body: Mapping[str, Any]) -> RecordLike:
        """Append a record, durable on return as is everything before it, and fold it in.

        Effects:
            One line in the log; creates the checkpoint with its first record.
        """
        first = [] if self.log.records else [("checkpoint", {"description": self._description})]
        records = self.log.append_all([(kind, self._with_provenance(kind, body)) for kind, body in (*first, (kind, body))])
        self._unnamed.close()
        for record in records:
            self.chain.add(record)
        if first:
            self.backend.journal("create", checkpoint=self.id)
        return records[-1]

    def append_soon(self, kind: str, body: Mapping[str, Any]) -> RecordLike:
        """Append a record that names no item, fold it in, and return: it becomes durable while the caller goes on.

        What fails meanwhile is raised by the next append, or by leaving `writing`.

        Effects:
            One line in the log, within moments, and before anything that is appended later.
        """
        record = self.log.append_soon(kind, dict(body))
        self.chain.add(record)
        return record

    def _with_provenance(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if kind not in _BEGIN_OR_END:
            return dict(body)
        from purestate.run._provenance import provenance

        return {**body, "provenance": provenance(anonymous=self.backend.anonymous)}

    def put(self, items: Items) -> None:
        """Make items durable; those that are there and whole are not written again.

        From here until the next record, which is to name them, no item of the store is collected.
        """
        if items:
            self._unnamed.enter_context(self.backend.writing())
            self.backend.put(items)

    def parent(self, train: Trajectory, record: RecordLike, state_hash: str, epochs: int) -> dict[str, Any] | None:
        """Return what `State.answered` remembers of the record that holds a state; None where no record is kept.

        Args:
            train: The trajectory that the state is of.
            record: Its answer, or the epoch.
            state_hash: The hash of the state.
            epochs: After how many epochs of the train.
        """
        if not self.log.records:
            return None
        return {
            "checkpoint": self.id,
            "op": self.chain.index(train),
            "seq": record.seq,
            "record": record.digest,
            "hash": state_hash,
            "epochs": epochs,
        }

    def restore(self, snapshot: Mapping[str, Any], recipe: Recipe | None, device: torch.device | str = "cpu") -> State:
        """Return the lazy state of a snapshot."""
        return restore(snapshot, self, recipe=recipe, device=device)

    def get(self, digest: str) -> dict[str, torch.Tensor]:
        """Return an item of a state of this checkpoint.

        Raises:
            CorruptItemError: Its bytes are not what they were; names leaf and file, and what can be loaded in its place.
            MissingSnapshotError: It is not there; says when a collection removed it, if one did.
        """
        try:
            return self.backend.get(digest)
        except (CorruptItemError, MissingSnapshotError) as error:
            from purestate.run._salvage import explained

            raise explained(self, digest, error) from None
