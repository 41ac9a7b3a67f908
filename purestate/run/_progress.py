"""Progress bars of a `train`, where there is somebody to see them: one over the epochs, one over the batches of a phase."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purestate.core._batch import Batch, Batches, Feed
    from purestate.core._key import Key
    from purestate.core._ops import Epoch

__all__ = ["Progress"]

_PATIENCE = 0.5
"""Seconds after which a phase gets a bar of its own: most people's epochs are shorter on small data, and it would flicker."""


class Progress:
    """The bars of one call: they appear with the first computed epoch, in a terminal or a notebook, and leave no trace.

    Args:
        what: The label.
        total: How many epochs.
        shown: Whether bars are wanted at all.
        epochs: Whether there is a bar over the epochs; not where a line is printed for each.
    """

    def __init__(self, what: str, total: int, *, shown: bool = True, epochs: bool = True) -> None:
        self._what, self._total, self._epochs = what, total, epochs
        self._shown = shown and _is_watched()
        self._bar: Any = None
        self._n = 0

    def watch(self, feed: Feed, phase: str) -> Feed:
        """Return the feed, or where somebody is watching one that shows how far each pass over it has come."""
        return _Watched(feed, phase, self) if self._shown else feed

    def begin(self, n: int) -> None:
        """Say that the epoch after number ``n`` begins."""
        self._n = n

    def update(self, epoch: Epoch) -> None:
        """Show that an epoch was computed."""
        self._n = epoch.n
        if epoch.n == 0 or not (self._shown and self._epochs):
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self._total, initial=epoch.n - 1, desc=self._what, unit="epoch", leave=False)
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in epoch.metrics.items()}, refresh=False)
        self._bar.update()

    def phase(self, name: str, batches: int) -> Any:
        """Return a new bar over the batches of a phase."""
        from tqdm.auto import tqdm

        label = f"{self._what} | epoch {self._n + 1}/{self._total} {name}"
        return tqdm(total=batches, desc=label, unit="batch", leave=False, delay=_PATIENCE)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


class _Watched:
    """A feed whose batches are counted by a bar."""

    def __init__(self, feed: Feed, phase: str, progress: Progress) -> None:
        self._feed, self._phase, self._progress = feed, phase, progress
        self.batches, self.samples = feed.batches, feed.samples

    def epoch(self, key: Key, start: int = 0) -> Batches:
        bar = self._progress.phase(self._phase, self.batches)
        bar.update(start)
        return _Counted(self._feed.epoch(key, start), bar)

    def close(self) -> None:
        self._feed.close()


class _Counted:
    """The batches of one pass, and its bar."""

    def __init__(self, batches: Batches, bar: Any) -> None:
        self._batches, self._bar = batches, bar

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._bar.update()
        return batch

    def close(self) -> None:
        self._bar.close()
        self._batches.close()


def _is_watched() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules
