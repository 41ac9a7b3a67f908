"""What a checkpoint holds, selected: an answer or an epoch, its snapshot, its metrics; its state, read when somebody looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from purestate.core import _module
from purestate.core._hash import short
from purestate.core._recipe import Recipe
from purestate.core._state import State
from purestate.errors import MissingSnapshotError, SetupError, StateError, TreeMismatchError
from purestate.run._chain import RecordLike, Trajectory, as_recorded
from purestate.run._ledger import Ledger

__all__ = ["Selected", "answer_of", "backup_of", "load", "metrics_of", "recipe_of", "select", "snapshot_of", "train_of"]


def answer_of(ledger: Ledger, op: int | None = None) -> tuple[Trajectory, RecordLike]:
    """Return a train and its newest answer; the last train if ``op`` is left out.

    Raises:
        MissingSnapshotError: There is no such train, or no finished one.
    """
    finished = {number: (train, record) for number, train, record in ledger.chain.finished()}
    if not finished or (op is not None and op not in finished):
        raise MissingSnapshotError(
            f"checkpoint {ledger.id!r} has no finished train{'' if op is None else f' {op}'}; "
            f"it has {sorted(finished) or 'none'}.",
            fix="Run the script that trains it again: it goes on from its last finished epoch.",
        )
    return finished[max(finished) if op is None else op]


def backup_of(record: RecordLike) -> int | None:
    """Return the epoch of an answer that was better than the one it returned; None if there is none."""
    body = record.body
    return body["best"] if body["best"] is not None and body["best"] != body["returned"] else None


def snapshot_of(record: RecordLike, *, best: bool) -> dict[str, Any]:
    """Return the snapshot of an answer, or of its best epoch where one was watched."""
    body = record.body
    return body["kept"][str(body["best"])] if best and body["best"] is not None else body["out"]


def metrics_of(train: Trajectory, record: RecordLike, *, best: bool) -> dict[str, float]:
    """Return the metrics of the epoch whose parameters the snapshot has."""
    with as_recorded(record):
        return train.history()[_epoch_of(record, best=best)]


@dataclass(frozen=True)
class Selected:
    """A snapshot that was selected.

    Args:
        train: The trajectory that it is of.
        record: The answer or the epoch that it belongs to.
        snapshot: As the log has it.
        epoch: The epoch of the train whose parameters it has.
        after: After how many epochs of the train it is the state.
    """

    train: Trajectory
    record: RecordLike
    snapshot: dict[str, Any]
    epoch: int
    after: int

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the epoch."""
        with as_recorded(self.record):
            return self.train.history()[self.epoch]


def select(ledger: Ledger, *, op: int | None = None, best: bool = False, epoch: int | None = None) -> Selected:
    """Return the snapshot of an answer, of its best epoch, or of any epoch that is kept.

    Raises:
        MissingSnapshotError: As `answer_of`; or the epoch is not kept: names its hash and how it is computed again.
        SetupError: Both the best and another epoch were asked for.
    """
    if epoch is None:
        train, record = answer_of(ledger, op)
        return Selected(train, record, snapshot_of(record, best=best), _epoch_of(record, best=best), record.body["last"])
    if best:
        raise SetupError(f"load: best=True and epoch={epoch!r} ask for two states.", fix="Give one of them.", argument="epoch")
    train = train_of(ledger, op)
    if epoch not in train.epochs:
        raise MissingSnapshotError(
            f"checkpoint {ledger.id!r}, train {ledger.chain.index(train)} has no epoch {epoch!r}; "
            f"it has {len(train.history()) - 1} finished ones.",
            fix=f"Train further: ck.train(state, ..., epochs={epoch!r}).",
        )
    snapshot = train.kept().get(epoch)
    if snapshot is None:
        raise _not_kept(ledger, train, epoch)
    return Selected(train, train.epochs[epoch], snapshot, epoch, epoch)


def load(
    ledger: Ledger,
    recipe: Recipe | None,
    device: torch.device | str,
    *,
    op: int | None = None,
    best: bool = False,
    epoch: int | None = None,
) -> State:
    """Return the lazy state of a snapshot.

    Raises:
        MissingSnapshotError: As `select`.
        SetupError: As `select`.
        TreeMismatchError: The recipe's module has other names.
    """
    found = select(ledger, op=op, best=best, epoch=epoch)
    state = ledger.restore(found.snapshot, recipe, device)
    if recipe is not None:
        _must_have_the_names_of(recipe, found.snapshot, ledger.id)
    return state.answered(ledger.parent(found.train, found.record, state.hash, found.after))


def recipe_of(like: nn.Module | State | None) -> Recipe | None:
    """Return the static half that ``like=`` gives to what is loaded."""
    if isinstance(like, State):
        return like.recipe
    if isinstance(like, nn.Module):
        return Recipe(_module.take_apart(like)[0])
    if like is None:
        return None
    raise StateError(f"load: like must be a module or a state, got {type(like).__name__}.")


def _epoch_of(record: RecordLike, *, best: bool) -> int:
    body = record.body
    return body["best"] if best and body["best"] is not None else body["returned"]


def train_of(ledger: Ledger, op: int | None) -> Trajectory:
    """Return a train of which epochs may be kept, finished or not; the last if ``op`` is left out."""
    trains = ledger.chain.binding()
    if not trains or (op is not None and op not in range(len(trains))):
        raise MissingSnapshotError(
            f"checkpoint {ledger.id!r} has no train{'' if op is None else f' {op}'} with an epoch; "
            f"it has {list(range(len(trains))) or 'none'}.",
            fix="Run the script that trains it.",
        )
    return trains[-1 if op is None else op]


def _not_kept(ledger: Ledger, train: Trajectory, epoch: int) -> MissingSnapshotError:
    op, kept = ledger.chain.index(train), sorted(train.kept_epochs())
    start = max((n for n in kept if n < epoch), default=0)
    with as_recorded(train.epochs[epoch]):
        state = short(train.epochs[epoch].body["hash"])
    return MissingSnapshotError(
        f"checkpoint {ledger.id!r}, train {op}: the state {state} after epoch {epoch} is not kept; "
        f"kept {'are ' + ', '.join(map(str, kept)) if kept else 'is none'}.",
        cause="Its record and its hash are. Bytes are kept of the last and the best epoch of an answer, and where keep= says so.",
        fix=f"ck.train(state, ..., epochs={epoch}) computes it again from {f'epoch {start}' if start else 'the input'} "
        "and compares it with that hash.",
    )


def _must_have_the_names_of(recipe: Recipe, snapshot: dict[str, Any], id: str) -> None:
    """Names now, since the record has them: shapes are compared when tensors are read."""
    template = recipe.template
    kept = {name for subtree in ("params", "frozen", "buffers") for name in snapshot.get(subtree, {}).get("names", ())}
    kept |= set(snapshot["params"].get("beside", {}).get("names", ()))
    has = {name for name, _ in template.named_parameters()} | {name for name, _ in template.named_buffers()}
    for name in sorted(kept ^ has):
        whose = "the checkpoint has no leaf" if name in has else "like has no leaf"
        raise TreeMismatchError(
            f"load: {whose} {name!r} where checkpoint {id!r} and like must agree.",
            cause="It belongs to a model of another structure.",
            fix="Give the module it was trained with, or load without like= and look at state.params.",
            path=name,
        )
