"""What `verify_resume` found, for people: a verdict for each cut, and the place where the first runs part. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from purestate.core._diff import LeafDiff
from purestate.errors import ReplayError
from purestate.run._answers import counted

__all__ = ["END", "Cut", "Kind", "Parting", "ResumeReport"]

END = "end"
"""What stands for the number of a batch where the epoch has ended."""

Kind = Literal["equal", "bits", "question", "error", "anew", "unstable"]

_ADVICE: dict[Kind, tuple[str, str]] = {
    "bits": (
        (
            "Something that decides is kept beside the state, and a new process does not have it: an attribute of a dataset, a "
            "sampler, a module or a loss, a global variable, a generator with a seed of its own."
        ),
        (
            "Keep it in a buffer, compute it from the index of the sample, or draw from torch's global generator, which the key "
            "of the op seeds. guard='always' names what a step moves."
        ),
    ),
    "question": (
        "Data, code or arguments are not the same in a new process: something in them moves while the script runs.",
        "Make it the same each time; of an object __purestate_fingerprint__() says what counts.",
    ),
    "error": (
        "In a new process the script takes another way than the first time, or its data is not what it was.",
        "To see it happen, kill the script while it trains, and run it again.",
    ),
    "anew": (
        "The script removes what it trained, or asks for something else when it is run again.",
        "Ask for the same, from the same checkpoint, each time the script runs.",
    ),
    "unstable": (
        (
            "Two runs that nobody disturbed differ already: the order of a set, the time, a file that the script itself writes, "
            "a generator that nobody seeded."
        ),
        "Sort sets, and seed what draws; ck.root(state) keeps weights that nobody seeded. Each run had another PYTHONHASHSEED.",
    ),
}


@dataclass(frozen=True)
class Cut:
    """A run that was killed between two steps and run again.

    Args:
        checkpoint: In which one.
        op: In which train of it.
        epoch: In which of its epochs.
        batch: Behind which batch of that.
        kind: ``'equal'``: it ended as the undisturbed run did. Else ``'bits'``: other bits; ``'question'``: the new process
            asked another question; ``'error'``: it ended with an error; ``'anew'``: it did not go on from the resume point;
            ``'unstable'``: it was another run before it was cut.
        finding: The first difference, in words; of an error all of its text.
    """

    checkpoint: str
    op: int
    epoch: int
    batch: int
    kind: Kind = "equal"
    finding: str = ""


@dataclass(frozen=True)
class Parting:
    """The first step at which two runs part.

    Args:
        checkpoint: In which one.
        op: In which train of it.
        epoch: In which of its epochs.
        batch: Its batch, from 1; None where the steps were the same, and what comes at the end of an epoch was not.
        step: The step within the train, from 1; None likewise.
        same_batch: Whether both were given the same batch; None where that is not known.
        leaves: What differs in the two states: the first is of the undisturbed run.
    """

    checkpoint: str
    op: int
    epoch: int
    batch: int | None
    step: int | None
    same_batch: bool | None
    leaves: tuple[LeafDiff, ...]

    def __str__(self) -> str:
        where = f"train {self.op} of {self.checkpoint!r}, epoch {self.epoch}"
        if self.batch is None:
            lines = [f"{where}: all steps give the same bits, and the end of the epoch does not."]
        else:
            lines = [f"{where}, batch {self.batch} (step {self.step}) is the first that gives other bits."]
            if self.same_batch is not None:
                lines += [
                    "Both runs were given the same batch: it is the module, the loss or the optimizer."
                    if self.same_batch
                    else "The batch was another: it is the data."
                ]
        lines += [f"  {_leaf(leaf)}" for leaf in self.leaves[:_SHOWN]]
        if len(self.leaves) > _SHOWN:
            lines.append(f"  and {len(self.leaves) - _SHOWN} more")
        return "\n".join(lines)


_SHOWN = 4


def _leaf(leaf: LeafDiff) -> str:
    if leaf.changed is None:
        return f"{leaf.path}: {leaf.a}, resumed {leaf.b}"
    return f"{leaf.path} {leaf.a}: {counted(leaf.changed, 'element')}, by up to {leaf.largest:.3g}"


@dataclass(frozen=True, repr=False)
class ResumeReport:
    """What `verify_resume` found. Its text says all of it.

    Args:
        script: What was run.
        steps: How many training steps it has.
        cuts: Where it was cut, and what came of it.
        parting: Where the first runs that differ part; None where none do, or where no step of them does.
    """

    script: str
    steps: int
    cuts: tuple[Cut, ...]
    parting: Parting | None = None

    @property
    def ok(self) -> bool:
        """Whether every resumed run ended as the undisturbed one did."""
        return all(cut.kind == "equal" for cut in self.cuts)

    def check(self) -> Self:
        """Return the report.

        Raises:
            ReplayError: Not every resumed run ended as the undisturbed one did.
        """
        if not self.ok:
            raise ReplayError(str(self))
        return self

    def __str__(self) -> str:
        from purestate.view import text_table

        bad = [cut for cut in self.cuts if cut.kind != "equal"]
        n, steps = len(self.cuts), counted(self.steps, "step")
        like = f"{n - len(bad)} of {n} ended like the undisturbed run"
        blocks = [f"{self.script}: killed behind {n} of {steps} and run again, {like}.", text_table(self._rows(), _HEADER)]
        if self.parting is not None:
            blocks.append(str(self.parting))
        if bad:
            blocks.append("\n".join([*bad[0].finding.splitlines()[1:], *_ADVICE[bad[0].kind]]))
        return "\n\n".join(blocks)

    __repr__ = __str__

    def _rows(self) -> list[list[object]]:
        return [[cut.checkpoint, cut.op, cut.epoch, cut.batch, (cut.finding or cut.kind).splitlines()[0]] for cut in self.cuts]


_HEADER = ["checkpoint", "train", "epoch", "after batch", "run again"]
