"""Where two runs part that should agree, for people. Plain data: `_bisect` finds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from purestate.core._digest import short
from purestate.report._compared import Difference
from purestate.report._leaf import LeafComparison
from purestate.report._report import Report, fragment
from purestate.view import html_table

if TYPE_CHECKING:
    from purestate.run._bisect import Operator, Strayed

__all__ = ["Bisection", "Parting"]

Verdict = Literal["equal", "parted", "measured", "asked", "ends"]

_SHOWN = 8
_WHERE = {
    "batch": "The batch was another: it is the data.",
    "loss": "Both were given the same batch, and the loss is another: it is in forward, or in the loss.",
    "gradients": "Both have the same batch and loss, and other gradients: it is in backward, or in forward unseen by the loss.",
    "buffers": "Both have the same batch, loss and gradients, and other buffers: forward writes them.",
    "frozen": "Both have the same batch, loss and gradients, and other frozen parameters: forward writes them.",
    "optimizer": "Both have the same batch, loss and gradients: it is the optimizer, and what it keeps.",
    "params": "Both have the same batch, loss and gradients: it is how the optimizer changes the parameters.",
    "step_scheduler": "Both have the same batch, loss and gradients: it is the scheduler that steps with the optimizer.",
    "epoch_scheduler": "Both have the same batch, loss and gradients: it is the epoch scheduler.",
    "ema": "Both have the same batch, loss, gradients and parameters: it is the average.",
}
_HEADER = ["leaf", "type", "elements that differ", "of", "by up to", "ulps"]
_KINDS = {
    "output": "given the same, it gives something else",
    "input": "it is given something else, which no operator before it made",
    "other": "it is another operator",
}


@dataclass(frozen=True)
class Parting:
    """Where two runs part.

    Args:
        op: The number of the train.
        epoch: Its epoch; 0 where they begin with other states; None where all epochs are equal, and an answer that was made of
            them is not.
        batch: The batch of the epoch, from 1, behind which the states differ; None where that is not known, or where they
            differ only at the epoch's end.
        step: The step within the train, from 1; None likewise.
        by: How that is known: from hashes that are ``'recorded'``, or because it was ``'recomputed'``.
        same_batch: Whether both were given the same; None where that is not known.
        part: What differed first within the step: ``'batch'``, ``'loss'``, ``'gradients'``, or a part of the state.
        states: The hashes behind the step or the epoch, as far as they are known.
        leaves: What differs in the two states: with numbers where it was recomputed.
        gradients: The parameters whose gradients differ.
        operator: The first operator that does something else.
        unknown: Why that is not known.
    """

    op: int
    epoch: int | None
    batch: int | None = None
    step: int | None = None
    by: Literal["recorded", "recomputed"] = "recorded"
    same_batch: bool | None = None
    part: str | None = None
    states: tuple[str, str] = ("", "")
    leaves: tuple[LeafComparison, ...] = ()
    gradients: tuple[str, ...] = ()
    operator: Operator | None = None
    unknown: str | None = None

    def __str__(self) -> str:
        more = [f"  and {len(self.leaves) - _SHOWN} more"] if len(self.leaves) > _SHOWN else []
        return "\n".join([*self.where(), *(f"  {leaf}" for leaf in self.leaves[:_SHOWN]), *more, *self.in_operator()])

    def where(self) -> Iterator[str]:
        """Yield where it is, and what differed first, in sentences."""
        states = f"{short(self.states[0])} | {short(self.states[1])}"
        if self.epoch is None:
            yield f"train {self.op}: all epochs are equal, and the answers are not: {states}"
        elif self.epoch == 0:
            yield f"train {self.op}: they begin with other states: {states}"
        elif self.batch is not None:
            where = f"train {self.op}, epoch {self.epoch}, batch {self.batch} (step {self.step})"
            yield f"{where} is the first that gives other bits."
        else:
            yield f"train {self.op}, epoch {self.epoch} is the first that ends on other bits: {states}"
        if self.by == "recomputed" and self.batch is None:
            yield "All of its steps give the same bits, and what comes at its end does not: validation, and the epoch scheduler."
        elif self.by == "recomputed" and self.part in _WHERE:
            yield _WHERE[self.part]
        elif self.same_batch is not None:
            yield "Both were given the same batches." if self.same_batch else _WHERE["batch"]

    def in_operator(self) -> Iterator[str]:
        """Yield in which operator it is, where anything is known of that."""
        if self.operator is not None:
            one = self.operator
            names = one.a or one.b if one.kind != "other" else f"{one.a or '-'} | {one.b or '-'}"
            yield f"operator: {names}, number {one.number} of the step, in {one.phase}: {_KINDS[one.kind]}"
        elif self.unknown is not None:
            yield f"operator: unknown: {self.unknown}"


@dataclass(frozen=True)
class Bisection(Report):
    """Two runs, and where they part.

    Args:
        a: The name of the first.
        b: Of the second.
        verdict: ``'equal'``; ``'parted'``; ``'measured'``: all states are equal, and what was measured of one is not;
            ``'asked'``: they were asked other questions; ``'ends'``: one ends before the other, and they are equal that far.
        compared: How many epochs agree.
        parting: Where they part.
        questions: What was asked otherwise.
        ends: Which of them ends, and where.
        measured: The first metric that differs though the states do not.
        envelope: What differs between the environments in which the train was computed in which they part.
        strayed: Epochs that were recomputed, and did not come again as they were recorded.
        failed: Why no step was found where that was asked for: a script did not come that far, or nothing differs any more.
        steps: How many steps were recomputed, in both runs together.
        again: How many of them once more, to take them apart.
        of: How many steps the train has in one run, where that is known.
        start: Behind which epoch recomputing began; None where nothing was.
    """

    a: str
    b: str
    verdict: Verdict
    compared: int = 0
    parting: Parting | None = None
    questions: tuple[Difference, ...] = ()
    ends: str | None = None
    envelope: tuple[Difference, ...] = ()
    strayed: tuple[Strayed, ...] = ()
    failed: str | None = None
    steps: int = 0
    again: int = 0
    of: int | None = None
    start: int | None = None
    measured: str | None = None

    @property
    def ok(self) -> bool:
        """Whether they are equal."""
        return self.verdict == "equal"

    def __str__(self) -> str:
        parting = [] if self.parting is None else [str(self.parting)]
        return "\n".join([f"a: {self.a}", f"b: {self.b}", *self._asked(), *parting, *self._recomputed()])

    def to_html(self) -> str:
        """Return sentences, and a table of the leaves."""
        parts: list[str | tuple[str, str]] = [f"{self.a} | {self.b}", *self._asked()]
        if self.parting is not None:
            rows = [[leaf.path, leaf.a, leaf.changed, leaf.elements, leaf.largest, leaf.ulps] for leaf in self.parting.leaves]
            parts += self.parting.where()
            parts += [("", html_table(rows, _HEADER))] if rows else []
            parts += self.parting.in_operator()
        return fragment(*parts, *self._recomputed())

    def _asked(self) -> Iterator[str]:
        if self.verdict == "equal":
            yield f"equal: {self.compared} epochs have the same hashes"
        if self.verdict == "measured":
            yield f"No step parts them: {self.compared} epochs have the same hashes. It is in validation, its data, or a metric."
        if self.measured is not None:
            yield f"While the states were equal, what was measured of them differed: {self.measured}"
        if self.ends is not None:
            yield f"equal as far as both go ({self.compared} epochs): {self.ends}"
        if self.questions:
            yield "They were asked other questions:"
            yield from (f"  {one}" for one in self.questions)
        if self.verdict == "asked":
            yield "Nothing was computed. Where they should agree all the same, --anyway looks where they part."

    def _recomputed(self) -> Iterator[str]:
        for one in self.strayed:
            yield (
                f"not reproducible here: epoch {one.epoch} of {one.run} was recorded as {short(one.recorded)}, "
                f"and computing it again gave {short(one.now)}"
            )
        if self.envelope:
            yield "envelope:"
            yield from (f"  {one}" for one in self.envelope)
        if self.failed is not None:
            yield f"no step found: {self.failed}"
        if self.start is not None:
            total = "" if self.of is None else f", of {self.of} in each"
            begun = f"epoch {self.start}, whose state is kept" if self.start else "the beginning"
            yield f"recomputed {self.steps} steps in both runs together{total}, from {begun}"
        elif self.failed is None and self.parting is not None and self.parting.epoch and self.parting.batch is None:
            yield "With --script the epoch is computed again, down to the step."
