"""What old versions of the format wrote is read to the bit. The bytes are in ``tests/golden`` and are never regenerated."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

import purestate as ps
from purestate.core._plain import join

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((GOLDEN / "v1" / "facts.json").read_text())


@pytest.fixture
def v1(tmp_path) -> ps.Store:
    return ps.Store(shutil.copytree(GOLDEN / "v1", tmp_path / "v1"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_v1", GOLDEN / "write_v1.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_log_has_its_head(v1, facts):
    ck = v1.open("adam")
    assert (ck.head, ck.description) == (facts["head"], "format 1")
    assert ck.history["epoch"] == [1, 2, 3, 4]


@pytest.mark.parametrize("op", [0, 1])
def test_states_verify(v1, facts, op):
    state = v1.load("adam", op=op)
    assert state.hash == facts["states"][op]
    state.own().verify()
    assert (state.counters.epoch, state.counters.step) == (3 + op, 9 + 3 * op)


def test_leaves_have_their_hashes_and_strides(v1, facts):
    state = v1.load("adam")
    assert dict(state.params.hashes) == facts["leaves"]
    assert state.params.spec["conv.weight"].order == (0, 2, 3, 1)


def test_plain_values_keep_their_types(v1):
    extra = v1.load("adam").extra
    assert extra is not None
    value = join(extra.skeleton, extra.leaves)
    assert value["note"] == (1, 2.5, float("inf"))
    assert torch.equal(value["weights"], torch.arange(3.0))


def test_training_goes_on(v1, script):
    """The scheduler's milestones, a Counter of integers, still decide: the rate falls by ten at epoch 3."""
    data = [(torch.zeros(4, 1, 4, 4), torch.arange(4) % 3)]
    adam = dict(optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=1e-2))
    steps = dict(epoch_scheduler_cls=torch.optim.lr_scheduler.MultiStepLR, epoch_scheduler_args=dict(milestones=[1, 3]))
    like = ps.setup(ps.init(script.Net), loss_cls=torch.nn.CrossEntropyLoss, **adam, **steps)
    state = v1.load("adam", op=0, like=like)
    fork = v1.checkpoint("fork", echo=None)
    fork.train(state, data, epochs=1)
    assert fork.history["lr"] == [pytest.approx(1e-4)]  # 1e-2 was divided by ten twice, in binary floating point
