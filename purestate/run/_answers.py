"""What ops return to people: the summary of an op, an epoch of the stream, the curve of `find_lr`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from purestate.core._hash import short
from purestate.core._state import State
from purestate.store._report import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Asked", "Curve", "EpochView", "History", "Outcome", "Summary", "as_history", "counted", "op_name"]


Outcome = Literal["reused", "computed", "would re-run"]


class History(dict[str, list[Any]]):
    """A list for each metric, an entry an epoch: ``epoch``, ``train_loss``, ``val_loss``, …, ``lr``, ``seconds``.

    A dict, which a notebook shows as a table.
    """

    def _repr_html_(self) -> str:
        from purestate.view import html_table

        columns = {name: values for name, values in self.items() if len(values) == len(self.get("epoch", ()))}
        return html_table(list(zip(*columns.values(), strict=True)), list(columns))


@dataclass(frozen=True)
class Summary:
    """What an op did.

    Args:
        op: ``'train 0'``, ``'evaluate'``, …
        cached: Whether the answer came from the log.
        seconds: How long the call took.
        input: The hash of the state that was given.
        output: The hash of the state that was returned; None for readers.
        epochs: How many epochs the answer covers; None for readers.
        computed: How many of them were computed by this call.
        best_epoch: The best epoch within the op; 0 is the evaluation before the first; None where nothing is watched.
        history: An entry an epoch of this op.
        metrics: The metrics that the answer stands for.
        audit: What an audit said of a recorded answer, as in ``'equal'``; None where nobody computed it again.
    """

    op: str
    cached: bool
    seconds: float
    input: str
    output: str | None = None
    epochs: int | None = None
    computed: int = 0
    best_epoch: int | None = None
    history: History = field(default_factory=History)
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    audit: str | None = None

    def __str__(self) -> str:
        """One line: what was asked, where the answer is from, how long it took, and the hashes."""
        parts = [self.op]
        if self.epochs is not None:
            best = "" if self.best_epoch is None else f", best {self.best_epoch or 'at the start'}"
            parts.append(f"{counted(self.epochs, 'epoch')}{best}")
        parts += [f"{name} {value:.4f}" for name, value in self.metrics.items()]
        parts.append(self._source())
        hashes = [short(digest) for digest in (self.input, self.output) if digest is not None]
        return f"{' | '.join(parts)} | {self.seconds:.3f} s | {' -> '.join(hashes)}"

    def _source(self) -> str:
        if self.audit is not None:
            return f"audited: {self.audit}"
        if self.cached:
            return "from the log"
        if self.epochs is not None and self.computed != self.epochs:
            return f"ran {counted(self.computed, 'epoch')}"
        return "ran"


@dataclass(frozen=True)
class EpochView:
    """An epoch of `Checkpoint.epochs`.

    Args:
        n: Its number within the op, from 1; 0 is the evaluation before the first.
        epoch: Its number over the life of the state.
        metrics: ``train_loss``, ``val_loss``, …
        lr: The learning rate of each parameter group.
        seconds: How long it took when it was computed.
        cached: Whether it came from the log.
        hash: The hash of ``state``.
    """

    n: int
    epoch: int
    metrics: dict[str, float]
    lr: list[float]
    seconds: float
    cached: bool
    hash: str
    _state: Callable[[], State] = field(repr=False)

    @property
    def state(self) -> State:
        """The state after the epoch. Read, copied or recomputed when somebody looks."""
        return self._state()


@dataclass(frozen=True)
class Curve:
    """What `find_lr` returns: the loss at each learning rate of an exponential sweep.

    Args:
        rates: Learning rates, ascending.
        losses: The training loss of the step at each rate.
        suggestion: The rate at which the smoothed loss falls fastest; None where it never falls.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float | None

    def plot(self, start: float | None = None, end: float | None = None) -> Figure:
        """Return a figure of the losses over the rates.

        Args:
            start: The smallest rate to show.
            end: The largest.
        """
        from purestate.view import plot_lr_vs_loss

        return plot_lr_vs_loss(self.rates, self.losses, self.suggestion, start=start, end=end)

    def __repr__(self) -> str:
        ends = f" from {self.rates[0]:g} to {self.rates[-1]:g}" if self.rates else ""
        return f"Curve({counted(len(self.rates), 'rate')}{ends}, suggestion={self.suggestion!r})"

    def _repr_png_(self) -> bytes:
        chart: Any = self.plot()
        return chart._repr_png_()


@dataclass(frozen=True)
class Asked:
    """An op that was asked in this process.

    Args:
        op: ``'train 0'``, ``'evaluate'``, ...
        outcome: Whether its answer came from the log, was computed, or would have had to be where nothing may be.
        because: Why it did not come from the log; nothing where it did.
        record: The number of the record that answers it; None where none does.
    """

    op: str
    outcome: Outcome
    because: str = ""
    record: int | None = None

    def __str__(self) -> str:
        return self.outcome + (f" because {self.because}" if self.because else "")


def op_name(op: int | None) -> str:
    """Return what people call the op that a state is the answer of: ``'train 0'``; None is the root of a checkpoint."""
    return "root" if op is None else f"train {op}"


def as_history(epochs: list[dict[str, Any]]) -> History:
    """Turn a list of epochs (``epoch``, ``metrics``, ``lr``, ``seconds``) into lists, an entry an epoch.

    Where an epoch lacks a metric that others have, its entry is None.
    """
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch["metrics"]))
    history = History(epoch=[epoch["epoch"] for epoch in epochs])
    history |= {name: [epoch["metrics"].get(name) for epoch in epochs] for name in names}
    history["lr"] = [epoch["lr"][0] if len(epoch["lr"]) == 1 else list(epoch["lr"]) for epoch in epochs]
    history["seconds"] = [epoch["seconds"] for epoch in epochs]
    return history
