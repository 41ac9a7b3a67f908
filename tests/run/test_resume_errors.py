"""Resume points that cannot be written or were made by strangers: who is told what, and what is kept."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest

import purestate as ps
from purestate.errors import StoreWriteError
from purestate.run._resume import ResumePoints
from tests.run.tiny import Ask


def refusing(path: Path, said: list[str] | None = None) -> ps.Checkpoint:
    """A checkpoint whose resume points cannot be written: there is a file where their folder would be."""
    ck = ps.Store(path).checkpoint("a", echo=None, notify=(said if said is not None else []).append)
    (path / "checkpoints" / "a").mkdir(parents=True, exist_ok=True)
    (path / "checkpoints" / "a" / "resume").write_text("")
    return ck


@pytest.fixture
def expected() -> ps.State:
    return Ask().of(ps.MemoryStore().checkpoint("a", echo=None))


def at_batch(monkeypatch: pytest.MonkeyPatch, n: int, number: int = signal.SIGINT) -> None:
    """Raise a signal when ``n`` batches are behind, of training and of validation."""
    original, behind = ResumePoints.between, iter(range(1, 10**6))

    def between(self: ResumePoints, *args: Any, **options: Any) -> None:
        if next(behind) == n:
            signal.raise_signal(number)
        original(self, *args, **options)

    monkeypatch.setattr(ResumePoints, "between", between)


def test_a_point_that_fails_in_training_ends_it_and_epochs_are_kept(tmp_store_path: Path, expected: ps.State) -> None:
    ck = refusing(tmp_store_path)
    with pytest.raises(StoreWriteError, match="resume point of checkpoint 'a'"):
        Ask().of(ck, epochs=2000, resume_every="epoch")
    assert [record.kind for record in ck._ledger.log.records][:4] == ["checkpoint", "train", "epoch", "epoch"]
    assert Ask().of(ck) == expected


def test_an_answer_that_is_recorded_is_returned_although_the_last_point_failed(tmp_store_path: Path) -> None:
    ck = refusing(tmp_store_path)
    Ask().of(ck, epochs=1, resume_every="epoch")
    assert ck._ledger.log.records[-1].kind == "done"
    assert not (tmp_store_path / "checkpoints" / "a" / "resume").exists()


def test_an_error_of_the_users_is_not_replaced_by_that_of_a_point(tmp_store_path: Path) -> None:
    def fail(epoch: ps.EpochView) -> None:
        if epoch.n == 1:
            raise ZeroDivisionError

    said: list[str] = []
    ck = refusing(tmp_store_path, said)
    with pytest.raises(ZeroDivisionError):
        Ask().of(ck, resume_every="epoch", on_epoch=fail)
    assert len(said) == 1
    assert said[0].startswith("a: Cannot write a resume point of checkpoint 'a'")


def test_a_loop_that_is_left_concludes_although_the_point_failed(tmp_store_path: Path) -> None:
    ask, ck = Ask(), refusing(tmp_store_path)
    stream = ck.epochs(ask.state(), ask.train_dl, ask.val_dl, **ask.options, resume_every="epoch")
    assert [next(stream).n for _ in range(2)] == [0, 1]
    stream.close()
    assert ck._ledger.log.records[-1].kind == "done"


def test_a_signal_happens_also_where_its_point_cannot_be_written(
    tmp_store_path: Path, monkeypatch: pytest.MonkeyPatch, expected: ps.State
) -> None:
    said: list[str] = []
    ck = refusing(tmp_store_path, said)
    with monkeypatch.context() as patched:
        at_batch(patched, 2)
        with pytest.raises(KeyboardInterrupt) as caught:
            Ask().of(ck)
    assert caught.value.__context__ is None
    assert len(said) == 1
    assert "stopped after 0 epochs and 1 batch of epoch 1. Cannot write a resume point of checkpoint 'a'" in said[0]
    assert "go on from there" not in said[0]
    assert Ask().of(ck) == expected


# -------------------------------------------------------------------- points of strangers

HOSTILE: dict[str, Any] = {
    "an epoch before the first": lambda body: body["position"].update(n=0),
    "an epoch that is a text": lambda body: body["position"].update(n="2"),
    "more batches than there are": lambda body: body["position"].update(batch=10**9),
    "less than none": lambda body: body["position"].update(batch=-1),
    "no number of batches": lambda body: body["position"].update(batches=None),
    "a feed that is a list": lambda body: body["position"].update(feed=[1]),
    "rates that are none": lambda body: body["position"].update(lr=["x"]),
    "a rate alone": lambda body: body["position"].update(lr=3),
    "sums of nothing": lambda body: body["position"].update(sums={}),
    "infinite counters": lambda body: body["position"]["state"].update(counters=[float("inf")] * 3),
    "a key of one word": lambda body: body["position"]["state"].update(key=[2**70, 1]),
    "another tree": lambda body: body["position"]["state"]["params"].update(tree="77"),
    "the tree of the moments": lambda body: body["position"]["state"].update(params=body["position"]["state"]["optimizer"]),
    "an order of other axes": lambda body: body["position"]["state"]["params"].update(orders={"net.0.weight": [5, 5]}),
    "no state": lambda body: body["position"].update(state=None),
    "no position": lambda body: body.update(position=7),
    "no states": lambda body: body.update(states=3),
    "an epoch that nobody recorded": lambda body: body.update(states={"9": body["position"]["state"]}),
    "another state for an epoch": lambda body: body.update(states={"1": body["position"]["state"]}),
    "seconds that are none": lambda body: body.update(seconds="x"),
}


def left(monkeypatch: pytest.MonkeyPatch) -> tuple[ps.MemoryStore, list[str]]:
    """Return a store in which a train was stopped in its second epoch, and what was said."""
    store, said = ps.MemoryStore(), list[str]()
    with monkeypatch.context() as patched:
        at_batch(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            Ask().of(store.checkpoint("a", echo=None, notify=said.append))
    return store, said


@pytest.mark.parametrize("case", HOSTILE)
def test_a_strange_point_is_passed_over(case: str, monkeypatch: pytest.MonkeyPatch, expected: ps.State) -> None:
    store, said = left(monkeypatch)
    body, trees = store._backend._points["a"]
    body = copy.deepcopy(body)
    assert body["position"]["n"] == 2
    HOSTILE[case](body)
    store._backend._points["a"] = body, trees
    ck = store.checkpoint("a", echo=None, notify=said.append)
    assert Ask().of(ck) == expected
    assert "A resume point of checkpoint 'a' holds no state: " in said[1]


def test_a_point_of_another_input_is_not_taken(monkeypatch: pytest.MonkeyPatch, expected: ps.State) -> None:
    """What a point shares with the input of its op it leaves out, so it belongs to no other that was accepted."""
    store, said = left(monkeypatch)
    store._backend._points["a"][0]["input"] = "b3:0"
    assert Ask().of(store.checkpoint("a", echo=None, notify=said.append)) == expected
    assert len(said) == 1


# -------------------------------------------------------------------- less is asked for than there is


@pytest.mark.parametrize("how", ["train", "stream"])
def test_a_shorter_answer_leaves_the_point_of_the_longer_train(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, store, said = Ask(), ps.MemoryStore(), list[str]()
    expected = {n: ask.of(ps.MemoryStore().checkpoint("a", echo=None), epochs=n) for n in (1, 4)}
    with monkeypatch.context() as patched:
        at_batch(patched, 1 + 3 + 3 + 1)
        with pytest.raises(KeyboardInterrupt):
            ask.of(store.checkpoint("a", echo=None), epochs=4)
    ck = store.checkpoint("a", echo=None, notify=said.append)
    if how == "train":
        assert ask.of(ck, epochs=1) == expected[1]
    else:
        for epoch in ck.epochs(ask.state(), ask.train_dl, ask.val_dl, **ask.options | dict(epochs=4)):
            if epoch.n == 1:
                break
        del epoch
        assert ck.last is not None
        assert ck.last.output == expected[1].hash
    assert ask.of(ck, epochs=4) == expected[4]
    assert said == ["a: goes on after epoch 2 and 1 batch."]
    assert store._backend._points == {}
