"""Acts on a checkpoint that somebody named: remove, rename, reset, accept, copy, export. Who is to be asked first is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from purestate.errors import StoreError, UsageError
from purestate.report._care import Done
from purestate.report._name import RunName
from purestate.report._opened import open_run, open_store

__all__ = ["accept", "copy", "export", "remove", "rename", "reset"]

Ask = Callable[[str], None]
"""Returns if the answer is yes, and raises otherwise."""


def remove(name: RunName, ask: Ask) -> Done:
    """Remove a checkpoint, also one whose log is damaged. See `purestate.run._store.Store.delete`.

    Raises:
        UsageError: There is no such checkpoint, or an op was named.

    Effects:
        As there.
    """
    id = _whole(name, "rm removes", f"To void a train: purestate reset {name}")
    backend = open_store(name.store)
    try:
        size = f"{len(backend.log(id).records)} records"
    except StoreError:
        size = "its log is damaged"
    ask(f"Remove checkpoint {id!r} of {name.store}: {size}?")
    backend.delete(id)
    return Done("rm", str(name), f"removed {name}; purestate gc {name.store} frees what only it named")


def reset(name: RunName, ask: Ask) -> Done:
    """Void a train and those that follow. See `purestate.run._checkpoint.Checkpoint.reset`.

    Effects:
        As there.
    """
    op = _op(name)
    run = open_run(name)
    run.train()
    voided = list(range(op, len(run.chain.trains)))
    what = f"train{'s' if len(voided) > 1 else ''} {', '.join(map(str, voided))} of {name.store}:{run.id}"
    ask(f"Void {what}?")
    from purestate.run._store import Store

    Store(name.store).open(run.id, echo=None).reset(op)
    return Done("reset", str(name), f"voided {what}")


def accept(name: RunName) -> Done:
    """Take the next question that differs as the same. See `purestate.run._checkpoint.Checkpoint.accept`.

    Effects:
        As there.
    """
    op = _op(name)
    run = open_run(name)
    run.train()
    from purestate.run._store import Store

    Store(name.store).open(run.id, echo=None).accept(op)
    return Done("accept", str(name), f"the next question that differs from train {op} is taken as the same")


def export(name: RunName, path: Path) -> Done:
    """Write answers, or the kept epochs of a train, for Orbax. See `purestate.run._store.Store.export_orbax`.

    Raises:
        UsageError: There is no such run, or there is something in the folder.

    Effects:
        As there.
    """
    run = open_run(name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "in which there is something" if path.is_dir() else "a file"
        raise UsageError(f"Expected a folder that is empty or not there, got {str(path)!r}, {what}.", fix="Give another path.")
    from purestate.run._store import Store

    with Store(name.store) as store:
        folder = store.export_orbax(run.id, path, op=name.op)
    return Done("export", str(run.name), f"wrote {folder}")


def copy(name: RunName, path: Path) -> Done:
    """Copy a checkpoint, or all of them, into another store. See `purestate.run._store.Store.copy`.

    Raises:
        UsageError: There is no such run, or an op was named.

    Effects:
        As there.
    """
    if name.op is not None:
        raise UsageError(f"copy copies whole checkpoints, got {str(name)!r}.", fix=f"Leave out @{name.op}.")
    ids = open_store(name.store).ids() if name.checkpoint is None else [open_run(name).id]
    from purestate.run._store import Store

    with Store(name.store) as store:
        report = store.copy(path, ids)
    return Done("copy", str(name), str(report))


def rename(name: RunName, new: str) -> Done:
    """Give a checkpoint another name. See `purestate.run._store.Store.rename`.

    Raises:
        UsageError: There is no such checkpoint, or an op was named.

    Effects:
        As there.
    """
    id = _whole(name, "rename renames", f"Leave out @{name.op}.")
    from purestate.run._store import Store

    Store(name.store).rename(id, new)
    return Done("rename", str(name), f"{name} is {name.store}:{new} now")


def _checkpoint(name: RunName) -> str:
    if name.checkpoint is None:
        ids = tuple(f"{name.store}:{id}" for id in open_store(name.store).ids())
        raise UsageError(
            f"Expected a checkpoint, STORE:CHECKPOINT, got {str(name)!r}.",
            cause=f"It has {', '.join(ids)}." if ids else "It has no checkpoint.",
            available=ids,
        )
    return name.checkpoint


def _whole(name: RunName, act: str, fix: str) -> str:
    """Return the id of a checkpoint that is there, whose log may be damaged, and of which no op was named."""
    id = _checkpoint(name)
    if name.op is not None:
        raise UsageError(f"{act} a whole checkpoint, got {str(name)!r}.", fix=fix)
    if id not in open_store(name.store).ids():
        open_run(name)  # says what there is
    return id


def _op(name: RunName) -> int:
    _checkpoint(name)
    if name.op is None:
        raise UsageError(f"Expected a train, STORE:CHECKPOINT@OP, got {str(name)!r}.", fix=f"Its first train is {name}@0.")
    return name.op
