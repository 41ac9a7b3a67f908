"""What an audit says of an op: plain data, for the error, the journal and the report. Computed in `_audit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from purestate.core._digest import short

if TYPE_CHECKING:
    from purestate.core._diff import LeafDiff

__all__ = ["AuditVerdict", "Audited", "Deviation", "place"]

AuditVerdict = Literal["equal", "unexplained", "expected", "unknown", "unrecorded", "unfinished", "unasked"]

_SAYS: Mapping[AuditVerdict, str] = {
    "equal": "equal",
    "unexplained": "differs though nothing in the envelope does",
    "expected": "differs, and so does the envelope in",
    "unknown": "unknown",
    "unrecorded": "was never recorded",
    "unfinished": "equal as far as it is recorded",
    "unasked": "unknown",
}
_SHOWN = 4


@dataclass(frozen=True)
class Deviation:
    """Something that was recorded otherwise than it came.

    Args:
        epoch: In which epoch of a train; None in the answer, or of an op that only reads.
        what: ``'state'``, ``'val_loss'``, ``'learning rates'``, ``'best epoch'``.
        recorded: What the record says; hashes are in full.
        now: What came when it was computed again.
    """

    epoch: int | None
    what: str
    recorded: Any
    now: Any

    def __str__(self) -> str:
        where = "" if self.epoch is None else f"epoch {self.epoch}: "
        return f"{where}{self.what} was recorded as {_shown(self.recorded)}, and computing it again gave {_shown(self.now)}"


@dataclass(frozen=True)
class Audited:
    """An op that was computed again and compared with its record.

    Args:
        checkpoint: Whose.
        op: The number of a train, or the name of a reader.
        record: The number of its record; None where there is none.
        verdict: ``'equal'``; ``'unexplained'``: it differs though nothing in the envelope does; ``'expected'``: so does the
            envelope; ``'unknown'``; ``'unrecorded'``: the script asks for it and no record answers; ``'unfinished'``: it is
            equal as far as it is recorded, and has no answer; ``'unasked'``: the script does not ask for it.
        because: What in the envelope differs; why it is not known; why no record answers.
        epochs: How many epochs of a train were computed again; None for a reader.
        differing: How many of them differ.
        differences: What differs in the first that does, and in the answer.
        leaves: The leaves that differ in the first state of which the bytes are kept, or the hashes of leaves recorded.
        leaves_epoch: After which epoch that state is; None where there is none.
        seconds: How long it took.
        noted: Why the finding is not in the store's journal; nothing where it is.
    """

    checkpoint: str
    op: int | str
    record: int | None
    verdict: AuditVerdict
    because: tuple[str, ...] = ()
    epochs: int | None = None
    differing: int = 0
    differences: tuple[Deviation, ...] = ()
    leaves: tuple[LeafDiff, ...] = ()
    leaves_epoch: int | None = None
    seconds: float = 0.0
    noted: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing differs, and a record was there to compare with."""
        return not self.differences and self.verdict != "unrecorded"

    @property
    def said(self) -> str:
        """The verdict in words."""
        because = "; ".join(self.because) if self.verdict == "unknown" else ", ".join(self.because)
        if self.verdict == "expected":
            return f"{_SAYS[self.verdict]} {because}"
        return _SAYS[self.verdict] + (f": {because}" if because else "")

    @property
    def finding(self) -> str:
        """What differs first, in one line; why there is nothing to compare, where there is not."""
        if self.differences:
            return f"{place(self.checkpoint, self.op)}, {self.differences[0]}."
        return f"{place(self.checkpoint, self.op)}: {self.said}."

    @property
    def details(self) -> list[str]:
        """The rest of what is known of a difference, in lines."""
        lines = [f"{one}." for one in self.differences[1:]]
        if self.epochs is not None and self.differing > 1:
            lines.append(f"{self.differing} of {self.epochs} epochs differ.")
        if self.leaves_epoch is not None:
            lines.append(
                f"What differs in the state after epoch {self.leaves_epoch}:" if self.leaves else _KEPT_IS_NOW.format(self)
            )
            lines += [f"  {_leaf(leaf)}" for leaf in self.leaves[:_SHOWN]]
            if len(self.leaves) > _SHOWN:
                lines.append(f"  and {len(self.leaves) - _SHOWN} more")
        return lines


_KEPT_IS_NOW = "The state that is kept after epoch {0.leaves_epoch} is the one that was computed again, not the one recorded."


def place(checkpoint: str, op: int | str) -> str:
    """Return what people call an op of a checkpoint.

    Example:
        >>> place("adam", 0), place("adam", "evaluate")
        ("checkpoint 'adam', train 0", "checkpoint 'adam', evaluate")
    """
    return f"checkpoint {checkpoint!r}, {op if isinstance(op, str) else f'train {op}'}"


def _shown(value: Any) -> str:
    text = str(value)
    if text.startswith("b3:"):
        return short(text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _leaf(leaf: LeafDiff) -> str:
    if leaf.changed is None:
        return f"{leaf.path}: {leaf.a}, now {leaf.b}"
    return f"{leaf.path} {leaf.a}: {leaf.changed} element{'' if leaf.changed == 1 else 's'}, by up to {leaf.largest:.3g}"
