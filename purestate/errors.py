"""Every exception that purestate raises, and nothing else.

Each class subclasses `PureStateError` and the standard exception that a stranger would catch::

    PureStateError
    ├── StateError(ValueError)             a state, or a tree in it, is not what the call needs
    │   ├── TreeMismatchError              names, shapes or dtypes differ
    │   ├── FrozenStateError(AttributeError)  somebody assigned to a state
    │   └── MutatedStateError              a leaf was changed in place
    ├── SetupError(TypeError)              an argument of `setup` (or of a class named there) is wrong
    ├── UnsupportedError(TypeError)        cannot be made pure; says why
    ├── BatchError(ValueError)             a loader or a batch is not what the step needs
    │   ├── DataChangedError               data is not what it was when the op began, or was cut
    │   └── EmptyLoaderError               a loader without a batch
    ├── MetricError(ValueError)            a metric is unknown or returned something else than a sum
    ├── LossError(ValueError)              the loss cannot be computed from what the module returned
    ├── NonFiniteLossError(ArithmeticError)   the loss became nan or infinite
    ├── ImpurityError(RuntimeError)        a function that must be pure changed something
    │   └── HiddenStateError               a loader or sampler holds state that nobody can set
    ├── CaptureMismatchError(RuntimeError) a captured step returned other bits than the uncaptured one
    ├── FingerprintError(TypeError)        something has no content that could be fingerprinted
    ├── StaleRecordError(RuntimeError)     the record is not an answer to this question
    ├── ReplayError(RuntimeError)          recomputing a recorded answer gave other bits
    ├── AuditError(RuntimeError)           an audit found a difference, or an answer that was never recorded
    ├── OfflineError(RuntimeError)         the mode says that nothing is computed or written
    ├── ScriptError(RuntimeError)          a script that is to be verified does not run, or trains nothing
    ├── UsageError(ValueError)             a command, or the name of a run or a file, cannot be read
    ├── MissingExtraError(ImportError)     an optional package is not installed
    └── StoreError(OSError)                disk
        ├── InvalidIdError(ValueError)     an id that cannot name a checkpoint
        ├── CheckpointNotFoundError(FileNotFoundError)
        ├── CheckpointExistsError(FileExistsError)   there is another one of that name
        ├── MissingSnapshotError(FileNotFoundError)   the record is there, its bytes are not
        ├── CorruptItemError               bytes differ from their hash
        ├── CorruptLogError                a log is damaged before its last line
        ├── FormatVersionError             the store was written by a newer format
        ├── StoreLockedError(BlockingIOError)         somebody else is writing
        └── StoreWriteError                a write, fsync or the writer process failed

`PureStateWarning`, a UserWarning, says that something works and that less is guaranteed than elsewhere.

A message has up to three parts, each on a line of its own: what was expected and what came, with the
place; the likely cause; the call that shows or mends it. The first line stands alone.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AuditError",
    "BatchError",
    "CaptureMismatchError",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "CorruptItemError",
    "CorruptLogError",
    "DataChangedError",
    "EmptyLoaderError",
    "FingerprintError",
    "FormatVersionError",
    "FrozenStateError",
    "HiddenStateError",
    "ImpurityError",
    "InvalidIdError",
    "LossError",
    "MetricError",
    "MissingExtraError",
    "MissingSnapshotError",
    "MutatedStateError",
    "NonFiniteLossError",
    "OfflineError",
    "PureStateError",
    "PureStateWarning",
    "ReplayError",
    "ScriptError",
    "SetupError",
    "StaleRecordError",
    "StateError",
    "StoreError",
    "StoreLockedError",
    "StoreWriteError",
    "TreeMismatchError",
    "UnsupportedError",
    "UsageError",
]


class PureStateWarning(UserWarning):
    """Something works, and less is guaranteed than elsewhere: a store on a network file system, for example."""


class PureStateError(Exception):
    """Base of all errors of purestate.

    Args:
        problem: What was expected, what came, and where. One line.
        cause: The likely cause, if there is one to tell.
        fix: The call or command that mends or shows it.
        **where: Values for the attributes that the class declares, such as ``path`` or ``epoch``.
    """

    def __init__(self, problem: str, *, cause: str | None = None, fix: str | None = None, **where: Any) -> None:
        super().__init__("\n".join(part for part in (problem, cause, fix) if part))
        self.problem, self.cause, self.fix = problem, cause, fix
        for name, value in where.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)


class StateError(PureStateError, ValueError):
    """A state, or a tree in it, is not what the call needs."""

    path: str | None = None
    """The leaf, as in ``params['fc.weight']``."""


class TreeMismatchError(StateError):
    """Two trees that must agree have other names, shapes or dtypes."""

    expected: Any = None
    actual: Any = None


class FrozenStateError(StateError, AttributeError):
    """Somebody assigned to an attribute or an entry of a state."""


class MutatedStateError(StateError):
    """A leaf of a state was changed in place after the state was made."""


class SetupError(PureStateError, TypeError):
    """An argument of `setup`, or of a class that was named there, is wrong."""

    argument: str | None = None


class UnsupportedError(PureStateError, TypeError):
    """Something cannot be made pure; the message says why."""


class BatchError(PureStateError, ValueError):
    """A loader, or a batch of it, is not what the step needs."""

    epoch: int | None = None
    step: int | None = None


class DataChangedError(BatchError):
    """Data is not what it was when the op began, or when it was cut."""


class EmptyLoaderError(BatchError):
    """A loader gives no batch."""


class MetricError(PureStateError, ValueError):
    """A metric is unknown, or returned something that is not a sum over the batch."""

    metric: str | None = None


class LossError(PureStateError, ValueError):
    """The loss cannot be computed from what the module returned."""


class NonFiniteLossError(PureStateError, ArithmeticError):
    """The loss became nan or infinite."""

    epoch: int | None = None
    step: int | None = None
    value: float | None = None


class ImpurityError(PureStateError, RuntimeError):
    """A function that must be pure changed its input, an attribute, a global variable or a generator."""

    path: str | None = None
    """What it changed, as in ``module.encoder.calls``."""


class HiddenStateError(ImpurityError):
    """A loader or sampler moves state that cannot be set from the key."""


class CaptureMismatchError(PureStateError, RuntimeError):
    """A captured step returned other bits than the uncaptured one."""

    path: str | None = None
    epoch: int | None = None


class FingerprintError(PureStateError, TypeError):
    """Something in a question has no content that could be fingerprinted."""

    path: str | None = None


class StaleRecordError(PureStateError, RuntimeError):
    """The checkpoint holds an answer to another question.

    ``changes`` lists ``(name, recorded, now)`` for every difference that is not a consequence of another one.
    """

    checkpoint: str | None = None
    op: int | None = None
    changes: tuple[tuple[str, Any, Any], ...] = ()
    dependents: tuple[int, ...] = ()
    """The trains behind it, which go on from it."""
    forks: tuple[str, ...] = ()
    """The other checkpoints that began from it, or from one of those."""


class ReplayError(PureStateError, RuntimeError):
    """Recomputing a recorded answer gave other bits."""

    expected: Any = None
    actual: Any = None


class AuditError(PureStateError, RuntimeError):
    """An op that was computed again for an audit gave something else than its record says, or has no record.

    ``op`` is the number of a train or the name of a reader; ``epoch``, ``expected`` and ``actual`` are of the first difference.
    """

    checkpoint: str | None = None
    op: int | str | None = None
    epoch: int | None = None
    expected: Any = None
    actual: Any = None


class OfflineError(PureStateError, RuntimeError):
    """Something would be computed or written, and ``PURESTATE_MODE`` says that it is not."""

    checkpoint: str | None = None
    op: int | str | None = None


class ScriptError(PureStateError, RuntimeError):
    """A script that is to be verified or audited cannot be found, does not run to its end, or trains nothing."""

    script: str | None = None
    output: str | None = None
    """The end of what it printed."""


class UsageError(PureStateError, ValueError):
    """A command, or the name of a run or a file, cannot be read, or names nothing; ``available`` lists what there is."""

    available: tuple[str, ...] = ()


class MissingExtraError(PureStateError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""

    extra: str | None = None


class StoreError(PureStateError, OSError):
    """A store cannot do what was asked."""

    path: str | None = None


class InvalidIdError(StoreError, ValueError):
    """An id that cannot name a checkpoint."""

    id: str | None = None


class CheckpointNotFoundError(StoreError, FileNotFoundError):
    """A store has no checkpoint of that name."""

    id: str | None = None
    available: tuple[str, ...] = ()


class CheckpointExistsError(StoreError, FileExistsError):
    """A store has another checkpoint of that name."""

    id: str | None = None


class MissingSnapshotError(StoreError, FileNotFoundError):
    """A record names an item whose bytes are not in the store."""

    digest: str | None = None


class CorruptItemError(StoreError):
    """The bytes of an item differ from their hash."""

    leaf: str | None = None
    file: str | None = None
    digest: str | None = None
    actual: str | None = None


class CorruptLogError(StoreError):
    """A log is damaged before its last line."""

    line: int | None = None


class FormatVersionError(StoreError):
    """A store was written in a format that this version does not read."""

    expected: Any = None
    actual: Any = None


class StoreLockedError(StoreError, BlockingIOError):
    """Another process is writing."""

    pid: int | None = None
    host: str | None = None


class StoreWriteError(StoreError):
    """A write, an fsync or the writer process failed. What was recorded before is intact."""
