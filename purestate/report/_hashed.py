"""The hashes of a run or a file: what ``purestate hash`` prints. Equal bits have equal hashes, wherever they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purestate.core._digest import tree_hash
from purestate.report._foreign import leaves_of
from purestate.report._leaf import LeafHash
from purestate.report._opened import Run, open_run_or_file
from purestate.report._report import Report, fragment
from purestate.run._chain import as_recorded
from purestate.view import html_table, text_table

__all__ = ["Hashes", "hashes"]

_STATE_DICT = ("params", "frozen", "buffers")
_HEADER = ["leaf", "dtype", "shape", "hash"]


@dataclass(frozen=True)
class Hashes(Report):
    """The hashes of a run or a file.

    Args:
        name: What was hashed.
        state: The hash of the whole state, with optimizer, schedulers and key; None for a file.
        tree: The hash of the leaves below, by name: `purestate.tree_hash` of a state dict.
        leaves: Parameters, frozen ones and buffers of a run; all tensors of a file.
    """

    name: str
    state: str | None
    tree: str
    leaves: tuple[LeafHash, ...]

    def __str__(self) -> str:
        state = [] if self.state is None else [f"state {self.state}"]
        return "\n".join([*state, f"tree  {self.tree}", text_table(self._rows(), _HEADER)])

    def to_html(self) -> str:
        """Return the leaves as a table: a fragment for a page."""
        state = [] if self.state is None else [f"state {self.state}"]
        return fragment(self.name, *state, f"tree {self.tree}", ("", html_table(self._rows(), _HEADER)))

    def _rows(self) -> list[list[Any]]:
        return [[leaf.name, leaf.dtype, str(list(leaf.shape)), leaf.hash] for leaf in self.leaves]


def hashes(text: str) -> Hashes:
    """Return the hashes of what a text names: a file or folder if there is one, else a run.

    Of a run no tensor is read: the hashes are those that are noted with its items, which are named by them.

    Raises:
        UsageError: There is neither, or the file cannot be read.
        MissingSnapshotError: The run's bytes are not in the store.
        CorruptItemError: What is noted beside them is not of them.
    """
    run = open_run_or_file(text)
    if isinstance(run, Path):
        leaves = leaves_of(run)
        return Hashes(text, None, _tree(leaves), leaves)
    _, _, record, snapshot = run.answer()
    with as_recorded(record):
        leaves = tuple(sorted(_noted(run, snapshot), key=lambda leaf: leaf.name))
        return Hashes(str(run.name), snapshot["hash"], _tree(leaves), leaves)


def _tree(leaves: tuple[LeafHash, ...]) -> str:
    return f"b3:{tree_hash({leaf.name: leaf.hash for leaf in leaves})}"


def _noted(run: Run, snapshot: Mapping[str, Any]) -> list[LeafHash]:
    found: list[LeafHash] = []
    for name in _STATE_DICT:
        part = snapshot.get(name, {})
        names = [*part.get("names", ()), *part.get("beside", {}).get("names", ())]
        if names:
            noted = run.backend.describe(part["item"], what=f"{name} of {run.name}")
            found += [LeafHash(leaf, noted[leaf].dtype, noted[leaf].shape, noted[leaf].hash) for leaf in names]
    return found
