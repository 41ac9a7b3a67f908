"""The average of the parameters through the stateful face: set up in a block, loaded elsewhere, looked at in the module."""

from __future__ import annotations

import pytest

import purestate as ps
from tests.helpers import assert_trees_identical
from tests.train.tiny import SETUP, block, model


@pytest.fixture
def store() -> ps.MemoryStore:
    return ps.MemoryStore()


def test_a_block_has_it_and_another_process_loads_it(store):
    m = model(store=store)
    block(m, setup=SETUP | dict(ema_decay=0.9))
    state = m.state
    block(m, setup=SETUP | dict(ema_decay=0.9))
    assert m.state == state
    again = model(store=store)  # it has no recipe but the record's
    again.load_checkpoint(1)
    assert again.state == state
    assert again.state.recipe is not None
    assert again.state.recipe.ema_decay == 0.9
    again.state = ps.averaged(again.state)
    assert state.ema is not None
    assert_trees_identical({name: p.detach() for name, p in again.model.named_parameters()}, dict(state.ema))


def test_what_is_adopted_with_other_parameters_in_training_begins_a_new_one(store):
    m = model(store=store)
    block(m, setup=SETUP | dict(ema_decay=0.9))
    next(m.model.parameters()).requires_grad_(False)
    m.adopt()
    assert m.state.ema is None
    block(m, 2)
    assert m.state.ema is not None
    assert list(m.state.ema) == list(m.state.params)
    assert len(m.state.frozen) == 1
