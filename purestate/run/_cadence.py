"""When resume points are due: every so often, or as often as a share of the time pays for. It knows no clock of its own."""

from __future__ import annotations

import re

from purestate.errors import SetupError

__all__ = ["Cadence"]

_EVERY = re.compile(r"(?:(\d+(?:\.\d+)?) *(s|min|h)|(\d+) *steps?|(\d+) *epochs?|epoch)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_FIRST_COST = 0.05
"""Seconds that the first point is taken to cost, before one was measured, beside those for its bytes."""
_BYTES_A_SECOND = 3e8


class Cadence:
    """When the next point is due.

    Args:
        every: ``'60s'``, ``'10min'``, ``'2h'``, ``'500 steps'``, ``'epoch'`` or ``'5 epochs'``; None for what ``budget`` pays.
        budget: The share of the time that points may cost: after one that took ``c`` seconds from hand-over to durable, the
            next is due ``c / budget`` seconds later. Not looked at where ``every`` is given.

    Raises:
        SetupError: ``every`` is none of those, or ``budget`` is no positive number.

    Example:
        >>> cadence = Cadence("2 steps")
        >>> cadence.begin(now=0.0, size=0)
        >>> [cadence.due(now=1.0, epoch=False) for step in range(4)]
        [False, True, True, True]
        >>> cadence.taken(now=1.0)
        >>> cadence.due(now=1.0, epoch=False)
        False
    """

    def __init__(self, every: str | None = None, budget: float = 0.02) -> None:
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
            raise SetupError(
                f"train: resume_budget must be a positive number, the share of the time, got {budget!r}.",
                argument="resume_budget",
            )
        self._budget = float(budget)
        self._seconds = self._steps = self._epochs = 0.0
        if every is not None:
            self._parse(every)
        self._every = every
        self._next = 0.0
        self._behind = [0, 0]

    def _parse(self, every: str) -> None:
        found = _EVERY.fullmatch(every.strip()) if isinstance(every, str) else None
        if found is not None:
            number, unit, steps, epochs = found.groups()
            if unit:
                self._seconds = float(number) * _SECONDS[unit]
            elif steps:
                self._steps = float(steps)
            else:
                self._epochs = float(epochs or 1)
        if not self._seconds + self._steps + self._epochs:
            raise SetupError(
                f"train: resume_every must be like '60s', '10min', '500 steps' or 'epoch', got {every!r}.",
                fix="Leave it out to have points as often as resume_budget, a share of the time, pays for.",
                argument="resume_every",
            )

    def begin(self, now: float, size: int) -> None:
        """Say that training begins, of a state of ``size`` bytes: the first point is due once it would pay."""
        self._next = now + (self._seconds or (_FIRST_COST + size / _BYTES_A_SECOND) / self._budget)

    def due(self, now: float, *, epoch: bool) -> bool:
        """Return whether a point is due. To be asked after each step, and with ``epoch`` after each epoch instead of a step."""
        self._behind[epoch] += 1
        if self._steps:
            return not epoch and self._behind[0] >= self._steps
        if self._epochs:
            return epoch and self._behind[1] >= self._epochs
        return now >= self._next

    def taken(self, now: float) -> None:
        """Say that one was handed over."""
        self._behind = [0, 0]
        self._next = now + self._seconds if self._every else float("inf")

    def durable(self, now: float, seconds: float) -> None:
        """Say that it is durable, which took ``seconds`` from hand-over on."""
        if not self._every:
            self._next = now - seconds + seconds / self._budget
