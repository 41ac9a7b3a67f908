"""What a checkpoint holds, selected: an answer, its snapshot, its metrics; and the state of it, read when somebody looks."""

from __future__ import annotations

from typing import Any

import torch

from purestate.core._recipe import Recipe
from purestate.core._state import State
from purestate.errors import MissingSnapshotError, TreeMismatchError
from purestate.run._chain import RecordLike, Trajectory, as_recorded
from purestate.run._ledger import Ledger

__all__ = ["answer_of", "backup_of", "load", "metrics_of", "snapshot_of"]


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
    body = record.body
    with as_recorded(record):
        return train.history()[body["best"] if best and body["best"] is not None else body["returned"]]


def load(
    ledger: Ledger, recipe: Recipe | None, device: torch.device | str, *, op: int | None = None, best: bool = False
) -> State:
    """Return the lazy state of an answer.

    Raises:
        MissingSnapshotError: As `answer_of`.
        TreeMismatchError: The recipe's module has other names.
    """
    train, record = answer_of(ledger, op)
    snapshot = snapshot_of(record, best=best)
    state = ledger.restore(snapshot, recipe, device)
    if recipe is not None:
        _must_have_the_names_of(recipe, snapshot, ledger.id)
    return state.answered(ledger.parent(train, record, state.hash, record.body["last"]))


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
