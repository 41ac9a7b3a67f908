"""The blocks of the README on JAX, and what it says of loaders beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps
from tests.helpers import batch, build

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks() -> list[str]:
    section = README.split("\n## JAX\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)


@pytest.fixture(scope="module")
def s1() -> ps.State:
    """The model of the README after one step of Adam."""
    make = lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))  # noqa: E731
    state = ps.setup(ps.init(build(make), seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam)
    return ps.make_step(state)(state, batch(8, (64,), classes=10))[0]


def test_the_blocks_run(jax, s1, tmp_path, monkeypatch, capsys):
    import orbax.checkpoint as ocp

    monkeypatch.chdir(tmp_path)
    first, second = [block for block in blocks() if "to_jax(" in block or "from_orbax(" in block]
    layer = {"weight": np.ones((64, 64), "float32"), "bias": np.ones(64, "float32")}
    with ocp.CheckpointManager(tmp_path / "gemma") as manager:
        manager.save(7, args=ocp.args.StandardSave({"params": {"params": {"Dense_0": layer}}}))
    names = {"ps": ps, "jax": jax, "s1": s1}
    exec(first + second, names)
    assert ps.flatten(names["nested"]) == names["arrays"]["params"]
    assert names["s2"].digests["params"] == names["halved"].digests["params"]
    assert names["s3"] == s1
    assert jax.random.key_data(jax.random.fold_in(names["key"], 5)).tolist() == [s1.key.fold_in(5).hi, s1.key.fold_in(5).lo]
    assert "2 kept, 2 missing, 0 unused" in capsys.readouterr().out
    assert names["s4"].params["0.bias"].sum() == 64


def test_a_loader_with_workers_beside_jax(jax, tmp_path):
    """Warnings are errors: with the default, which forks, JAX warns."""
    jax.numpy.ones(3).block_until_ready()
    state = ps.setup(
        ps.init(build(lambda: nn.Linear(3, 2)), seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam
    )
    loader = DataLoader(TensorDataset(*batch(8)), batch_size=4, num_workers=1, multiprocessing_context="forkserver")
    trained = ps.NullStore().checkpoint("x").train(state, loader, epochs=1, progress=False)
    assert trained.counters.step == 2
