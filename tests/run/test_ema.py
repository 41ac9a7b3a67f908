"""The average of the parameters in the log: asked for, kept, loaded, gone on with, evaluated and forked from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import purestate as ps
from purestate.run._rebuild import rebuild
from tests.helpers import ConvNet, Mlp, assert_trees_identical, batch, build
from tests.run.tiny import Ask, checkpoint


def asked(decay: float | None = 0.9, **parts: Any) -> Ask:
    return Ask(**{"recipe": {} if decay is None else dict(ema_decay=decay), **parts})


def ema(state: ps.State) -> dict[str, torch.Tensor]:
    assert state.ema is not None
    return dict(state.ema)


def test_more_epochs_go_on_with_it(store):
    """From the answer of two epochs, read again from the store, to that of four."""
    whole = asked().of(checkpoint(), epochs=4)
    asked().of(checkpoint(store))
    s4 = asked().of(checkpoint(store), epochs=4)
    assert s4 == whole
    assert_trees_identical(ema(s4), ema(whole))
    again = checkpoint(store)
    assert asked().of(again, epochs=4) == whole
    assert again.last is not None
    assert again.last.cached


def test_it_is_kept_and_loaded(disk):
    s2 = asked().of(checkpoint(disk))
    loaded = disk.load("a", like=s2)
    assert loaded.ema is not None
    assert not loaded.ema.loaded
    assert_trees_identical(ema(loaded), ema(s2))
    assert disk.path("a", "ema").is_dir()
    assert {leaf.path for leaf in disk.inspect("a").leaves} >= {f"ema[{name!r}]" for name in s2.params}
    bare = disk.load("a")
    assert_trees_identical(ps.averaged(bare).state_dict(), ema(s2))
    assert disk.check(level="bytes").ok


def test_the_best_comes_with_its_average(store):
    """A rate that is too high: some epoch before the last is the best."""
    ask = asked(lr=3.0)
    each = {epoch.n: epoch.state for epoch in checkpoint().epochs(ask.state(), ask.train_dl, ask.val_dl, epochs=6)}
    ck = checkpoint(store)
    best = ask.of(ck, epochs=6, load_best=True, metrics=[])
    assert ck.last is not None
    assert ck.last.best_epoch not in (None, 6)
    of = each[ck.last.best_epoch] if ck.last.best_epoch else ask.state()
    assert (best.params, best.ema) == (of.params, of.ema)


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        (None, 0.9, ("ema_decay", None, 0.9)),
        (0.9, 0.99, ("ema_decay", 0.9, 0.99)),
        (0.9, None, ("ema_decay", 0.9, None)),
    ],
)
def test_a_change_is_named_alone(memory, before, now, change):
    asked(before).of(checkpoint(memory))
    with pytest.raises(ps.StaleRecordError) as caught:
        asked(now).of(checkpoint(memory))
    assert caught.value.changes == (change,)


def test_what_it_follows_from_is_named_alone(memory):
    asked().of(checkpoint(memory))
    with pytest.raises(ps.StaleRecordError) as caught:
        asked(seed=3).of(checkpoint(memory))
    assert [change[0] for change in caught.value.changes] == ["seed"]
    s0 = asked().state()
    by_hand = s0.replace(ema={name: t + 1 for name, t in ema(s0).items()})
    with pytest.raises(ps.StaleRecordError, match="input ema changed since this was recorded"):
        checkpoint(memory).train(by_hand, asked().train_dl, asked().val_dl, epochs=2, metrics=[ps.metric_accuracy])


def test_without_one_the_question_is_what_it_was(memory):
    ck = checkpoint(memory)
    asked(None).of(ck)
    parts = ck._ledger.chain.trains[0].question["parts"]
    assert not [name for name in parts if "ema" in name]
    off = ps.setup(ps.setup(asked(None).state(), ema_decay=0.5), clear_ema=True)
    ck.train(off, asked().train_dl, asked().val_dl, epochs=2, metrics=[ps.metric_accuracy])
    assert ck.last is not None
    assert ck.last.cached


def test_begun_late_it_continues_the_chain(memory):
    ask = asked(None)

    def script(ck: ps.Checkpoint) -> tuple[ps.State, bool]:
        s3 = ck.train(ps.setup(ask.of(ck), ema_decay=0.9), ask.train_dl, ask.val_dl, epochs=1)
        assert ck.last is not None
        return s3, ck.last.cached

    first = script(checkpoint(memory))
    assert not first[1]
    assert script(checkpoint(memory)) == (first[0], True)


def test_readers_see_what_is_in_the_place_of_the_parameters(memory):
    ask = asked()
    ck = checkpoint(memory)
    s2 = ask.of(ck)
    average = ps.averaged(s2)
    module = ps.to_module(average, build(Mlp)).eval()
    x, y = batch(4, seed=1)
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(module(x), y))
    assert ck.evaluate(average, [(x, y)]) == {"loss": expected}
    assert ck.evaluate(average, [(x, y)])["loss"] != ck.evaluate(s2, [(x, y)])["loss"]
    rates = [ck.find_lr(state, ask.train_dl).rates for state in (s2, ps.setup(s2, clear_ema=True))]
    assert rates[0] == rates[1]
    assert ck.last is not None
    assert ck.last.cached, "it has no part in it"


def test_a_fork_from_the_average_knows_where_it_came_from(memory):
    ask = asked()
    s2 = ask.of(checkpoint(memory))
    fork = checkpoint(memory, "fork")
    f1 = fork.train(ps.averaged(s2), ask.train_dl, epochs=1)
    infos = {info.id: info for info in memory.checkpoints()}
    assert infos["fork"].parent is not None
    assert infos["fork"].parent["hash"] == s2.hash
    assert checkpoint(memory, "fork").train(ps.averaged(s2), ask.train_dl, epochs=1) == f1
    with pytest.raises(ps.StaleRecordError) as caught:
        fork.train(s2, ask.train_dl, epochs=1)
    assert caught.value.changes == (("averaged", True, None),)


def test_an_average_that_nothing_moved_shares_the_item_of_the_parameters(disk):
    """And it comes back for both."""
    s0 = asked().state()
    checkpoint(disk).root(s0)
    other = s0.replace(params={name: 2 * t for name, t in s0.params.items()})
    back = checkpoint(disk).root(other)
    assert back == s0
    assert_trees_identical(ema(back), dict(s0.params))
    disk.gc()
    assert disk.check(level="bytes").ok


def test_a_recipe_that_is_made_again_has_it(memory):
    ck = checkpoint(memory)
    asked().of(ck)
    bare = ps.init(Mlp).recipe
    assert bare is not None
    assert rebuild(bare, ck._ledger.chain.trains[0].question["parts"], "checkpoint 'a'").ema_decay == 0.9


def test_resume_points_hold_it(memory):
    """Beside parameters, buffers and moments. That a cut changes nothing is in test_exact."""
    taken: list[int] = []
    backend = memory._backend
    save = backend.save_resume

    def saving(id: str, body: Any, trees: Any) -> Any:
        taken.extend(name == "ema" for state in body["states"].values() for name in state)
        return save(id, body, trees)

    backend.save_resume = saving
    ask = asked(module=ConvNet, train_dl=[batch(4, (1, 4, 4))], val_dl=None, options={})
    ask.of(checkpoint(memory), epochs=3, resume_every="epoch")
    assert sum(taken) >= 1
