"""What users of other trainers reported about resuming, each as a test named after what went wrong there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import purestate as ps
from purestate.core._seeds import preserved_generators, seed_all
from purestate.run._resume import ResumePoints

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 2, (20,), generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def start(**options: Any) -> ps.State:
    return ps.setup(ps.init(net, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam, **options)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True)


VAL = [(X[:10], Y[:10])]


class StoppedError(Exception):
    pass


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that trains until a resume point is there of the ``n``-th training batch, and fails then."""

    def train(ck: ps.Checkpoint, state: ps.State, n: int, *args: Any, **options: Any) -> None:
        trained = 0

        def between(self: ResumePoints, position: Any, *, trained: bool) -> None:
            nonlocal count
            count += trained
            if count == n:
                self._take(position())
                self.close()
                raise StoppedError

        count = trained
        with monkeypatch.context() as patched:
            patched.setattr(ResumePoints, "between", between)
            with pytest.raises(StoppedError):
                ck.train(state, *args, **options)

    return train


def checkpoint(store: Any = None) -> ps.Checkpoint:
    return (store or ps.MemoryStore()).checkpoint("a", echo=None)


def test_generators_that_were_restored_and_then_disturbed(stopped: Callable[..., None]):
    """Whatever runs between the load and the next step draws: warm-ups, sanity checks, a reseed."""
    expected = checkpoint().train(start(), loader(), epochs=2)
    store = ps.MemoryStore()
    stopped(checkpoint(store), start(), 5, loader(), epochs=2)
    with preserved_generators():
        seed_all(1)
        assert checkpoint(store).train(start(), loader(), epochs=2) == expected


def test_an_iterator_over_a_loader_draws_one_number_from_the_global_generator(stopped: Callable[..., None]):
    store, before = ps.MemoryStore(), torch.get_rng_state()
    stopped(checkpoint(store), start(), 5, loader(), epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    checkpoint(store).train(start(), loader(), epochs=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8])
def test_the_order_after_a_resume_shows_some_samples_twice_and_others_never(stopped: Callable[..., None], n: int):
    """Also at the first and the last batch of an epoch, where positions are off by one elsewhere."""
    shown: list[int] = []

    class Shown(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> Any:
            shown.append(i)
            return X[i], Y[i]

        def __purestate_fingerprint__(self) -> str:
            return "shown"

    def twenty() -> DataLoader[Any]:
        return DataLoader(Shown(), batch_size=6, shuffle=True)

    checkpoint().train(start(), twenty(), epochs=2)
    expected = shown.copy()
    shown.clear()
    store = ps.MemoryStore()
    stopped(checkpoint(store), start(), n, twenty(), epochs=2)
    before = shown.copy()
    shown.clear()
    checkpoint(store).train(start(), twenty(), epochs=2)
    assert before == expected[: len(before)]
    again = len(before) + len(shown) - len(expected)
    assert again == (0 if n % 4 == 0 else 6), "only the batch before the cut is read again, to be compared"
    assert before[: len(before) - again] + shown == expected


def test_a_resume_replays_the_order_of_the_first_epoch(stopped: Callable[..., None]):
    store = ps.MemoryStore()
    ck = checkpoint(store)
    stopped(ck, start(), 4, loader(), epochs=3)  # the last batch of the first epoch
    resumed = checkpoint(store).train(start(), loader(), epochs=3)
    assert resumed == checkpoint().train(start(), loader(), epochs=3)
    once, twice = (checkpoint().train(start(), loader(), epochs=n) for n in (1, 2))
    assert len({once.hash, twice.hash, resumed.hash}) == 3


def test_the_learning_rate_finder_changes_the_model_or_the_run():
    s0 = start()
    before, expected = s0.hash, checkpoint().train(s0, loader(), epochs=2)
    ck = checkpoint()
    ck.find_lr(s0, loader())
    s0.verify()
    assert s0.hash == before
    s1 = ck.train(s0, loader(), epochs=1)
    ck.find_lr(s1, loader())
    assert ck.train(s0, loader(), epochs=2) == expected


def test_validation_perturbs_training():
    """Weights are equal with and without it, and whatever is evaluated between two epochs."""
    alone = checkpoint().train(start(), loader(), epochs=3)
    ck = checkpoint()
    for epoch in ck.epochs(start(), loader(), VAL, epochs=3):
        ck.evaluate(epoch.state, loader())
        ck.predict(epoch.state, VAL)
        last = epoch.state
    assert (last.params.digest, last.buffers.digest) == (alone.params.digest, alone.buffers.digest)


@pytest.mark.parametrize("n", range(1, 16, 3))
def test_patience_and_the_best_epoch_are_forgotten_by_a_resume(stopped: Callable[..., None], n: int):
    options: dict[str, Any] = dict(epochs=12, patience=2, load_best=True)
    rate = dict(optimizer_args=dict(lr=0.3))
    whole = checkpoint()
    expected = whole.train(start(**rate), loader(), VAL, **options)
    assert whole.last is not None
    assert whole.last.epochs < 12, "nothing was stopped early: the test shows nothing"
    store = ps.MemoryStore()
    stopped(checkpoint(store), start(**rate), n, loader(), VAL, **options)
    ck = checkpoint(store)
    assert ck.train(start(**rate), loader(), VAL, **options) == expected
    assert ck.last is not None
    assert (ck.last.epochs, ck.last.best_epoch) == (whole.last.epochs, whole.last.best_epoch)


def test_the_history_has_gaps_or_epochs_twice_after_a_resume(stopped: Callable[..., None]):
    store = ps.MemoryStore()
    for n in (6, 5, 5):
        stopped(checkpoint(store), start(), n, loader(), VAL, epochs=9)
    ck = checkpoint(store)
    ck.train(start(), loader(), VAL, epochs=9)
    whole = checkpoint()
    whole.train(start(), loader(), VAL, epochs=9)
    assert ck.history["epoch"] == list(range(1, 10))
    assert {name: values for name, values in ck.history.items() if name != "seconds"} == {
        name: values for name, values in whole.history.items() if name != "seconds"
    }


def test_the_next_update_is_in_the_checkpoint_that_is_being_written():
    """A point a step, while training goes on: whichever is taken up, the end is the same."""
    expected = checkpoint().train(start(), loader(), epochs=4)
    assert checkpoint().train(start(), loader(), epochs=4, resume_every="1 steps") == expected


def test_changed_arguments_are_silently_ignored_or_applied_by_a_resume(stopped: Callable[..., None]):
    store = ps.MemoryStore()
    stopped(checkpoint(store), start(), 6, loader(), epochs=3)
    with pytest.raises(ps.StaleRecordError, match=r"optimizer lr was the default when this was recorded, now 0\.01"):
        checkpoint(store).train(start(optimizer_args=dict(lr=0.01)), loader(), epochs=3)


def test_a_cell_that_is_run_again_goes_on_training():
    ck = checkpoint()
    first = ck.train(start(), loader(), epochs=2)
    assert ck.train(start(), loader(), epochs=2) == first
    assert ck.last is not None
    assert ck.last.computed == 0


def test_a_warm_up_begins_anew_after_a_resume(stopped: Callable[..., None]):
    options: dict[str, Any] = dict(epochs=3, warmup=2)
    expected = checkpoint().train(start(), loader(), **options)
    for n in (2, 4, 6, 9):
        store = ps.MemoryStore()
        stopped(checkpoint(store), start(), n, loader(), **options)
        ck = checkpoint(store)
        assert ck.train(start(), loader(), **options) == expected
        assert ck.last is not None
        assert ck.last.history["lr"] == checkpoint_history(options)


def checkpoint_history(options: dict[str, Any]) -> list[Any]:
    ck = checkpoint()
    ck.train(start(), loader(), **options)
    return ck.history["lr"]
