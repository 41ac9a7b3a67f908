"""Orbax folders that others wrote, as parameters of ours: `from_orbax`.

The arrays are read through TensorStore, so neither Orbax nor JAX is imported. Which of them is which parameter is said by whoever
calls, and told in a table. Values are not changed: which axis is where in Flax is for `purestate.interop._flax`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from purestate.core._hash import dtype_name
from purestate.core._state import SUBTREES, State
from purestate.core._tree import in_order, spec_of
from purestate.errors import TreeMismatchError, UnsupportedError, UsageError
from purestate.store._layout import FORMAT_FILE, ITEM_META
from purestate.store._reader import UnreadableLeafError, read_arrays, read_foreign
from purestate.store._tensors import LeafMeta, empty, from_numpy
from purestate.view._table import html_table, text_table

__all__ = ["Imported", "from_orbax"]

Rename = Mapping[str, str | None] | Callable[[str], str | None]

_UNFINISHED = ".orbax-checkpoint-tmp"
"""What Orbax calls a folder until it is complete."""
_HEADER = ("leaf", "in the folder", "dtype", "shape", "what")


@dataclass(frozen=True)
class Imported:
    """What `from_orbax` read.

    Args:
        path: The folder.
        params: Tensors by name: with `like` every name of it, in its order, and its own tensor where the folder has none.
        kept: Which leaf of the folder each name has, by name.
        missing: Names of `like` that the folder has no leaf for.
        unused: Leaves of the folder that nothing asked for.
    """

    path: str
    params: Mapping[str, Tensor] = field(repr=False)
    kept: Mapping[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing. Optimizers and counters of others are expected to be left over."""
        return not self.missing

    def check(self) -> Self:
        """Return this.

        Raises:
            TreeMismatchError: Something is missing.
        """
        if self.missing:
            raise TreeMismatchError(
                f"from_orbax: {self.path!r} has no leaf for {self.missing[0]!r}, and for {len(self.missing)} names in all.",
                cause=f"Unused are {', '.join(self.unused[:8])}." if self.unused else None,
                fix="Say what is what: rename={'params.Dense_0': 'net.0'}.",
                path=self.missing[0],
                actual=self.missing,
            )
        return self

    def into(self, state: State) -> State:
        """Return a state with the tensors that were read in the place of its own, of parameters and of buffers.

        Raises:
            TreeMismatchError: The state has no leaf of such a name, or another one.
        """
        parts = {part: dict(getattr(state, part)) for part in SUBTREES}
        for name in self.kept:
            part = next((part for part, leaves in parts.items() if name in leaves), None)
            if part is None:
                raise TreeMismatchError(f"the state has no leaf {name!r}.", fix="Read with like=state.", path=name)
            parts[part][name] = self.params[name]
        return state.replace(**{part: leaves for part, leaves in parts.items() if leaves.keys() & self.kept.keys()})

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for name, tensor in self.params.items():
            source = self.kept.get(name, "")
            shape = str(list(tensor.shape))
            rows.append((name, source, dtype_name(tensor.dtype), shape, "kept" if name in self.kept else "missing"))
        return rows + [("", name, "", "", "unused") for name in self.unused]

    def __str__(self) -> str:
        counts = f"{len(self.kept)} kept, {len(self.missing)} missing, {len(self.unused)} unused"
        return f"{self.path}: {counts}\n{text_table(self._rows(), _HEADER)}"

    def _repr_html_(self) -> str:
        return html_table(self._rows(), _HEADER)


def from_orbax(
    path: str | os.PathLike[str], *, like: State | nn.Module | Mapping[str, Tensor] | None = None, rename: Rename | None = None
) -> Imported:
    """Read the arrays of an Orbax folder of anybody, whichever way Orbax wrote it: OCDBT or plain, zarr 2 or 3.

    Names are those of the nested trees joined with dots: ``params.params.Dense_0.kernel`` of a train state of Flax. No axis
    moves; ``ps.from_flax(ps.nest(found.params), state)`` moves those of Flax. Neither Orbax nor JAX is imported.

    Args:
        path: What Orbax wrote: a folder with a file ``_METADATA``, or a step of a ``CheckpointManager`` with one such item.
        like: A state, a module or tensors by name: what is looked for. Not modified. Everything, if left out.
        rename: What a leaf is called here, by its name in the folder: a function that returns a name, or None for a leaf that is
            not wanted; or a mapping of names, or of their beginnings (``{"params.params": ""}``), the longest of which counts.

    Returns:
        The tensors, with a table of what was kept, is missing, and is unused. With `like` they have its order, strides and
        devices.

    Raises:
        UsageError: There is no such folder, Orbax did not finish it, it holds several items, or it is damaged.
        TreeMismatchError: A leaf has another shape or dtype than in `like`; two leaves get one name; `rename` names nothing.
        UnsupportedError: A leaf has a dtype that torch has not.

    Example:
        >>> def load(folder: str, state: ps.State) -> ps.State:
        ...     return ps.from_orbax(folder, like=state, rename={"params.params": ""}).check().into(state)
    """
    folder = _item(Path(path).absolute())
    arrays = _read(folder)
    names = _renamed(arrays, rename)
    if like is None:
        found = {name: arrays[source] for source, name in names.items() if name is not None}
        kept = {name: source for source, name in names.items() if name is not None}
        return Imported(str(folder), found, kept, (), tuple(source for source, name in names.items() if name is None))
    wanted = _wanted(like)
    kept = {name: source for source, name in names.items() if name is not None and name in wanted}
    for name, source in kept.items():
        _check(folder, name, source, arrays[source], wanted[name])
    found = {
        name: in_order(arrays[kept[name]].to(tensor.device), spec_of(tensor).order) if name in kept else tensor
        for name, tensor in wanted.items()
    }
    unused = tuple(source for source, name in names.items() if name not in kept)
    return Imported(
        str(folder),
        found,
        {name: kept[name] for name in wanted if name in kept},
        tuple(n for n in wanted if n not in kept),
        unused,
    )


def _item(path: Path) -> Path:
    """Return the folder of the one item that a path names."""
    if not path.is_dir():
        raise UsageError(f"from_orbax: there is no folder {str(path)!r}.")
    for part in (path, path.parent):
        if _UNFINISHED in part.name or _is_uncommitted(part):
            raise UsageError(
                f"from_orbax: Orbax did not finish {str(part)!r}.",
                cause="It is being written, or who wrote it was stopped.",
                fix="Take another step, or wait: CheckpointManager.wait_until_finished().",
            )
    if _is_item(path):
        return path
    below = sorted(found for found in path.iterdir() if found.is_dir() and _is_item(found))
    if len(below) != 1 and (path / FORMAT_FILE).is_file():
        raise UsageError(
            f"from_orbax: expected a folder that Orbax wrote, got {str(path)!r}, which is a store.",
            fix="Load from it: Store(path).load(id). Or give the folder of one item: Store(path).path(id).",
        )
    if len(below) != 1:
        items = tuple(sorted({str(file.parent) for depth in ("*", "*/*", "*/*/*") for file in path.glob(f"{depth}/_METADATA")}))
        items = tuple(item for item in items if _UNFINISHED not in item)
        raise UsageError(
            f"from_orbax: expected a folder of one item that Orbax finished, got {str(path)!r}.",
            cause=f"Below it are {', '.join(items[:8])}." if items else "Expected a folder with a file _METADATA.",
            fix=f"Give one of them: from_orbax({items[-1]!r})." if items else None,
            available=items,
        )
    return _item(below[0])


def _is_item(path: Path) -> bool:
    # the first versions of Orbax wrote a file `checkpoint` in the place of it
    return (path / "_METADATA").is_file() or (path / "checkpoint").is_file() or (path / ITEM_META).is_file()


def _is_uncommitted(path: Path) -> bool:
    try:
        about = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())
        return about["init_timestamp_nsecs"] is not None and about["commit_timestamp_nsecs"] is None
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _read(folder: Path) -> dict[str, Tensor]:
    try:
        if (folder / ITEM_META).exists():  # of a store: dtypes that Orbax lacks are named there
            noted = json.loads((folder / ITEM_META).read_bytes())["leaves"]
            metas = {name: LeafMeta.from_json(fields) for name, fields in noted.items()}
            read = read_arrays(folder, {name: meta for name, meta in metas.items() if meta.size})
            return {name: read[name] if name in read else empty(meta) for name, meta in metas.items()}
        arrays, expected = read_foreign(folder), _expected(folder)
    except UnreadableLeafError as error:
        raise _damaged(folder, f"leaf {error.leaf!r}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(folder, f"what is noted there: {error}") from None
    if lost := [name for name in expected if name not in arrays]:
        raise _damaged(folder, f"leaf {lost[0]!r} is not there")
    found: dict[str, Tensor] = {}
    for key, array in sorted(arrays.items()):
        dtype = array.dtype.name
        if not isinstance(getattr(torch, dtype, None), torch.dtype) or re.fullmatch(
            r"u?int[1-7]", dtype
        ):  # names without kernels
            raise UnsupportedError(f"from_orbax: torch has no dtype for {dtype} at {key!r}.")
        found[unquote(key)] = from_numpy(array, LeafMeta(key, dtype, list(array.shape), dtype, ""))
    return found


def _expected(folder: Path) -> list[str]:
    """Return the names of the arrays that Orbax noted; none where it noted nothing."""
    if not (folder / "_METADATA").exists():
        return []
    noted = json.loads((folder / "_METADATA").read_bytes())["tree_metadata"].values()
    return [
        ".".join(str(step["key"]) for step in leaf["key_metadata"])
        for leaf in noted
        if not leaf["value_metadata"].get("skip_deserialize") and leaf["value_metadata"].get("value_type") != "string"
    ]


def _renamed(arrays: Mapping[str, Tensor], rename: Rename | None) -> dict[str, str | None]:
    """Return what each leaf is called here; None for one that is not wanted."""
    if callable(rename):
        names = {source: rename(source) for source in arrays}
    else:
        names = {source: _begun(source, rename or {}) for source in arrays}
        begins = {".".join(source.split(".")[:i]) for source in arrays for i in range(1, source.count(".") + 2)}
        if idle := [begin for begin in rename or {} if begin not in begins]:
            raise TreeMismatchError(
                f"from_orbax: rename names {idle[0]!r}, and no leaf of the folder begins so.",
                cause=f"There are {', '.join(list(arrays)[:8])}.",
                path=idle[0],
            )
    by_name: dict[str, str] = {}
    for source, name in names.items():
        if name is not None and by_name.setdefault(name, source) != source:
            raise TreeMismatchError(f"from_orbax: {by_name[name]!r} and {source!r} would both be called {name!r}.", path=name)
    return names


def _begun(source: str, rename: Mapping[str, str | None]) -> str | None:
    parts = source.split(".")
    for i in range(len(parts), 0, -1):
        begin = ".".join(parts[:i])
        if begin in rename:
            new = rename[begin]
            return None if new is None else ".".join([*([new] if new else []), *parts[i:]])
    return source


def _wanted(like: Any) -> dict[str, Tensor]:
    if isinstance(like, State):
        return {name: tensor for part in SUBTREES for name, tensor in getattr(like, part).items()}
    if isinstance(like, nn.Module):
        return {name: tensor.detach() for name, tensor in (*like.named_parameters(), *like.named_buffers())}
    if not isinstance(like, Mapping) or not all(isinstance(tensor, Tensor) for tensor in like.values()):
        raise TreeMismatchError(
            f"from_orbax: expected a state, a module or tensors by name as like, got a {type(like).__name__}.",
            fix="Nested dicts become names by ps.flatten.",
        )
    return dict(like)


def _check(folder: Path, name: str, source: str, found: Tensor, wanted: Tensor) -> None:
    if (found.shape, found.dtype) == (wanted.shape, wanted.dtype):
        return
    turned = found.dtype == wanted.dtype and sorted(found.shape) == sorted(wanted.shape)
    raise TreeMismatchError(
        f"from_orbax: expected {spec_of(wanted)} at {name!r}, got {spec_of(found)} from {source!r} of {str(folder)!r}.",
        cause="Flax has the axes of kernels in another order." if turned else None,
        fix="Read it without like, then ps.from_flax(ps.nest(found.params), state)."
        if turned
        else "Read it without like, and give state.replace(params=...) what you make of it.",
        path=name,
        expected=spec_of(wanted),
        actual=spec_of(found),
    )


def _damaged(folder: Path, reason: str) -> UsageError:
    return UsageError(
        f"from_orbax: {str(folder)!r} is damaged: {reason[:200]}.",
        cause="It was cut short or changed, or another program wrote it in its own way.",
    )
