"""The epochs of a `train` as core computes them, from one of its states on.

`_compute` records what `stream` yields. Who computes recorded epochs again, to compare them, takes `recompute`: it begins at the
nearest state that is kept, records nothing, takes no resume point, and tells of every step whoever asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from purestate.core._batch import Batch, Batches, Feed
from purestate.core._key import Key
from purestate.core._position import Keeper, Position
from purestate.core._state import State
from purestate.core._train import Epoch, train
from purestate.data._feed import feed
from purestate.data._position import batch_digest
from purestate.run._chain import Trajectory
from purestate.run._environment import prepare
from purestate.run._training import Training

__all__ = ["Step", "TellingFeed", "recompute", "stream"]


@dataclass(frozen=True)
class Step:
    """A training step that was computed again.

    Args:
        n: The number of its epoch within the op, from 1.
        batch: Its number within the epoch, from 1.
        state: The state behind it, **lent**: its tensors change with the next step. ``state.own()`` keeps it.
        data: The digest of the batch that it was given.
    """

    n: int
    batch: int
    state: State
    data: str


def recompute(
    call: Training, train: Trajectory, last: int, *, first: int = 0, on_step: Callable[[Step], object] | None = None
) -> Generator[Epoch]:
    """Compute recorded epochs again.

    Args:
        call: The call of `train` that asks for them, with the input that was recorded. Not modified.
        train: The trajectory.
        last: The epoch that is computed last.
        first: The epoch that is wanted first: it begins at the nearest kept state before it. From 0 on it begins at the
            input, with the evaluation before the first epoch.
        on_step: Told of each training step.

    Yields:
        Every epoch that was computed, also those before ``first``; their states are lent.

    Raises:
        MissingSnapshotError: The bytes of the state to begin with are not in the store.
    """
    prepare(call.state.device)
    kept = train.kept()
    start = max((n for n in kept if 0 < n < first), default=0)
    state = call.ledger.restore(kept[start], call.state.recipe, call.state.device) if start else call.state
    steps = None if on_step is None else _Steps(on_step)
    with closing(stream(call, state, start, keeper=steps, on_batch=None if steps is None else steps.on_batch)) as epochs:
        for epoch, _ in epochs:
            yield epoch
            if epoch.n >= last:
                return


def stream(
    call: Training,
    state: State,
    done: int,
    *,
    position: Position | None = None,
    seconds: float = 0.0,
    keeper: Keeper | None = None,
    lap: Callable[[str], object] = lambda phase: None,
    on_batch: Callable[[Batch], object] | None = None,
) -> Generator[tuple[Epoch, float]]:
    """Yield epochs from core without end, each with the seconds that it took.

    Args:
        call: Whose loaders, metrics and key they are computed with. Its bars show them, its ``notify`` is told.
        state: The state after epoch ``done``, or that of the position.
        done: How many epochs of the op are behind.
        position: Where to go on in the middle of the epoch after those.
        seconds: How long the part of it took that is behind.
        keeper: Told after each batch.
        lap: Called at the end of each phase.
        on_batch: Given each batch before its step.
    """
    device, notices = call.state.device, list[str]()
    train_dl, val_dl = call.loaders
    with ExitStack() as closed:
        known = None if position is None else position.batches
        batches = closed.enter_context(closing(feed(train_dl, device=device, notify=call.notify, batches=known)))
        train_feed = call.progress.watch(batches if on_batch is None else TellingFeed(batches, on_batch), "train")
        val_feed = None
        if val_dl is not None:
            val_feed = call.progress.watch(closed.enter_context(closing(feed(val_dl, device=device))), "val")
        call.progress.begin(done)
        epochs = train(
            state,
            train_feed,
            val_feed,
            metrics=call.metrics,
            warmup=call.warmup,
            watch=call.selection.watch,
            key=call.state.key,
            done=done,
            position=position,
            keeper=keeper,
            notices=notices,
            lap=lap,
            guard=call.guard,
            step=call.step,
        )
        closed.enter_context(closing(epochs))
        while True:
            began = time.perf_counter()
            epoch = next(epochs)
            took, seconds = seconds + time.perf_counter() - began, 0.0
            while notices:
                call.notify(notices.pop(0))
            yield epoch, took


class _Steps:
    """A `Keeper` that tells of each step, and keeps nothing."""

    def __init__(self, on_step: Callable[[Step], object]) -> None:
        self._on_step, self._data = on_step, ""

    def on_batch(self, batch: Batch) -> None:
        self._data = batch_digest(batch)  # now: forward may write to it

    def between(self, position: Callable[[], Position] | None, *, trained: bool) -> None:
        if trained and position is not None:
            now = position()
            self._on_step(Step(now.n, now.batch, now.state, self._data))

    def release(self) -> None:
        """Return: nobody reads the tensors once `between` has returned."""


class TellingFeed:
    """A feed that shows each of its batches to somebody."""

    def __init__(self, feed: Feed, on_batch: Callable[[Batch], object]) -> None:
        self._feed, self._on_batch = feed, on_batch
        self.batches, self.samples = feed.batches, feed.samples

    def epoch(self, key: Key, start: int = 0, position: Any = None) -> Batches:
        return _TellingBatches(self._feed.epoch(key, start, position), self._on_batch)

    def close(self) -> None:
        self._feed.close()


class _TellingBatches(Iterator[Batch]):
    def __init__(self, batches: Batches, on_batch: Callable[[Batch], object]) -> None:
        self._batches, self._on_batch = batches, on_batch

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._on_batch(batch)
        return batch

    def position(self) -> dict[str, Any] | None:
        return self._batches.position()

    def close(self) -> None:
        self._batches.close()
