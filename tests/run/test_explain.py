"""What is said of a question that nothing recorded answers."""

from __future__ import annotations

import json

import pytest

import purestate as ps
from purestate.run._ask import ask_train
from purestate.run._chain import Chain
from purestate.run._explain import why
from purestate.run._question import Question
from purestate.run._readers import ask_evaluate
from tests.run.tiny import Ask, checkpoint, loader


@pytest.fixture(scope="module")
def ask() -> Ask:
    return Ask()


@pytest.fixture(scope="module")
def recorded(ask) -> tuple[Chain, ps.State]:
    ck = checkpoint()
    s1 = ask.of(ck)
    ck.evaluate(s1, ask.val_dl)
    return ck._ledger.chain, s1


def train(state: ps.State, ask: Ask) -> Question:
    return ask_train(state, ask.train_dl, ask.val_dl, metrics=[ps.metric_accuracy], warmup=0, watch="loss")


def test_where_nothing_is_recorded(ask):
    assert why(train(ask.state(), ask), Chain()) == "no train is recorded"
    assert why(ask_evaluate(ask.state(), ask.val_dl, [], "first").question, Chain()) == "no evaluate is recorded"


def test_a_change_is_named_with_and_without_the_state(recorded, ask):
    chain, _ = recorded
    state = Ask(lr=0.2).state()
    said = "train 0 is recorded for another question: optimizer lr was 0.05 when this was recorded, now 0.2"
    assert why(train(state, ask), chain, state) == said
    assert why(train(state, ask), chain) == said


def test_more_epochs_and_a_next_train_are_told_apart(recorded, ask):
    chain, s1 = recorded
    asked = why(train(ask.state(), ask), chain, ask.state(), {"epochs": 3, "watch": "loss"})
    assert asked == "train 0 has 2 epochs, and no answer is recorded for epochs 3, watch loss"
    assert why(train(s1, ask), chain, s1) == "train 0 is the last that is recorded, and this would be train 1"


def test_the_nearest_answer_of_a_reader_is_told(recorded):
    chain, s1 = recorded
    said = why(ask_evaluate(s1, loader(4, seed=5, shuffle=False), [], "first").question, chain)
    assert said.startswith("the nearest evaluate (record 6) answers another question: data: dataset.tensors.0 was ")


# -------------------------------------------------------------------- a checkpoint, op by op


def test_what_depends_on_what_is_told(memory, ask):
    ck, fork = checkpoint(memory), checkpoint(memory, "fork")
    s1 = ask.of(ck)
    ck.evaluate(s1, ask.val_dl)
    ck.evaluate(ask.state(), ask.val_dl)
    s2 = ck.train(ps.set_lr(s1, 0.1), ask.train_dl, epochs=1)
    fork.train(s2, ask.train_dl, epochs=1)
    ops = {op.record: op for op in ck.explain().ops}
    first, read, other, second = ops.values()
    assert [op.op for op in ops.values()] == ["train 0", "evaluate", "evaluate", "train 1"]
    assert first.input == other.input == "an initial state, seed 0"
    assert first.used_by == ("train 1", f"evaluate (record {read.record})")
    assert (read.input, read.used_by) == ("train 0, 2 epochs", ())
    assert (second.input, second.used_by) == ("a train 0, 2 epochs, changed by set_lr", ("fork train 0",))
    assert fork.explain().ops[0].input == "a train 1, 1 epoch"
    assert first.code == ("Mlp", "Mlp.__init__", "Mlp.forward", "metric accuracy")
    assert [data.rpartition(",")[0] for data in first.data] == [
        "training data by content, 8 samples",
        "validation data by content, 4 samples",
    ]


def test_what_came_of_each_op_in_this_process_is_told(memory, ask):
    ask.of(checkpoint(memory))
    again = type(memory).__new__(type(memory))  # another process would see the same records, and have asked nothing
    again._backend = memory._backend
    assert [op.asked for op in again.open("a", echo=None).explain().ops] == [None]
    ck = checkpoint(again)
    s1 = ask.of(ck)
    ck.evaluate(s1, ask.val_dl)
    train, read = ck.explain().ops
    assert (train.asked.outcome, train.asked.because) == ("reused", "")
    assert (read.asked.outcome, read.asked.because) == ("computed", "no evaluate is recorded")
    ask.of(ck, epochs=3)
    train, _ = checkpoint(again).explain().ops
    assert train.asked.outcome == "computed"
    assert train.asked.because.startswith("train 0 has 2 epochs, and no answer is recorded for epochs 3")
    checkpoint(again).evaluate(s1, ask.val_dl)
    assert checkpoint(again).explain().ops[1].asked.outcome == "computed", "it was, before"


def test_what_was_refused_would_run_again(memory, ask):
    ck = checkpoint(memory)
    s1 = ask.of(ck)
    checkpoint(memory, "fork").train(s1, ask.train_dl, epochs=1)
    with pytest.raises(ps.StaleRecordError, match="; 'fork' began from there") as caught:
        Ask(lr=0.2).of(ck)
    assert caught.value.forks == ("fork",)
    found = ck.explain()
    assert not found.ok
    [asked] = found.unanswered
    assert str(asked) == "would re-run because optimizer lr was 0.05 when this was recorded, now 0.2"
    assert f"train 0: {asked}" in str(found)


def test_an_explanation_is_text_json_and_html(memory, ask):
    ck = checkpoint(memory)
    assert str(ck.explain()) == "a: nothing is recorded"
    ask.of(ck)
    found = ck.explain()
    assert str(found).splitlines()[:3] == [
        "a: 1 op is recorded",
        "train 0 (record 1): computed because no train is recorded",
        "  from     an initial state, seed 0",
    ]
    assert json.loads(found.to_json())["ops"][0]["asked"]["outcome"] == "computed"
    assert "<td" in found.to_html() == found._repr_html_()
