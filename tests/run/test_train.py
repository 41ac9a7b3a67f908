"""`Checkpoint.train`: the chain, what is asked again, and what is selected from a trajectory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purestate as ps
from purestate.errors import MetricError, ReplayError, StateError
from tests.helpers import ConvNet, assert_trees_identical, batch
from tests.run.tiny import Ask, checkpoint, loader, start


def did(ck: ps.Checkpoint) -> tuple[bool, int]:
    """Whether the last op came from the log, and how many epochs it computed."""
    assert ck.last is not None
    return ck.last.cached, ck.last.computed


def alone(epochs: int = 2, **options: object) -> ps.State:
    """What a run that asks for nothing else ends on."""
    return Ask().of(checkpoint(), epochs=epochs, **options)


# -------------------------------------------------------------------- asking


def test_what_was_asked_is_not_computed_again(store):
    ck, ask = checkpoint(store), Ask()
    s1 = ask.of(ck)
    assert did(ck) == (False, 2)
    head = ck.head
    for again in (ck, checkpoint(store), store.open("a", echo=None)):
        assert ask.of(again) == s1
        assert did(again) == (True, 0)
        assert again.head == head
    assert_trees_identical(dict(ask.of(ck).params), dict(s1.params))
    assert s1 == alone()


def test_nothing_of_the_call_is_modified(memory):
    ask = Ask(ConvNet, train_dl=[batch(4, (1, 4, 4))], val_dl=[batch(4, (1, 4, 4), seed=1)])
    s0 = ask.state()
    before, generator = {n: t.clone() for n, t in s0.state_dict().items()}, torch.get_rng_state()
    s1 = checkpoint(memory).train(s0, ask.train_dl, ask.val_dl, epochs=2)
    s0.verify()
    assert_trees_identical(dict(s0.state_dict()), before)
    assert torch.equal(generator, torch.get_rng_state())
    assert s1.buffers["norm.num_batches_tracked"] == 2


def test_a_third_train_runs_alone(memory):
    ask = Ask()

    def script(ck: ps.Checkpoint, trains: int) -> list[tuple[bool, int]]:
        state, done = ask.state(), []
        for _ in range(trains):
            state = ck.train(state, ask.train_dl, ask.val_dl, epochs=2)
            done.append(did(ck))
        return done

    assert script(checkpoint(memory), 2) == [(False, 2)] * 2
    assert script(checkpoint(memory), 3) == [(True, 0), (True, 0), (False, 2)]
    assert script(checkpoint(memory), 3) == [(True, 0)] * 3


def test_readers_in_any_order_do_nothing_to_trains(memory):
    ask = Ask()
    dl, val = ask.train_dl, ask.val_dl

    def script(ck: ps.Checkpoint, *readers: str) -> tuple[str, list[bool]]:
        state, cached = ask.state(), []
        reads = {
            "evaluate": lambda: ck.evaluate(state, val, metrics=[ps.metric_accuracy]),
            "find_lr": lambda: ck.find_lr(state, dl),
            "predict": lambda: ck.predict(state, val),
        }
        for _ in range(2):
            for reader in readers:
                reads[reader]()
            state = ck.train(state, dl, val, epochs=1)
            cached.append(did(ck)[0])
        for reader in reversed(readers):
            reads[reader]()
        return state.hash, cached

    expected, cached = script(checkpoint(memory))
    assert cached == [False, False]
    for readers in (["evaluate"], ["find_lr", "evaluate"], ["predict", "evaluate", "find_lr", "evaluate"], []):
        assert script(checkpoint(memory), *readers) == (expected, [True, True]), readers
    assert script(checkpoint(memory, "other"), "find_lr", "predict") == (expected, [False, False])


def test_readers_answer_from_the_log(store):
    ask = Ask()
    s0 = ask.state()
    answers = []
    for ck in (checkpoint(store), checkpoint(store)):
        answers.append((ck.evaluate(s0, ask.val_dl), ck.find_lr(s0, ask.train_dl), ck.predict(s0, ask.val_dl)))
    (loss, curve, scores), (loss_again, curve_again, scores_again) = answers
    assert did(ck) == (True, 0)
    assert loss == loss_again
    assert curve == curve_again
    assert_trees_identical(scores_again, scores)
    assert scores.shape == (4, 2)


class Silent(nn.Linear):
    def forward(self, x: torch.Tensor) -> None:
        return None


def test_nothing_is_an_answer_that_is_kept(memory):
    ck, silent = checkpoint(memory), ps.init(lambda: Silent(2, 1))
    for cached in (False, True):
        assert ck.predict(silent, [torch.ones(3, 2)]) is None
        assert ck.last.cached is cached


def test_an_evaluation_does_not_depend_on_the_optimizer(memory):
    ck, ask = checkpoint(memory), Ask()
    first = ck.evaluate(ask.state(), ask.val_dl)
    assert ck.evaluate(Ask(lr=0.5).state(), ask.val_dl) == first
    assert did(ck)[0]
    ck.find_lr(ask.state(), ask.train_dl)
    ck.find_lr(Ask(lr=0.5).state(), ask.train_dl)
    assert not did(ck)[0]


# -------------------------------------------------------------------- selecting


def test_more_epochs_go_on_and_end_where_a_longer_run_does(store):
    ck, ask = checkpoint(store), Ask()
    ask.of(ck, epochs=2)
    s3 = ask.of(ck, epochs=3)
    assert did(ck) == (False, 1)
    assert s3 == alone(3)
    assert ck.history["epoch"] == [1, 2, 3]


def test_fewer_epochs_are_taken_from_what_is_kept(memory):
    ck, ask = checkpoint(memory), Ask()
    ask.of(ck, epochs=2)
    ask.of(ck, epochs=3)
    assert ask.of(ck, epochs=2) == alone(2)
    assert did(ck) == (True, 0)


def test_fewer_epochs_are_recomputed_and_checked(memory):
    ck, ask = checkpoint(memory), Ask()
    ask.of(ck, epochs=3)
    assert ask.of(ck, epochs=1) == alone(1)
    assert did(ck) == (False, 1)
    assert ask.of(ck, epochs=1) == alone(1)
    assert did(ck) == (True, 0)


def test_no_epochs_are_an_answer_too(memory):
    ck, ask = checkpoint(memory), Ask()
    s1 = ask.of(ck, epochs=0)
    assert_trees_identical(dict(s1.params), dict(ask.state().params))
    assert s1.key != ask.state().key
    assert ask.of(ck, epochs=2) == alone(2)


@pytest.mark.parametrize("load_best", [False, True])
@pytest.mark.parametrize("watch", ["loss", "accuracy"])
@pytest.mark.parametrize("patience", [0, 1])
def test_another_selection_is_what_a_run_of_its_own_gives(memory, load_best, watch, patience):
    ck, ask = checkpoint(memory), Ask(lr=2.0)
    ask.of(ck, epochs=4)
    options = dict(epochs=4, load_best=load_best, watch=watch, patience=patience)
    selected = ask.of(ck, **options)
    assert ck.last is not None
    own = checkpoint()
    assert selected == ask.of(own, **options)
    assert own.last is not None
    assert (ck.last.best_epoch, ck.last.epochs, ck.last.history["train_loss"]) == (
        own.last.best_epoch,
        own.last.epochs,
        own.last.history["train_loss"],
    )
    ask.of(ck, **options)
    assert did(ck) == (True, 0)


def test_patience_stops_and_more_of_it_goes_on(memory):
    ck, ask = checkpoint(memory), Ask(lr=5.0)
    ask.of(ck, epochs=6, patience=1)
    assert ck.last is not None
    few = ck.last.epochs
    assert few is not None
    assert few < 6
    assert ask.of(ck, epochs=6) == Ask(lr=5.0).of(checkpoint(), epochs=6)
    assert did(ck) == (False, 6 - few)


def test_both_selections_of_a_trajectory(store):
    """load_best=True after False computes nothing, and has the parameters that ``best=True`` loads."""
    ck, ask = checkpoint(store), Ask(lr=0.5)
    last = ask.of(ck, epochs=3)
    best = ask.of(ck, epochs=3, load_best=True)
    assert did(ck) == (True, 0)
    assert ck.last is not None
    assert ck.last.best_epoch is not None
    assert_trees_identical(dict(best.params), dict(store.load("a", best=True).params))
    assert best.key == last.key
    assert best.counters == last.counters
    assert best.digests["epoch_scheduler"] == last.digests["epoch_scheduler"]


def test_the_initial_evaluation_is_the_best_of_a_fresh_optimizer(memory):
    ck, ask = checkpoint(memory), Ask(lr=1e4)
    s1 = ask.of(ck, epochs=2, load_best=True)
    assert ck.last is not None
    assert ck.last.best_epoch == 0
    assert_trees_identical(dict(s1.params), dict(ask.state().params))
    again = ask.of(ck, epochs=2, load_best=True)
    s2, s2_again = (checkpoint(None).train(s, ask.train_dl, epochs=1) for s in (s1, again))
    assert s2 == s2_again


def test_the_initial_evaluation_is_the_best_of_a_kept_optimizer(store):
    ck, ask = checkpoint(store), Ask(recipe={})
    s1 = ask.of(ck, epochs=1)
    high = ps.set_lr(s1, 1e4)
    s2 = ck.train(high, ask.train_dl, ask.val_dl, epochs=2, load_best=True)
    assert ck.last is not None
    assert ck.last.best_epoch == 0
    assert_trees_identical(dict(s2.params), dict(s1.params))
    assert s1.optimizer is not None
    assert s2.optimizer is not None
    moments = [dict(s.optimizer.leaves.items()) for s in (s1, s2)]
    assert len(moments[0]) > 0
    assert_trees_identical(moments[1], moments[0])
    assert s2.counters.epoch == 3


def test_recomputing_other_bits_is_an_error(memory, monkeypatch):
    ck, ask = checkpoint(memory), Ask()
    s1 = ask.of(ck, epochs=1)
    before = len(ck._ledger.log.records)
    ck.train(s1, ask.train_dl, ask.val_dl, epochs=3)
    for record in ck._ledger.log.records[before:]:
        if record.kind == "epoch" and record.body["n"] == 1:
            record.body["hash"] = f"b3:{'0' * 64}"
    with pytest.raises(ReplayError, match="checkpoint 'a', train 1: epoch 1 was recorded as b3:00000000, ") as caught:
        ck.train(s1, ask.train_dl, ask.val_dl, epochs=1)
    assert caught.value.expected == f"b3:{'0' * 64}"
    assert "ck.reset(1)" in str(caught.value), "the way out must not void what came before"


# -------------------------------------------------------------------- the chain


@pytest.mark.parametrize(
    "change",
    [
        lambda s: ps.setup(s, optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=1e-3)),
        lambda s: ps.set_lr(s, 0.01),
        lambda s: ps.freeze(s, "net.0.*"),
        lambda s: s.replace(params={n: t * 2 for n, t in s.params.items()}),
        lambda s: ps.set_lr(ps.setup(s, clip_grad_norm=1.0), 0.01),
        lambda s: ps.unfreeze(ps.freeze(s, "net.0.*"), "net.0.*"),
    ],
    ids=["setup", "set_lr", "freeze", "replace", "both", "unfreeze"],
)
def test_what_is_made_of_the_head_continues_the_chain(memory, change):
    ask = Ask(recipe={})

    def script(ck: ps.Checkpoint) -> tuple[ps.State, tuple[bool, int]]:
        return ck.train(change(ask.of(ck)), ask.train_dl, ask.val_dl, epochs=1), did(ck)

    computed = script(checkpoint(memory))
    assert computed[1] == (False, 1)
    assert script(checkpoint(memory)) == (computed[0], (True, 0))
    other = ps.setup(change(ask.of(checkpoint(memory))), clip_grad_value=0.5)
    with pytest.raises(ps.StaleRecordError):
        checkpoint(memory).train(other, ask.train_dl, ask.val_dl, epochs=1)


def test_a_fork_records_its_parent(store):
    ck, ask = checkpoint(store), Ask()
    s1 = ask.of(ck)
    fork = checkpoint(store, "fork")
    f1 = fork.train(ps.setup(s1, optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=1e-3)), ask.train_dl, epochs=1)
    infos = {info.id: info for info in store.checkpoints()}
    parent = infos["fork"].parent
    assert parent is not None
    assert (parent["checkpoint"], parent["op"], parent["hash"], parent["epochs"]) == ("a", 0, s1.hash, 2)
    assert infos["a"].parent is None
    assert infos["fork"].state == f1.hash
    head = ck.head
    assert (
        fork.train(ps.setup(ask.of(ck), optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=1e-3)), ask.train_dl, epochs=1)
        == f1
    )
    assert did(fork) == (True, 0)
    assert ck.head == head


def test_a_state_from_elsewhere_is_stale(memory):
    ck, ask = checkpoint(memory), Ask()
    ask.of(ck)
    for stranger in (start(ConvNet), start(seed=5), Ask(seed=5).of(checkpoint())):
        with pytest.raises(ps.StaleRecordError):
            ck.train(stranger, ask.train_dl, ask.val_dl, epochs=1)


def test_reset_voids_a_train_and_those_behind_it(store):
    ck, ask = checkpoint(store), Ask()
    s1 = ask.of(ck)
    s2 = ck.train(s1, ask.train_dl, epochs=1)
    ck.reset(1)
    assert ask.of(ck) == s1
    assert did(ck) == (True, 0)
    assert ck.train(s1, ask.train_dl, epochs=1) == s2
    assert did(ck) == (False, 1)
    ck.reset(0)
    assert Ask(lr=0.2).of(checkpoint(store)) != s1
    assert [info.trains for info in store.checkpoints()] == [1]
    for op in (1, -1, "0"):
        with pytest.raises(StateError, match="no train"):
            ck.reset(op)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_accept_takes_the_next_question_for_the_same(memory, elsewhere):
    ck, ask, other = checkpoint(memory), Ask(), Ask(options=dict(epochs=2, metrics=[renamed]))
    s1 = ask.of(ck)
    s2 = ck.train(s1, ask.train_dl, epochs=1)
    with pytest.raises(ps.StaleRecordError):
        other.of(ck)
    ck.accept(0)
    if elsewhere:
        ck = checkpoint(memory)
    assert other.of(ck) == s1
    assert did(ck) == (True, 0)
    assert ck.train(other.of(ck), ask.train_dl, epochs=1) == s2
    assert did(ck) == (True, 0)
    assert ask.of(ck) == s1, "the first question is answered still"
    with pytest.raises(ps.StaleRecordError):
        Ask(lr=1.0).of(ck)
    assert other.of(checkpoint(memory), epochs=3) == alone(3)


def test_what_continues_the_chain_does_not_use_up_an_acceptance(memory):
    ck, ask, other = checkpoint(memory), Ask(), Ask(options=dict(epochs=2, metrics=[renamed]))
    s1 = ask.of(ck)
    ck.accept(0)
    s2 = ck.train(s1, ask.train_dl, epochs=1)
    assert did(ck) == (False, 1)
    assert s2.counters.epoch == 3
    assert other.of(ck) == s1
    assert did(ck) == (True, 0)


@ps.metric("accuracy")
def renamed(y_pred, y_true):
    right = y_pred.argmax(1) == y_true
    return right.sum()


def test_an_unknown_metric_is_refused_before_anything_is_recorded(memory):
    ck, ask = checkpoint(memory), Ask()
    with pytest.raises(MetricError, match="watch='f1' is not computed; there is 'accuracy', 'loss'"):
        ask.of(ck, watch="f1")
    assert memory.checkpoints() == []


def test_what_was_accepted_for_another_key_is_not_trained_on(memory):
    ck = checkpoint(memory)
    answer = Ask().of(ck)
    ck.accept(0)
    assert Ask(seed=1).of(ck) == answer
    head = ck.head
    with pytest.raises(ReplayError, match="whose key is another"):
        Ask(seed=1).of(ck, epochs=3)
    assert ck.head == head
    assert Ask().of(ck, epochs=3) == Ask().of(checkpoint(), epochs=3)


# -------------------------------------------------------------------- told of epochs, answers voided


def test_on_epoch_hears_of_recorded_and_of_computed_epochs(store):
    heard: list[tuple[int, bool]] = []
    ask = Ask()
    ask.of(checkpoint(store), epochs=2)
    ask.of(checkpoint(store), epochs=3, on_epoch=lambda epoch: heard.append((epoch.n, epoch.cached)))
    assert heard == [(0, True), (1, True), (2, True), (3, False)]


def test_what_on_epoch_raises_ends_the_call_and_not_the_op(store):
    def stop(epoch: ps.EpochView) -> None:
        if epoch.n == 2:
            raise KeyboardInterrupt

    whole = Ask().of(checkpoint(), epochs=4)
    ck = checkpoint(store)
    with pytest.raises(KeyboardInterrupt):
        Ask().of(ck, epochs=4, on_epoch=stop)
    assert [record.kind for record in ck._ledger.log.records].count("done") == 0
    assert Ask().of(checkpoint(store), epochs=4) == whole


@pytest.mark.parametrize("reader", ["evaluate", "find_lr", "predict"])
def test_the_answers_of_a_reader_can_be_voided(store, reader):
    state, ck = Ask().state(), checkpoint(store)

    def ask() -> bool:
        getattr(ck, reader)(state, loader())
        assert ck.last is not None
        return ck.last.cached

    ck.evaluate(state, loader(seed=3))
    assert [ask(), ask()] == [False, True]
    ck.reset(reader)
    other = checkpoint(store)
    other.evaluate(state, loader(seed=3))
    assert other.last is not None
    assert other.last.cached is (reader != "evaluate")
    assert [ask(), ask()] == [False, True]
    head = ck.head
    ck.reset("predict" if reader != "predict" else "find_lr")
    assert ck.head == head, "there was nothing to void"


def test_an_op_that_is_none_cannot_be_reset(store):
    with pytest.raises(StateError, match="no train 'dream', nor a reader of that name"):
        checkpoint(store).reset("dream")


def test_a_notebook_shows_checkpoint_and_history_as_tables(store):
    ck = checkpoint(store)
    state = Ask().of(ck, epochs=2)
    ck.evaluate(state, loader())
    assert ck._repr_html_().count("<tr>") == 3
    assert "train 0" in ck._repr_html_()
    assert ck.history._repr_html_().count("<tr>") == 3
    assert ck.find_lr(state, loader())._repr_png_().startswith(b"\x89PNG")


def test_a_profile_says_where_the_time_goes(store):
    said: list[str] = []
    ck = store.checkpoint("a", echo=said.append)
    state = Ask().of(ck, epochs=3, profile=True)
    rows = {line.split()[0]: line.split() for line in said[1].splitlines()[2:]}
    assert list(rows) == ["data", "step", "optimizer", "metrics", "validation", "saving", "other", "all"]
    seconds = {name: float(row[1]) for name, row in rows.items()}
    whole = seconds.pop("all")
    assert abs(sum(seconds.values()) - whole) < 0.01, "rounding of seven figures"
    assert rows["all"][-3:] == ["3", "computed", "epochs"]
    assert Ask().of(ck, epochs=3, profile=True) == state
    assert said[3] == "profile: nothing was computed"
