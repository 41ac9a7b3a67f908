"""The hashes of runs and of files: the same bits have the same ones, and a file that is damaged is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tensorstore
import torch

import purestate as ps
from purestate.errors import UsageError
from purestate.report._foreign import leaves_of
from purestate.report._hashed import hashes
from purestate.store._disk import DiskBackend
from tests.helpers import Mlp, build
from tests.report.planted import GOLDEN

FACTS = json.loads((GOLDEN / "facts.json").read_text())
SAFE = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16", torch.bool: "BOOL"}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """What the last answer of the golden store holds."""
    [item] = GOLDEN.glob("items/12/*")
    return DiskBackend(GOLDEN).get(item.name)


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a file as the format is described: https://github.com/huggingface/safetensors#format."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {
            "dtype": SAFE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(flat)],
        }
        data += flat
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def write_zarr(folder: Path, tensors: dict[str, torch.Tensor], *, ocdbt: bool, driver: str = "zarr") -> Path:
    for name, tensor in tensors.items():
        base = {"driver": "file", "path": f"{folder}/"}
        place = {"driver": "ocdbt", "base": base, "path": f"{name}/"} if ocdbt else {**base, "path": f"{folder}/{name}/"}
        spec = {"driver": driver, "kvstore": place}
        array = tensor.contiguous().numpy()
        tensorstore.open(spec, create=True, dtype=array.dtype.name, shape=array.shape).result().write(array).result()
    return folder


def test_a_run_has_the_hashes_that_were_frozen():
    found = hashes(f"{GOLDEN}:adam@1")
    assert found.state == FACTS["states"][1]
    assert {leaf.name: leaf.hash for leaf in found.leaves if leaf.name in FACTS["leaves"]} == FACTS["leaves"]
    assert hashes(f"{GOLDEN}:adam@0").state == FACTS["states"][0]


@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch legacy", "nested torch", "item", "ocdbt", "zarr", "zarr3"])
def test_a_file_of_the_same_bits_has_the_hashes_of_the_run(kind, tensors, tmp_path):
    path = tmp_path / "weights"
    if kind == "safetensors":
        write_safetensors(path, tensors)
    elif kind == "item":
        [path] = GOLDEN.glob("items/12/*")
    elif kind in ("ocdbt", "zarr", "zarr3"):
        write_zarr(path, tensors, ocdbt=kind == "ocdbt", driver="zarr3" if kind == "zarr3" else "zarr")
    elif kind == "nested torch":
        nested: dict[str, object] = {"epoch": 3, "note": "x"}
        for name, tensor in tensors.items():
            module, _, leaf = name.partition(".")
            nested.setdefault(module, {})[leaf] = tensor  # pyright: ignore[reportIndexIssue]
        torch.save(nested, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "torch")
    found, run = hashes(str(path)), hashes(f"{GOLDEN}:adam")
    assert found.leaves == run.leaves
    assert found.tree == run.tree == ps.tree_hash(tensors)
    assert found.state is None
    assert json.loads(found.to_json())["leaves"][0]["hash"] == FACTS["leaves"]["conv.bias"]


def test_dtypes_and_shapes_of_safetensors(tmp_path):
    tensors = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "bool": torch.tensor([True, False]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    assert hashes(str(write_safetensors(tmp_path / "f", tensors))).tree == ps.tree_hash(tensors)


def test_one_bit_of_a_file_is_another_hash(tensors, tmp_path):
    path = write_safetensors(tmp_path / "f", tensors)
    before = hashes(str(path))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    after = hashes(str(path))
    assert sum(x != y for x, y in zip(before.leaves, after.leaves, strict=True)) == 1


def test_a_safetensors_file_that_is_cut_anywhere_is_told(tmp_path):
    path = write_safetensors(tmp_path / "f", {"a": torch.arange(3.0), "b": torch.ones(2)})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(UsageError):
            leaves_of(path)


@pytest.mark.parametrize(
    "about",
    [
        {"dtype": "F33"},
        {"shape": [-1]},
        {"shape": [5]},
        {"shape": "x"},
        {"data_offsets": [-12, 0]},
        {"data_offsets": [0, 99]},
        {"dtype": None},
    ],
)
def test_a_safetensors_header_of_a_stranger_is_refused(about, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], **about}}).encode()
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(UsageError, match="is damaged"):
        leaves_of(tmp_path / "f")


def test_a_torch_file_with_objects_is_refused(tmp_path):
    torch.save(build(Mlp), tmp_path / "f")
    with pytest.raises(UsageError, match="cannot be read as a torch file of weights"):
        leaves_of(tmp_path / "f")


def test_a_torch_file_that_is_damaged_is_told(tensors, tmp_path):
    torch.save(tensors, tmp_path / "f")
    data = (tmp_path / "f").read_bytes()
    for size in (2, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "f").write_bytes(data[:size])
        with pytest.raises(UsageError):
            leaves_of(tmp_path / "f")


def test_an_item_that_is_damaged_is_told(tmp_path):
    [item] = GOLDEN.glob("items/12/*")
    copy = Path(shutil.copytree(item, tmp_path / "item"))
    for path in copy.glob("**/d/*"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="is damaged"):
        leaves_of(copy)
    (copy / "purestate.json").write_text("{")
    with pytest.raises(UsageError, match=r"is damaged: purestate.json"):
        leaves_of(copy)


def test_a_folder_above_an_item_lists_what_is_below():
    with pytest.raises(UsageError, match="no item that Orbax wrote") as caught:
        leaves_of(GOLDEN / "items")
    assert len(caught.value.available) == 3


def test_other_files_and_names_that_are_nothing(tmp_path):
    (tmp_path / "f").write_text("hello, world")
    for text in (str(tmp_path / "f"), str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises(UsageError):
            hashes(text)
