"""Cut anywhere and run again: the bits of a run that nobody cut. In-process, so that every step can be tried."""

from __future__ import annotations

import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import purestate as ps
from purestate.core._capture import Runner
from purestate.core._position import Position
from purestate.core._tree import Leaves
from purestate.errors import ReplayError
from purestate.run import _resume
from purestate.run._resume import ResumePoints
from purestate.store._memory import MemoryBackend
from tests.run.tiny import checkpoint

X = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def start(**recipe: Any) -> ps.State:
    """Everything that a run may lose when it is cut: moments, running means, both schedulers, strides, draws."""
    return ps.setup(
        ps.init(net, seed=0),
        **{
            "loss_cls": nn.CrossEntropyLoss,
            "optimizer_cls": torch.optim.Adam,
            "optimizer_args": dict(lr=1e-2),
            "step_scheduler_cls": torch.optim.lr_scheduler.OneCycleLR,
            "step_scheduler_args": dict(max_lr=0.1, total_steps=40),
            "epoch_scheduler_cls": torch.optim.lr_scheduler.ReduceLROnPlateau,
            "epoch_scheduler_args": dict(patience=0),
            **recipe,
        },
    )


def shuffled() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True)


def train(ck: ps.Checkpoint, loader: Any = None, *, recipe: dict[str, Any] | None = None, **options: Any) -> ps.State:
    arguments: dict[str, Any] = dict(epochs=2, metrics=[ps.metric_accuracy], load_best=True, patience=5) | options
    return ck.train(start(**recipe or {}), loader or shuffled(), [(X[:10], Y[:10]), (X[10:], Y[10:])], **arguments)


def answer(ck: ps.Checkpoint, state: ps.State) -> list[Any]:
    """All that a run leaves: hashes and metrics of its epochs, and what it returned."""
    epochs = [record.body for record in ck._ledger.log.records if record.kind == "epoch"]
    return [state.hash, *([body["n"], body["hash"], body["metrics"], body["lr"]] for body in epochs)]


Cut = Callable[[ps.Checkpoint, int], bool]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Return a function that trains until batch ``n`` (of training or validation) and interrupts then, if it comes to that."""

    def until(ck: ps.Checkpoint, n: int, *args: Any, **options: Any) -> bool:
        behind = itertools.count(1)

        def between(self: ResumePoints, *args: Any, **options: Any) -> None:
            if next(behind) == n:
                signal.raise_signal(signal.SIGINT)
            original(self, *args, **options)

        original = ResumePoints.between
        with monkeypatch.context() as patched:
            patched.setattr(ResumePoints, "between", between)
            try:
                train(ck, *args, **options)
            except KeyboardInterrupt:
                return True
        return False

    return until


BATCHES = 2 + 2 * (4 + 2)


@pytest.mark.parametrize(
    "options", [dict(warmup=0), dict(warmup=1), dict(recipe=dict(ema_decay=0.9))], ids=["plain", "warmup", "average"]
)
def test_cut_after_every_batch_of_training_and_validation(cut, options):
    whole = checkpoint()
    expected = answer(whole, train(whole, **options))
    for n in range(1, BATCHES + 1):
        store = ps.MemoryStore()
        assert cut(checkpoint(store), n, **options)
        again = checkpoint(store)
        assert answer(again, train(again, **options)) == expected, f"cut after batch {n}"
    assert not cut(checkpoint(), BATCHES + 1, **options)


def test_a_run_that_is_cut_every_third_batch_arrives(cut, disk):
    """Not every one: a cut in an evaluation begins that anew, which is two batches here."""
    whole = checkpoint()
    expected = answer(whole, train(whole))
    cuts = 0
    while cut(checkpoint(disk), 3):
        cuts += 1
    assert cuts == 4
    ck = checkpoint(disk)
    assert answer(ck, train(ck)) == expected
    assert ck.last is not None
    assert ck.last.cached
    assert not (disk._backend.path / "checkpoints" / "a" / "resume").exists()


class Augmented(Dataset[Any]):
    """Draws from every process-wide generator, and from one of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Any:
        noise = torch.randn(1, 6, 6) + np.random.rand() + random.random() + torch.rand(1, generator=self.generator)
        return X[i] + 0.1 * noise, Y[i]


class Counted(Augmented):
    loaded: ClassVar[list[int]] = []

    def __getitem__(self, i: int) -> Any:
        Counted.loaded.append(i)
        return super().__getitem__(i)

    def __purestate_fingerprint__(self) -> str:
        return "counted"


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for i in range(20):
            yield X[i] + 0.1 * torch.randn(1, 6, 6), Y[i]

    def __len__(self) -> int:
        return 20


class Stateful(Stream):
    """Knows where it is."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Any]:
        while self.next < 20:
            self.next += 1
            yield X[self.next - 1] + 0.1 * torch.randn(1, 6, 6), Y[self.next - 1]
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


LOADERS = {
    "drawn": lambda: DataLoader(Augmented(), batch_size=6, shuffle=True),
    "workers": lambda: DataLoader(Augmented(), batch_size=6, shuffle=True, num_workers=2),
    "stream": lambda: DataLoader(Stream(), batch_size=6),
    "stateful": lambda: DataLoader(Stateful(), batch_size=6),
    "list": lambda: [(X[i : i + 6], Y[i : i + 6]) for i in range(0, 20, 6)],
}


@pytest.mark.parametrize("kind", LOADERS)
def test_cut_in_the_middle_of_an_epoch_of_any_loader(cut, kind):
    whole = checkpoint()
    expected = answer(whole, train(whole, LOADERS[kind]()))
    store = ps.MemoryStore()
    for n in (4, 5):
        assert cut(checkpoint(store), n, LOADERS[kind]())
    again = checkpoint(store)
    assert answer(again, train(again, LOADERS[kind]())) == expected


def test_the_answer_that_a_kill_prevented_is_made_from_the_point(cut):
    """All epochs are recorded and the answer is not: what comes after the point is computed again, and no more."""
    loaded = Counted.loaded = []

    def twenty() -> DataLoader[Any]:
        return DataLoader(Counted(), batch_size=6, shuffle=True)

    store = ps.MemoryStore()
    assert cut(checkpoint(store), 11, twenty())  # the third batch of the second epoch
    point = store._backend._points["a"]
    ck = checkpoint(store)
    expected = answer(ck, train(ck, twenty()))
    del store._backend._logs["a"][-1:]
    store._backend._points["a"] = point
    loaded.clear()
    ck = checkpoint(store)
    assert answer(ck, train(ck, twenty())) == expected
    assert len(loaded) == 6 + 2


def test_what_was_cut_is_said_and_recorded(cut):
    store, said = ps.MemoryStore(), list[str]()
    ck = store.checkpoint("a", echo=None, notify=said.append)
    assert cut(ck, 4)
    train(ck)
    assert said == [
        "a: stopped after 0 epochs and 2 batches of epoch 1. Run it again to go on from there.",
        "a: goes on after epoch 0 and 2 batches.",
    ]
    marks = [record.body.get("resumed") for record in ck._ledger.log.records if record.kind == "epoch"]
    assert marks == [None, {"after": [0, 2], "damaged": []}, None]


def test_samples_before_the_cut_are_not_loaded_again(cut):
    loaded = Counted.loaded = []

    store = ps.MemoryStore()
    assert cut(checkpoint(store), 5, DataLoader(Counted(), batch_size=6, shuffle=True))
    assert len(loaded) == 18
    loaded.clear()
    train(checkpoint(store), DataLoader(Counted(), batch_size=6, shuffle=True))
    assert len(loaded) == 6 + 2 + 20, "the batch before the cut is compared, the others of it are not looked at"


def test_an_epoch_that_is_gone_on_with_is_held_against_its_record(cut):
    """The point is older than the records: what was recorded since is computed again and must be the same."""
    store = ps.MemoryStore()
    assert cut(checkpoint(store), 4)
    point = store._backend._points["a"]
    expected = answer(whole := checkpoint(store), train(whole, epochs=3))
    for lost in (1, 2):  # the answer; the last epoch, too: as if the process had been killed before it
        del store._backend._logs["a"][-lost:]
        store._backend._points["a"] = point
        again = checkpoint(store)
        assert answer(again, train(again, epochs=3)) == expected
    del store._backend._logs["a"][-2:]
    store._backend._points["a"] = point
    point[1]["0"]["0.weight"].mul_(1 + 1e-6)
    with pytest.raises(ReplayError, match="epoch 1 was recorded as"):
        train(checkpoint(store), epochs=3)
    assert [record.kind for record in checkpoint(store)._ledger.log.records][-1] == "epoch", "nothing was overwritten"


def test_a_point_is_copied_beside_the_next_forward_and_before_the_update(monkeypatch):
    """The slowest copy there may be: it begins when training waits for it. It is still that of the step before."""
    asked = threading.Event()
    expected, copied = list[str](), list[str]()
    take, release, close = ResumePoints._take, ResumePoints.release, ResumePoints.close
    save = MemoryBackend.save_resume

    def taking(self: ResumePoints, found: Any, **options: Any) -> None:
        asked.clear()
        if isinstance(found, Position):
            expected.append(digest(found.state.params) + digest(found.state.buffers) + digest(found.state.optimizer.leaves))
        take(self, found, **options)

    def releasing(self: ResumePoints) -> None:
        asked.set()
        release(self)

    def saving(self: MemoryBackend, id: str, body: Any, trees: Any) -> Any:
        assert asked.wait(120)
        if "position" in body:
            state = body["position"]["state"]
            copied.append("".join(digest(trees[state[name]["tree"]]) for name in ("params", "buffers", "optimizer")))
        return save(self, id, body, trees)

    monkeypatch.setattr(ResumePoints, "_take", taking)
    monkeypatch.setattr(ResumePoints, "release", releasing)
    monkeypatch.setattr(ResumePoints, "close", lambda self: (asked.set(), close(self)))
    monkeypatch.setattr(MemoryBackend, "save_resume", saving)
    monkeypatch.setattr(ResumePoints, "_is_reserved", lambda self, size: True)
    monkeypatch.setattr(_resume, "_PAUSE", 0.0)
    monkeypatch.setattr(Runner, "writes", False)
    monkeypatch.setattr(Runner, "captured", 1)
    train(checkpoint(), resume_every="1 steps")
    assert len(set(copied)) == 8
    assert copied == expected


def digest(tensors: Any) -> str:
    return Leaves({name: tensor.clone() for name, tensor in tensors.items()}).digest
