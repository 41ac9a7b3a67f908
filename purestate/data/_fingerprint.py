"""What a loader delivers, by content, without iterating it.

The strongest kind that a data set allows is taken, and recorded, because it decides what an audit may say:

* ``declared``  it has a method ``__purestate_fingerprint__()``
* ``content``   everything it delivers from is in memory and was hashed in full
* ``files``     so was what is in memory; files count by name, size and time of change, without the folder they lie in
* ``probed``    class, length and a few samples; the rest may have changed

What order the key decides (generators of samplers), and what moves no sample (workers, pinned memory), does not count. Code
and plain objects are described by the callable that is handed in, since this room knows nothing of code.
"""

from __future__ import annotations

import functools
import os
import types
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from purestate.core._hash import canonical_json, leaf_hash, scalar_hash
from purestate.core._key import Key
from purestate.core._seeds import preserved_generators, seed_all
from purestate.core._tree import array_order, layout_text
from purestate.data._generators import find_generators, generator_state, is_generator, seed_generator, set_generator_state
from purestate.errors import FingerprintError

__all__ = ["DataPrint", "describe_data", "is_torchdata"]

Json = Any
_DECLARES = "__purestate_fingerprint__"
_KINDS = ("content", "files", "declared", "probed")  # a loader is of the last kind that any part of it is
_PROBES = 16
_FEW = 64
_LONG = 120
_DATA = (torch.Tensor, np.ndarray, Dataset)
_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
_ARRAYS = (np.ndarray, np.memmap)
_PATH_WORDS = ("root", "dir", "folder", "path", "file")


@dataclass(frozen=True, slots=True)
class DataPrint:
    """What a loader delivers.

    Args:
        kind: ``'content'``, ``'files'``, ``'declared'`` or ``'probed'``.
        parts: A flat dict of short values that explains the digest, such as ``{'batch_size': 32, 'dataset.tensors.0': …}``.
    """

    kind: str
    parts: dict[str, Json]

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over kind and parts."""
        return scalar_hash([self.kind, self.parts])[:32]


def describe_data(loader: object, describe: Callable[[Any], Json]) -> DataPrint:
    """Return what a loader delivers, by content.

    The loader is not iterated and no generator moves. Samples are loaded only from a data set that can be told in no other
    way, 16 of them, under fixed seeds.

    Args:
        loader: A ``DataLoader``, a list of batches, or an object of a class of your own that delivers batches. Not modified.
        describe: Returns the description of code (a class, a ``collate_fn``) or of a plain object as JSON, and raises
            `FingerprintError` where there is none.

    Raises:
        FingerprintError: It can be told only by consuming it, such as a generator.

    Effects:
        Reads names, sizes and times of files that the data set names, and what 16 samples of a probed data set read.

    Example:
        >>> found = describe_data([torch.zeros(4, 2), torch.ones(4, 2)], describe=repr)
        >>> found.kind, list(found.parts), found.parts["batches.0"][:16]
        ('content', ['batches', 'batches.0', 'batches.1'], 'float32[4,2] b3:')
    """
    survey = _Survey(describe)
    if isinstance(loader, DataLoader):
        survey.loader(cast("DataLoader[Any]", loader))
    elif isinstance(loader, list | tuple) or not hasattr(loader, "__next__"):
        survey.dataset(loader, "batches")
    else:
        raise _refusal("batches", loader)
    return DataPrint(survey.kind, survey.parts)


def is_torchdata(cls: type) -> bool:
    """Whether a class is torchdata's own, such as its ``StatefulDataLoader``: a `DataLoader` that tells its position besides."""
    return cls.__module__.partition(".")[0] == "torchdata"


@dataclass(slots=True)
class _Survey:
    """The parts found so far, and the weakest kind among them."""

    describe: Callable[[Any], Json]
    parts: dict[str, Json] = field(default_factory=dict[str, Json])
    kind: str = "content"

    def weaken(self, kind: str) -> None:
        self.kind = max(self.kind, kind, key=_KINDS.index)

    def loader(self, loader: DataLoader[Any]) -> None:
        if _declared(self, loader, "loader"):
            return
        if type(loader) is not DataLoader and not is_torchdata(type(loader)):
            self.parts["loader"] = self.code(type(loader), "loader")
            for name in sorted(vars(loader).keys() - vars(DataLoader(range(1))).keys()):  # pyright: ignore[reportArgumentType]
                self.value(vars(loader)[name], f"loader.{name}")
        self.parts["batch_size"] = loader.batch_size
        self.parts["drop_last"] = loader.drop_last
        if not loader.in_order:
            self.parts["in_order"] = False
        self.parts["collate"] = self.code(loader.collate_fn, "collate")
        if loader.worker_init_fn is not None:
            self.parts["worker_init_fn"] = self.code(loader.worker_init_fn, "worker_init_fn")
        self.dataset(loader.dataset, "dataset")
        if isinstance(loader.dataset, IterableDataset):
            self.parts["num_workers"] = loader.num_workers  # each worker runs a copy: how many there are decides the samples
            return
        if loader.batch_sampler is not None:
            self.sampler(loader.batch_sampler, "batch_sampler", loader.dataset)
        else:
            self.sampler(loader.sampler, "sampler", loader.dataset)

    def sampler(self, sampler: Any, place: str, dataset: Any) -> None:
        """Describe a sampler by its class and attributes; its generator does not count, as the order comes from the key."""
        if _declared(self, sampler, place):
            return
        self.parts[place] = self.code(type(sampler), place)
        if isinstance(sampler, list | tuple | range):
            self.value(list(cast("Sequence[Any]", sampler)), f"{place}.items")
        elif _is_of_builtin(type(sampler)):
            self.value(sampler, f"{place}.items")
            return
        for name, value in sorted(_attributes(sampler).items()):
            if isinstance(value, Sampler):
                self.sampler(value, f"{place}.{name}", dataset)
            elif not (name == "generator" and value is None) and value is not dataset and not is_generator(value):
                self.value(value, f"{place}.{name}")

    def code(self, obj: Any, place: str) -> Json:
        try:
            return self.describe(obj)
        except FingerprintError as error:
            raise _at(error, place) from None

    def value(self, value: Any, place: str) -> None:
        """Describe an attribute in full."""
        if type(value) in _TENSORS and not vars(value):
            self.parts[place] = _tensor(value, place)
        elif type(value) in _ARRAYS and not value.dtype.hasobject:
            self.parts[place] = _array(value)
        elif isinstance(value, Dataset):
            self.dataset(cast("Any", value), place)
        elif is_generator(value):
            self.parts[place] = f"{type(value).__module__}.{type(value).__qualname__}, seeded from the key"
        elif type(value) in (list, tuple, range) and len(value) > _FEW and set(map(type, value)) == {int} and _fits(value):
            # the indices of a subset: as JSON they cost three times as much
            self.parts[place] = f"{type(value).__name__} of {len(value)} as {_array(np.array(value, np.int64))}"
        elif type(value) in (list, tuple) and _holds_data(value):
            self.members(enumerate(value), type(value).__name__, place)
        elif type(value) is dict and _holds_data(value):
            items = {_key(key): item for key, item in value.items()}
            order = ", ".join(items) if len(value) <= 8 else scalar_hash(list(items))[:32]
            self.members(items.items(), f"dict of {order}", place)
        else:
            self.parts[place] = _short(self.code(value, place))

    def members(self, items: Any, kind: str, place: str) -> None:
        """Describe a container; its members are listed while they are few, and else summed up in one digest."""
        inner = _Survey(self.describe)
        for key, item in items:
            inner.value(item, f"{place}.{key}")
        self.weaken(inner.kind)
        if len(inner.parts) <= 8:
            self.parts[place] = kind
            self.parts.update(inner.parts)
        else:
            self.parts[place] = f"{kind} of {len(inner.parts)} b3:{scalar_hash(inner.parts)[:32]}"

    def dataset(self, dataset: Any, place: str) -> None:
        """Describe a data set, or what stands for one."""
        if _declared(self, dataset, place):
            return
        if type(dataset) in (list, tuple, dict) or isinstance(dataset, torch.Tensor | np.ndarray):
            self.value(dataset, place)
            return
        if hasattr(dataset, "__next__"):
            raise _refusal(place, dataset)
        found = _Survey(self.describe)
        try:
            found.attributes(dataset, place)
        except FingerprintError as error:
            found = _Survey(self.describe)
            found.probe(dataset, place, error)
        self.parts.update(found.parts)
        self.weaken(found.kind)

    def attributes(self, dataset: Any, place: str) -> None:
        self.parts[place] = self.code(type(dataset), place)
        if isinstance(dataset, Sized):
            self.parts[f"{place}.samples"] = len(dataset)
        if not hasattr(dataset, "__dict__"):
            self.parts[f"{place}.value"] = _short(self.code(dataset, place))
            return
        attributes = _attributes(dataset)
        if isinstance(dataset, list | tuple):
            self.value(list(cast("Sequence[Any]", dataset)), f"{place}.items")
        elif isinstance(dataset, dict):
            self.value(dict(cast("dict[Any, Any]", dataset)), f"{place}.items")
        elif _is_of_builtin(type(dataset)):
            self.parts[f"{place}.value"] = _short(self.code(dataset, place))
        for name, paths in list(_paths(attributes)):
            self.files(attributes.pop(name), paths, f"{place}.{name}")
        for name, value in sorted(attributes.items()):
            self.value(value, f"{place}.{name}")
        self.mentioned(attributes, dataset, place)

    def mentioned(self, attributes: Mapping[str, Any], dataset: Any, place: str) -> None:
        """Describe the files that are named anywhere else: in the attributes' containers and objects, or on the class."""
        theirs = ("torch", "builtins", "typing")
        shared = [vars(cls) for cls in type(dataset).__mro__ if cls.__module__.partition(".")[0] not in theirs]
        found = sorted({path for value in (attributes, *shared) for path in _named_files(dict(value), 4)})
        if found:
            self.weaken("files")
            rows = [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in found]
            self.parts[f"{place}.files"] = f"{len(rows)} files b3:{scalar_hash(rows)[:32]}"

    def files(self, value: Any, paths: list[Path], place: str) -> None:
        """Describe files by name, size and time; the folder that they share is left out."""
        if not paths:
            self.parts[place] = "the folder of listed files"
            return
        self.weaken("files")
        folders = [path for path in paths if path.is_dir()]
        base = paths[0] if folders == paths[:1] else Path(os.path.commonpath([path.parent for path in paths]))
        listed = [(path, path.stat()) for folder in folders for path in sorted(_files_in(folder))]
        listed += [(path, path.stat()) for path in paths if path not in folders]
        rows = [[path.relative_to(base).as_posix(), stat.st_size, stat.st_mtime_ns] for path, stat in listed]
        rest = [item[1:] for item in value if isinstance(item, tuple)] if isinstance(value, list | tuple) else []
        labels = _short(self.code(rest, place)) if rest else None
        self.parts[place] = f"{len(rows)} files b3:{scalar_hash([rows, labels])[:32]}"

    def probe(self, dataset: Any, place: str, why: FingerprintError) -> None:
        """Describe a data set by its class, its length and a few samples."""
        if not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
            raise why
        count = len(dataset)
        self.weaken("probed")
        self.parts[place] = self.code(type(dataset), place)
        self.parts[f"{place}.samples"] = count
        at = sorted({i * (count - 1) // (_PROBES - 1) for i in range(_PROBES)}) if count else []
        samples = _Survey(self.describe)
        with _own_generators_preserved(dataset) as owned:
            for i in at:
                seed_all(i)
                for n, generator in enumerate(owned):
                    seed_generator(generator, Key.from_seed(i).fold_in(n))
                samples.value([cast("Any", dataset)[i]], f"{place}[{i}]")
        self.mentioned(getattr(dataset, "__dict__", {}), dataset, place)
        self.parts[f"{place}.probes"] = f"{len(at)} samples b3:{scalar_hash(samples.parts)[:32]}"


def _attributes(obj: Any) -> dict[str, Any]:
    """Return the attributes of an object, those in slots too."""
    found: dict[str, Any] = dict(getattr(obj, "__dict__", {}))
    for cls in filter(_is_written_in_python, type(obj).__mro__):
        slots = [name for name, slot in vars(cls).items() if isinstance(slot, types.MemberDescriptorType)]
        found.update({name: getattr(obj, name) for name in slots if hasattr(obj, name)})
    return found


def _is_of_builtin(cls: type) -> bool:
    """Tell whether objects of a class hold something that is in no attribute, as those of a subclass of ``deque`` do."""
    return next(base for base in cls.__mro__ if not _is_written_in_python(base)) is not object


def _is_written_in_python(cls: type) -> bool:
    return bool(cls.__flags__ & 1 << 9)


def _key(key: Any) -> str:
    """Return a key as part of a name. A text that reads like something else is quoted: ``1`` and ``'1'`` are two keys."""
    ambiguous = isinstance(key, str) and (
        key in ("None", "True", "False") or "," in key or not (key[:1].isalpha() or key[:1] == "_")
    )
    return repr(key) if ambiguous else str(key)


def _fits(integers: Any) -> bool:
    return -(1 << 63) <= min(integers) and max(integers) < 1 << 63


def _holds_data(value: Any) -> bool:
    """Tell whether a container holds tensors or the like; one that does not is described in one go."""
    if type(value) is dict:
        return any(map(_holds_data, value.values()))
    return any(map(_holds_data, value)) if type(value) in (list, tuple) else isinstance(value, _DATA) or is_generator(value)


def _declared(survey: _Survey, obj: Any, place: str) -> bool:
    if getattr(type(obj), _DECLARES, None) is None:
        return False
    survey.parts[place] = f"{type(obj).__qualname__}, declared"
    survey.parts[f"{place}.declared"] = _short(survey.code(_sorted(getattr(obj, _DECLARES)()), place))
    survey.weaken("declared")
    return True


def _sorted(value: Any) -> Any:
    """Return a declared value with its dicts sorted: what it declares is their content."""
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return type(value)(map(_sorted, value)) if type(value) in (list, tuple) else value


def _paths(attributes: Mapping[str, Any]) -> Iterator[tuple[str, list[Path]]]:
    """Yield the attributes that name files or folders; none for a folder whose files another attribute lists."""
    found = {name: paths for name, value in sorted(attributes.items()) if (paths := _files_of(name, value))}
    lists = [paths for paths in found.values() if not paths[0].is_dir()]
    for name, paths in found.items():
        is_listed = paths[0].is_dir() and any(paths[0] in listed[0].parents for listed in lists)
        yield name, [] if is_listed else paths


def _named_files(value: Any, depth: int) -> Iterator[Path]:
    """Yield the existing files that texts in a value name. A name has a dot or a folder in it."""
    if isinstance(value, str | Path):
        text = str(value)
        if ("." in text or os.sep in text) and len(text) < 4096 and "\0" not in text and os.path.isfile(text):
            yield Path(os.path.abspath(text))
        return
    if depth == 0 or isinstance(value, torch.Tensor | torch.nn.Module | type):
        return
    if isinstance(value, dict):
        inner: Any = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif isinstance(value, functools.partial):
        inner = (value.func, value.args, value.keywords)
    elif isinstance(value, types.FunctionType):
        bound = [*_cells(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        inner = [item for item in bound if isinstance(item, str | Path)]  # the other things that a function knows are many
    elif isinstance(value, types.MethodType):
        inner = (value.__self__, value.__func__)
    else:
        inner = _attributes(value).values()
    for item in inner:
        yield from _named_files(item, depth - 1)


def _cells(fn: types.FunctionType) -> Iterator[Any]:
    for cell in fn.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder, those in linked folders too: data is often linked to where there is room for it."""
    entered = set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in entered]
        yield from (path for name in names if (path := Path(place, name)).is_file())


def _files_of(name: str, value: Any) -> list[Path]:
    if isinstance(value, str | Path):
        told = isinstance(value, Path) or os.sep in value or any(word in name.lower() for word in _PATH_WORDS)
        return [Path(os.path.abspath(value))] if told and value and os.path.exists(value) else []
    if not isinstance(value, list | tuple) or not value:
        return []
    names: list[Any] = [item[0] if isinstance(item, tuple) and item else item for item in cast("list[Any]", value)]
    if not all(isinstance(item, str | Path) for item in names):
        return []
    told = all(isinstance(item, Path) or os.sep in item for item in names) or any(word in name.lower() for word in _PATH_WORDS)
    if not all(map(os.path.isfile, names)) and not (told and all(map(os.path.isdir, names))):
        return []
    return [Path(os.path.abspath(item)) for item in names]


_hashes: dict[int, tuple[weakref.ref[torch.Tensor], tuple[Any, ...], str]] = {}


def _tensor(tensor: torch.Tensor, place: str) -> str:
    """Return dtype, shape and digest; the digest is remembered while the tensor lives and torch counts no change of it."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        raise _refusal(place, tensor)
    title = layout_text(tensor)
    if tensor.is_inference():  # nobody counts its changes
        return f"{title} b3:{leaf_hash(tensor)[:32]}"
    state = (tensor._version, tensor.data_ptr(), title, tensor.stride())
    # memory that numpy has seen can change without torch counting, and torch tells that by what it does not resize any more
    countable = tensor.untyped_storage().resizable()
    known = _hashes.get(id(tensor))
    if countable and known is not None and known[0]() is tensor and known[1] == state:
        return f"{title} b3:{known[2]}"
    digest, key = leaf_hash(_unseen(tensor) if countable else tensor)[:32], id(tensor)
    if countable:
        _hashes[key] = (weakref.ref(tensor, lambda _: _hashes.pop(key, None)), state, digest)
    return f"{title} b3:{digest}"


def _unseen(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory as a storage of its own: hashing shows it to numpy, and the tensor's storage stays unseen."""
    return torch.from_dlpack(tensor.detach()) if tensor.is_cpu and not tensor.is_conj() and not tensor.is_neg() else tensor


def _array(array: np.ndarray) -> str:
    kind = array.dtype.str if array.dtype.names is None else array.dtype.descr
    title = f"{kind}[{','.join(map(str, array.shape))}]{array_order(array)}"
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
    return f"numpy {title} b3:{leaf_hash(torch.from_numpy(data.copy() if not data.flags.writeable else data))[:32]}"


def _short(description: Json) -> Json:
    text = canonical_json(description)
    return description if len(text) <= _LONG else f"b3:{scalar_hash(description)[:32]}"


@contextmanager
def _own_generators_preserved(dataset: Any) -> Generator[list[Any]]:
    """Lend the generators that a data set owns, and put them and the global ones back to what they were."""
    owned = find_generators(dataset, "dataset")
    before = [generator_state(generator) for generator in owned]
    with preserved_generators():
        try:
            yield owned
        finally:
            for generator, state in zip(owned, before, strict=True):
                set_generator_state(generator, state)


def _refusal(place: str, obj: object) -> FingerprintError:
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    return FingerprintError(
        f"{place} is a {kind}, whose content cannot be told without consuming it.",
        cause="Two runs can be compared only if what they were fed can be.",
        fix=f"Pass a DataLoader or a list of batches, or give the class a method {_DECLARES}(self) that returns plain values.",
        path=place,
    )


def _at(error: FingerprintError, place: str) -> FingerprintError:
    """Return the error of a description with the place in the loader in front."""
    if error.path and error.path.startswith(place):
        return error
    return FingerprintError(f"{place}: {error}", path=place)
