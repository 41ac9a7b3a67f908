"""Where a `train` stands between two of its steps, and who may look at it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from purestate.core._metrics import Sums
from purestate.core._state import State

__all__ = ["Keeper", "Position"]


@dataclass(frozen=True, slots=True)
class Position:
    """A `train` in the middle of an epoch: with it the op goes on as if it had never stopped.

    Args:
        n: The number of the epoch within the op, from 1.
        batch: How many of its batches are behind.
        batches: How many it has.
        feed: Where the feed is, as it told it; None where the number of batches says it.
        sums: What the batches behind add up to.
        lr: The learning rate of each parameter group during the last step.
        state: The state between the two steps, **lent**: its buffers change with the next forward, the rest with the next
            update. During a warm-up its learning rates are those that it warms up to.
    """

    n: int
    batch: int
    batches: int
    feed: dict[str, Any] | None
    sums: Sums
    lr: list[float]
    state: State


class Keeper(Protocol):
    """Somebody who keeps positions while `train` goes on, and who may end it between two steps."""

    def between(self, position: Callable[[], Position] | None, *, trained: bool) -> None:
        """Be told that a batch is behind.

        Args:
            position: Makes the position; None before the first step of the op, where the input is all there is.
            trained: Whether it was one of training; else one of validation, which leaves the position as it was.
        """
        ...

    def release(self) -> None:
        """Return when nobody reads the tensors of a position or of an `Epoch` any more: they are about to change."""
        ...
