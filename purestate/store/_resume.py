"""Resume points: where a running op would go on, written in the background.

They are not records. Two generations are kept, so that a crash while one is written leaves the other; each is a folder
that Orbax wrote, of few long vectors of bytes, with a sealed file beside it that says which leaf is where. Vectors are hashed
by the writer process, so that training pays for one copy in memory.
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

from purestate.core._hash import dtype_name, leaf_bytes
from purestate.errors import StoreError, StoreWriteError
from purestate.store._backend import Point
from purestate.store._described import corrupt
from purestate.store._files import make_folder, must_be_inside, read_file, sync_folder, unique, write_errors
from purestate.store._items import read_leaves
from purestate.store._layout import RESUME_META, Layout
from purestate.store._record import to_json, unseal
from purestate.store._tensors import LeafMeta
from purestate.store._writer import Folder, Job, Order, Write, Writer

__all__ = ["Points"]

_FORMAT = 2
_ALIGNMENT = 64
_LONGEST = 1 << 30
"""Bytes of a vector, unless a single leaf is longer."""


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
        packed = _Packed(leaves)
        parent = self._layout.resume(id)
        with write_errors(parent, what):
            must_be_inside(parent, self._layout.root)
            make_folder(parent)
            number = max([*_generations(parent), self._last[id][0] if id in self._last else 0]) + 1
        meta = {
            "format": _FORMAT,
            "body": body,
            "trees": packed.trees,
            "leaves": {name: vector.to_json() for name, vector in packed.vectors.items()},
        }
        tmp, final = parent / unique("tmp"), self._layout.generation(id, number)
        arrays = [
            (name, vector.key, vector.stored, vector.stored_shape, packed.starts[name]) for name, vector in packed.vectors.items()
        ]
        headers = dict.fromkeys(packed.vectors, "")
        folder = Folder(os.fspath(tmp), os.fspath(final), RESUME_META, meta, arrays, headers)
        order = Order(parent, what, [folder], packed.size, packed.fill, [parent], prune=parent, again=True)
        job = self._writer.submit(order)
        self._last[id] = number, job
        return job

    def load(self, id: str, damaged: list[StoreError] | None = None) -> Point | None:
        """Return the newest resume point that verifies. See `purestate.store._backend.Backend.load_resume`."""
        for number in sorted(_generations(self._layout.resume(id)), reverse=True):
            try:
                folder = self._layout.generation(id, number)
                return _load(self._layout.root, folder, f"resume point {number} of checkpoint {id!r}")
            except FileNotFoundError:
                continue
            except StoreError as error:
                if damaged is not None:
                    damaged.append(error)
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


class _Packed:
    """Leaves one behind the other in few long vectors of bytes: Orbax takes a third of a millisecond an array."""

    def __init__(self, leaves: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self.trees: dict[str, dict[str, list[Any]]] = {}
        """Of each leaf dtype, shape, vector and the byte of it at which it begins."""
        self.starts: dict[str, int] = {}
        self._tensors: list[tuple[torch.Tensor, int]] = []
        self.size = 0
        sizes: dict[str, int] = {}
        for tree, tensors in leaves.items():
            places = self.trees[tree] = {}
            for name, tensor in tensors.items():
                last = str(len(sizes) - 1)
                if not sizes or (sizes[last] and sizes[last] + tensor.nbytes > _LONGEST):
                    last = str(len(sizes))
                    sizes[last], self.starts[last] = 0, self.size
                places[name] = [dtype_name(tensor.dtype), list(tensor.shape), last, sizes[last]]
                if tensor.nbytes:
                    self._tensors.append((tensor, self.size))
                    room = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
                    sizes[last] += room
                    self.size += room
        self.vectors = {name: LeafMeta(name, "uint8", [size], "uint8", "") for name, size in sizes.items() if size}

    def fill(self, write: Write) -> None:
        """Copy the leaves into the memory."""
        for tensor, at in self._tensors:
            write(leaf_bytes(tensor), at)


def _unpacked(vectors: Mapping[str, torch.Tensor], place: list[Any]) -> torch.Tensor:
    dtype, shape, name, start = getattr(torch, place[0]), torch.Size(place[1]), place[2], place[3]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{place[0]!r} is no dtype")
    if any(n < 0 for n in shape):
        raise ValueError(f"{place[1]!r} is no shape")
    size = dtype.itemsize * shape.numel()
    if not size:
        return torch.empty(shape, dtype=dtype)
    if type(start) is not int or start < 0 or start % _ALIGNMENT or start + size > len(vectors[name]):
        raise ValueError("a leaf begins or ends outside of its vector")
    # a leaf of its own: a view would keep the whole vector alive, and begin at an address on which bits of kernels depend
    return vectors[name][start : start + size].view(dtype).reshape(shape).clone()


def _generations(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isascii() and name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _load(root: Path, folder: Path, what: str) -> Point:
    point = unseal(read_file(folder / RESUME_META, root).removesuffix(b"\n"))
    if point is None:
        raise corrupt(folder, what, None, None, f"{RESUME_META} differs from its digest", file=RESUME_META)
    try:
        if point["format"] != _FORMAT:
            raise ValueError(f"it is of format {point['format']!r}, and {_FORMAT} was expected")
        metas = {name: LeafMeta.from_json(fields) for name, fields in point["leaves"].items()}
        body = dict(point["body"])
        vectors = read_leaves(root, folder, metas, what)
        for name, vector in vectors.items():
            if (actual := blake3(leaf_bytes(vector)).hexdigest()) != metas[name].hash:
                raise corrupt(folder, what, None, name, "its bytes differ from their hash", actual)
        trees = {
            tree: {name: _unpacked(vectors, place) for name, place in places.items()} for tree, places in point["trees"].items()
        }
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise corrupt(folder, what, None, None, f"it is not readable ({error})", file=RESUME_META) from None
    return body, trees
