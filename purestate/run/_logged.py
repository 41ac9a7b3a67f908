"""What can be done with the log of a checkpoint besides asking: look at it, keep less of it, void or accept what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from purestate.errors import SetupError, StateError
from purestate.run._answers import History
from purestate.run._chain import READERS
from purestate.run._ledger import Ledger
from purestate.run._policy import Policy
from purestate.run._retain import prune
from purestate.run._shown import as_figure, as_html, as_text, history_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from purestate.run._explained import Explanation

__all__ = ["Logged", "ledger_of", "plot_metrics"]


class Logged:
    """A named log. `Checkpoint` adds the ops.

    Args:
        ledger: The records.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @property
    def id(self) -> str:
        """The name."""
        return self._ledger.id

    @property
    def description(self) -> str | None:
        """What it is about."""
        return self._ledger.description

    @property
    def head(self) -> str:
        """The digest of the last record: pin it, and nobody can shorten or rewrite the log unnoticed."""
        self._ledger.refresh()
        return self._ledger.log.head

    @property
    def history(self) -> History:
        """Lists, an entry an epoch, over all trains of the checkpoint: ``epoch``, losses, metrics, ``lr``, ``seconds``."""
        return history_of(self._ledger)

    @property
    def kept(self) -> dict[int, list[int]]:
        """The epochs whose states are kept, by train: the last and the best of its answers, and what ``keep=`` kept."""
        return {op: sorted(train.kept_epochs()) for op, train in enumerate(self._ledger.refresh().binding())}

    def explain(self) -> Explanation:
        """Say op by op what each depends on, what depends on it, and what came of it in this process.

        An op that was asked through this store was *reused*, *computed because ...*, or *would re-run because ...* where it was
        refused: what a script that just ran did, explained. Nothing but logs is read, and nothing is computed.

        Returns:
            A report that prints as text and in a notebook as a table, with ``to_json()`` and ``to_html()``.

        Example:
            >>> import purestate as ps, torch
            >>> ck, state = ps.MemoryStore().checkpoint("a", echo=None), ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
            >>> outputs = ck.predict(state, [torch.ones(3, 2)])
            >>> print(str(ck.explain()).partition("  data")[0].rstrip())
            a: 1 op is recorded
            predict (record 1): computed because no predict is recorded
              from     an initial state, seed 0
        """
        from purestate.run._explained import explain

        return explain(self._ledger)

    def prune(self, keep: Policy, op: int | None = None) -> dict[int, list[int]]:
        """Drop the states of epochs that finished trains kept and that a policy does not keep.

        Their records and hashes stay, and so do the last and the best epoch of each answer. `Store.gc` then frees the bytes,
        except for what another train began from. A dropped state can be computed again: ``ck.train(..., epochs=7)``.

        Args:
            keep: Which epochs to keep, as in ``ps.keep.last(3)``.
            op: The number of the train, from 0; all of them if left out.

        Returns:
            The epochs that were dropped, by train.

        Raises:
            StateError: There is no such train.
            MetricError: The policy ranks by a metric that a train does not have.

        Effects:
            One record a train that had something to drop.

        Example:
            >>> import purestate as ps, torch
            >>> s0 = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
            >>> s0 = ps.setup(s0, loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
            >>> ck = ps.MemoryStore().checkpoint("a", echo=None)
            >>> s1 = ck.train(s0, [(torch.ones(4, 2), torch.ones(4, 1))], epochs=8, keep=ps.keep.every(2))
            >>> ck.kept, ck.prune(ps.keep.every(4)), ck.kept
            ({0: [2, 4, 6, 8]}, {0: [2, 6]}, {0: [4, 8]})
        """
        return prune(self._ledger, keep, None if op is None else self._number(op))

    def reset(self, op: int | str = 0) -> None:
        """Void a train and those that follow, so that the chain can go on from there; or all answers of a reader.

        Their records stay readable in the log.

        Args:
            op: The number of the train, from 0; or ``'evaluate'``, ``'find_lr'``, ``'predict'``.

        Raises:
            StateError: There is no such op.

        Effects:
            One record (none for a reader without answers), and a line in the store's journal.
        """
        with self._ledger.writing() as chain:
            if isinstance(op, str):
                voided = self._answers_of(op)
                if not voided:
                    return
            else:
                voided = [train.start.seq for train in chain.trains[self._number(op) :]]
                self._ledger.backend.clear_resume(self.id)
            self._ledger.append("reset", {"of": voided})
        self._ledger.backend.journal("reset", checkpoint=self.id, op=op, head=self._ledger.log.head)

    def accept(self, op: int = 0) -> None:
        """Say that the next question which differs from a train's record has the same answer: a refactoring, for example.

        Args:
            op: The train's number, from 0.

        Effects:
            One record now and one when such a question comes, which names what differed; a line in the store's journal.
        """
        with self._ledger.writing() as chain:
            train = chain.trains[self._number(op)]
            self._ledger.append("accept", {"of": train.start.seq})
        self._ledger.backend.journal("accept", checkpoint=self.id, op=op, head=self._ledger.log.head)

    def plot_metrics(self) -> Figure:
        """Return a figure of the history: one chart a metric, training and validation together. Opens no window."""
        return as_figure([self._ledger])

    def __repr__(self) -> str:
        return as_text(self._ledger)

    def _repr_html_(self) -> str:
        return as_html(self._ledger)

    def _answers_of(self, reader: str) -> list[int]:
        if reader not in READERS:
            names = ", ".join(map(repr, READERS))
            raise StateError(
                f"there is no train {reader!r}, nor a reader of that name: trains have numbers, readers are {names}."
            )
        return [record.seq for record in self._ledger.chain.readers.values() if record.kind == reader]

    def _number(self, op: int) -> int:
        trains = self._ledger.chain.trains
        if type(op) is not int or not 0 <= op < len(trains):
            raise StateError(f"checkpoint {self.id!r} has {len(trains)} trains, numbered from 0; there is no train {op!r}.")
        return op


def ledger_of(logged: Logged) -> Ledger:
    """Return the records of a log, for reports: they tell what is in it, and add nothing."""
    return logged._ledger  # pyright: ignore[reportPrivateUsage]: the class is of this file


def plot_metrics(checkpoints: Logged | Sequence[Logged]) -> Figure:
    """Return a figure that compares the histories of several checkpoints: one chart a metric. Opens no window.

    Args:
        checkpoints: One or several, as `Store.checkpoint` or `Store.open` returned them.
    """
    several = [checkpoints] if isinstance(checkpoints, Logged) else list(checkpoints)
    for ck in several:
        if not isinstance(ck, Logged):
            raise SetupError(f"plot_metrics: expected checkpoints, got {type(ck).__name__}.", argument="checkpoints")
    return as_figure([ck._ledger for ck in several])
