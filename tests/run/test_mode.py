"""`PURESTATE_MODE`: what ops do where it says that nothing is computed, and what it may say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import purestate as ps
from purestate.errors import OfflineError, SetupError
from purestate.train import _place
from tests.helpers import assert_trees_identical
from tests.run.audited import asked, block, files, record, script
from tests.run.tiny import Ask, checkpoint, loader


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("recorded") / "store"
    return folder, record(folder)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURESTATE_MODE", "offline")


# -------------------------------------------------------------------- what it may say


@pytest.mark.parametrize(
    "ask", [lambda ck: Ask().of(ck), lambda ck: ck.evaluate(Ask().state(), loader()), lambda ck: ck.reset(0)]
)
def test_another_word_is_refused_and_the_three_are_named(ask: Any, memory, monkeypatch):
    ck = checkpoint(memory)
    Ask().of(ck, epochs=1)
    monkeypatch.setenv("PURESTATE_MODE", "Audit")
    with pytest.raises(SetupError, match=r"PURESTATE_MODE: expected one of 'record', 'offline', 'audit', got 'Audit'"):
        ask(ck)


@pytest.mark.parametrize("word", ["record", ""])
def test_it_records_where_nothing_is_said(word, memory, monkeypatch):
    monkeypatch.setenv("PURESTATE_MODE", word)
    ck = checkpoint(memory)
    Ask().of(ck, epochs=1)
    assert ck.last.cached is False


def test_it_is_read_when_an_op_is_asked(memory, monkeypatch):
    ck = checkpoint(memory)
    Ask().of(ck, epochs=1)
    monkeypatch.setenv("PURESTATE_MODE", "offline")
    with pytest.raises(OfflineError):
        Ask().of(ck, epochs=2)
    monkeypatch.delenv("PURESTATE_MODE")
    Ask().of(ck, epochs=2)
    assert ck.last.computed == 1


# -------------------------------------------------------------------- offline


def test_offline_every_answer_is_there_and_no_file_is_touched(recorded, offline):
    folder, first = recorded
    before = files(folder)
    found = script(ps.Store(folder))
    assert found.pop("said") == ["log"] * 7
    assert_trees_identical(found, {name: first[name] for name in found})
    assert files(folder) == before


MISSING: dict[str, tuple[Callable[[Any, ps.Checkpoint], Any], str]] = {
    "train": (
        lambda _, ck: asked(lr=0.1).of(ck, metrics=[]),
        r"this train would be computed.*lr was 0\.05 when this was recorded, now 0\.1",
    ),
    "further": (
        lambda _, ck: asked().of(ck, epochs=9, metrics=[]),
        r"train 0 has 4 epochs, and no answer is recorded for epochs 9",
    ),
    "keep": (
        lambda _, ck: asked().of(ck, epochs=6, metrics=[], load_best=True, patience=2, keep=ps.keep.every(1)),
        r"its answer is recorded, and of the epochs that keep= wants \d+(, \d+)* are not kept",
    ),
    "stream": (lambda _, ck: list(ck.epochs(asked().state(), asked().train_dl, asked().val_dl, epochs=9)), "would be computed"),
    "evaluate": (
        lambda _, ck: ck.evaluate(Ask().state(), loader(6)),
        r"this evaluate would be computed.*the nearest evaluate \(record \d+\) answers another question",
    ),
    "find_lr": (lambda _, ck: ck.find_lr(Ask().state(), loader(), epochs=3), "this find_lr would be computed"),
    "predict": (lambda _, ck: ck.predict(Ask().state(), loader(6)), "this predict would be computed"),
    "root": (lambda store, _: store.checkpoint("b").root(Ask().state()), "this root would be computed.*no initial state"),
    "first": (lambda store, _: Ask().of(store.checkpoint("b")), "no train is recorded"),
    "nothing kept": (lambda *_: ps.NullStore().checkpoint("a").evaluate(Ask().state(), loader()), "no evaluate is recorded"),
    "reset": (lambda _, ck: ck.reset(0), "asked of checkpoint 'a' would write into the store"),
    "accept": (lambda _, ck: ck.accept(0), "would write into the store"),
    "prune": (lambda _, ck: ck.prune(ps.keep.last(1)), "would write into the store"),
    "gc": (lambda store, _: store.gc(), r"Store\.gc would write into the store"),
    "repair": (lambda store, _: store.repair(), "would write into the store"),
    "delete": (lambda store, _: store.delete("a"), "would write into the store"),
    "rename": (lambda store, _: store.rename("a", "b"), "would write into the store"),
    "copy": (lambda store, _: store.copy(ps.MemoryStore()), "would write into the store"),
}


@pytest.mark.parametrize("what", MISSING)
def test_offline_what_is_not_recorded_is_an_error_that_says_why(what, recorded, offline):
    folder, _ = recorded
    ask, says = MISSING[what]
    before = files(folder)
    store = ps.Store(folder)
    with pytest.raises(OfflineError, match=f"(?s){says}") as caught:
        ask(store, store.checkpoint("a", echo=None))
    assert "PURESTATE_MODE=offline" in str(caught.value)
    assert files(folder) == before


def test_offline_the_state_of_an_epoch_is_there_or_an_error(recorded, offline):
    folder, _ = recorded
    ask, ck = asked(), ps.Store(folder).checkpoint("a", echo=None)
    stream = ck.epochs(ck.root(ask.state()), ask.train_dl, ask.val_dl, epochs=6, load_best=True, patience=2)
    epochs = {epoch.n: epoch for epoch in stream}
    assert epochs[0].state.hash == epochs[0].hash
    assert epochs[2].state.verify() is None
    dropped = next(n for n in epochs if n not in ck.kept[0] and n)
    with pytest.raises(OfflineError, match=rf"this state after epoch {dropped} would be computed"):
        _ = epochs[dropped].state


def test_offline_there_may_be_nothing_to_drop(recorded, offline):
    folder, _ = recorded
    before = files(folder)
    assert checkpoint(ps.Store(folder)).prune(ps.keep.every(1)) == {}
    assert files(folder) == before


def test_offline_a_collection_may_be_asked_what_it_would_do(recorded, offline):
    folder, _ = recorded
    assert ps.Store(folder).gc(dry_run=True).items == ()


def test_offline_the_stateful_face(tmp_path, monkeypatch):
    monkeypatch.setattr(_place, "_place", _place.Place(root=tmp_path))
    first = block(2)
    before = files(tmp_path)
    monkeypatch.setenv("PURESTATE_MODE", "offline")
    assert block(2) == first
    with pytest.raises(OfflineError, match="train 0 has 2 epochs"):
        block(3)
    assert files(tmp_path) == before


def test_offline_a_copy_on_another_machine_is_as_good(recorded, offline, tmp_path):
    folder, first = recorded
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert script(ps.Store(tmp_path / "elsewhere"))["states"] == first["states"]
