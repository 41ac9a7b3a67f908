"""`Store`, `MemoryStore`, `NullStore`: where checkpoints are, and what can be asked of all of them.

The three differ only in the backend that keeps the bytes. A store never trains anything: see `Checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from purestate.core import _module
from purestate.core._hash import short
from purestate.core._recipe import Recipe
from purestate.core._state import State
from purestate.errors import MissingSnapshotError, StateError
from purestate.run._answers import counted, op_name
from purestate.run._checkpoint import Checkpoint
from purestate.run._ledger import Ledger
from purestate.run._load import answer_of, load, snapshot_of
from purestate.store._backend import Backend
from purestate.store._disk import DiskBackend

__all__ = ["CheckpointInfo", "MemoryStore", "NullStore", "Store"]


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of a checkpoint without reading a tensor.

    Args:
        id: Its name.
        description: What it is about.
        trains: How many trains its chain has.
        epochs: How many epochs they cover.
        metrics: The metrics of its last epoch.
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
    """What the three stores share."""

    _backend: Backend

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
        return Checkpoint(Ledger(self._backend, id, description=description), echo=echo, notify=notify or echo)

    def open(self, id: str, *, echo: Callable[[str], None] | None = print) -> Checkpoint:
        """Return a checkpoint that exists.

        Raises:
            CheckpointNotFoundError: There is none of that name; those that there are are listed.
        """
        return Checkpoint(Ledger(self._backend, id, must_exist=True), echo=echo, notify=echo)

    def checkpoints(self) -> list[CheckpointInfo]:
        """Return what there is, by id, without reading a tensor."""
        return [self._info(Ledger(self._backend, id, must_exist=True)) for id in self._backend.ids()]

    def table(self) -> str:
        """Return the checkpoints as a table for people."""
        from purestate.view import text_table

        rows = [
            [
                info.id,
                info.description or "",
                info.trains,
                info.epochs,
                ", ".join(f"{name} {value:.4f}" for name, value in info.metrics.items() if name.startswith("val_")),
                short(info.state) if info.state else "",
                f"{info.parent['checkpoint']}:{op_name(info.parent['op']).removeprefix('train ')}" if info.parent else "",
            ]
            for info in self.checkpoints()
        ]
        return text_table(rows, ["id", "description", "trains", "epochs", "last epoch", "state", "from"])

    def lineage(self) -> str:
        """Return which checkpoint was forked from which, as a tree for people."""
        infos = {info.id: info for info in self.checkpoints()}
        records = {id: {record.digest for record in self._backend.log(id).records} for id in infos}
        children: dict[str | None, list[CheckpointInfo]] = {}
        for info in infos.values():
            above = info.parent["checkpoint"] if info.parent else None
            # a checkpoint that was deleted and begun anew has the name of the parent, and not its record
            known = above in infos and info.parent is not None and info.parent["record"] in records[above]
            children.setdefault(above if known else None, []).append(info)

        def lines(above: str | None, indent: str) -> list[str]:
            found: list[str] = []
            for i, info in enumerate(children.get(above, [])):
                last = i == len(children[above]) - 1
                branch = "" if above is None else "└─ " if last else "├─ "
                at = f" (from {op_name(info.parent['op'])})" if info.parent and above is not None else ""
                state = f", {short(info.state)}" if info.state else ""
                size = f"{counted(info.trains, 'train')}, {counted(info.epochs, 'epoch')}"
                found.append(f"{indent}{branch}{info.id}{at}: {size}{state}")
                found += lines(info.id, indent + ("" if above is None else "   " if last else "│  "))
            return found

        return "\n".join(lines(None, ""))

    def load(
        self,
        id: str,
        *,
        best: bool = False,
        op: int | None = None,
        like: nn.Module | State | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """Select a snapshot. Nothing is read before somebody looks at a tensor.

        Args:
            id: The checkpoint.
            best: The best epoch, where the op returned the last one (``load_best=False``).
            op: The number of the train, from 0; the last if left out.
            like: A module or a state of the same structure. It says what the module is, and a state also what loss,
                optimizer and schedulers are. Without it the state can be read, and neither evaluated nor trained on.
            device: Where the tensors go; where ``like`` is, or the CPU.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            MissingSnapshotError: It has no such op, or no finished one.
            TreeMismatchError: ``like`` has another structure.
        """
        recipe = _recipe_of(like)
        if device is None:
            device = like.device if isinstance(like, State) else "cpu"
        return load(Ledger(self._backend, id, must_exist=True), recipe, device, op=op, best=best)

    def delete(self, id: str) -> None:
        """Remove a checkpoint: its log and resume points. Its items stay, since other checkpoints may share them.

        Raises:
            CheckpointNotFoundError: There is none.
            StoreLockedError: Somebody is writing it.
        """
        self._backend.delete(id)

    def close(self) -> None:
        """End the writer process, if there is one. The store can be used again."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _info(self, ledger: Ledger) -> CheckpointInfo:
        chain = ledger.chain
        finished, root = list(chain.finished()), chain.root
        metrics: dict[str, float] = {}
        if finished:
            _, train, record = finished[-1]
            metrics = train.history()[record.body["last"]]
        return CheckpointInfo(
            id=ledger.id,
            description=ledger.description,
            trains=len(chain.binding()),
            epochs=sum(record.body["last"] for _, _, record in finished),
            metrics=metrics,
            state=finished[-1][2].body["out"]["hash"] if finished else root.body["state"]["hash"] if root else None,
            parent=_foreign_parent(ledger),
        )


class Store(_Store):
    """A folder that holds checkpoints.

    Args:
        path: The folder. It is created with the first record.

    Raises:
        FormatVersionError: The folder was written by a newer version.
        StoreWriteError: ``path``, or a folder above it, is a file.

    Example:
        >>> import purestate as ps, tempfile
        >>> store = ps.Store(tempfile.mkdtemp())
        >>> store.checkpoints()
        []
    """

    def __init__(self, path: str | Path) -> None:
        self._backend = self._disk = DiskBackend(path)

    def path(self, id: str, subtree: str = "params", *, op: int | None = None, best: bool = False) -> Path:
        """Return the folder of one subtree of a snapshot, which plain Orbax restores.

        Args:
            id: The checkpoint.
            subtree: ``'params'``, ``'frozen'``, ``'buffers'``, ``'optimizer'``, ``'ema'`` or ``'extra'``.
            op: The number of the train; the last if left out.
            best: As for `load`.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            MissingSnapshotError: It has no such op, or no finished one; or the snapshot has no item for ``subtree``:
                small ones live in the record or beside the parameters.
        """
        ledger = Ledger(self._backend, id, must_exist=True)
        snapshot = snapshot_of(answer_of(ledger, op)[1], best=best)
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


def _foreign_parent(ledger: Ledger) -> dict[str, Any] | None:
    if not ledger.chain.trains:
        return None
    parent = ledger.chain.trains[0].start.body["parent"]
    return parent if parent and parent["checkpoint"] != ledger.id else None


def _recipe_of(like: nn.Module | State | None) -> Recipe | None:
    if isinstance(like, State):
        return like.recipe
    if isinstance(like, nn.Module):
        return Recipe(_module.take_apart(like)[0])
    if like is None:
        return None
    raise StateError(f"load: like must be a module or a state, got {type(like).__name__}.")
