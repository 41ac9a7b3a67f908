"""Epochs that a block keeps."""

from __future__ import annotations

import pytest

import purestate as ps
from purestate import errors, train
from tests.train.tiny import SETUP, block, fresh_seeds, model, train_dl, val_dl


def test_a_block_keeps_epochs_and_drops_them():
    m = model()
    cp = block(m, epochs=4, keep=train.keep.every(2) | train.keep.last(2))
    best = {cp._log.last.best_epoch} - {0}
    assert cp.kept[0] == sorted({0, 2, 3, 4} if not best else {2, 3, 4} | best)
    assert m.store.load(cp._log.id, epoch=2).counters.epoch == 2
    again = block(model(), epochs=4, keep=train.keep.every(2) | train.keep.last(2))
    assert again._log.last.cached
    gone = cp.prune(train.keep.last(1))
    assert gone == {0: sorted({2, 3} - best)}
    assert len(m.store.gc().items) > 0
    assert m.store.check("bytes").ok


def test_the_names_are_those_of_the_functions():
    assert train.keep is ps.keep
    with model().checkpoint(1) as cp:
        cp.setup(**SETUP)
        with pytest.raises(errors.SetupError, match=r"expected a policy such as ps\.keep\.last\(3\), got keep=3"):
            cp.train(train_dl(), val_dl(), epochs=1, keep=3)
    fresh_seeds()
