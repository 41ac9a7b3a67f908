"""Reads the arrays of an Orbax folder through TensorStore, without Orbax or JAX. The only file that imports TensorStore.

It returns what is there. Whether those are the right bytes is for `_items` to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from purestate.store._tensors import LeafMeta, from_numpy

__all__ = ["UnreadableLeafError", "read_arrays", "read_foreign"]


class UnreadableLeafError(Exception):
    """TensorStore cannot read a leaf, or it has another shape or dtype than expected."""

    def __init__(self, leaf: str, reason: str) -> None:
        super().__init__(reason.partition(" [")[0])
        self.leaf, self.detail = leaf, reason


def read_arrays(folder: Path, leaves: Mapping[str, LeafMeta]) -> dict[str, torch.Tensor]:
    """Return leaves of a folder as contiguous CPU tensors.

    Args:
        folder: What Orbax wrote.
        leaves: What to read, by name. None of them has size zero.

    Raises:
        UnreadableLeafError: A leaf is not there, or is not what ``leaves`` says.
    """
    import tensorstore as ts

    context = ts.Context()

    def spec(leaf: LeafMeta) -> dict[str, Any]:
        base = {"driver": "file", "path": f"{folder}/"}
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{leaf.key}/"}
        # not compressed, as Orbax was told: a few bytes must not become as many as somebody likes
        return {"driver": "zarr", "kvstore": kvstore, "metadata": {"compressor": None, "filters": None}}

    # All are opened, then all are read: TensorStore overlaps what is started and not yet asked for.
    opened = {name: ts.open(spec(leaf), open=True, context=context) for name, leaf in leaves.items()}
    started = {name: _start(name, future, leaves[name]) for name, future in opened.items()}
    return {name: from_numpy(_wait(name, future), leaves[name]) for name, future in started.items()}


def read_foreign(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return all arrays of a folder that Orbax wrote for anybody, by their key there: OCDBT or plain, zarr 2 or 3.

    Args:
        folder: Of one item: what has a ``_METADATA`` in it.

    Raises:
        UnreadableLeafError: It is no such folder, or is damaged.
    """
    import tensorstore as ts

    base = {"driver": "file", "path": f"{folder}/"}
    store = {"driver": "ocdbt", "base": base} if (folder / "manifest.ocdbt").exists() else base
    try:
        keys = [key.decode("utf-8", "replace") for key in ts.KvStore.open(store).result().list().result()]
    except _STATUSES as error:
        raise UnreadableLeafError("", str(error)) from None
    opened: dict[str, Any] = {}
    about = {"fill_missing_data_reads": not _writes_zeros(folder)}
    for key in keys:
        name, _, last = key.rpartition("/")
        if driver := _METADATA.get(last):
            place = {**store, "path": f"{name}/" if store is not base else f"{folder}/{name}/"}
            opened[name] = ts.open({"driver": driver, "kvstore": place, **about}, open=True)
    started = {name: _wait(name, future).read() for name, future in opened.items()}
    return {name: np.asarray(_wait(name, future)) for name, future in started.items()}


def _writes_zeros(folder: Path) -> bool:
    """Whether Orbax wrote pieces of zeros too, so that one which is not there is lost. Older versions left them out."""
    try:
        return json.loads((folder / "_METADATA").read_bytes())["store_array_data_equal_to_fill_value"] is True
    except (OSError, ValueError, TypeError, KeyError):
        return False


_STATUSES = (ValueError, OSError, NotImplementedError)
"""What TensorStore raises, and nothing else: each of its statuses is one of these in Python."""

_METADATA = {".zarray": "zarr", "zarr.json": "zarr3"}


def _start(name: str, future: Any, leaf: LeafMeta) -> Any:
    array = _wait(name, future)
    shape, dtype = list(array.shape), array.dtype.name
    if (shape, dtype) != (leaf.stored_shape, leaf.stored):
        raise UnreadableLeafError(name, f"expected {leaf.stored} of shape {leaf.stored_shape}, got {dtype} of shape {shape}")
    return array.read()


def _wait(name: str, future: Any) -> Any:
    try:
        return future.result()
    except _STATUSES as error:
        raise UnreadableLeafError(name, str(error)) from None
