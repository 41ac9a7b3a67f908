"""Resume points: where a running op would go on, written in the background.

They are not records. Two generations are kept, so that a crash while one is written leaves the other; each is a folder
that Orbax wrote, with a sealed file beside it that says what is in it. Leaves are hashed by the writer process, so that
training pays for one copy in memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from purestate.core._hash import leaf_bytes
from purestate.errors import StoreError, StoreWriteError
from purestate.store._described import corrupt
from purestate.store._files import make_folder, must_be_inside, read_file, sync_folder, unique, write_errors
from purestate.store._items import read_leaves
from purestate.store._layout import RESUME_META, Layout
from purestate.store._record import to_json, unseal
from purestate.store._tensors import LeafMeta, copy_bytes, describe, place
from purestate.store._writer import Folder, Job, Order, Writer

__all__ = ["Points"]


class Points:
    """The resume points of a store."""

    def __init__(self, layout: Layout, writer: Writer) -> None:
        self._layout = layout
        self._writer = writer
        self._last: dict[str, tuple[int, Job]] = {}

    def save(self, id: str, body: dict[str, Any], leaves: Mapping[str, Mapping[str, torch.Tensor]]) -> Job:
        """Start writing a resume point. See `purestate.store._backend.Backend.save_resume`."""
        to_json(body, "the body of a resume point")
        what = f"a resume point of checkpoint {id!r}"
        flat = {_key(i, name): tensor for i, tree in enumerate(leaves.values()) for name, tensor in tree.items()}
        metas = {key: describe(key, tensor) for key, tensor in flat.items()}
        arrays, size = place(metas, 0)
        parent = self._layout.resume(id)
        with write_errors(parent, what):
            must_be_inside(parent, self._layout.root)
            make_folder(parent)
            number = max([*_generations(parent), self._last[id][0] if id in self._last else 0]) + 1
        meta = {
            "format": 1,
            "body": body,
            "trees": {name: list(tree) for name, tree in leaves.items()},
            "leaves": {key: meta.to_json() for key, meta in metas.items()},
        }
        tmp, final = parent / unique("tmp"), self._layout.generation(id, number)
        folder = Folder(os.fspath(tmp), os.fspath(final), RESUME_META, meta, True, arrays)

        def fill(memory: memoryview) -> None:
            for key, *_, at in arrays:
                copy_bytes(flat[key], memory, at)

        job = self._writer.submit(Order(parent, what, [folder], size, fill, [parent], prune=parent, again=True))
        self._last[id] = number, job
        return job

    def load(self, id: str) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]] | None:
        """Return the newest resume point that verifies. See `purestate.store._backend.Backend.load_resume`."""
        for number in sorted(_generations(self._layout.resume(id)), reverse=True):
            with contextlib.suppress(StoreError, FileNotFoundError):
                folder = self._layout.generation(id, number)
                return _load(self._layout.root, folder, f"resume point {number} of checkpoint {id!r}")
        return None

    def clear(self, id: str) -> None:
        """Remove the resume points of a checkpoint. See `purestate.store._backend.Backend.clear_resume`."""
        if id in self._last:
            with contextlib.suppress(StoreWriteError):  # one that failed needs no clearing
                self._last.pop(id)[1].result()
        self._writer.trim()
        folder = self._layout.resume(id)
        if not folder.exists():
            return
        away = self._layout.trash / unique(f"resume-{id}")
        with write_errors(folder, f"the removal of the resume points of checkpoint {id!r}"):
            must_be_inside(folder, self._layout.root)
            make_folder(away.parent)
            must_be_inside(away, self._layout.root)
            folder.rename(away)
            sync_folder(folder.parent)
        shutil.rmtree(away, ignore_errors=True)


def _key(tree: int, name: str) -> str:
    """Return a leaf's name among those of all trees; the number ends at the first dot."""
    return f"{tree}.{name}"


def _generations(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isascii() and name.isdecimal()]
    except FileNotFoundError:
        return []


def _load(root: Path, folder: Path, what: str) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    point = unseal(read_file(folder / RESUME_META, root).removesuffix(b"\n"))
    if point is None:
        raise corrupt(folder, what, None, None, f"{RESUME_META} differs from its digest", file=RESUME_META)
    try:
        metas = {key: LeafMeta.from_json(fields) for key, fields in point["leaves"].items()}
        parts = {name: {leaf: _key(i, leaf) for leaf in names} for i, (name, names) in enumerate(point["trees"].items())}
        body = dict(point["body"])
        if missing := {key for part in parts.values() for key in part.values()} - metas.keys():
            raise ValueError(f"nothing is noted of {min(missing)!r}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise corrupt(folder, what, None, None, f"it is not readable ({error})", file=RESUME_META) from None
    leaves = read_leaves(root, folder, metas, what)
    for key, leaf in leaves.items():
        if metas[key].size and (actual := blake3(leaf_bytes(leaf)).hexdigest()) != metas[key].hash:
            raise corrupt(folder, what, None, key, "its bytes differ from their hash", actual)
    return body, {name: {leaf: leaves[key] for leaf, key in part.items()} for name, part in parts.items()}
