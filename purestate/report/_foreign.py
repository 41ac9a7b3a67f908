"""Files of others as leaves with hashes: an Orbax folder, a safetensors file, a weights-only torch file.

The bytes are read and hashed, whatever a file says of itself. Nothing is unpickled that could run code. `leaves_of` reads every
leaf and keeps none; `tensors_of` returns those that are asked for.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote

from purestate.core._digest import bytes_hash
from purestate.errors import UsageError
from purestate.report._leaf import LeafHash
from purestate.store._layout import ITEM_META

if TYPE_CHECKING:
    import torch

__all__ = ["leaves_of", "tensors_of"]

_Found = TypeVar("_Found")

_SAFETENSORS = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
}
"""Dtypes of safetensors as torch calls them, and the bytes of an element (https://github.com/huggingface/safetensors)."""
_LONGEST_HEADER = 100_000_000
_LEGACY = b"\x80\x02"
"""How torch files of before 1.6 begin."""


def leaves_of(path: Path) -> tuple[LeafHash, ...]:
    """Return the leaves of a file, or of a folder, sorted by name.

    Args:
        path: What to read. Its content decides what it is, not its name.

    Raises:
        UsageError: It is not there, is none of the three kinds, or is damaged.
    """
    kind = _kind(path)
    if kind == "safetensors":  # without torch
        found = _safetensors(path, _slice_hash)
    else:
        found = (_hashed(name, value) for name, value in (_torch(path) if kind == "torch" else _orbax(path)))
    return tuple(sorted(found, key=lambda leaf: leaf.name))


def tensors_of(path: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return some leaves of a file, or of a folder, on the CPU.

    Args:
        path: As for `leaves_of`.
        names: Which. Those that are not there are left out.

    Raises:
        UsageError: As there.
    """
    kind = _kind(path)
    if kind == "safetensors":
        found = _safetensors(path, lambda *leaf: (leaf[0], _slice_tensor(*leaf) if leaf[0] in names else None))
        return {name: tensor for name, tensor in found if tensor is not None}
    return {name: _tensor(value) for name, value in (_torch(path) if kind == "torch" else _orbax(path, names)) if name in names}


def _kind(path: Path) -> Literal["orbax", "torch", "safetensors"]:
    if path.is_dir():
        return "orbax"
    if not path.exists():
        raise UsageError(f"There is no file or folder {str(path)!r}.")
    with path.open("rb") as file:
        begin = file.read(9)
    if begin[:2] in (b"PK", _LEGACY):
        return "torch"
    if len(begin) == 9 and begin[8:] == b"{":
        return "safetensors"
    raise UsageError(
        f"{str(path)!r} is no file that can be hashed leaf by leaf.",
        cause="Expected an Orbax folder, a safetensors file, or a torch file of weights.",
    )


def _safetensors(path: Path, read: Callable[[str, str, tuple[int, ...], memoryview], _Found]) -> Iterator[_Found]:
    """Yield what ``read`` makes of each leaf: of its name, its dtype, its shape and its bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _LONGEST_HEADER:
            raise _damaged(path, f"a header of {size} bytes")
        try:
            header = json.loads(file.read(size))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                for name, about in header.items():
                    if name != "__metadata__":
                        dtype, shape, first, last = _slice(name, about, len(view) - 8 - size)
                        with view[8 + size + first : 8 + size + last] as leaf:
                            yield read(name, dtype, shape, leaf)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _damaged(path, str(error)) from None


def _slice(name: str, about: Mapping[str, Any], room: int) -> tuple[str, tuple[int, ...], int, int]:
    dtype, width = _SAFETENSORS[about["dtype"]]
    shape = tuple(int(n) for n in about["shape"])
    first, last = about["data_offsets"]
    size = width
    for n in shape:
        size *= n
    if last - first != size or first < 0 or last > room:
        raise ValueError(f"leaf {name!r} has other bytes than its shape says")
    return dtype, shape, first, last


def _slice_hash(name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> LeafHash:
    return LeafHash(name, dtype, shape, bytes_hash(dtype, shape, data))


def _slice_tensor(name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> torch.Tensor:
    import torch

    del name
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8)
    return flat.view(getattr(torch, dtype)).reshape(shape)


def _hashed(name: str, value: Any) -> LeafHash:
    """Return the hash of a tensor or a numpy array."""
    import torch

    from purestate.core._arrays import array_hash
    from purestate.core._hash import dtype_name

    dtype = dtype_name(value.dtype) if isinstance(value, torch.Tensor) else value.dtype.name
    return LeafHash(name, dtype, tuple(value.shape), array_hash(value, name))


def _tensor(value: Any) -> torch.Tensor:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value
    flat = torch.from_numpy(np.array(value, order="C").reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, value.dtype.name)).reshape(value.shape)


def _torch(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    import torch
    from torch._weights_only_unpickler import UnpicklingError  # pyright: ignore[reportPrivateImportUsage]: what torch raises

    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as error:
        raise UsageError(
            f"{str(path)!r} cannot be read as a torch file of weights: {str(error).splitlines()[0][:200]}",
            cause="It is damaged, or holds objects, which run code when they are read.",
            fix="Where it was made: torch.save(model.state_dict(), path).",
        ) from None
    yield from _flat(loaded, "", path).items()


def _flat(value: Any, name: str, path: Path) -> dict[str, Any]:
    """Return the tensors in nested dicts and lists, by names joined with dots; numbers and texts beside them are left out."""
    import torch

    if isinstance(value, torch.Tensor):
        return {name: value}
    found: dict[str, Any] = {}
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in entries:
        for below, tensor in _flat(inner, f"{name}.{key}" if name else str(key), path).items():
            if below in found:
                raise UsageError(f"{str(path)!r} has two tensors that are called {below!r}.")
            found[below] = tensor
    return found


def _orbax(path: Path, names: Collection[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors of an item of a store, those that are asked for; or names and numpy arrays of what others wrote."""
    from purestate.store._reader import UnreadableLeafError, read_arrays, read_foreign
    from purestate.store._tensors import LeafMeta, empty

    path = path.absolute()  # TensorStore takes no "."
    try:
        if (path / ITEM_META).exists():  # an item of a store: dtypes that Orbax lacks are named there
            noted = json.loads((path / ITEM_META).read_bytes())["leaves"]
            wanted = noted.items() if names is None else ((name, noted[name]) for name in noted if name in names)
            metas = {name: LeafMeta.from_json(fields) for name, fields in wanted}
            read = read_arrays(path, {name: meta for name, meta in metas.items() if meta.size})
            yield from ((name, read[name] if name in read else empty(meta)) for name, meta in metas.items())
            return
        arrays = read_foreign(path)
    except UnreadableLeafError as error:
        raise _damaged(path, f"leaf {error.leaf!r}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{ITEM_META}: {error}") from None
    if not arrays:
        below = tuple(sorted(str(found.parent) for found in path.glob("**/_METADATA")))
        raise UsageError(
            f"The folder {str(path)!r} is no item that Orbax wrote.",
            cause=f"There are {', '.join(below)}." if below else "Expected a folder with a file _METADATA.",
            available=below,
        )
    yield from ((unquote(key), array) for key, array in arrays.items())


def _damaged(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{str(path)!r} is damaged: {reason[:200]}.",
        cause="It was cut short or changed, or another program wrote it in its own way.",
    )
