"""What the environment says that ops are to do: ``PURESTATE_MODE``, read when an op is asked.

``record`` computes and records what the log does not hold; ``offline`` answers from the log or not at all; ``audit`` computes
again what it answers, and compares. What an audit does is in `_audit`; nothing here computes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol, cast, get_args

from purestate.errors import OfflineError, SetupError

if TYPE_CHECKING:
    from purestate.run._chain import RecordLike, Trajectory
    from purestate.run._ledger import Ledger
    from purestate.run._readers import Reader
    from purestate.run._training import Training
    from purestate.store._backend import Backend

__all__ = ["VARIABLE", "Auditor", "Mode", "audited_by", "auditor", "mode", "mode_of", "must_record", "refuse"]

VARIABLE = "PURESTATE_MODE"
"""The variable of the environment."""

Mode = Literal["record", "offline", "audit"]


class Auditor(Protocol):
    """Who is asked about each op of a process that audits, before it is answered from the log."""

    def train(self, call: Training, train: Trajectory | None) -> str | None:
        """Look at a train; ``None`` where the log has none that answers it. May raise, and so end the script.

        Returns:
            The verdict in words; None where it was not audited.
        """
        ...

    def reader(self, reader: Reader, ledger: Ledger, record: RecordLike | None) -> str | None:
        """Look at an op that only reads, likewise."""
        ...

    def missing(self, ledger: Ledger, op: str, why: str, train: Trajectory | None) -> NoReturn:
        """End an op that the log does not answer: of a train it may hold some epochs."""
        ...


_auditors: list[Auditor] = []


def mode() -> Mode:
    """Return what ops are to do now.

    Raises:
        SetupError: The variable says something else.
    """
    if _auditors:
        return "audit"
    text = os.environ.get(VARIABLE) or "record"
    if text not in get_args(Mode):
        names = ", ".join(map(repr, get_args(Mode)))
        raise SetupError(f"{VARIABLE}: expected one of {names}, got {text!r}.", fix=f"Leave {VARIABLE} out to record.")
    return cast(Mode, text)


def mode_of(backend: Backend) -> Mode:
    """Return what ops of a store are to do now: where an audit has nothing to compare with, they compute as they always do.

    That is a store that keeps nothing, and in a process that was started for an audit one that is in its memory.
    """
    found = mode()
    if found == "audit":
        from purestate.store._memory import MemoryBackend, NullBackend

        return "record" if isinstance(backend, MemoryBackend if _auditors else NullBackend) else found
    return found


def auditor() -> Auditor:
    """Return who audits this process: whoever it was started for, else one that raises what it finds."""
    if _auditors:
        return _auditors[-1]
    from purestate.run._audit import Raising

    return Raising()


def audited_by(one: Auditor) -> None:
    """Let somebody look at each op of this process from now on. For a process that was started for that."""
    _auditors.append(one)


def refuse(ledger: Ledger, op: str, why: str, train: Trajectory | None = None) -> NoReturn:
    """End an op that the log does not answer.

    Args:
        ledger: Whose.
        op: ``'train'``, ``'evaluate'``, ...
        why: Why nothing that is recorded answers it, without a full stop.
        train: Of a train, the epochs of it that are recorded.

    Raises:
        OfflineError: The mode is ``offline``.
        AuditError: It is ``audit``.
    """
    if mode() == "audit":
        auditor().missing(ledger, op, why, train)
    raise OfflineError(
        f"checkpoint {ledger.id!r}: this {op} would be computed, and {VARIABLE}=offline computes nothing: {why}.",
        fix=f"Run it without {VARIABLE}, which computes and records it, or undo the change.",
        checkpoint=ledger.id,
        op=op,
    )


def must_record(what: str, checkpoint: str | None = None) -> None:
    """Return if stores may be written.

    Args:
        what: What writes, the subject of a sentence.
        checkpoint: To which checkpoint.

    Raises:
        OfflineError: The mode is another one than ``record``.
    """
    found = mode()
    if found != "record":
        raise OfflineError(
            f"{what} would write into the store, and {VARIABLE}={found} leaves stores as they are.",
            fix=f"Run it without {VARIABLE}.",
            checkpoint=checkpoint,
        )
