"""Orbax both ways: its own readers open what we write, and `from_orbax` what others wrote. Real Orbax, Flax and Optax."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import purestate as ps
from purestate.errors import TreeMismatchError, UnsupportedError, UsageError
from purestate.run._foreign import Imported
from tests.helpers import Mlp, assert_trees_identical, batch, build

WAYS = {
    "ocdbt": {},
    "plain": {"use_ocdbt": False},
    "zarr3": {"use_zarr3": True},
    "zarr3 plain": {"use_ocdbt": False, "use_zarr3": True},
}
FLAX_NAMES = {"net.0": "Dense_0", "net.3": "Dense_1"}


@pytest.fixture(scope="module")
def train_state() -> Any:
    """A train state of Flax after one step of Adam: two layers in a dict below ``params``, moments, a counter."""
    import jax
    import optax
    from flax import linen
    from flax.training.train_state import TrainState

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Dense(8)(x))
            return linen.Dense(2)(x)

    net = Net()
    variables = net.init(jax.random.key(0), jax.numpy.ones((1, 3)))
    state = TrainState.create(apply_fn=net.apply, params=variables, tx=optax.adam(1e-2))
    return state.apply_gradients(grads=jax.tree.map(jax.numpy.ones_like, variables))


@pytest.fixture(scope="module")
def folders(train_state, tmp_path_factory) -> dict[str, Path]:
    """That state, written by Orbax in each of its ways."""
    import orbax.checkpoint as ocp

    root = tmp_path_factory.mktemp("orbax")
    for way, options in WAYS.items():
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(root / way, train_state)
    with ocp.CheckpointManager(root / "steps") as manager:  # as MaxText does: one item, ``items``
        manager.save(7, args=ocp.args.Composite(items=ocp.args.PyTreeSave(train_state)))
    with ocp.CheckpointManager(root / "several") as manager:
        trees = {"params": ocp.args.StandardSave(train_state.params), "more": ocp.args.StandardSave({"x": np.ones(2)})}
        manager.save(1, args=ocp.args.Composite(**trees))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root / "standard", train_state.params)
    return {path.name: path for path in root.iterdir()}


def flat(train_state: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in ps.flatten(train_state.params).items()}


# -------------------------------------------------------------------- theirs


@pytest.mark.parametrize("way", [*WAYS, "steps/7", "steps/7/items"])
def test_a_train_state_of_flax_is_read_whichever_way_it_was_written(folders, train_state, way):
    found = ps.from_orbax(folders[way.split("/")[0]].joinpath(*way.split("/")[1:]))
    expected = {f"params.{name}": leaf for name, leaf in flat(train_state).items()}
    assert {name for name in found.params if name.startswith("params.")} == set(expected)
    assert all(found.params[name].numpy().tobytes() == leaf.tobytes() for name, leaf in expected.items())
    moments = {f"opt_state.0.{slot}.{name}" for slot in ("mu", "nu") for name in flat(train_state)}
    assert set(found.params) == {*expected, *moments, "opt_state.0.count", "step"}
    assert found.params["step"].item() == 1
    assert found.ok
    assert found.unused == ()


def test_parameters_alone(folders, train_state):
    found = ps.from_orbax(folders["standard"], rename={"params": ""})
    assert set(found.params) == {"Dense_0.kernel", "Dense_0.bias", "Dense_1.kernel", "Dense_1.bias"}
    assert ps.tree_hash(found.params) == ps.tree_hash(
        {name.removeprefix("params."): leaf for name, leaf in flat(train_state).items()}
    )


def test_flax_becomes_a_state_and_computes_the_same(jax, folders, train_state):
    state = ps.init(lambda: Mlp(dropout=0.0), seed=0)
    found = ps.from_orbax(folders["ocdbt"], rename={"params.params": "params", "opt_state": None, "step": None})
    assert len(found.unused) == 10
    new = ps.from_flax(ps.nest(found.params), state, names=FLAX_NAMES)
    x, _ = batch(5)
    with torch.no_grad():
        ours = ps.to_module(new, build(Mlp)).eval()(x).numpy()
    # two layers of at most eight products: a few roundings of numbers around 1
    np.testing.assert_allclose(ours, train_state.apply_fn(train_state.params, x.numpy()), rtol=1e-5, atol=1e-6)
    assert ps.to_flax(new, names=FLAX_NAMES)["params"]["Dense_0"]["kernel"].tolist() == (
        train_state.params["params"]["Dense_0"]["kernel"].tolist()
    )


def test_like_says_what_is_wanted_and_a_table_what_came_of_it(folders, train_state):
    like = {"encoder.bias": torch.zeros(8), "head.bias": torch.zeros(2), "head.extra": torch.full((1,), 3.0)}
    rename = {"params.params.Dense_0": "encoder", "params.params.Dense_1": "head"}
    found = ps.from_orbax(folders["plain"], like=like, rename=rename)
    assert list(found.params) == list(like)
    assert_trees_identical(found.params["encoder.bias"], torch.tensor(flat(train_state)["params.Dense_0.bias"]))
    assert found.params["head.extra"] is like["head.extra"]
    assert found.kept == {"encoder.bias": "params.params.Dense_0.bias", "head.bias": "params.params.Dense_1.bias"}
    assert found.missing == ("head.extra",)
    assert {"params.params.Dense_0.kernel", "step"} < set(found.unused)
    assert not found.ok
    text = str(found).splitlines()
    assert text[0].endswith("2 kept, 1 missing, 12 unused")
    assert text[3].split() == ["encoder.bias", "params.params.Dense_0.bias", "float32", "[8]", "kept"]
    assert any(line.split() == ["head.extra", "float32", "[1]", "missing"] for line in text)
    assert any(line.split() == ["step", "unused"] for line in text)
    assert found._repr_html_().count("<tr>") == 2 + 1 + 12 + 1
    with pytest.raises(
        TreeMismatchError, match=r"no leaf for 'head\.extra', and for 1 names in all\.\nUnused are opt_state"
    ) as caught:
        found.check()
    assert caught.value.actual == ("head.extra",)


def test_a_function_renames_as_well(folders):
    found = ps.from_orbax(
        folders["ocdbt"], rename=lambda name: name.removeprefix("params.params.") if "bias" in name[:30] else None
    )
    assert {"Dense_0.bias", "Dense_1.bias"} <= set(found.params)
    assert "step" in found.unused


def test_what_was_read_goes_into_a_state(jax, tmp_path):
    import orbax.checkpoint as ocp

    convolution = build(lambda: nn.Conv2d(2, 3, 3))
    state = ps.init(nn.Sequential(convolution, nn.BatchNorm2d(3)), seed=0)
    trees = {
        "model": ps.nest(ps.to_jax(dict(state.params), copy=True)),
        "stats": {"1": {"running_mean": np.full(3, 2.0, "float32")}},
    }
    ocp.PyTreeCheckpointer().save(tmp_path / "x", trees)
    last = state.replace(
        params={name: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t + 1 for name, t in state.params.items()}
    )
    found = ps.from_orbax(tmp_path / "x", like=last, rename={"model": "", "stats": ""})
    new = found.into(last)
    assert new.digests["params"] == state.digests["params"]
    assert new.params["0.weight"].stride() == last.params["0.weight"].stride()
    assert_trees_identical(new.buffers["1.running_mean"], torch.full((3,), 2.0))
    assert found.missing == ("1.running_var", "1.num_batches_tracked")
    assert list(ps.from_orbax(tmp_path / "x", like=convolution, rename={"model.0": "", "stats": None}).kept) == [
        "weight",
        "bias",
    ]
    with pytest.raises(TreeMismatchError, match="the state has no leaf 'model"):
        ps.from_orbax(tmp_path / "x").into(state)


def test_dtypes_of_both_and_what_torch_has_not(tmp_path):
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    tree = {name: jnp.arange(4).astype(name) for name in ("bfloat16", "float8_e4m3fn", "complex64", "bool", "uint16")}
    ocp.PyTreeCheckpointer().save(tmp_path / "x", tree)
    found = ps.from_orbax(tmp_path / "x").params
    assert ps.tree_hash(found) == ps.tree_hash(tree)
    ocp.PyTreeCheckpointer().save(tmp_path / "y", {"a": jnp.arange(4).astype("float8_e4m3b11fnuz")})
    with pytest.raises(UnsupportedError, match="torch has no dtype for float8_e4m3b11fnuz at 'a'"):
        ps.from_orbax(tmp_path / "y")
    ocp.PyTreeCheckpointer().save(tmp_path / "z", {"a": jnp.arange(4).astype("int4")})
    with pytest.raises(UnsupportedError, match="torch has no dtype for int4 at 'a'"):  # a name, and nothing that computes on it
        ps.from_orbax(tmp_path / "z")


# -------------------------------------------------------------------- bad input


def refused(path: Path, says: str, **options: Any) -> UsageError:
    with pytest.raises(UsageError, match=says) as caught:
        ps.from_orbax(path, **options)
    return caught.value


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_a_folder_that_orbax_did_not_finish_is_refused(folders, tmp_path):
    begun = copied(folders["ocdbt"], tmp_path / "x.orbax-checkpoint-tmp")
    refused(begun, r"Orbax did not finish '.*tmp'\.\nIt is being written, or who wrote it was stopped")
    inside = copied(folders["ocdbt"], begun / "default")
    refused(inside, "Orbax did not finish")
    uncommitted = copied(folders["steps"] / "7", tmp_path / "8")
    about = json.loads((uncommitted / "_CHECKPOINT_METADATA").read_text())
    (uncommitted / "_CHECKPOINT_METADATA").write_text(json.dumps(about | {"commit_timestamp_nsecs": None}))
    refused(uncommitted / "items", "Orbax did not finish '.*8'")
    half = copied(folders["ocdbt"], tmp_path / "half")
    (half / "_METADATA").unlink()
    refused(half, "expected a folder of one item that Orbax finished, got '.*half'")


def test_a_store_says_how_to_load_from_it(tmp_path):
    (tmp_path / "format.json").write_text('{"purestate": 1}')
    refused(tmp_path, r"which is a store\.\nLoad from it: Store\(path\)\.load\(id\)")


def test_several_items_are_listed(folders, tmp_path):
    error = refused(
        folders["several"] / "1", r"expected a folder of one item.*\nBelow it are .*more, .*params\.\nGive one of them"
    )
    assert [Path(item).name for item in error.available] == ["more", "params"]
    refused(folders["steps"], "Below it are .*steps/7/items")
    assert refused(tmp_path, "expected a folder of one item").available == ()
    refused(tmp_path / "none", "there is no folder")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "there is no folder")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_lost_or_changed_is_told_and_never_read_as_zeros(folders, tmp_path, way):
    folder = copied(folders[way], tmp_path / "x")
    if "plain" not in way:
        shutil.rmtree(folder / "d")  # what the manifest points at
        refused(folder, "is damaged")
        return
    kernel = folder / "params.params.Dense_0.kernel"
    [chunk] = [path for path in kernel.rglob("*") if path.is_file() and path.name not in (".zarray", "zarr.json")]
    content = chunk.read_bytes()
    chunk.unlink()
    refused(folder, r"is damaged: leaf 'params\.params\.Dense_0\.kernel'")
    chunk.write_bytes(content[:-3])
    refused(folder, r"is damaged: leaf 'params\.params\.Dense_0\.kernel'")
    shutil.rmtree(kernel)
    refused(folder, r"is damaged: leaf 'params\.params\.Dense_0\.kernel' is not there")
    (folder / "_METADATA").write_text("{")
    refused(folder, "is damaged: what is noted there")


def test_another_shape_or_dtype_is_refused_and_a_transposed_one_explained(folders):
    rename = {"params.params.Dense_0.kernel": "weight"}
    with pytest.raises(
        TreeMismatchError, match=r"expected float32\[8, 3\] at 'weight', got float32\[3, 8\] from 'params\.p.*\nFlax has the axes"
    ):
        ps.from_orbax(folders["ocdbt"], like=build(lambda: nn.Linear(3, 8)), rename=rename)
    with pytest.raises(
        TreeMismatchError, match=r"expected bfloat16\[3, 8\] at 'weight', got float32\[3, 8\].*\nRead it without like"
    ):
        ps.from_orbax(folders["ocdbt"], like={"weight": torch.zeros(3, 8, dtype=torch.bfloat16)}, rename=rename)
    with pytest.raises(TreeMismatchError, match="expected a state, a module or tensors by name as like, got a dict"):
        ps.from_orbax(folders["ocdbt"], like={"a": {"b": torch.ones(2)}})


def test_names_that_mean_nothing_or_two_leaves_are_refused(folders):
    with pytest.raises(TreeMismatchError, match=r"rename names 'params\.params\.Dense', and no leaf of the folder begins so"):
        ps.from_orbax(folders["ocdbt"], rename={"params.params.Dense": "x"})
    both = {"params.params.Dense_0.bias": "b", "params.params.Dense_1.bias": "b"}
    with pytest.raises(
        TreeMismatchError, match=r"'params\.params\.Dense_0\.bias' and 'params\.params\.Dense_1\.bias' would both be called 'b'"
    ):
        ps.from_orbax(folders["ocdbt"], rename=both)


# -------------------------------------------------------------------- ours


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Iterator[tuple[ps.Store, ps.State]]:
    """A store with one train of one epoch."""
    state = ps.setup(ps.init(Mlp, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam)
    with ps.Store(tmp_path_factory.mktemp("kept") / "store") as store:
        yield store, store.checkpoint("a").train(state, [batch(16)], [batch(16)], epochs=1)


def test_orbax_opens_an_item_of_a_store(kept):
    import orbax.checkpoint as ocp

    store, state = kept
    path = store.path("a", "params")
    found = ocp.PyTreeCheckpointer().restore(path)
    with ocp.StandardCheckpointer() as checkpointer:
        same = checkpointer.restore(path)
    assert ps.tree_hash(found) == ps.tree_hash(same) == ps.tree_hash(state.params)
    assert ps.from_orbax(path, like=state).into(state).hash == state.hash


def test_orbax_opens_an_export(kept, tmp_path):
    import orbax.checkpoint as ocp

    store, state = kept
    with ocp.CheckpointManager(store.export_orbax("a", tmp_path / "out")) as manager:
        found = manager.restore(manager.latest_step())
    assert ps.tree_hash(found["params"]) == ps.tree_hash(state.params)
    read = ps.from_orbax(tmp_path / "out" / "0", like=state.params, rename={"params": ""})
    assert ps.tree_hash(read.params) == ps.tree_hash(state.params)
    assert read.ok
    assert isinstance(read, Imported)
