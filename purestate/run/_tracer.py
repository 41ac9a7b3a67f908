"""Takes the trace of a train while it computes: hears its batches, and looks at the state behind each step.

What is noted so far of an epoch is in its resume points, so that a run which was killed records what it would have. The form is
in `_trace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from purestate.core._batch import Batch
from purestate.core._component import Component
from purestate.core._digest import joined_hash
from purestate.core._hash import scalar_hash
from purestate.core._position import Keeper, Position
from purestate.core._state import State
from purestate.core._train import Epoch
from purestate.core._tree import Leaves
from purestate.data._position import batch_bits
from purestate.run._trace import Level, Segment, row_of

__all__ = ["Tracer", "leaves_by_part"]


class Tracer:
    """The trace of the epoch that is computed now.

    Args:
        level: How much is noted.
    """

    def __init__(self, level: Level) -> None:
        self._level = level
        self._data: bytes | None = b""
        self._batch = b""
        self._count = 0
        self._segments: list[tuple[int, tuple[str, ...], bytearray]] = []

    def hears(self, keeper: Keeper) -> dict[str, Any]:
        """Return what `purestate.run._again.stream` is given, so that this hears of each batch and step before the keeper does.

        Of epochs it looks at the end only: to hash a batch takes 20 to 100 microseconds, some per cent of a small step.
        """
        return {"keeper": _Keeper(self, keeper), "on_batch": self._on_batch} if self._level == "step" else {"keeper": keeper}

    def begin(self, position: Position | None, before: Any) -> None:
        """Begin the epoch in the middle of which a train goes on, or the first one.

        Args:
            position: Where.
            before: What `plain` told there; None where nobody traced it.
        """
        self._begin()
        if position is None:
            return
        self._count = position.batch
        try:
            found, self._data = [Segment.of(json) for json in before["steps"]], bytes.fromhex(before["data"])
        except (LookupError, TypeError, ValueError):  # nobody's, or another version's: what is noted begins here
            found, self._data = list[Segment](), None
        if found and found[-1].first + found[-1].steps == self._count:
            self._segments = [(one.first, one.names, bytearray(one.rows)) for one in found]

    def plain(self) -> dict[str, Any] | None:
        """Return what is noted so far of the epoch, as JSON; None where that is nothing, or its beginning is missing."""
        if self._data is None or self._level != "step":
            return None
        return {"data": self._data.hex(), "steps": [one.json() for one in self._taken()]}

    def take(self, epoch: Epoch) -> dict[str, Any]:
        """Return what the record of an epoch holds of its trace, and begin the next."""
        parts, plain = leaves_by_part(epoch.state)
        found: dict[str, Any] = {"leaves": {name: dict(hashes) for name, hashes in parts.items()}, "plain": plain}
        if self._level == "step" and epoch.n:
            found["data"] = None if self._data is None else self._data.hex()
            found["steps"] = [one.json() for one in self._taken()]
        self._begin()
        return found

    def _begin(self) -> None:
        self._data, self._count, self._segments = b"", 0, []

    def _taken(self) -> Iterator[Segment]:
        for first, names, rows in self._segments:
            yield Segment(first, names, bytes(rows))

    def _on_batch(self, batch: Batch) -> None:
        self._batch = batch_bits(batch)
        if self._data is not None:
            self._data = joined_hash(self._data, self._batch)

    def note(self, state: State) -> None:
        """Note the state behind the batch that was heard last."""
        parts, plain = leaves_by_part(state)
        leaves = {f"{part}[{name!r}]": digest for part, hashes in parts.items() for name, digest in hashes.items()}
        leaves |= {name: digest for name, digest in plain.items() if name in parts}
        names = tuple(leaves)
        if not self._segments or self._segments[-1][1] != names:
            self._segments.append((self._count, names, bytearray()))
        self._segments[-1][2].extend(row_of(self._batch, state.hash, list(leaves.values())))
        self._count += 1


class _Keeper:
    def __init__(self, tracer: Tracer, keeper: Keeper) -> None:
        self._tracer, self._keeper = tracer, keeper

    def between(self, position: Callable[[], Position] | None, *, trained: bool) -> None:
        if trained and position is not None:
            now = position()
            self._tracer.note(now.state)  # first: a resume point holds what is noted so far
        self._keeper.between(position, trained=trained)

    def release(self) -> None:
        self._keeper.release()


def leaves_by_part(state: State) -> tuple[dict[str, Mapping[str, str]], dict[str, str]]:
    """Return the hashes of a state's leaves by part, and the digests of what is plain: the state's hash follows from them.

    Args:
        state: Not modified.
    """
    parts: dict[str, Mapping[str, str]] = {}
    plain: dict[str, str] = {}
    for name, digest in state.digests.items():
        part = getattr(state, name)
        if isinstance(part, Component):
            assert isinstance(part.leaves, Leaves)
            parts[name], plain[name] = part.leaves.hashes, scalar_hash(part.skeleton)
        elif isinstance(part, Leaves):
            parts[name] = part.hashes
        else:
            plain[name] = digest
    return parts, plain
