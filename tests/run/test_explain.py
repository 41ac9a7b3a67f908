"""What is said of a question that nothing recorded answers."""

from __future__ import annotations

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
