"""What the bits of recorded answers may depend on besides their questions: read from records, and compared.

It is noted by `_environment` when something is computed. Here nothing is computed, and torch is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from purestate.run._chain import RecordLike, Trajectory, as_recorded

__all__ = ["Contrast", "contrast", "elsewhere", "envelope_of"]

_NAME = b'"environment":{'


@dataclass(frozen=True)
class Contrast:
    """What two envelopes say of each other.

    Args:
        differing: Name, first value and second value of what differs.
        untold: What only one of them says, as older versions noted less: nobody knows whether it differs.
        missing: Whether one of them says nothing at all.
    """

    differing: tuple[tuple[str, Any, Any], ...]
    untold: tuple[str, ...]
    missing: bool


def envelope_of(record: RecordLike) -> dict[str, Any]:
    """Return in what environment a record was computed, and what ran its steps as ``plan``; nothing where it does not say.

    Raises:
        CorruptLogError: It says something else.
    """
    with as_recorded(record):
        found, plan = record.body.get("environment"), record.body.get("plan")
        if not isinstance(found, dict | None) or not isinstance(plan, dict | None):
            raise TypeError(f"{found!r} or {plan!r} is no environment")
        return {**(found or {}), **{f"plan {name}": value for name, value in (plan or {}).items()}}


def elsewhere(train: Trajectory, last: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(epoch, what differs)`` for the epochs that were computed in another environment than their train began in.

    Args:
        train: The trajectory.
        last: Up to which epoch; all of them if left out.
    """
    for n in sorted(train.epochs):
        if last is not None and n > last:
            return
        record = train.epochs[n]
        line: bytes | None = getattr(record, "line", None)  # there are thousands, of which few were
        if (line is None or _NAME in line) and (found := envelope_of(record)):
            yield n, found


def contrast(a: Mapping[str, Any], b: Mapping[str, Any]) -> Contrast:
    """Compare two envelopes.

    Example:
        >>> contrast({"threads": 1, "device": "cpu"}, {"threads": 2, "mkl": True})
        Contrast(differing=(('threads', 1, 2),), untold=('device', 'mkl'), missing=False)
    """
    both = [name for name in a if name in b]
    return Contrast(
        differing=tuple((name, a[name], b[name]) for name in both if a[name] != b[name]),
        untold=tuple(sorted(a.keys() ^ b.keys())) if a and b else (),
        missing=not a or not b,
    )
