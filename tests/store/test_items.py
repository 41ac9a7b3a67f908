"""Items: what is put comes back to the bit, for us and for Orbax, or is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re

import pytest
import torch
from blake3 import blake3

from purestate.core._hash import leaf_bytes, tree_hash
from purestate.errors import CorruptItemError, InvalidIdError, MissingSnapshotError, MutatedStateError, TreeMismatchError
from purestate.store import checker
from purestate.store._layout import ITEM_META, escape
from tests.store.conftest import digest_of

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
]
RAW = [torch.float8_e8m0fnu, torch.complex32]  # Orbax has no such arrays: kept as bytes
NAMES = [
    "fc.weight",
    "a.b",
    "a",
    "a/b",
    "..",
    ".",
    "",
    "0",
    "1",
    "é",
    "with space",
    "100%",
    "_METADATA",
    "d",
    "\udcff",
    "x" * 300,
]


def of_bits(data: bytes, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)


def examples() -> dict[str, dict[str, torch.Tensor]]:
    """Return the trees that the contract is about."""
    pattern = bytes(range(7, 7 + 96))
    kinds = {str(dtype): of_bits(pattern, dtype, [2, -1]) for dtype in [*DTYPES, *RAW] if dtype != torch.bool}
    return {
        "dtypes": {**kinds, "bool": torch.tensor([True, False])},
        "values": {
            "minus zero": torch.tensor([-0.0, 0.0]),
            "only minus zero": torch.tensor([-0.0]),
            "zeros": torch.zeros(3, 4),
            "nan": of_bits(bytes.fromhex("010080ff0200c07fffffffff0000807f"), torch.float32, [4]),
            "scalar": torch.tensor(2.5),
            "scalar int": torch.tensor(2**62),
            "large": torch.arange(300_000, dtype=torch.float32),
        },
        "names": {name: torch.tensor([float(i)]) for i, name in enumerate(NAMES)},
        "some empty": {"full": torch.ones(2), "empty": torch.empty(0, 3), "half": torch.empty(2, 0, dtype=torch.float16)},
        "all empty": {"empty": torch.empty(0)},
        "many": {f"layer{i}.weight": torch.full((3,), float(i)) for i in range(200)},
    }


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(
        (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape) and leaf_bytes(a[name]) == leaf_bytes(b[name])
        for name in a
    )


@pytest.mark.parametrize("kind", examples())
def test_what_is_put_comes_back(backend, kind):
    leaves = examples()[kind]
    digest = digest_of(leaves)
    assert not backend.has(digest)
    backend.put({digest: leaves})
    assert backend.has(digest)
    assert identical(backend.get(digest), leaves)
    assert all(leaf.is_contiguous() and leaf.device.type == "cpu" for leaf in backend.get(digest).values())


def test_orbax_alone_restores_the_same_bits(backend, run, tmp_path):
    trees = {digest_of(leaves): leaves for kind, leaves in examples().items() if kind != "all empty"}
    backend.put(trees)
    folders = {str(backend._layout.item(digest)): digest for digest in trees}
    run(
        """
import json, logging, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
logging.disable(logging.WARNING)
import orbax.checkpoint as ocp
found = {}
for folder in json.loads(sys.argv[1]):
    tree = ocp.PyTreeCheckpointer().restore(folder)
    found[folder] = {key: [str(leaf.dtype), leaf.shape, leaf.tobytes().hex()] for key, leaf in tree.items()}
json.dump(found, open(sys.argv[2], "w"))
""",
        json.dumps(list(folders)),
        tmp_path / "found.json",
    )
    found = json.loads((tmp_path / "found.json").read_text())
    for folder, digest in folders.items():
        leaves = {escape(name): leaf for name, leaf in trees[digest].items() if leaf.numel()}
        assert found[folder].keys() == leaves.keys()
        for key, leaf in leaves.items():
            dtype, shape, data = found[folder][key]
            raw = [leaf.element_size()] if leaf.dtype in RAW else []
            assert (dtype, shape) == ("uint8" if raw else str(leaf.dtype).removeprefix("torch."), [*leaf.shape, *raw]), key
            assert bytes.fromhex(data) == bytes(leaf_bytes(leaf)), key


def test_an_item_of_many_bytes_lies_in_several_files(backend, run):
    generator = torch.Generator().manual_seed(0)
    leaves = {name: torch.rand(5_000_000, generator=generator) for name in "abcd"}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    folder = backend._layout.item(digest)
    large = [path for path in (folder / "ocdbt.process_0" / "d").iterdir() if path.stat().st_size > 1 << 20]
    assert len(large) > 1
    assert identical(backend.get(digest, ["d", "a"]), {"d": leaves["d"], "a": leaves["a"]})
    run(
        """
import json, logging, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
logging.disable(logging.WARNING)
import blake3, orbax.checkpoint as ocp
tree = ocp.PyTreeCheckpointer().restore(sys.argv[1])
assert {key: blake3.blake3(leaf.tobytes()).hexdigest() for key, leaf in tree.items()} == json.loads(sys.argv[2])
""",
        folder,
        json.dumps({name: blake3(leaf_bytes(leaf)).hexdigest() for name, leaf in leaves.items()}),
    )
    found = checker.check(os.fspath(backend.path))
    assert (found.findings, found.items, found.bytes) == ([], 1, 80_000_000)
    for path in large:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    named = {re.search("leaf '(.)'", str(fault)).group(1) for fault in backend.faults(digest, "an item", hashed=True)}
    assert len(named) == len(large)


def test_strides_and_views_do_not_matter(backend):
    base = torch.arange(24.0).reshape(2, 3, 4)
    leaves = {"t": base.transpose(0, 2), "part": base[:, 1], "conj": torch.tensor([1 + 2j]).conj(), "last": base.reshape(-1)[5:]}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    assert identical(backend.get(digest), {name: leaf.resolve_conj() for name, leaf in leaves.items()})


def test_some_leaves_in_the_order_asked_for(backend):
    leaves = {name: torch.tensor([i]) for i, name in enumerate("abc")}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    assert identical(backend.get(digest, ["c", "a"]), {"c": leaves["c"], "a": leaves["a"]})
    with pytest.raises(TreeMismatchError, match="Params of train 0 has no leaf 'd'"):
        backend.get(digest, ["d"], what="params of train 0")


def test_an_item_that_is_there_is_not_written_again(backend):
    leaves = {"w": torch.ones(2)}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    before = (backend._layout.item(digest) / ITEM_META).stat()
    backend.put({digest: leaves})
    after = (backend._layout.item(digest) / ITEM_META).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_leaves_that_changed_since_they_were_hashed_are_refused(backend):
    good, bad = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    digest = digest_of(bad)
    bad["w"].data.add_(1)
    with pytest.raises(MutatedStateError, match="changed after they were hashed"):
        backend.put({digest_of(good): good, digest: bad})
    assert not backend.has(digest)
    assert not backend.has(digest_of(good))
    assert list(backend.path.glob("items/tmp-*")) == []


def test_the_arrays_may_change_after_put(backend):
    leaves = {"w": torch.ones(2)}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    leaves["w"].zero_()
    assert backend.get(digest)["w"].tolist() == [1, 1]


def test_an_item_that_is_not_there_says_what_it_was(backend):
    digest = tree_hash({})
    with pytest.raises(MissingSnapshotError, match="Params of train 1 is not in the store") as caught:
        backend.get(digest, what="params of train 1")
    assert caught.value.digest == digest
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("digest", ["", "ab", "../" * 10, "A" * 64, "a" * 63 + "\n"])
def test_a_digest_is_never_a_path(backend, digest):
    for act in (backend.has, backend.get):
        with pytest.raises(InvalidIdError, match="cannot name an item"):
            act(digest)


def test_a_flipped_byte_is_never_restored(backend):
    """Every byte of every small file, and a stride of the others, under two flips."""
    leaves = {"w": torch.arange(5000, dtype=torch.float32), "b.c": torch.tensor([True]), "e": torch.empty(0)}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    folder = backend._layout.item(digest)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    errors: list[CorruptItemError] = []
    for path in files:
        data = path.read_bytes()
        for position in range(0, len(data), max(1, len(data) // 60)):
            for flip in (0x01, 0x80):
                path.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
                try:
                    assert identical(backend.get(digest), leaves), (path.name, position)
                except CorruptItemError as error:
                    errors.append(error)
        path.write_bytes(data)
    assert len(errors) > 100
    assert {error.path for error in errors} == {str(folder)}
    assert {None, "w"} <= {error.leaf for error in errors} <= {None, "w", "b.c", "e"}
    assert identical(backend.get(digest), leaves)


def test_no_byte_of_a_description_changes_unnoticed(backend):
    leaves = {"w": torch.arange(20.0)}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    path = backend.item_path(digest) / ITEM_META
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        faults = list(backend.faults(digest, "an item", hashed=True))
        assert faults
        assert faults[0].file == ITEM_META, faults[0]
        with contextlib.suppress(CorruptItemError):  # the leaves are known by the item's name, and may still be readable
            assert identical(backend.get(digest), leaves)


def test_a_description_from_before_they_were_sealed_is_read(backend):
    leaves = {"w": torch.arange(20.0)}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    path = backend.item_path(digest) / ITEM_META
    sealed = json.loads(path.read_bytes())
    del sealed["digest"]
    path.write_text(json.dumps(sealed, separators=(",", ":")) + "\n")
    assert identical(backend.get(digest), leaves)
    assert list(backend.faults(digest, "an item", hashed=True)) == []


def test_a_damaged_value_names_its_leaf(backend):
    leaves = {"a": torch.arange(1000.0), "b": torch.arange(1000.0) + 0.5}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    needle = bytes(leaf_bytes(leaves["b"][500:520]))
    [path] = [path for path in backend._layout.item(digest).rglob("*") if path.is_file() and needle in path.read_bytes()]
    path.write_bytes(path.read_bytes().replace(needle, bytes(80)))
    with pytest.raises(CorruptItemError, match="Params of train 1 is damaged at leaf 'b'") as caught:
        backend.get(digest, what="params of train 1")
    assert (caught.value.leaf, caught.value.digest) == ("b", digest)
    assert identical(backend.get(digest, ["a"]), {"a": leaves["a"]})


def test_a_lost_file_is_a_corrupt_item(backend):
    leaves = {"w": torch.ones(100)}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    (backend._layout.item(digest) / "manifest.ocdbt").unlink()
    with pytest.raises(CorruptItemError, match="damaged at leaf 'w'"):
        backend.get(digest)


def test_a_lost_file_of_data_is_named(backend):
    leaves = {"w": torch.arange(100_000.0)}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    folder = backend._layout.item(digest)
    data = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data.unlink()
    lost = data.relative_to(folder).as_posix()
    assert lost in [found.file for found in backend.faults(digest, "an item", hashed=False)]
    with pytest.raises(CorruptItemError, match="400000 bytes are noted") as caught:
        backend.get(digest)
    assert caught.value.file == lost


def test_the_same_item_from_two_processes(backend, started):
    code = """
import sys, torch
from purestate.store._disk import DiskBackend
from tests.store.conftest import digest_of
backend = DiskBackend(sys.argv[1])
for i in range(6):
    leaves = {"w": torch.full((50,), float(i))}
    backend.put({digest_of(leaves): leaves})
"""
    with started("print(flush=True)" + code, backend.path) as other:
        for i in range(6):
            leaves = {"w": torch.full((50,), float(i))}
            backend.put({digest_of(leaves): leaves})
        assert other.wait(600) == 0
    for i in range(6):
        leaves = {"w": torch.full((50,), float(i))}
        assert identical(backend.get(digest_of(leaves)), leaves)
    assert list(backend.path.glob("items/tmp-*")) == []
