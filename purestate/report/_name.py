"""How a run is named: ``STORE``, ``STORE:CHECKPOINT`` or ``STORE:CHECKPOINT@OP``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from purestate.errors import UsageError
from purestate.store._layout import FORMAT_FILE, is_id

__all__ = ["RunName", "is_store", "stores_below"]

_OP = re.compile(r"[0-9]{1,9}", re.ASCII)
_MOST_LISTED = 20


@dataclass(frozen=True)
class RunName:
    """What a text names. Whether it is there, `purestate.report._opened` says.

    Args:
        store: The folder.
        checkpoint: The id; None for the whole store.
        op: The number of a train; None for all, or the last.
    """

    store: Path
    checkpoint: str | None = None
    op: int | None = None

    def __str__(self) -> str:
        checkpoint = "" if self.checkpoint is None else f":{self.checkpoint}"
        return f"{self.store}{checkpoint}{'' if self.op is None else f'@{self.op}'}"

    @classmethod
    def parse(cls, text: str) -> RunName:
        """Return what a text names. A folder of that very name comes first, so that its name may have a colon in it.

        Args:
            text: ``'ckpts'``, ``'ckpts:adam'``, ``'ckpts:adam@1'``.

        Raises:
            UsageError: It names no store, checkpoint or op.

        Example:
            >>> RunName.parse("ckpts:adam@1")
            RunName(store=PosixPath('ckpts'), checkpoint='adam', op=1)
        """
        folder, colon, rest = text.rpartition(":")
        if not colon or not folder or "/" in rest or is_store(Path(text)):
            if not text:
                raise UsageError("Expected a run, STORE[:CHECKPOINT[@OP]], got an empty text.")
            return cls(Path(text))
        id, at, op = rest.partition("@")
        if not is_id(id):
            raise UsageError(
                f"Expected STORE[:CHECKPOINT[@OP]], got {text!r}: {id!r} cannot be the id of a checkpoint.",
                cause="An id has 1 to 128 letters, digits, '.', '_' or '-', and does not start with a dot.",
            )
        if at and not _OP.fullmatch(op):
            raise UsageError(
                f"Expected STORE[:CHECKPOINT[@OP]], got {text!r}: {op!r} is no number of a train.",
                fix=f"Trains are numbered from 0: {folder}:{id}@0.",
            )
        return cls(Path(folder), id, int(op) if at else None)


def is_store(path: Path) -> bool:
    """Return whether there is a store at a path: the folder says so, or has logs."""
    try:
        return (path / FORMAT_FILE).is_file() or (path / "checkpoints").is_dir()
    except OSError:
        return False


def stores_below(folder: Path) -> list[str]:
    """Return the stores in a folder and one below it, for somebody who named another."""
    try:
        near = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        found = [path for path in near if is_store(path)]
        found += [below for path in near[1:] if path not in found for below in sorted(path.iterdir()) if is_store(below)]
    except OSError:
        return []
    return [str(path) for path in found[:_MOST_LISTED]]
