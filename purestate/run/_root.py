"""The root of a checkpoint: an initial state that is recorded, so that a script without seeds can be run again.

A builder that nobody seeded gives other weights in each process, and the log would hold no answer for any of them. So the
first ones are recorded, and whoever comes later with a module of the same structure starts from those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from purestate.core._hash import dtype_name, short
from purestate.core._key import Key
from purestate.core._state import SUBTREES, State
from purestate.errors import StaleRecordError, TreeMismatchError
from purestate.run._chain import RecordLike
from purestate.run._environment import environment
from purestate.run._ledger import Ledger
from purestate.run._mode import mode_of, refuse
from purestate.run._snapshot import snapshot

__all__ = ["root"]

_Shapes = Mapping[str, Mapping[str, Sequence[Any]]]


def root(ledger: Ledger, state: State) -> State:
    """Return the recorded root of a checkpoint, with the recipe of a state; record that state if there is none.

    Args:
        ledger: The checkpoint.
        state: Says what the module is, and is the root if none is recorded. Not modified.

    Raises:
        TreeMismatchError: The root has other names, shapes or dtypes.
        StaleRecordError: The root was made under another seed.
        OfflineError: None is recorded, and the mode is ``offline``.
        AuditError: Likewise, in an audit.

    Effects:
        One record and its items, the first time.
    """
    record = ledger.refresh().root
    if record is None:
        if mode_of(ledger.backend) != "record":
            refuse(ledger, "root", "no initial state is recorded")
        ledger.backend.warm()
        with ledger.writing() as chain:
            record = chain.root or _record(ledger, state)  # made while we waited for the lock
    _must_be_alike(ledger, record, state)
    kept = record.body["state"]
    same = kept["hash"] == state.hash
    recorded = state if same else ledger.restore(kept, state.recipe, state.device)
    return recorded.answered(
        {
            "checkpoint": ledger.id,
            "op": None,
            "seq": record.seq,
            "record": record.digest,
            "hash": recorded.hash,
            "epochs": 0,
        }
    )


def _record(ledger: Ledger, state: State) -> RecordLike:
    kept, items = snapshot(state)
    ledger.put(items)
    body = {
        "state": kept,
        "acts": list(state.origin.acts),
        "shapes": _shapes(state),
        "environment": environment(state.device),
    }
    return ledger.append("root", body)


def _shapes(state: State) -> dict[str, dict[str, Any]]:
    return {name: {leaf: _shape(tensor) for leaf, tensor in getattr(state, name).items()} for name in SUBTREES}


def _shape(tensor: torch.Tensor) -> list[Any]:
    return [dtype_name(tensor.dtype), *tensor.shape]


def _must_be_alike(ledger: Ledger, record: RecordLike, state: State) -> None:
    differing = list(_differences(record.body["shapes"], _shapes(state)))
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        path, old, new = differing[0]
        raise TreeMismatchError(
            f"{ledger.id!r} began with a module of another structure: "
            + "; ".join(f"{path} was {old}, now {new}" for path, old, new in differing[:3])
            + f"{more}.",
            cause="The module was changed since, or another model took the same id.",
            fix=f"Take another id, undo the change, or delete what is recorded under {ledger.id!r}.",
            path=path,
            expected=old,
            actual=new,
        )
    hi, lo = record.body["state"]["key"]
    if Key(hi, lo) != state.key:
        what, old, new = "seed", _seed(record.body["acts"]), _seed(state.origin.acts)
        if old == new:
            what, old, new = "random key", repr(Key(hi, lo)), repr(state.key)
        raise StaleRecordError(
            f"{ledger.id!r} began with {what} {old!r}, now {new!r}.",
            cause=f"Its initial state {short(record.body['state']['hash'])} is recorded, with its random key.",
            fix=f"Take another id, undo the change, or delete what is recorded under {ledger.id!r}.",
            checkpoint=ledger.id,
            changes=((what, old, new),),
        )


def _seed(acts: Sequence[Mapping[str, Any]]) -> Any:
    return next((act["init"]["seed"] for act in acts if "init" in act), None)


def _differences(old: _Shapes, new: _Shapes) -> Iterator[tuple[str, str, str]]:
    """Yield ``(path, what was recorded, what it is now)`` of every leaf that differs, in the order of the module."""
    kinds = {"params": "trainable", "frozen": "frozen", "buffers": "a buffer"}
    was, now = (
        {name: (kind, _said(shape)) for tree, kind in kinds.items() for name, shape in shapes[tree].items()}
        for shapes in (old, new)
    )
    gone = ("not there", "not there")
    for subtree in SUBTREES:
        for name in {**new[subtree], **old[subtree]}:
            one, other = was.get(name, gone), now.get(name, gone)
            if one != other and name in (new if name in now else old)[subtree]:
                told = 0 if one[1] == other[1] else 1
                yield f"{subtree}[{name!r}]", one[told], other[told]


def _said(shape: Sequence[Any]) -> str:
    return f"{shape[0]} {tuple(shape[1:])}"
