"""`Store`, `MemoryStore`, `NullStore`: where checkpoints are, and what can be asked of all of them.

The three differ only in the backend that keeps the bytes. A store never trains anything: see `Checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import nn

from purestate.core._state import State
from purestate.errors import MissingSnapshotError, SetupError
from purestate.run._answers import Asked
from purestate.run._checkpoint import Checkpoint
from purestate.run._ledger import Ledger
from purestate.run._lineage import foreign_parent
from purestate.run._load import load, metrics_of, recipe_of, select
from purestate.run._mode import must_record
from purestate.store._backend import Backend
from purestate.store._disk import DiskBackend
from purestate.store._report import Level

if TYPE_CHECKING:
    from purestate.run._inspect import SnapshotInfo
    from purestate.store._report import CheckReport, CopyReport, GcReport, RepairReport

__all__ = ["CheckpointInfo", "MemoryStore", "NullStore", "Store"]


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of a checkpoint without reading a tensor.

    Args:
        id: Its name.
        description: What it is about.
        trains: How many trains its chain has.
        epochs: How many epochs they cover.
        metrics: The metrics of the state that its last train returned.
        state: The hash of its last answer, else of its root; None if there is neither.
        parent: Where its first state came from: checkpoint, op and state hash; None for a root.
    """

    id: str
    description: str | None
    trains: int
    epochs: int
    metrics: dict[str, float]
    state: str | None
    parent: dict[str, Any] | None


class _Store:
    """What the three stores share. What looks after a store is imported when somebody does."""

    _backend: Backend

    @cached_property
    def _asked(self) -> dict[str, dict[tuple[str, str], Asked]]:
        """What was asked through this store, by checkpoint: see `Checkpoint.explain`."""
        return {}

    def checkpoint(
        self,
        id: str,
        *,
        description: str | None = None,
        echo: Callable[[str], None] | None = print,
        notify: Callable[[str], None] | None = None,
    ) -> Checkpoint:
        """Return a checkpoint. It is created with its first record, not before.

        Args:
            id: Letters, digits, ``.``, ``_``, ``-``.
            description: What it is about; recorded with the first record.
            echo: Gets one line for each op; None for silence.
            notify: Gets what should be said once, such as why a step runs uncaptured; ``echo`` if left out.

        Raises:
            InvalidIdError: The id cannot name a checkpoint.
        """
        ledger = Ledger(self._backend, id, description=description, asked=self._asked.setdefault(id, {}))
        return Checkpoint(ledger, echo=echo, notify=notify or echo)

    def open(self, id: str, *, echo: Callable[[str], None] | None = print) -> Checkpoint:
        """Return a checkpoint that exists.

        Raises:
            CheckpointNotFoundError: There is none of that name; those that there are are listed.
        """
        return Checkpoint(
            Ledger(self._backend, id, must_exist=True, asked=self._asked.setdefault(id, {})), echo=echo, notify=echo
        )

    def checkpoints(self) -> list[CheckpointInfo]:
        """Return what there is, by id, without reading a tensor."""
        return [self._info(Ledger(self._backend, id, must_exist=True)) for id in self._backend.ids()]

    def table(self) -> str:
        """Return the checkpoints as a table for people."""
        from purestate.run._shown import listing

        return listing(self.checkpoints(), self._homes())

    def lineage(self) -> str:
        """Return which checkpoint was forked from which, as a tree for people."""
        from purestate.run._shown import tree

        return tree(self.checkpoints(), self._homes())

    def load(
        self,
        id: str,
        *,
        best: bool = False,
        op: int | None = None,
        epoch: int | None = None,
        like: nn.Module | State | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """Select a snapshot. Nothing is read before somebody looks at a tensor.

        Args:
            id: The checkpoint.
            best: The best epoch, where the op returned the last one (``load_best=False``).
            op: The number of the train, from 0; the last if left out.
            epoch: The state after an epoch of that train, which may be in progress, where it is kept: see `Checkpoint.kept`.
            like: A module or a state of the same structure. It says what the module is, and a state also what loss,
                optimizer and schedulers are. Without it the state can be read, and neither evaluated nor trained on.
            device: Where the tensors go; where ``like`` is, or the CPU.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            MissingSnapshotError: It has no such op, or no finished one; or the epoch is not kept: says how to compute it again.
            SetupError: Both ``best`` and ``epoch`` are given.
            TreeMismatchError: ``like`` has another structure.
        """
        recipe = recipe_of(like)
        if device is None:
            device = like.device if isinstance(like, State) else "cpu"
        return load(Ledger(self._backend, id, must_exist=True), recipe, device, op=op, best=best, epoch=epoch)

    def inspect(self, id: str, *, op: int | None = None, best: bool = False, epoch: int | None = None) -> SnapshotInfo:
        """Return what a snapshot holds, without reading a tensor: names, shapes, dtypes, sizes and metrics.

        Args:
            id: The checkpoint.
            op: As for `load`.
            best: As for `load`.
            epoch: As for `load`.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            MissingSnapshotError: As `load`; or an item is not in the store.
            CorruptItemError: What is noted of an item is not of that item.

        Example:
            >>> import purestate as ps, torch
            >>> store = ps.MemoryStore()
            >>> s0 = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
            >>> s0 = ps.setup(s0, loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
            >>> s1 = store.checkpoint("a", echo=None).train(s0, [(torch.ones(4, 2), torch.ones(4, 1))], epochs=1)
            >>> [(leaf.path, leaf.shape, leaf.dtype, leaf.bytes) for leaf in store.inspect("a").leaves]
            [("params['weight']", (1, 2), 'float32', 8), ("params['bias']", (1,), 'float32', 4)]
        """
        from purestate.run._inspect import inspect

        return inspect(Ledger(self._backend, id, must_exist=True), op=op, best=best, epoch=epoch)

    def check(self, level: Level = "items") -> CheckReport:
        """Look for damage, and change nothing. It may run while others write.

        Args:
            level: ``'records'`` verifies every line of every log, and reads the journal. ``'items'`` also looks whether each item
                that a record names is there, with the names and sizes that it was written with, and what lies about in the
                folder. ``'bytes'`` also reads all of them and compares every leaf with its hash.

        Returns:
            The findings, each with its place and what mends it. ``report.ok`` says whether anything is lost.

        Raises:
            SetupError: There is no such level.

        Example:
            >>> import purestate as ps
            >>> print(ps.MemoryStore().check())
            ok: 0 checkpoints, 0 records, 0 items, their names and sizes
        """
        if level not in get_args(Level):
            raise SetupError(f"check: level must be one of {get_args(Level)}, got {level!r}.", argument="level")
        from purestate.run._maintain import items_of, needed, outlived
        from purestate.store._check import check

        return check(self._backend, items_of, level, needed, outlived)

    def repair(self) -> RepairReport:
        """Mend what can be mended in one way only, and nothing else.

        Last lines that a crash cut short are cut off, with a copy kept beside the log; files of writers that were killed are
        removed, as are resume points whose op is done. What is damaged stays as it is: `check` says what to do. What is being
        written now is left alone.

        Raises:
            StoreWriteError: The store cannot be written.

        Effects:
            See above; a line in the store's journal if anything was done.
        """
        must_record("Store.repair")
        from purestate.run._maintain import outlived

        return self._backend.repair(outlived)

    def gc(self, *, dry_run: bool = False, voided: bool = False, timeout: float | None = 60.0) -> GcReport:
        """Remove the items that no record names: those of deleted checkpoints, of dropped epochs, of writers that were killed.

        What another train began from stays.

        It waits until nobody is between writing an item and the record that names it; training goes on meanwhile. A kill at any
        point leaves every item that a record names. Resume points hold their tensors themselves and are not touched.

        Args:
            dry_run: Remove nothing, and return what would be.
            voided: Remove the states of voided answers too (see `Checkpoint.reset`), except for those that another train began
                from. Their records stay; looking at such a state is then a `MissingSnapshotError` that says so.
            timeout: Seconds to wait for writers; None waits for ever.

        Returns:
            Which items and how many bytes.

        Raises:
            StoreLockedError: Somebody is still writing.
            CorruptLogError: A log is damaged: nobody knows what it named, so nothing is removed.
            FormatVersionError: A record is of a newer version, which may name items in another way.
            StoreError: There is a log in a folder whose name is no id.

        Effects:
            Fewer items, and a line in the store's journal.
        """
        from purestate.run._maintain import roots

        if not dry_run:
            must_record("Store.gc")
        return self._backend.collect(
            lambda: roots(self._backend, with_voided=not voided), dry_run=dry_run, timeout=timeout, voided=voided
        )

    def copy(self, to: str | Path | _Store, ids: Sequence[str] | None = None) -> CopyReport:
        """Copy checkpoints into another store: their items first, each verified, and their records last.

        What is there is not copied again, so that it can be called again and again. Resume points stay. Whoever trains in this
        store meanwhile does not disturb it: the records are copied as they were at the beginning.

        Args:
            to: A store, or the folder of one. A folder is written as this store is: see ``provenance`` of `Store`.
            ids: Which checkpoints; all of them if left out.

        Raises:
            CheckpointNotFoundError: There is none of that name. Nothing was copied.
            CheckpointExistsError: The other store has another checkpoint of one of these names. Nothing was copied.
            MissingSnapshotError: An item is not in this store. Those of voided records may be missing.
            CorruptItemError: An item is damaged here.
            StoreLockedError: Somebody writes that checkpoint in the other store.

        Effects:
            Items and records in the other store, durable on return, and lines in its journal.
        """
        if isinstance(ids, str):
            raise SetupError(f"copy: ids must be a list of ids, got {ids!r}.", fix=f"Write ids=[{ids!r}].", argument="ids")
        must_record("Store.copy")
        from purestate.run._maintain import named
        from purestate.store._copy import copy

        target = to._backend if isinstance(to, _Store) else DiskBackend(to, anonymous=self._backend.anonymous or None)
        return copy(self._backend, target, self._backend.ids() if ids is None else list(ids), named)

    def rename(self, old: str, new: str) -> None:
        """Give a checkpoint another name. Its records stay as they are, and `lineage` finds it by them.

        Objects that were made by `checkpoint` or `open` under the old name do not follow.

        Args:
            old: Which one.
            new: Its name from now on.

        Raises:
            CheckpointNotFoundError: There is none.
            CheckpointExistsError: There is one of the new name.
            InvalidIdError: The new name cannot be one.
            StoreLockedError: Somebody is writing it.

        Effects:
            A line in the store's journal.
        """
        must_record("Store.rename", old)
        self._backend.rename(old, new)

    def export_orbax(self, id: str, path: str | Path, *, op: int | None = None) -> Path:
        """Write the answers of a checkpoint as Orbax's ``CheckpointManager`` does, one step an op; or the epochs of one.

        ``orbax.checkpoint.CheckpointManager(path).restore(op)`` then returns a dict of subtrees (``'params'``, ``'buffers'``,
        ``'frozen'``, ``'ema'``, ``'optimizer'``, ``'extra'``, those that there are) of arrays by name. Names are escaped as in
        items: each byte outside of ``[A-Za-z0-9_.-]`` as ``%XX``. Leaves without elements, which Orbax refuses, are left out.

        Args:
            id: The checkpoint.
            path: A folder that does not exist yet, or is empty.
            op: A train of which the epochs that are kept are written, one step an epoch, in place of the answers.

        Returns:
            The folder.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            MissingSnapshotError: It has no finished op, or the bytes of one are not in the store.
            CorruptItemError: They are damaged.
            StoreWriteError: The folder cannot be written, or there is something in it.

        Effects:
            The folder. Starts the writer process.
        """
        from purestate.run._export import export_orbax

        return export_orbax(Ledger(self._backend, id, must_exist=True), Path(path).absolute(), op)

    def delete(self, id: str) -> None:
        """Remove a checkpoint: its log and resume points. Its items stay, since other checkpoints may share them.

        Raises:
            CheckpointNotFoundError: There is none.
            StoreLockedError: Somebody is writing it.
        """
        must_record("Store.delete", id)
        self._backend.delete(id)

    def close(self) -> None:
        """End the writer process, if there is one. The store can be used again."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _homes(self) -> dict[str, list[str]]:
        """Return which checkpoints have a record, by its digest: a parent may have another name since, or several."""
        homes: dict[str, list[str]] = {}
        for id in self._backend.ids():
            for record in self._backend.log(id).records:
                homes.setdefault(record.digest, []).append(id)
        return homes

    def _info(self, ledger: Ledger) -> CheckpointInfo:
        chain = ledger.chain
        finished, root = list(chain.finished()), chain.root
        metrics: dict[str, float] = {}
        if finished:
            _, train, record = finished[-1]
            metrics = metrics_of(train, record, best=False)
        return CheckpointInfo(
            id=ledger.id,
            description=ledger.description,
            trains=len(chain.binding()),
            epochs=sum(record.body["last"] for _, _, record in finished),
            metrics=metrics,
            state=finished[-1][2].body["out"]["hash"] if finished else root.body["state"]["hash"] if root else None,
            parent=foreign_parent(ledger),
        )


class Store(_Store):
    """A folder that holds checkpoints.

    Args:
        path: The folder. It is created with the first record.
        provenance: What records and the journal say, outside of what decides, of who wrote them. ``'full'``: the time, user,
            host, git commit, command line and working directory. ``'minimal'``, for stores that are shared: the time alone. As
            the store was created if left out, else ``'full'``. What is there already, and what is copied into it, stays as it is.

    Raises:
        FormatVersionError: The folder was written by a newer version.
        SetupError: There is no such ``provenance``.
        StoreWriteError: ``path``, or a folder above it, is a file.

    Example:
        >>> import purestate as ps, tempfile
        >>> store = ps.Store(tempfile.mkdtemp())
        >>> store.checkpoints()
        []
    """

    def __init__(self, path: str | Path, *, provenance: Literal["full", "minimal"] | None = None) -> None:
        if provenance not in (None, "full", "minimal"):
            raise SetupError(f"Store: provenance must be 'full' or 'minimal', got {provenance!r}.", argument="provenance")
        anonymous = None if provenance is None else provenance == "minimal"
        self._backend = self._disk = DiskBackend(path, anonymous=anonymous)

    def path(
        self, id: str, subtree: str = "params", *, op: int | None = None, best: bool = False, epoch: int | None = None
    ) -> Path:
        """Return the folder of one subtree of a snapshot, which plain Orbax restores.

        Args:
            id: The checkpoint.
            subtree: ``'params'``, ``'frozen'``, ``'buffers'``, ``'optimizer'``, ``'ema'`` or ``'extra'``.
            op: The number of the train; the last if left out.
            best: As for `load`.
            epoch: As for `load`.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            MissingSnapshotError: As `load`; or the snapshot has no item for ``subtree``: small ones live in the record or beside
                the parameters.
        """
        ledger = Ledger(self._backend, id, must_exist=True)
        snapshot = select(ledger, op=op, best=best, epoch=epoch).snapshot
        digest = snapshot.get(subtree, {}).get("item")
        items = [name for name, part in snapshot.items() if isinstance(part, dict) and "item" in part]
        if digest is None:
            raise MissingSnapshotError(
                f"checkpoint {id!r}: the snapshot has no item {subtree!r}.",
                cause="Empty and small subtrees are in the record, small buffers are beside the parameters.",
                fix=f"It has {', '.join(map(repr, items))}.",
            )
        return self._disk.item_path(digest)

    def __repr__(self) -> str:
        return f"Store({str(self._disk.path)!r})"


class MemoryStore(_Store):
    """A store that lives as long as the object: for tests and notebooks.

    Example:
        >>> import purestate as ps, torch
        >>> store = ps.MemoryStore()
        >>> ck, state = store.checkpoint("a", echo=None), ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        >>> for _ in range(2):
        ...     outputs = ck.predict(state, [torch.ones(3, 2)])
        ...     print(tuple(outputs.shape), ck.last.cached)
        (3, 1) False
        (3, 1) True
        >>> [info.id for info in store.checkpoints()]
        ['a']
    """

    def __init__(self) -> None:
        from purestate.store._memory import MemoryBackend

        self._backend = MemoryBackend()


class NullStore(_Store):
    """A store that keeps nothing: every call computes.

    Example:
        >>> import purestate as ps, torch
        >>> ck, state = ps.NullStore().checkpoint("a", echo=None), ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        >>> for _ in range(2):
        ...     outputs = ck.predict(state, [torch.ones(3, 2)])
        ...     print(tuple(outputs.shape), ck.last.cached)
        (3, 1) False
        (3, 1) False
    """

    def __init__(self) -> None:
        from purestate.store._memory import NullBackend

        self._backend = NullBackend()
