"""What a loader delivers, by content: every edit of data that counts, and what a loader may differ in without counting."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from purestate.data import _fingerprint
from purestate.data._fingerprint import describe_data
from purestate.errors import FingerprintError


def describe(obj):
    """Stand in for the room of code, which this one may not know: classes and functions by name, plain values as they are."""
    if isinstance(obj, type) or callable(obj):
        return {"code": obj.__qualname__}
    if isinstance(obj, list | tuple | range):
        return [describe(item) for item in obj]
    if isinstance(obj, dict):
        return {key: describe(item) for key, item in obj.items()}
    if isinstance(obj, str | int | float | None):
        return {"float": repr(obj)} if isinstance(obj, float) else obj
    if isinstance(obj, Path):
        return str(obj)
    raise FingerprintError(f"{type(obj).__name__} has no content")


def tensors(n=6):
    return torch.arange(n * 2.0).reshape(n, 2), torch.arange(n)


def loader(*, dataset=None, **options):
    return DataLoader(TensorDataset(*tensors()) if dataset is None else dataset, **{"batch_size": 2, **options})


def double(batch):
    return batch


class InMemory(Dataset):
    def __init__(self, rows, scale=1.0, generator=None):
        self.rows, self.scale, self.rng = rows, scale, generator

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Opaque(Dataset):
    """Holds something without content, and draws."""

    def __init__(self, shift=0.0, n=40):
        self.handle, self.shift, self.n = object(), shift, n
        self.rng = np.random.default_rng(0)
        self.loaded = 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.loaded += 1
        drawn = torch.rand(2) + random.random() + np.random.rand() + self.rng.random()
        return drawn + self.shift, i


class Declares(Opaque):
    def __purestate_fingerprint__(self):
        return ["version", self.shift]


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        raise AssertionError("a stream is never iterated for its fingerprint")


class Shuffled(Sampler):
    def __init__(self, n, generator=None):
        self.n, self.rng = n, generator

    def __iter__(self):
        raise AssertionError("a sampler is never iterated for its fingerprint")

    def __len__(self):
        return self.n


def edited(change):
    x, y = tensors()
    change(x)
    return TensorDataset(x, y)


def gen(seed):
    return torch.Generator().manual_seed(seed)


CHANGES = {
    "strides": (loader(), loader(dataset=TensorDataset(tensors()[0].T.contiguous().T, tensors()[1]))),
    "a byte": (loader(), loader(dataset=edited(lambda x: x[5, 1].add_(1)))),
    "minus zero": (loader(), loader(dataset=edited(lambda x: x[0, 0].neg_()))),
    "dtype": (loader(), loader(dataset=TensorDataset(tensors()[0].double(), tensors()[1]))),
    "order of samples": (loader(), loader(dataset=TensorDataset(*(t.flip(0) for t in tensors())))),
    "one tensor less": (loader(), loader(dataset=TensorDataset(tensors()[0]))),
    "batch size": (loader(), loader(batch_size=3)),
    "drop_last": (loader(), loader(drop_last=True)),
    "shuffle": (loader(), loader(shuffle=True)),
    "collate": (loader(), loader(collate_fn=double)),
    "worker_init_fn": (loader(), loader(worker_init_fn=double)),
    "replacement": (loader(sampler=RandomSampler(range(6))), loader(sampler=RandomSampler(range(6), replacement=True))),
    "num_samples": (loader(sampler=RandomSampler(range(6))), loader(sampler=RandomSampler(range(6), num_samples=4))),
    "weights": (loader(sampler=WeightedRandomSampler([1.0, 2.0], 6)), loader(sampler=WeightedRandomSampler([1.0, 3.0], 6))),
    "sampler indices": (loader(sampler=SubsetRandomSampler([1, 2])), loader(sampler=SubsetRandomSampler([1, 3]))),
    "a sampler of the user": (loader(sampler=Shuffled(6)), loader(sampler=Shuffled(5))),
    "sampler in a batch sampler": tuple(
        DataLoader(TensorDataset(*tensors()), batch_sampler=BatchSampler(s, 2, False))
        for s in (SequentialSampler(range(6)), RandomSampler(range(6)))
    ),
    "a list of batches as the sampler": tuple(
        DataLoader(TensorDataset(*tensors()), batch_sampler=s) for s in ([[0, 1], [2, 3]], [[0, 1], [3, 2]])
    ),
    "subset indices": tuple(loader(dataset=Subset(TensorDataset(*tensors()), i)) for i in ([0, 1], [0, 2])),
    "subset data": tuple(loader(dataset=Subset(d, [0, 1])) for d in (TensorDataset(*tensors()), edited(lambda x: x.add_(1)))),
    "concatenated": tuple(
        loader(dataset=ConcatDataset([TensorDataset(*tensors()), d])) for d in (edited(id), edited(torch.exp_))
    ),
    "stacked": tuple(loader(dataset=StackDataset(a=TensorDataset(*tensors()), b=d)) for d in (edited(id), edited(torch.exp_))),
    "user data": (loader(dataset=InMemory(torch.ones(4))), loader(dataset=InMemory(torch.zeros(4)))),
    "user array": (loader(dataset=InMemory(np.ones(4))), loader(dataset=InMemory(np.ones(4, "f4")))),
    "user rows": (loader(dataset=InMemory([np.ones(2), {"a": 1}])), loader(dataset=InMemory([np.ones(2), {"a": 2}]))),
    "user attribute": (loader(dataset=InMemory([1, 2])), loader(dataset=InMemory([1, 2], scale=2.0))),
    "int for float": (loader(dataset=InMemory([1, 2])), loader(dataset=InMemory([1, 2.0]))),
    "many indices": tuple(loader(dataset=Subset(InMemory([1]), [*range(100), i])) for i in (1, 2)),
    "many integers, one beyond 64 bits": tuple(loader(dataset=[*range(100), i]) for i in (1 << 64, 1 << 65)),
    "many integers, one a bool": tuple(loader(dataset=[*range(100), i]) for i in (1, True)),
    "plain list": (loader(dataset=[1, 2]), loader(dataset=[1, 3])),
    "list of tensors": (loader(dataset=[torch.ones(1)]), loader(dataset=[torch.ones(2)])),
    "batches": ([tensors(), tensors()], [tensors(), tensors(3)]),
    "workers of a stream": (loader(dataset=Stream(3)), loader(dataset=Stream(3), num_workers=2)),
    "length of a stream": (loader(dataset=Stream(3)), loader(dataset=Stream(4))),
    "declared": (loader(dataset=Declares(1.0)), loader(dataset=Declares(2.0))),
    "probed": (loader(dataset=Opaque()), loader(dataset=Opaque(shift=1.0))),
    "probed length": (loader(dataset=Opaque()), loader(dataset=Opaque(n=41))),
}
SAME = {
    "made again": (loader(), loader()),
    "workers": (loader(), loader(num_workers=2)),
    "pinned, prefetched": (loader(), loader(num_workers=2, prefetch_factor=4, persistent_workers=True)),
    "generator of the loader": (loader(shuffle=True), loader(shuffle=True, generator=gen(1))),
    "generator of a sampler": tuple(loader(sampler=RandomSampler(range(6), generator=g)) for g in (None, gen(1))),
    "numpy generator of a sampler": tuple(loader(sampler=Shuffled(6, np.random.default_rng(i))) for i in (1, 2)),
    "generator of a data set": tuple(loader(dataset=InMemory([1], generator=np.random.default_rng(i))) for i in (1, 2)),
    "probed again": (loader(dataset=Opaque()), loader(dataset=Opaque())),
    "declared, other handles": (loader(dataset=Declares()), loader(dataset=Declares())),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_counts(name):
    one, other = CHANGES[name]
    assert describe_data(one, describe).digest == describe_data(one, describe).digest
    assert describe_data(one, describe).digest != describe_data(other, describe).digest


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_count(name):
    one, other = SAME[name]
    assert describe_data(one, describe) == describe_data(other, describe)


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [
        (TensorDataset(*tensors()), "content"),
        (InMemory([1, 2]), "content"),
        (Declares(), "declared"),
        (Opaque(), "probed"),
        (Subset(Opaque(), [1, 2]), "probed"),
        (ConcatDataset([TensorDataset(*tensors()), Declares()]), "declared"),
        (ConcatDataset([Declares(), Opaque()]), "probed"),
        (Stream(3), "content"),
    ],
)
def test_the_kind_is_that_of_the_weakest_part(dataset, kind):
    assert describe_data(loader(dataset=dataset), describe).kind == kind


def test_parts_are_flat_and_can_be_read():
    parts = describe_data(loader(shuffle=True), describe).parts
    assert all(isinstance(value, str | int | bool | dict | None) for value in parts.values())
    assert parts["batch_size"] == 2
    assert parts["collate"] == {"code": "default_collate"}
    assert parts["dataset.samples"] == 6
    assert parts["dataset.tensors.0"].startswith("float32[6,2] b3:")
    assert parts["batch_sampler.sampler"] == {"code": "RandomSampler"}


class Files(Dataset):
    def __init__(self, root, names=None):
        self.root = root
        self.samples = [(str(root / name), i) for i, name in enumerate(names or ())]

    def __len__(self):
        return 2


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    for name in ("a/0.txt", "a/1.txt"):
        (root / name).write_text(name)
    return root


@pytest.mark.parametrize("names", [None, ["a/0.txt", "a/1.txt"]])
def test_files_count_by_name_size_and_time_without_their_root(folder, names):
    def digest(root=folder):
        found = describe_data(loader(dataset=Files(root, names)), describe)
        assert found.kind == "files"
        return found.digest

    first = digest()
    moved = folder.parent / "moved"
    shutil.copytree(folder, moved, copy_function=shutil.copy2)
    assert digest(moved) == first
    os.utime(moved / "a" / "0.txt", ns=(0, 0))
    touched = digest(moved)
    (moved / "a" / "0.txt").write_text("longer than it was")
    os.utime(moved / "a" / "0.txt", ns=(0, 0))
    assert len({first, touched, digest(moved)}) == 3


def test_labels_and_order_of_listed_files_count(folder):
    one = Files(folder, ["a/0.txt", "a/1.txt"])
    found = {describe_data(loader(dataset=d), describe).digest for d in (one, Files(folder, ["a/1.txt", "a/0.txt"]))}
    one.samples[1] = (one.samples[1][0], 7)
    assert len(found | {describe_data(loader(dataset=one), describe).digest}) == 3


def test_only_sixteen_samples_are_probed_and_nothing_moves():
    dataset = Opaque()
    before = dataset.rng.bit_generator.state
    describe_data(loader(dataset=dataset), describe)
    assert dataset.loaded == 16
    assert dataset.rng.bit_generator.state == before


def test_a_tensor_is_hashed_once(monkeypatch):
    hashed: list[torch.Tensor] = []
    real = _fingerprint.leaf_hash
    monkeypatch.setattr(_fingerprint, "leaf_hash", lambda tensor: (hashed.append(tensor), real(tensor))[1])
    data = TensorDataset(*tensors())
    first = describe_data(loader(dataset=data), describe)
    assert describe_data(loader(dataset=data), describe) == first
    assert len(hashed) == 2
    data.tensors[0].add_(1)
    assert describe_data(loader(dataset=data), describe) != first
    assert len(hashed) == 3


def test_inference_tensors_have_no_version_and_are_hashed_each_time():
    with torch.inference_mode():
        x = torch.ones(3)
    first = describe_data(loader(dataset=TensorDataset(x)), describe)
    with torch.inference_mode():
        x.add_(1)
    assert describe_data(loader(dataset=TensorDataset(x)), describe) != first


@pytest.mark.parametrize("make", [lambda: (i for i in range(3)), lambda: iter([1]), lambda: DataLoader([1]).__iter__()])
@pytest.mark.moves_generators  # the iterator of a DataLoader draws when it is made
def test_what_can_only_be_consumed_is_refused(make):
    with pytest.raises(FingerprintError, match=r"^batches is a .* without consuming it") as raised:
        describe_data(make(), describe)
    assert raised.value.path == "batches"
    assert "__purestate_fingerprint__" in str(raised.value)


def test_a_stream_without_content_is_refused():
    stream = Stream(3)
    stream.handle = object()
    with pytest.raises(FingerprintError, match=r"^dataset\.handle"):
        describe_data(loader(dataset=stream), describe)


def test_a_loader_class_of_the_user_counts_with_its_attributes():
    class Loader(DataLoader):
        def __init__(self, dataset, extra):
            self.extra = extra
            super().__init__(dataset)

    one, other = (describe_data(Loader(TensorDataset(*tensors()), extra), describe) for extra in (1, 2))
    assert {key for key in one.parts if one.parts[key] != other.parts[key]} == {"loader.extra"}


@dataclasses.dataclass
class Where:
    path: str


@pytest.mark.parametrize(
    "held",
    [
        lambda path: dict(csv=path),
        lambda path: dict(config=Where(path)),
        lambda path: dict(paths={"x": path}),
        lambda path: dict(samples=[dict(path=path, label=0)]),
        lambda path: dict(samples=[["label", path]]),
        lambda path: dict(pairs=[(0, path)]),
    ],
    ids=["text", "object", "dict", "dicts", "lists", "second"],
)
def test_a_file_that_is_named_anywhere_counts(tmp_path, monkeypatch, held):
    monkeypatch.chdir(tmp_path)
    Path("all.npy").write_bytes(b"1")
    dataset = InMemory([1])
    vars(dataset).update(held("all.npy"))
    data = loader(dataset=dataset)
    before = describe_data(data, describe)
    assert before.kind in ("files", "probed")
    Path("all.npy").write_bytes(b"22")
    assert describe_data(data, describe).digest != before.digest


def test_data_of_numpy_is_hashed_each_time():
    array = np.zeros(6, np.float32)
    data = loader(dataset=TensorDataset(torch.from_numpy(array)))
    before = describe_data(data, describe)
    array[0] = 1
    assert describe_data(data, describe).digest != before.digest
