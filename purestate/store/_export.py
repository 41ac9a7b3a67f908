"""Trees of tensors written for others to read: steps of Orbax's CheckpointManager. The writer process does the writing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch

from purestate.core._hash import leaf_bytes
from purestate.errors import StoreWriteError
from purestate.store._files import make_folder, write_errors
from purestate.store._tensors import describe, place
from purestate.store._writer import Order, Step, Write, shared_writer

__all__ = ["export"]


def export(path: Path, steps: Iterable[tuple[int, Mapping[str, Mapping[str, torch.Tensor]]]]) -> None:
    """Write steps of a CheckpointManager, one after the other, each durable before the next.

    Args:
        path: Where they go; empty, or not there.
        steps: Number and trees of each, by subtree. Leaves without elements are left out.

    Raises:
        StoreWriteError: It cannot be written, or something is there.

    Effects:
        The folder. Starts the writer process.
    """
    what = "an export for Orbax"
    with write_errors(path, what):
        make_folder(path)
        if os.listdir(path):
            raise StoreWriteError(
                f"Expected a folder that is empty or not there, got {os.fspath(path)!r}, in which there is something.",
                fix="Give another path.",
                path=os.fspath(path),
            )
    for number, trees in steps:
        flat = {(subtree, name): tensor for subtree, tree in trees.items() for name, tensor in tree.items()}
        metas = {str(i): describe(name, tensor) for i, ((_, name), tensor) in enumerate(flat.items())}
        arrays, size = place(metas, 0)
        subtrees = [subtree for subtree, _ in flat]
        step = Step(os.fspath(path), number, [(subtrees[int(i)], key, dtype, shape, at) for i, key, dtype, shape, at in arrays])
        copies = [(tensor, at) for (*_, at), tensor in zip(arrays, _with_elements(flat.values()), strict=True)]
        shared_writer().submit(Order(path, what, [], size, partial(_fill, copies), [path], step=step)).result()


def _fill(copies: list[tuple[torch.Tensor, int]], write: Write) -> None:
    for tensor, at in copies:
        write(leaf_bytes(tensor), at)


def _with_elements(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor.numel()]
