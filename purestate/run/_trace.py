"""What a train that is traced notes of an epoch, and of each of its steps, beside the hash of its state.

Hashes only, in the record of the epoch: those of every leaf, from which the state's own follows. Step by step those of the
batch, of the state, and four bytes of each leaf, which tell leaves apart where states differ; and one over all batches in
their order. Reading them needs no torch. `_tracer` takes them while a train computes.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from purestate.core._digest import tree_hash
from purestate.errors import SetupError
from purestate.run._chain import RecordLike, Trajectory, as_recorded

__all__ = ["EpochTrace", "Level", "Segment", "StepTrace", "checked", "row_of", "trace_of", "untraced"]

Level = Literal["epoch", "step"]
"""How much is noted: of each epoch, or of each step too."""

_WIDE, _NARROW = 16, 4
"""Bytes of the hash of a batch and of a state, and of a leaf's."""


@dataclass(frozen=True)
class StepTrace:
    """What is noted of a step.

    Args:
        batch: 32 hexadecimal digits over the batch.
        state: The first 32 of the hash of the state behind it.
        leaves: The first 8 of the hash of each leaf, and of the plain values of each component, by path.
    """

    batch: str
    state: str
    leaves: Mapping[str, str]


@dataclass(frozen=True)
class Segment:
    """Steps behind one another whose states have leaves of the same names.

    Args:
        first: How many batches of the epoch are before them.
        names: The paths of the leaves.
        rows: The bytes of all of them.
    """

    first: int
    names: tuple[str, ...]
    rows: bytes

    @property
    def width(self) -> int:
        """Bytes a step."""
        return 2 * _WIDE + _NARROW * len(self.names)

    @property
    def steps(self) -> int:
        """How many steps these are."""
        return len(self.rows) // self.width

    def step(self, i: int) -> StepTrace:
        """Return what is noted of one of them, from 0."""
        row = self.rows[i * self.width : (i + 1) * self.width].hex()
        batch, state, rest = row[: 2 * _WIDE], row[2 * _WIDE : 4 * _WIDE], row[4 * _WIDE :]
        parts = (rest[j : j + 2 * _NARROW] for j in range(0, len(rest), 2 * _NARROW))
        return StepTrace(batch, state, dict(zip(self.names, parts, strict=True)))

    def json(self) -> dict[str, Any]:
        """Return it as a record holds it."""
        return {"from": self.first, "names": list(self.names), "rows": base64.b64encode(self.rows).decode()}

    @classmethod
    def of(cls, json: Mapping[str, Any]) -> Segment:
        """Return what a record holds.

        Raises:
            ValueError: It is none.
            LookupError: Likewise.
            TypeError: Likewise.
        """
        first, names = json["from"], tuple(json["names"])
        found = cls(first, names, base64.b64decode(json["rows"], validate=True))
        if type(first) is not int or first < 0 or not all(type(name) is str for name in names):
            raise TypeError("a trace names no steps")
        if len(found.rows) % found.width:
            raise ValueError(f"a trace of {len(found.rows)} bytes is none of {len(names)} leaves")
        return found


def row_of(batch: bytes, state: str, leaves: Sequence[str]) -> bytes:
    """Return the bytes of a step.

    Args:
        batch: The digest of the batch.
        state: The hash of the state, as people meet it.
        leaves: The digests of its leaves.
    """
    return batch[:_WIDE] + bytes.fromhex(state.removeprefix("b3:")[: 2 * _WIDE] + "".join(leaf[: 2 * _NARROW] for leaf in leaves))


@dataclass(frozen=True)
class EpochTrace:
    """What is noted of an epoch.

    Args:
        leaves: The hash of every leaf, by path.
        data: The digest of all its batches in their order; None where only the epoch is traced, or the first of them were given
            to a run that nobody traced.
        segments: What is noted of its steps.
    """

    leaves: Mapping[str, str]
    data: str | None
    segments: tuple[Segment, ...]

    def steps(self) -> Iterator[tuple[int, StepTrace]]:
        """Yield ``(how many batches of the epoch are behind, what is noted then)``."""
        for segment in self.segments:
            for i in range(segment.steps):
                yield segment.first + i + 1, segment.step(i)

    @property
    def covers(self) -> range:
        """Behind which batches something is noted: of them all, unless the epoch was begun by a train without a trace."""
        if not self.segments:
            return range(0)
        return range(self.segments[0].first + 1, self.segments[-1].first + self.segments[-1].steps + 1)


def trace_of(record: RecordLike) -> EpochTrace | None:
    """Return what the record of an epoch holds of its trace; None where it was not traced.

    Raises:
        CorruptLogError: Its leaves are not those of its state.
    """
    with as_recorded(record):
        json = record.body.get("trace")
        if json is None:
            return None
        parts: dict[str, dict[str, str]] = json["leaves"]
        plain: dict[str, str] = json["plain"]
        digests = {name: tree_hash(leaves) for name, leaves in parts.items()}
        digests |= {
            name: tree_hash({"leaves": digests[name], "skeleton": value}) if name in digests else value
            for name, value in plain.items()
        }
        if f"b3:{tree_hash(digests)}" != record.body["hash"]:
            raise ValueError("its leaves are not those of its state")
        leaves = {f"{part}[{name!r}]": digest for part, inside in parts.items() for name, digest in inside.items()}
        segments = tuple(map(Segment.of, json.get("steps", ())))
        if any(a.first + a.steps != b.first for a, b in itertools.pairwise(segments)):
            raise ValueError("steps are missing")
        data = json["data"] if segments else None
        return EpochTrace(leaves | plain, data, segments)


def _is_traced(record: RecordLike, level: Level) -> bool:
    """Return whether the record of an epoch holds a trace of that much."""
    with as_recorded(record):
        found = record.body.get("trace")
        return found is not None and (level == "epoch" or "steps" in found)


def untraced(train: Trajectory, level: Level, last: int) -> list[int]:
    """Return the epochs up to ``last`` of which less is noted than ``level``, the evaluation before the first aside."""
    return [n for n, record in sorted(train.epochs.items()) if 0 < n <= last and not _is_traced(record, level)]


def checked(trace: Any, op: str) -> Level | None:
    """Return what was given as ``trace=`` of a train.

    Raises:
        SetupError: It is something else.
    """
    if trace is None or trace == "epoch" or trace == "step":
        return trace
    raise SetupError(f"{op}: expected trace to be 'epoch', 'step' or None, got {trace!r}.", argument="trace")
