"""A progress bar over the epochs of a `train`, where there is somebody to see it."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purestate.core._ops import Epoch

__all__ = ["Progress"]


class Progress:
    """A tqdm bar that appears with the first computed epoch, in a terminal or a notebook, and leaves no trace.

    Args:
        what: Its label.
        total: How many epochs.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._bar: Any = None

    def update(self, epoch: Epoch) -> None:
        """Show that an epoch was computed."""
        if epoch.n == 0 or not _is_watched():
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self._total, initial=epoch.n - 1, desc=self._what, unit="epoch", leave=False)
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in epoch.metrics.items()}, refresh=False)
        self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


def _is_watched() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules
