"""Progress bars of a `train`, where there is somebody to see them: one over the epochs, one over the batches of a phase."""

from __future__ import annotations

import sys
import time
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from purestate.core._batch import Batch, Batches, Feed
    from purestate.core._key import Key
    from purestate.core._train import Epoch

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
        self._what, self._total = what, total
        self._epochs = epochs and not _is_text_in_kernel()  # which has one line, and no way up to another
        self._shown = shown and _is_watched()
        self._bar: Any = None
        self._batches: Any = None
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
            self._bar = _bar(total=self._total, initial=epoch.n - 1, desc=self._what, unit="epoch")
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in epoch.metrics.items()}, refresh=False)
        self._bar.update()

    def phase(self, name: str, batches: int, done: int, seconds: float) -> Any:
        """Return the bar over the batches of a phase: one object for all of them, since a notebook keeps a place for each."""
        if self._batches is None:
            self._batches = _bar(unit="batch", total=batches)
        bar = self._batches
        if bar.disable:  # by TQDM_DISABLE: it has no clock then
            return bar
        bar.set_description(f"{self._what} | epoch {self._n + 1}/{self._total} {name}", refresh=False)
        bar.reset(batches)
        bar.start_t -= seconds
        bar.n = bar.last_print_n = done
        bar.refresh()
        return bar

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for bar in (self._batches, self._bar):
            if bar is not None:
                bar.close()


class _Watched:
    """A feed whose batches are counted by a bar."""

    def __init__(self, feed: Feed, phase: str, progress: Progress) -> None:
        self._feed, self._phase, self._progress = feed, phase, progress
        self.batches, self.samples = feed.batches, feed.samples

    def epoch(self, key: Key, start: int = 0, position: Any = None) -> Batches:
        show = partial(self._progress.phase, self._phase, self.batches)
        return _Counted(self._feed.epoch(key, start, position), start, show)

    def close(self) -> None:
        self._feed.close()


class _Counted:
    """The batches of one pass, and its bar, if it takes long enough to have one."""

    def __init__(self, batches: Batches, start: int, phase: Callable[[int, float], Any]) -> None:
        self._batches, self._n, self._phase = batches, start, phase
        self._began = time.monotonic()
        self._bar: Any = None

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._n += 1
        if self._bar is not None:
            self._bar.update()
        elif (seconds := time.monotonic() - self._began) > _PATIENCE:
            self._bar = self._phase(self._n, seconds)
        return batch

    def position(self) -> dict[str, Any] | None:
        return self._batches.position()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.clear()  # where it is text, the next line begins where it stood
        self._batches.close()


def _bar(**options: Any) -> Any:
    """Return a bar of ipywidgets where a notebook has them, else of text, among the printed lines of a notebook."""
    if _is_text_in_kernel():  # tqdm.auto would warn
        from tqdm.std import tqdm

        return tqdm(file=sys.stdout, leave=False, **options)
    from tqdm.auto import tqdm

    return tqdm(leave=False, **options)


def _in_kernel() -> bool:
    return "ipykernel.zmqshell" in sys.modules  # only a kernel has it; ipykernel is imported by whatever starts one, too


def _is_text_in_kernel() -> bool:
    return _in_kernel() and find_spec("ipywidgets") is None


def _is_watched() -> bool:
    return (sys.stderr is not None and sys.stderr.isatty()) or _in_kernel()
