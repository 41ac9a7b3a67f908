"""Retention: which epochs of an op keep their bytes, as a pure function of what is recorded of them. For users: ``ps.keep``.

A policy looks at metrics and seconds, never at a clock or a file, so that it says the same in every process. What it drops as
epochs come it never wants again: so policies are joined by ``|`` and ``&``, and none can be turned round.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NoReturn

import numpy as np

from purestate.errors import SetupError

__all__ = ["Past", "Policy", "all_of", "any_of", "best", "every", "last", "seconds"]


@dataclass(frozen=True, slots=True)
class Past:
    """The epochs of an op so far.

    Args:
        metrics: By epoch; the entry at 0 is the evaluation before the first (empty without validation).
        seconds: How long each took.
        watch: The metric that the op watches, as in ``'accuracy'`` for ``val_accuracy``.
        higher: The metrics of which higher values are better.
    """

    metrics: Sequence[Mapping[str, float]]
    seconds: Sequence[float]
    watch: str = "loss"
    higher: Collection[str] = ()


class Policy(ABC):
    """Which epochs of an op keep their bytes. Made by the functions of ``ps.keep``, and joined by ``|`` and ``&``."""

    @abstractmethod
    def kept(self, past: Past) -> frozenset[int]:
        """Return the epochs to keep. One that is not among them now is not among them after further epochs either."""

    def ranks(self, watch: str) -> frozenset[str]:
        """Return the metrics that decide, where ``watch`` is watched."""
        del watch
        return frozenset()

    def __or__(self, other: object) -> Policy:
        return any_of(self, other) if isinstance(other, Policy) else NotImplemented

    def __and__(self, other: object) -> Policy:
        return all_of(self, other) if isinstance(other, Policy) else NotImplemented

    def __bool__(self) -> NoReturn:
        raise SetupError(
            f"keep: {self!r} is neither true nor false.",
            cause="Python takes `a or b` for a, and `a and b` for b, whatever they keep.",
            fix="Write a | b for what one of them keeps, a & b for what both keep.",
            argument="keep",
        )


def last(n: int) -> Policy:
    """Keep the newest epochs.

    Args:
        n: How many.

    Example:
        >>> last(3) | best(2)
        last(3) | best(2)
    """
    return _Last(_count("last", n))


def best(n: int, metric: str | None = None) -> Policy:
    """Keep the best epochs; of equals the earlier, and never one whose value is nan. The evaluation before the first is one too.

    Args:
        n: How many.
        metric: By ``val_<metric>``, in the metric's own direction; by the one that the op watches if left out.
    """
    if metric is not None and not isinstance(metric, str):
        raise SetupError(f"keep.best: metric must be a name, as in 'accuracy', got {metric!r}.", argument="metric")
    return _Best(_count("best", n), metric)


def every(n: int) -> Policy:
    """Keep the epochs whose number within the op is a multiple.

    Args:
        n: Of what.
    """
    return _Every(_count("every", n))


def seconds(t: float) -> Policy:
    """Keep the first epoch that ends after each multiple of some time, counted from the op's beginning.

    What counts are the seconds that are recorded of the epochs: a break between a kill and the next run is none of them.

    Args:
        t: The time in seconds.
    """
    if isinstance(t, bool) or not isinstance(t, int | float | np.integer | np.floating) or not 0 < t < float("inf"):
        raise SetupError(f"keep.seconds: expected a time above 0, got {t!r}.", argument="t")
    return _Seconds(float(t))


def any_of(*policies: Policy) -> Policy:
    """Keep what one of them keeps: ``a | b``.

    Args:
        *policies: At least one.

    Example:
        >>> any_of(last(1), best(1), every(10)) == last(1) | best(1) | every(10)
        True
    """
    return _joined(_Any, policies)


def all_of(*policies: Policy) -> Policy:
    """Keep what all of them keep: ``a & b``.

    Args:
        *policies: At least one.

    Example:
        >>> all_of(last(20), every(5) | best(1))
        last(20) & (every(5) | best(1))
    """
    return _joined(_All, policies)


# -------------------------------------------------------------------- what they are


@dataclass(frozen=True, repr=False)
class _Last(Policy):
    n: int

    def kept(self, past: Past) -> frozenset[int]:
        end = len(past.metrics)
        return frozenset(range(max(1, end - self.n), end))

    def __repr__(self) -> str:
        return f"last({self.n})"


@dataclass(frozen=True, repr=False)
class _Best(Policy):
    n: int
    metric: str | None

    def kept(self, past: Past) -> frozenset[int]:
        watch = self.metric or past.watch
        name, sign = f"val_{watch}", -1 if watch in past.higher else 1
        values = ((metrics.get(name), n) for n, metrics in enumerate(past.metrics))
        ranked = [(sign * value, n) for value, n in values if value is not None and value == value]
        return frozenset(n for _, n in heapq.nsmallest(self.n, ranked))

    def ranks(self, watch: str) -> frozenset[str]:
        return frozenset({self.metric or watch})

    def __repr__(self) -> str:
        return f"best({self.n})" if self.metric is None else f"best({self.n}, {self.metric!r})"


@dataclass(frozen=True, repr=False)
class _Every(Policy):
    n: int

    def kept(self, past: Past) -> frozenset[int]:
        return frozenset(range(self.n, len(past.metrics), self.n))

    def __repr__(self) -> str:
        return f"every({self.n})"


@dataclass(frozen=True, repr=False)
class _Seconds(Policy):
    t: float

    def kept(self, past: Past) -> frozenset[int]:
        ends = pairwise(accumulate(past.seconds))
        return frozenset(n for n, (began, ended) in enumerate(ends, 1) if ended // self.t > began // self.t)

    def __repr__(self) -> str:
        return f"seconds({self.t:g})"


@dataclass(frozen=True, repr=False)
class _Several(Policy):
    parts: tuple[Policy, ...]

    def ranks(self, watch: str) -> frozenset[str]:
        return frozenset[str]().union(*(part.ranks(watch) for part in self.parts))


class _Any(_Several):
    def kept(self, past: Past) -> frozenset[int]:
        return frozenset[int]().union(*(part.kept(past) for part in self.parts))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


class _All(_Several):
    def kept(self, past: Past) -> frozenset[int]:
        first, *others = (part.kept(past) for part in self.parts)
        return first.intersection(*others)

    def __repr__(self) -> str:
        return " & ".join(f"({part!r})" if isinstance(part, _Any) else repr(part) for part in self.parts)


def _joined(kind: type[_Any | _All], policies: Sequence[object]) -> Policy:
    parts: list[Policy] = []
    for policy in policies:
        if not isinstance(policy, Policy):
            raise SetupError(f"keep: expected policies such as keep.last(3), got {policy!r}.", argument="policies")
        parts += policy.parts if isinstance(policy, kind) else [policy]
    if not parts:
        raise SetupError("keep: expected at least one policy, got none.", argument="policies")
    return kind(tuple(parts)) if len(parts) > 1 else parts[0]


def _count(name: str, n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise SetupError(f"keep.{name}: expected a whole number of at least 1, got {n!r}.", argument="n")
    return int(n)


def __dir__() -> list[str]:
    return [name for name in __all__ if name != "Past"]
