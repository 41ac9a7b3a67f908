"""A train that was killed or interrupted goes on, and ends where an undisturbed one does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import purestate as ps
from purestate.errors import NonFiniteLossError
from tests.helpers import batch
from tests.run.tiny import Ask, checkpoint

X, Y = batch(8)


class Watched(Dataset):
    """Counts what is loaded, and calls a function before."""

    loaded = 0
    before: Callable[[], None] = staticmethod(lambda: None)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        Watched.before()
        Watched.loaded += 1
        return X[i], Y[i]

    def __purestate_fingerprint__(self) -> str:
        return "watched"


def train(ck: ps.Checkpoint, **options: Any) -> ps.State:
    return Ask(train_dl=DataLoader(Watched(), batch_size=4, shuffle=True), options=dict(epochs=6)).of(ck, **options)


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> ps.State:
    monkeypatch.setattr(Watched, "loaded", 0)
    return train(checkpoint())


def interrupt(
    monkeypatch: pytest.MonkeyPatch,
    ck: ps.Checkpoint,
    when: Callable[[], bool],
    error: type = KeyboardInterrupt,
    **options: Any,
) -> None:
    def before() -> None:
        if when():
            raise error

    Watched.loaded = 0
    with monkeypatch.context() as patched:
        patched.setattr(Watched, "before", staticmethod(before))
        with pytest.raises(error):
            train(ck, **options)


def kinds(ck: ps.Checkpoint) -> list[str]:
    return [record.kind for record in ck._ledger.log.records]


@pytest.mark.parametrize("loaded", [0, 5, 8, 20, 44])
def test_an_interrupt_keeps_finished_epochs(store, monkeypatch, undisturbed, loaded):
    ck = checkpoint(store)
    interrupt(monkeypatch, ck, lambda: Watched.loaded == loaded)
    finished = loaded // 8
    assert kinds(ck) == ["checkpoint", "train", *["epoch"] * (1 + finished)]
    again = checkpoint(store)
    assert train(again) == undisturbed
    assert again.last is not None
    assert again.last.computed == 6 - finished
    assert again.last.history["epoch"] == [1, 2, 3, 4, 5, 6]


def points(store: ps.Store) -> list[Path]:
    folder = Path(store._backend.path or ".", "checkpoints", "a", "resume")
    return sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []


@pytest.fixture
def two_points(disk, monkeypatch, undisturbed) -> ps.Store:
    """A store in which a train was interrupted as soon as there were two resume points."""
    interrupt(monkeypatch, checkpoint(disk), lambda: many(disk), resume_every="epoch")
    return disk


def many(store: ps.Store) -> bool:
    """Let time pass until an epoch's resume point is there; true where there are two in the middle of an epoch."""
    if Watched.loaded % 8 != 4:
        return False
    deadline, before = time.monotonic() + 120, Watched.loaded // 8
    while len(points(store)) < min(before, 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)
    return before >= 3


def test_a_train_goes_on_from_its_newest_point(two_points, undisturbed):
    Watched.loaded = 0
    ck = checkpoint(two_points)
    assert train(ck) == undisturbed
    assert Watched.loaded < 6 * 8, "it began anew"
    assert Watched.loaded >= 3 * 8
    assert points(two_points) == []
    assert not (two_points._backend.path / "checkpoints" / "a" / "resume").exists()


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "meta"])
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_point_falls_back(two_points, undisturbed, how, both):
    generations = points(two_points)
    assert len(generations) == 2
    for folder in generations if both else generations[-1:]:
        damage(folder, how)
    Watched.loaded = 0
    ck = checkpoint(two_points)
    assert train(ck) == undisturbed
    assert (Watched.loaded == 6 * 8) is both, "from the beginning, only where no point is whole"


def damage(folder: Path, how: str) -> None:
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if how == "meta":
        (meta,) = (path for path in files if path.parent == folder and b'"body"' in path.read_bytes())
        meta.write_bytes(meta.read_bytes()[:-20])
        return
    (data, *_) = (path for path in reversed(files) if path.parent.name == "d")
    content = bytearray(data.read_bytes())
    if how == "missing":
        data.unlink()
    elif how == "cut":
        data.write_bytes(content[: len(content) // 2])
    else:
        for i in range(len(content) // 2, len(content) // 2 + 8):
            content[i] ^= 0xFF
        data.write_bytes(content)


def test_a_point_of_another_train_is_not_taken(two_points, undisturbed):
    """The questions differ, the chain holds nothing that binds but epochs: reset, then ask another."""
    ck = checkpoint(two_points)
    ck.reset(0)
    assert points(two_points) == []
    other = Ask(lr=0.2, train_dl=DataLoader(Watched(), batch_size=4, shuffle=True), options=dict(epochs=2))
    assert other.of(ck) == other.of(checkpoint())


def test_a_loss_that_is_not_finite_keeps_finished_epochs(store, monkeypatch):
    monkeypatch.setattr(Watched, "loaded", 0)
    ask = Ask(recipe=dict(step_scheduler_cls=torch.optim.lr_scheduler.LambdaLR, step_scheduler_args=dict(lr_lambda=exploding)))
    ck = checkpoint(store)
    messages = []
    for _ in range(2):
        with pytest.raises(NonFiniteLossError, match="in epoch 3, step ") as caught:
            ask.of(ck, epochs=8)
        messages.append(str(caught.value))
        assert caught.value.epoch == 3
        assert caught.value.step is not None
        assert kinds(ck) == ["checkpoint", "train", "epoch", "epoch", "epoch"]
        ck = checkpoint(store)
    assert messages[0] == messages[1]
    assert "clip_grad_norm" in messages[0]
    with pytest.raises(ps.StaleRecordError, match="optimizer lr"):
        Ask(lr=0.01, recipe=ask.recipe).of(ck, epochs=8)
    assert ask.of(ck, epochs=2).counters.epoch == 2
    assert ck.last is not None
    assert ck.last.history["epoch"] == [1, 2]


def exploding(step: int) -> float:
    return 1.0 if step < 4 else float("inf")


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment(python, tmp_path, kills):
    """Nothing that was answered is lost or answered otherwise, and the end is that of a run that nobody killed."""
    done = python("import sys, tests.run.kills as kills; kills.say(sys.argv[1], int(sys.argv[2]), 0)", tmp_path, kills)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.pop("kills") == kills
    cut = seen.pop("cut")
    assert kills < 100 or cut > kills // 2, "most came when all was done"
    assert seen == {"unequal": [], "redone": [], "lost": [], "left": []}
