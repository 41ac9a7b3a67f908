"""The root of a checkpoint: unseeded scripts can be run again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import purestate as ps
from purestate.errors import SetupError, StaleRecordError, TreeMismatchError
from tests.run.tiny import loader

SETUP: dict[str, Any] = dict(loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))


def unseeded(*, width: int = 4, seed: int = 0, frozen: bool = False) -> ps.State:
    """Return the state of a module whose weights come from entropy: other ones at each call."""
    with torch.random.fork_rng():
        torch.seed()
        module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 3))
    module[2].bias.requires_grad_(not frozen)
    return ps.init(module, seed=seed)


@pytest.fixture
def ck(store: Any) -> ps.Checkpoint:
    return store.checkpoint("root", echo=None)


def kinds(ck: ps.Checkpoint) -> list[str]:
    return [record.kind for record in ck._ledger.log.records]


def test_the_first_state_is_the_root_and_later_ones_become_it(store, ck):
    first = unseeded()
    root = ck.root(first)
    assert root == first
    assert root.origin.parent is not None
    assert root.origin.parent["op"] is None
    again = store.checkpoint("root", echo=None).root(unseeded())
    assert again == first
    assert kinds(ck) == ["checkpoint", "root"]
    assert torch.equal(again.params["0.weight"], first.params["0.weight"])
    assert again.recipe is not None


def test_what_is_trained_from_a_root_is_found_again(store):
    def run() -> tuple[ps.State, bool]:
        s0 = ps.setup(store.checkpoint("root", echo=None).root(unseeded()), **SETUP)
        ck = store.checkpoint("a", echo=None)
        s1 = ck.train(s0, loader(), epochs=1)
        assert ck.last is not None
        return s1, ck.last.cached

    (one, computed), (two, cached) = run(), run()
    assert one == two
    assert (computed, cached) == (False, True)


def test_a_root_is_where_a_lineage_begins(store):
    s0 = ps.setup(store.checkpoint("root", echo=None).root(unseeded()), **SETUP)
    store.checkpoint("a", echo=None).train(s0, loader(), epochs=1)
    assert store.lineage().splitlines()[1].startswith("└─ a (from root): 1 train, 1 epoch")
    assert any(row.rstrip().endswith("root:root") for row in store.table().splitlines())
    infos = {info.id: info for info in store.checkpoints()}
    assert infos["root"].state == s0.origin.base
    assert infos["root"].trains == 0


def test_a_checkpoint_can_train_from_its_own_root(store, ck):
    s0 = ps.setup(ck.root(unseeded()), **SETUP)
    s1 = ck.train(s0, loader(), epochs=1)
    again = store.checkpoint("root", echo=None)
    assert again.train(ps.setup(again.root(unseeded()), **SETUP), loader(), epochs=1) == s1


@pytest.mark.parametrize(
    ("other", "path", "words"),
    [
        (dict(width=5), "params['0.weight']", "params['0.weight'] was float32 (4, 3), now float32 (5, 3)"),
        (dict(frozen=True), "frozen['2.bias']", "frozen['2.bias'] was trainable, now frozen"),
    ],
)
def test_another_structure_is_refused_with_the_first_leaves_that_differ(ck, other, path, words):
    ck.root(unseeded())
    with pytest.raises(TreeMismatchError) as caught:
        ck.root(unseeded(**other))
    assert caught.value.path == path
    assert words in str(caught.value).splitlines()[0]
    assert kinds(ck) == ["checkpoint", "root"]


def test_many_differences_are_counted(ck):
    ck.root(unseeded())
    with pytest.raises(TreeMismatchError, match=r"; and 4 more\.\n"):
        ck.root(unseeded(width=5))


def test_another_seed_is_refused(ck):
    ck.root(unseeded(seed=1))
    with pytest.raises(StaleRecordError, match=r"'root' began with seed 1, now 2\.") as caught:
        ck.root(unseeded(seed=2))
    assert caught.value.changes == (("seed", 1, 2),)


def test_a_root_needs_a_state_with_a_module(ck):
    with pytest.raises(SetupError, match="expected a State"):
        ck.root("module")


def test_a_root_survives_being_written_and_read(disk):
    ck = disk.checkpoint("root", echo=None)
    first = ck.root(unseeded())
    body = json.loads((disk._disk.path / "checkpoints/root/log.jsonl").read_text().splitlines()[1])["body"]
    assert body["shapes"]["buffers"]["1.num_batches_tracked"] == ["int64"]
    assert body["state"]["hash"] == first.hash


def test_null_stores_root_nothing():
    ck = ps.NullStore().checkpoint("a", echo=None)
    state = unseeded()
    assert ck.root(state) == state
    other = unseeded()
    assert ck.root(other) == other
