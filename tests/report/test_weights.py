"""Files of others, compared with runs and with each other, and what is read for that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import purestate as ps
from purestate.errors import UsageError
from purestate.report._compare import compare
from purestate.report._weights import WeightsComparison
from purestate.store._disk import DiskBackend
from tests.report.planted import GOLDEN, plant_ulp
from tests.report.test_hashed import write_safetensors, write_zarr
from tests.report.watched import opened

RUN = f"{GOLDEN}:adam"
LEAF = "head.weight"
KINDS = ["safetensors", "torch", "zarr", "item", "export"]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Parameters and buffers of the last answer of the golden store."""
    [item] = GOLDEN.glob("items/12/*")
    return DiskBackend(GOLDEN).get(item.name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as Orbax's CheckpointManager writes it, with the optimizer and what else there is."""
    folder = tmp_path_factory.mktemp("weights") / "out"
    with ps.Store(GOLDEN) as store:
        store.export_orbax("adam", folder)
    return folder / "1/default"


def written(kind: str, path: Path, tensors: dict[str, torch.Tensor], exported: Path) -> Path:
    if kind == "safetensors":
        return write_safetensors(path, tensors)
    if kind == "zarr":
        return write_zarr(path, tensors, ocdbt=True)
    if kind == "item":
        return Path(shutil.copytree(next(GOLDEN.glob("items/12/*")), path))
    if kind == "export":
        return exported
    torch.save(tensors, path)
    return path


def compared(a: object, b: object) -> WeightsComparison:
    found = compare(str(a), str(b))
    assert isinstance(found, WeightsComparison)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_same_bits_is_equal(kind, weights, exported, tmp_path):
    file = written(kind, tmp_path / "weights", weights, exported)
    for sides in ((RUN, file), (file, RUN), (file, file)):
        found = compared(*sides)
        assert found.ok, str(found)
        assert (found.changed, found.only_a, found.only_b, found.left_out) == ((), (), (), ())
        assert found.equal == {True: 28, False: 9}[kind == "export"]


@pytest.mark.parametrize("kind", ["safetensors", "torch", "zarr"])
def test_one_ulp_is_named(kind, weights, exported, tmp_path):
    other = {name: tensor.clone() for name, tensor in weights.items()}
    other[LEAF].view(torch.int32)[1, 2] += 1
    file = written(kind, tmp_path / "weights", other, exported)
    found = compared(RUN, file)
    [leaf] = found.changed
    assert (leaf.path, leaf.changed, leaf.elements, leaf.ulps, found.equal, found.ok) == (LEAF, 1, 24, 1, 8, False)
    assert "weights: changed (1 differ, 8 are equal, 0 only in a, 0 only in b)" in str(found)
    assert json.loads(found.to_json())["changed"][0]["ulps"] == 1
    [again] = compared(file, written(kind, tmp_path / "whole", weights, exported)).changed
    assert again.ulps == 1


def test_leaves_that_one_lacks_and_those_of_another_shape(weights, exported, tmp_path):
    other = {name: tensor for name, tensor in weights.items() if name != "conv.bias"} | {"more": torch.ones(2)}
    other["norm.bias"] = torch.ones(3)
    found = compared(RUN, written("safetensors", tmp_path / "f", other, exported))
    assert (found.only_a, found.only_b, found.equal, found.ok) == (("conv.bias",), ("more",), 7, False)
    assert [(leaf.path, leaf.changed) for leaf in found.changed] == [("norm.bias", None)]
    assert "conv.bias: only in a" in str(found)


def test_subtrees_of_which_the_file_has_nothing_are_told_and_not_missed(weights, exported, tmp_path):
    params = {name: tensor for name, tensor in weights.items() if "running" not in name and "num_batches" not in name}
    found = compared(written("torch", tmp_path / "f", params, exported), RUN)
    assert (found.ok, found.equal, found.left_out) == (True, 6, ("buffers (3 leaves)",))
    assert "not compared, since the file has none of them: buffers (3 leaves)" in str(found)
    found = compared(RUN, written("torch", tmp_path / "g", {f"params.{name}": leaf for name, leaf in params.items()}, exported))
    assert (found.ok, found.equal, found.left_out) == (True, 6, ("buffers (3 leaves)",))


def test_the_optimizer_in_a_file_is_compared(exported, tmp_path):
    from purestate.report._foreign import leaves_of, tensors_of

    names = [leaf.name for leaf in leaves_of(exported)]
    tensors = {name: tensor.clone() for name, tensor in tensors_of(exported, names).items()}
    tensors["optimizer.state/head.bias/exp_avg"][1] *= 2
    found = compared(RUN, written("torch", tmp_path / "f", tensors, exported))
    assert [leaf.path for leaf in found.changed] == ["optimizer.state/head.bias/exp_avg"]


def test_a_file_of_something_else_is_not_equal(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "f")
    torch.save({"epoch": 3}, tmp_path / "empty")
    found = compared(RUN, tmp_path / "f")
    assert (found.ok, found.equal, len(found.only_a), found.only_b) == (False, 0, 6, ("w",))
    assert not compared(tmp_path / "empty", tmp_path / "empty").ok


def test_a_damaged_file_is_told(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "f")
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be read as a torch file of weights"):
        compared(RUN, tmp_path / "f")


# -------------------------------------------------------------------- what is opened


@pytest.fixture
def one_leaf(tmp_path: Path) -> Path:
    """The golden store with another value in one leaf of the parameters of the last answer."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "other"))
    backend = DiskBackend(folder)
    plant_ulp(folder, backend, LEAF)
    backend.close()
    return folder


def test_of_equal_hashes_no_item_is_opened(tmp_path):
    stores = [Path(shutil.copytree(GOLDEN, tmp_path / name)) for name in "ab"]
    with opened(stores[0]) as ours, opened(stores[1]) as theirs:
        assert compare(stores[0], stores[1]).ok
    assert ours == theirs
    assert {"checkpoints/adam/log.jsonl"} <= ours <= {"checkpoints/adam/log.jsonl", "format.json"}


def test_with_one_leaf_that_differs_only_its_item_is_opened(one_leaf, tmp_path):
    whole = Path(shutil.copytree(GOLDEN, tmp_path / "whole"))
    with opened(whole) as ours, opened(one_leaf) as theirs:
        found = compare(whole, one_leaf)
    assert [leaf.path for part in found.state.parts for leaf in part.changed] == [f"params[{LEAF!r}]"]
    for files in (ours, theirs):
        assert len({name.split("/")[2] for name in files if name.startswith("items/")}) == 1, files
        assert any("ocdbt" in name or "/d/" in name for name in files), "the kernel tells what TensorStore opens"
    assert len({path.parent.name for path in one_leaf.glob("items/*/*/purestate.json")}) == 4
