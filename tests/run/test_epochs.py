"""`Checkpoint.epochs`: the op as a stream, and what is said of an op: `last`, `history`, the printed line."""

from __future__ import annotations

import re

import pytest

import purestate as ps
from tests.helpers import assert_trees_identical
from tests.run.tiny import Ask, checkpoint, loader, start


def stream(ck: ps.Checkpoint, until: int | None = None, look: bool = False, **options: object) -> list[ps.EpochView]:
    ask = Ask()
    views = []
    for epoch in ck.epochs(ask.state(), ask.train_dl, ask.val_dl, **{**ask.options, **options}):
        views.append(epoch)
        if look:
            assert epoch.state.counters.epoch == epoch.n
        if epoch.n == until:
            break
    return views


def test_a_stream_is_the_op(store):
    ck = checkpoint(store)
    views = stream(ck, epochs=3)
    assert [view.n for view in views] == [0, 1, 2, 3]
    assert [view.epoch for view in views] == [0, 1, 2, 3]
    assert not any(view.cached for view in views)
    assert set(views[0].metrics) == {"val_loss", "val_accuracy"}
    assert set(views[1].metrics) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert [view.lr for view in views[1:]] == [[0.05], [0.05], [0.05 * 0.1]]
    final = Ask().of(ck, epochs=3)
    assert ck.last is not None
    assert ck.last.cached
    assert ck.history["val_loss"] == [view.metrics["val_loss"] for view in views[1:]]

    again = stream(checkpoint(store), epochs=3)
    assert all(view.cached for view in again)
    assert [(view.n, view.metrics, view.lr, view.seconds) for view in again] == [
        (view.n, view.metrics, view.lr, view.seconds) for view in views
    ]
    assert again[-1].state == final


def test_states_of_epochs_live_recorded_and_recomputed(memory):
    ck = checkpoint(memory)
    own = [checkpoint(None, str(n)) for n in range(4)]
    expected = [Ask().of(other, epochs=n) for n, other in enumerate(own)]

    live = {
        view.n: view.state
        for view in checkpoint().epochs(Ask().state(), Ask().train_dl, Ask().val_dl, **Ask().options | dict(epochs=3))
    }
    assert live == dict(enumerate(expected)), "while the op is in progress"
    after = {view.n: view.state for view in stream(ck, epochs=3)}
    assert after == live, "when it is over"
    recorded = {view.n: view.state for view in stream(checkpoint(memory), epochs=3)}
    assert recorded == live, "from the log, in another object"
    assert_trees_identical(dict(recorded[2].params), dict(expected[2].params))


def test_a_state_in_the_stream_does_not_change_later(memory):
    seen = {}
    for view in checkpoint(memory).epochs(Ask().state(), Ask().train_dl, Ask().val_dl, epochs=3):
        seen[view.n] = (view.state, {name: tensor.clone() for name, tensor in view.state.params.items()})
    for n, (state, params) in seen.items():
        assert_trees_identical(dict(state.params), params, f"epoch {n}")
        state.verify()


@pytest.mark.parametrize("until", [1, 2])
def test_leaving_the_loop_ends_the_op_there(store, until):
    ck = checkpoint(store)
    views = stream(ck, until, epochs=50)
    assert ck.last is not None
    assert (ck.last.epochs, ck.last.computed, ck.last.cached) == (until, until, False)
    head = ck.head
    again = checkpoint(store)
    assert [view.cached for view in stream(again, until, epochs=50)] == [True] * len(views)
    assert again.last is not None
    assert (again.last.cached, again.last.epochs) == (True, until)
    assert again.head == head
    assert Ask().of(again, epochs=until) == Ask().of(checkpoint(), epochs=until)
    assert again.last.cached
    following = again.train(Ask().of(again, epochs=until), Ask().train_dl, epochs=1)
    assert following.counters.epoch == until + 1


def test_leaving_at_the_initial_evaluation_is_no_op(memory):
    ck = checkpoint(memory)
    stream(ck, 0, epochs=5)
    assert ck.last is None
    assert Ask().of(ck) == Ask().of(checkpoint())


def test_leaving_a_stream_that_is_recorded_further(memory):
    ck = checkpoint(memory)
    Ask().of(ck, epochs=4)
    views = stream(ck, 2, epochs=4)
    assert [view.cached for view in views] == [True] * 3
    assert ck.last is not None
    assert ck.last.epochs == 2
    assert ck.train(Ask().of(ck, epochs=2), Ask().train_dl, epochs=1).counters.epoch == 3


def test_a_stream_goes_on_where_another_was_left(memory):
    stream(checkpoint(memory), 2, epochs=4)
    views = stream(checkpoint(memory), epochs=4)
    assert [view.cached for view in views] == [True, True, True, False, False]
    assert views[-1].state == Ask().of(checkpoint(), epochs=4)


def test_an_exception_in_the_loop_keeps_what_was_finished(memory):
    ck, ask = checkpoint(memory), Ask()

    def loop() -> None:
        for epoch in ck.epochs(ask.state(), ask.train_dl, ask.val_dl, epochs=4, metrics=[ps.metric_accuracy]):
            if epoch.n == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert [record.kind for record in ck._ledger.log.records].count("epoch") == 3
    assert Ask().of(ck, epochs=4) == Ask().of(checkpoint(), epochs=4)


def test_a_stream_that_nobody_iterates_does_nothing(memory):
    ck, ask = checkpoint(memory), Ask()
    ck.epochs(ask.state(), ask.train_dl, epochs=3)
    assert memory.checkpoints() == []


# -------------------------------------------------------------------- what is said


def test_last_says_what_the_op_did(memory):
    ck, ask = checkpoint(memory), Ask()
    assert ck.last is None
    s0 = ask.state()
    s1 = ask.of(ck, epochs=2, watch="accuracy")
    last = ck.last
    assert last is not None
    assert (last.op, last.cached, last.input, last.output, last.epochs) == ("a train 0", False, s0.hash, s1.hash, 2)
    assert last.history["epoch"] == [1, 2]
    assert len(last.history["val_accuracy"]) == 2
    assert last.seconds > 0
    value = ck.evaluate(s1, ask.val_dl)
    assert ck.last is not None
    assert (ck.last.op, ck.last.metrics, ck.last.output) == ("a evaluate", value, None)


def test_history_is_over_all_trains(memory):
    ck, ask = checkpoint(memory), Ask()
    s1 = ask.of(ck, epochs=2)
    ck.train(s1, ask.train_dl, epochs=3)
    history = ck.history
    assert history["epoch"] == [1, 2, 3, 4, 5]
    assert history["lr"] == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005])
    assert history["val_loss"][2:] == [None, None, None]
    assert all(len(values) == 5 for values in history.values())
    assert memory.open("a", echo=None).history == history


def test_one_line_is_printed_for_each_op(memory, capsys):
    ck, ask = memory.checkpoint("a"), Ask()
    s1 = ask.of(ck)
    ask.of(ck)
    ask.of(ck, epochs=3)
    ck.evaluate(s1, ask.val_dl)
    for _ in ck.epochs(ask.state(), ask.train_dl, ask.val_dl, epochs=3, metrics=[ps.metric_accuracy]):
        pass
    out, err = capsys.readouterr()
    number = r"-?\d+\.\d{4}"
    trained = rf"best (?:\d|at the start) \| val_loss {number}"
    end = r"\d+\.\d{3} s \| b3:[0-9a-f]{8}"
    assert err == ""
    for line, pattern in zip(
        out.splitlines(),
        [
            rf"a train 0 \| 2 epochs, {trained} \| ran \| {end} -> b3:[0-9a-f]{{8}}",
            rf"a train 0 \| 2 epochs, {trained} \| from the log \| {end} -> b3:[0-9a-f]{{8}}",
            rf"a train 0 \| 3 epochs, {trained} \| ran 1 epochs? \| {end} -> b3:[0-9a-f]{{8}}",
            rf"a evaluate \| loss {number} \| ran \| {end}",
            rf"a train 0 \| 3 epochs, {trained} \| from the log \| {end} -> b3:[0-9a-f]{{8}}",
        ],
        strict=True,
    ):
        assert re.fullmatch(pattern, line), line


def test_an_echo_of_ones_own_and_none(memory, capsys):
    lines = []
    Ask().of(memory.checkpoint("a", echo=lines.append))
    assert len(lines) == 1
    ck = memory.checkpoint("b", echo=None)
    Ask().of(ck)
    ck.evaluate(Ask().of(ck), Ask().val_dl)
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_is_left_early_ends_there_also_where_nothing_is_kept():
    whole = checkpoint().train(start(), loader(), epochs=2)
    for store in (ps.NullStore(), ps.MemoryStore()):
        stream = checkpoint(store).epochs(start(), loader(), epochs=9)
        states = [next(stream).state, next(stream).state]
        stream.close()
        assert states[1] == whole
