"""Where states come from, what of them can be restored, and recipes made again from records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import purestate as ps
from purestate.core._recipe import Recipe
from purestate.errors import FormatVersionError, MissingSnapshotError, StateError
from purestate.run._ledger import Ledger
from purestate.run._lineage import ancestors, first_input, restore_parent
from purestate.run._load import answer_of, backup_of
from purestate.run._rebuild import rebuild
from tests.helpers import Mlp
from tests.run.tiny import Ask, checkpoint, loader, start


def ledger(store: Any, id: str) -> Ledger:
    return Ledger(store._backend, id)


def test_ancestors_go_up_through_the_checkpoints(store):
    s1 = Ask().of(checkpoint(store, "a"))
    s2 = checkpoint(store, "b").train(s1, loader(), epochs=1)
    s3 = checkpoint(store, "c").train(s2, loader(), epochs=1)
    assert [parent["checkpoint"] for parent in ancestors(store._backend, s3.origin.parent)] == ["c", "b", "a"]
    assert list(ancestors(store._backend, Ask().state().origin.parent)) == []
    store.delete("b")
    assert [parent["checkpoint"] for parent in ancestors(store._backend, s3.origin.parent)] == ["c", "b"]


def test_a_parent_can_be_restored(store):
    state = Ask().of(checkpoint(store, "a"))
    restored = restore_parent(store._backend, state.origin.parent, state.recipe)
    assert restored == state
    assert restored.origin == state.origin
    root = checkpoint(store, "root").root(start())
    assert restore_parent(store._backend, root.origin.parent, root.recipe) == root


def test_the_best_epoch_can_be_restored_and_one_that_was_not_kept_cannot(store):
    ck = checkpoint(store, "a")
    states = [epoch.state for epoch in ck.epochs(start(), loader(), loader(4, seed=1, shuffle=False), epochs=4)]
    last, middle = states[-1], states[2]
    assert restore_parent(store._backend, last.origin.parent, last.recipe) == last
    kept = answer_of(ledger(store, "a"))[1].body["kept"]
    assert "2" not in kept
    with pytest.raises(MissingSnapshotError, match="the epoch is one whose state was not kept"):
        restore_parent(store._backend, middle.origin.parent, middle.recipe)


def test_a_parent_whose_checkpoint_was_begun_anew_is_missing(store):
    state = Ask().of(checkpoint(store, "a"))
    store.delete("a")
    with pytest.raises(MissingSnapshotError, match="checkpoint 'a'"):
        restore_parent(store._backend, state.origin.parent, state.recipe)
    Ask(lr=0.5).of(checkpoint(store, "a"))
    with pytest.raises(MissingSnapshotError, match="begun anew"):
        restore_parent(store._backend, state.origin.parent, state.recipe)


def test_the_first_input_of_a_checkpoint(store):
    s0 = Ask().state()
    s1 = Ask().of(checkpoint(store, "a"))
    checkpoint(store, "b").train(ps.setup(s1, optimizer_cls=torch.optim.Adam), loader(), epochs=1)
    assert first_input(ledger(store, "a"), s0.recipe) == s0
    assert first_input(ledger(store, "b"), s1.recipe) == s1, "before setup, which the record only describes"
    with pytest.raises(MissingSnapshotError, match="It has no train"):
        first_input(ledger(store, "none"), s0.recipe)


def test_a_backup_is_there_where_the_last_was_returned_and_was_not_the_best(store):
    val = loader(4, seed=1, shuffle=False)
    ck = checkpoint(store, "a")
    ck.train(start(lr=30.0), loader(), val, epochs=3)
    record = answer_of(ledger(store, "a"))[1]
    assert backup_of(record) == record.body["best"] != record.body["last"]
    ck.train(start(lr=30.0), loader(), val, epochs=3, load_best=True)
    assert backup_of(answer_of(ledger(store, "a"))[1]) is None


# -------------------------------------------------------------------- recipes from records


def parts(store: Any, id: str = "a") -> dict[str, Any]:
    return answer_of(ledger(store, id))[0].question["parts"]


def bare() -> Recipe:
    recipe = ps.init(Mlp).recipe
    assert recipe is not None
    return recipe


def test_a_recipe_of_classes_is_made_again(store):
    ask = Ask()
    ask.recipe |= dict(
        loss_args=dict(label_smoothing=0.1),
        clip_grad_norm=1.0,
        optimizer_cls=torch.optim.Adam,
        optimizer_args=dict(betas=(0.8, 0.9)),
    )
    s1 = ask.of(checkpoint(store, "a"))
    made = rebuild(bare(), parts(store), "checkpoint 'a'")
    state = store.load("a", like=s1.replace(recipe=made))
    more = checkpoint(store, "b").train(state, loader(), epochs=1)
    assert checkpoint(store, "b").train(s1, loader(), epochs=1) == more
    ck = checkpoint(store, "b")
    ck.train(s1, loader(), epochs=1)
    assert ck.last is not None
    assert ck.last.cached, "the rebuilt recipe asks the same question"


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (dict(optimizer_cls=None, optimizer_args=None, optimizer_fn=lambda params: torch.optim.SGD(params, lr=0.1)), "optimizer"),
        (dict(loss_cls=None, loss=nn.CrossEntropyLoss()), "loss"),
        (dict(step_scheduler_fn=lambda o: torch.optim.lr_scheduler.StepLR(o, 3)), "step_scheduler"),
    ],
)
def test_what_a_function_makes_cannot_be_made_again(store, recipe, kind):
    Ask(recipe=recipe).of(checkpoint(store, "a"))
    with pytest.raises(StateError, match=f"the {kind.replace('_', ' ')} of checkpoint 'a' cannot be made again") as caught:
        rebuild(bare(), parts(store), "checkpoint 'a'")
    assert caught.value.path == kind


@pytest.mark.parametrize(
    "name", ["subprocess.Popen", "builtins.eval", "os.system", "torch.optim.nothing.Here", "torch", "not.imported.Here"]
)
def test_a_log_names_a_class_and_does_not_call_or_import_what_it_likes(store, name):
    Ask().of(checkpoint(store, "a"))
    for kind in ("loss", "optimizer", "epoch_scheduler"):
        with pytest.raises(StateError, match="no such class"):
            rebuild(bare(), {**parts(store), f"recipe.{kind}.class.code": name}, "checkpoint 'a'")


def test_a_class_that_is_another_now_is_refused(store):
    Ask().of(checkpoint(store, "a"))
    with pytest.raises(StateError, match="another class now"):
        rebuild(bare(), {**parts(store), "recipe.optimizer.class.code": "torch.optim.rmsprop.RMSprop"}, "checkpoint 'a'")


def test_a_record_of_a_kind_that_is_not_known_is_of_a_newer_version(store):
    log = checkpoint(store, "a")._ledger
    with log.writing():
        log.log.append("checkpoint", {"description": None})
        log.log.append("dream", {})
    with pytest.raises(FormatVersionError, match="record 1 is of the kind 'dream'") as caught:
        store.open("a")
    assert caught.value.actual == "dream"
