"""`compare`: whatever two sides somebody has, the report that ``purestate diff`` prints of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from purestate.errors import UsageError
from purestate.report._diff import RunComparison, compare_runs
from purestate.report._name import RunName
from purestate.report._opened import Run, open_run_or_file
from purestate.report._weights import WeightsComparison, compare_weights
from purestate.store._disk import DiskBackend

if TYPE_CHECKING:
    from purestate.run import Checkpoint, MemoryStore, Store

__all__ = ["compare", "name_of"]


def compare(
    a: str | os.PathLike[str] | Checkpoint | Store | MemoryStore,
    b: str | os.PathLike[str] | Checkpoint | Store | MemoryStore,
    *,
    op: int | None = None,
) -> RunComparison | WeightsComparison:
    """Compare two runs, or the weights of a run with a file: what ``purestate diff`` prints, as an object.

    Of two runs the logs are compared first: ``log.first`` is the first record in which they differ, and ``log.verdict`` says
    whether what their bits may depend on explains it. Then the states that they ended on, ``state.parts``. A file is compared
    leaf by leaf, by name. ``ok`` says whether both are equal. It prints as a text, a notebook shows it as tables, and
    ``to_json()`` and ``to_html()`` hand it on.

    Args:
        a: A checkpoint; a store with a single one; a text ``STORE[:CHECKPOINT[@OP]]``; or an Orbax folder, a safetensors file or
            a torch file of weights. Not modified.
        b: Likewise.
        op: The train of both up to which is compared, where a text names none. All of them if left out.

    Raises:
        UsageError: There is no such run or file, or it cannot be read; says what there is.
        CorruptLogError: A log is damaged.
        MissingSnapshotError: The bytes of a leaf that differs are not in the store.
        CorruptItemError: They are damaged.

    Example:
        >>> import purestate as ps, torch
        >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 2), torch.ones(8, 1)))
        >>> def run(lr):
        ...     s0 = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        ...     s0 = ps.setup(s0, loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=lr))
        ...     ck = ps.MemoryStore().checkpoint("sgd", echo=None)
        ...     ck.train(s0, loader, epochs=1)
        ...     return ck
        >>> found = ps.compare(run(0.1), run(0.2))
        >>> found.ok, found.log.verdict, found.log.because
        (False, 'expected', ('optimizer lr (arguments)',))
    """
    sides = [_side(given, op) for given in (a, b)]
    ours, theirs = sides
    if isinstance(ours, Run) and isinstance(theirs, Run):
        return compare_runs(ours, theirs)
    return compare_weights(ours, theirs)


def _side(given: Any, op: int | None) -> Run | Path:
    if isinstance(given, str | os.PathLike):
        found = open_run_or_file(os.fspath(cast("str | os.PathLike[str]", given)))
    else:
        found = _run(given, "compare")
    if isinstance(found, Path) or op is None or found.name.op is not None:
        return found
    return replace(found, name=replace(found.name, op=op))


def name_of(given: Any, call: str) -> RunName:
    """Return the name of a run that another process can open.

    Args:
        given: A name, or a text; or a checkpoint of a `Store`, or one with a single checkpoint.
        call: Who asks, for messages.

    Raises:
        UsageError: It is something else, or is in memory alone.
    """
    if isinstance(given, RunName):
        return given
    if isinstance(given, str | os.PathLike):
        return RunName.parse(os.fspath(cast("str | os.PathLike[str]", given)))
    run = _run(given, call)
    if not isinstance(run.backend, DiskBackend):
        raise UsageError(
            f"{call}: expected a run of a store on the disk, got checkpoint {run.id!r} in memory.",
            cause="It is computed again by another process, which cannot see it.",
            fix="Record it in a ps.Store(path).",
        )
    return run.name


def _run(given: Any, call: str) -> Run:
    from purestate.run._logged import Logged, ledger_of
    from purestate.run._store import MemoryStore, Store

    if isinstance(given, Store | MemoryStore):
        ids = [info.id for info in given.checkpoints()]
        if len(ids) != 1:
            raise UsageError(
                f"{call}: expected a store with one checkpoint, got one with {len(ids)}.",
                cause=f"It has {', '.join(ids)}." if ids else "Nothing was recorded in it.",
                fix="Give store.open(id).",
                available=tuple(ids),
            )
        given = given.open(ids[0], echo=None)
    if not isinstance(given, Logged):
        raise UsageError(f"{call}: expected a checkpoint, a store, or a text that names a run, got {given!r:.80}.")
    ledger = ledger_of(given)
    ledger.refresh()
    if not ledger.log.records:
        raise UsageError(
            f"{call}: checkpoint {ledger.id!r} has no record.", cause="Nothing was asked yet, or its store keeps nothing."
        )
    backend = ledger.backend
    return Run(RunName(backend.path if isinstance(backend, DiskBackend) else Path("memory"), ledger.id), backend, ledger.log)
