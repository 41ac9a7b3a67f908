"""The records of a checkpoint, and an op in full."""

from __future__ import annotations

import json

import pytest

from purestate.errors import CorruptLogError, UsageError
from purestate.report._detail import show
from purestate.report._history import entries, history
from purestate.report._name import RunName
from purestate.report._opened import open_run


def test_every_record_is_a_line(golden):
    found = history(golden)
    assert [entry.kind for entry in found.entries] == (
        ["checkpoint", "train", *["epoch"] * 4, "done", "train", "epoch", "done", "evaluate"]
    )
    assert [entry.op for entry in found.entries] == [None, *[0] * 6, *[1] * 3, None]
    assert found.head == "2af179b33f11c3f0081438b8160a37727b5e1d4ad78da21b5982b52280458b23"
    train, epoch = found.entries[1], found.entries[3]
    assert train.arguments["optimizer lr"] == 0.01
    assert train.arguments["optimizer class"] == "torch.optim.adam.Adam"
    assert train.arguments["seed"] == 0
    assert not any("code" in name or "data" in name for name in train.arguments)
    assert (epoch.epoch, epoch.result["val_loss"], epoch.hash[:11]) == (1, 1.1053658326466878, "b3:c4695b85")
    assert len(str(found).splitlines()) == 2 + 11 + 1


def test_an_op_that_is_named(golden):
    assert [entry.seq for entry in history(RunName(golden.store, "adam", 1)).entries] == [7, 8, 9]
    with pytest.raises(UsageError, match="no train 5"):
        history(RunName(golden.store, "adam", 5))


def test_what_was_voided_is_marked(planted):
    name = planted(lambda bodies: [*bodies, ("reset", {"of": [7]}), *bodies[7:8], ("epoch", {**bodies[8][1], "of": 12})])
    found = history(name).entries
    assert [entry.seq for entry in found if entry.voided] == [7, 8, 9]
    assert [(entry.seq, entry.op) for entry in found[-2:]] == [(12, 1), (13, 1)]
    assert open_run(name).chain.index(open_run(name).chain.trains[-1]) == 1
    assert "voided: " in str(found[8])


def test_a_train_without_an_epoch_gives_its_number_to_the_next(planted):
    name = planted(lambda bodies: [*bodies[:8], *bodies[7:8], ("epoch", {**bodies[8][1], "of": 8})])
    found = history(name).entries
    assert [(entry.seq, entry.op) for entry in found[-3:]] == [(7, 1), (8, 1), (9, 1)]
    assert len(open_run(name).chain.trains) == 2


def test_from_a_number_on(golden):
    assert [entry.seq for entry in entries(open_run(golden), 8)] == [8, 9, 10]


def test_inf_and_nan_are_texts_in_json(planted):
    def change(bodies):
        bodies[3][1]["metrics"] = {"train_loss": {"~": "float", "v": "nan"}}

    name = planted(change)
    assert json.loads(history(name).to_json())["entries"][3]["result"] == {"train_loss": {"~": "float", "v": "nan"}}
    assert json.loads(show(name).to_json())["trains"][0]["metrics"][1] == {"train_loss": "nan"}
    assert "nan" in str(history(name))


def test_a_train_in_full(golden):
    found = show(RunName(golden.store, "adam", 0))
    [train] = found.trains
    assert (train.op, train.epochs, train.kept) == (0, 3, (0, 3))
    assert train.environment["threads"] == 1
    assert train.question["optimizer lr"] == 0.01
    [answer] = train.answers
    assert (answer.last, answer.best, answer.returned) == (3, 0, 3)
    assert answer.hash == "b3:84a0ff24bb3aa6ff43fbc3d24ae381bde23506afb8f0652fc552638f79a6a4c1"
    assert {part.name: part.leaves for part in train.state} == {
        "params": 6, "buffers": 3, "frozen": 0, "optimizer": 18, "epoch_scheduler": 0, "extra": 1
    }  # fmt: skip
    assert found.readings == ()
    assert "train 0: 3 epochs" in str(found)


def test_a_checkpoint_in_full(golden):
    found = show(golden)
    assert [train.op for train in found.trains] == [0, 1]
    [reading] = found.readings
    assert (reading.op, reading.answer) == ("evaluate", {"loss": 1.105105717976888})


def test_a_train_that_runs_has_no_answer_yet(planted):
    found = show(planted(lambda bodies: bodies[:5]))
    assert found.trains[0].answers == ()
    assert "none yet: it is running, or was stopped" in str(found)


def test_a_record_that_is_none_is_an_error(planted):
    name = planted(lambda bodies: bodies[3][1].pop("hash") and None)
    with pytest.raises(CorruptLogError, match="record 3 does not hold"):
        history(name)
