"""A checkpoint of a model: a ``with`` block that trains, an object that evaluates; and `Cache`, which only evaluates."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from purestate.core._hash import short
from purestate.core._plain import decode
from purestate.core._state import COMPONENTS, State
from purestate.errors import SetupError
from purestate.run import Checkpoint, EpochView
from purestate.run._answers import History, counted
from purestate.run._chain import READERS
from purestate.run._load import metrics_of
from purestate.run._policy import Policy
from purestate.run._setup import SetupOptions
from purestate.train._board import Board
from purestate.train._ops import Reads, Trains, advice
from purestate.train._place import Id, checkpoint_word
from purestate.train._plot import plot_metrics
from purestate.train._said import said
from purestate.train._tensorboard import available

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from purestate.train._model import Model

__all__ = ["Cache", "ModelCheckpoint"]

_CACHED = ("evaluate", "find_lr")
_MADE_BY = ("class.code", "function.code", "fn.code", "value.code")


class _Named(Reads):
    """What a checkpoint and its cache share: the log, and how it is shown."""

    def __init__(self, model: Model, id: Id, description: str | None = None) -> None:
        self._model, self.id = model, id
        name = model.place.name(model.id, id)
        self._log: Checkpoint = model.store.checkpoint(name, description=description, echo=None, notify=print)

    @property
    def description(self) -> str | None:
        """What it is about."""
        return self._log.description

    @property
    def history(self) -> History:
        """Lists, an entry an epoch, over all trains of the checkpoint."""
        return self._log.history

    def _asked(self) -> tuple[Checkpoint, State]:
        return self._log, self._model._final_state(self._log, self.id)

    def _rows(self) -> list[tuple[str, str]]:
        chain = self._log._ledger.refresh()
        finished = list(chain.finished())
        answers: dict[str, int] = {}
        for record in chain.readers.values():
            answers[record.kind] = answers.get(record.kind, 0) + 1
        rows = [("model", self._model.id), ("checkpoint", f"{self.id!r}, in the store {self._log.id!r}")]
        rows += [("description", self.description)] if self.description else []
        rows += [("persisted", counted(len(finished), "train") if finished else "no")]
        if finished:
            _, train, record = finished[-1]
            rows += [("metrics", said(metrics_of(train, record, best=False)))]
            rows += [("state", short(record.body["out"]["hash"])), ("setup", _setup_of(train.question["parts"]))]
        rows += [("cached", ", ".join(f"{name} ({count})" for name, count in answers.items()) or "nothing")]
        return rows

    def __repr__(self) -> str:
        return "\n".join(f"{name:<12} {text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        from purestate.view import html_table

        (_, model), (_, checkpoint), *rows = self._rows()
        return html_table(rows, [model, f"checkpoint {checkpoint}"])


class ModelCheckpoint(_Named, Trains):
    """A checkpoint of a model. Made by `Model.checkpoint`.

    In a ``with`` block it trains: `setup` at most once, `train` as often as wanted. The block may be run again: what was
    trained comes from the log. Outside of a block it evaluates the state that the checkpoint ended with.

    Example:
        >>> import torch
        >>> from purestate import train
        >>> loader = torch.utils.data.DataLoader([(torch.ones(2), torch.ones(1))] * 4, batch_size=2)
        >>> model = train.Model("line", torch.nn.Linear(2, 1))
        Trainable params: 3. Untrainable params: 0. Buffers: 0.
        >>> with model.checkpoint(1) as cp:
        ...     _ = cp.setup(loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
        ...     history = cp.train(loader, loader, epochs=1)  # doctest: +ELLIPSIS
        Initial val_loss=...
        Epoch 1/1: train_loss=..., val_loss=...
        Best: ...
        >>> history["val_loss"][0] == model.checkpoint(1).evaluate(loader)["loss"]
        True
    """

    def __init__(self, model: Model, id: Id, description: str | None = None) -> None:
        super().__init__(model, id, description)
        self._open = self._was_set_up = False
        self._board = Board(model.place.runs / model.id / checkpoint_word(id), self._log._ledger)

    def __enter__(self) -> Self:
        self._model._enter(self, self._log)
        self._open, self._was_set_up = True, False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open = False
        self._model._leave(self._log)
        self._board.close()

    def setup(self, **options: Unpack[SetupOptions]) -> Self:
        """Decide how the model is trained: once in a block, at its beginning. What is not named stays with its state.

        Args:
            **options: ``loss_cls``; ``optimizer_cls`` with ``optimizer_args``, or ``optimizer_fn(params)``; the same for
                ``epoch_scheduler_*`` and ``step_scheduler_*``, with ``_fn(optimizer)``; ``clear_epoch_scheduler``,
                ``clear_step_scheduler``; and the others of `purestate.setup`, which describes them all.

        Returns:
            The checkpoint itself.

        Raises:
            SetupError: An argument does not fit, or this is the second call in a block.
        """
        if self._open and self._was_set_up:
            raise SetupError(
                f"setup was called twice in the block of checkpoint {self.id!r}.",
                cause="A block has one setup, which all its trains share.",
                fix="Put both in one call, or train with the other one in another checkpoint.",
            )
        super().setup(**options)
        self._was_set_up = True
        return self

    def plot_metrics(self, hist: Mapping[str, Any] | None = None) -> Figure:
        """Draw one chart a metric, training and validation together, over all trains of the checkpoint.

        Args:
            hist: Draw this history instead: what `train` returned.

        Returns:
            The figure, which a notebook shows also where it is not the last value of a cell. No window opens.
        """
        with advice():
            figure = self._log.plot_metrics() if hist is None else plot_metrics(hist)
        if self._open and "ipykernel.zmqshell" in sys.modules:
            from IPython.display import display  # pyright: ignore[reportMissingImports]

            display(figure)
        return figure

    @property
    def kept(self) -> dict[int, list[int]]:
        """The epochs whose states are kept, by train, see `purestate.Checkpoint.kept`."""
        return self._log.kept

    def prune(self, keep: Policy, op: int | None = None) -> dict[int, list[int]]:
        """Drop epochs that were kept and that a policy does not keep, see `purestate.Checkpoint.prune`.

        Args:
            keep: Which epochs to keep.
            op: The number of the train, from 0; all of them if left out.

        Returns:
            The epochs that were dropped, by train. ``model.store.gc()`` frees their bytes.
        """
        return self._log.prune(keep, op)

    def reset(self, op: int = 0) -> None:
        """Void a train of the checkpoint and those that follow, see `purestate.Checkpoint.reset`.

        Args:
            op: The number of the train, from 0.
        """
        self._log.reset(op)

    def accept(self, op: int = 0) -> None:
        """Say that the next question which differs from a train's record has the same answer, see `purestate.Checkpoint.accept`.

        Args:
            op: The number of the train, from 0.
        """
        self._log.accept(op)

    def _asked(self) -> tuple[Checkpoint, State]:
        return (self._log, self._model.state) if self._open else super()._asked()

    def _trains(self) -> tuple[Checkpoint, State]:
        if not self._open:
            raise SetupError(
                f"checkpoint {self.id!r}: setup and train belong in a block.",
                fix=f"with model.checkpoint({self.id!r}) as cp: cp.train(...)",
            )
        self._model._live.must_be_untouched(to_the_bit=False)
        return self._log, self._model.state

    def _took(self, state: State) -> None:
        self._model._took(state)

    def _told(self, epoch: EpochView, train_dl: Any) -> None:
        if not epoch.cached and available():
            self._board.follow(epoch, self._model.state, train_dl)


def _setup_of(parts: Mapping[str, Any]) -> str:
    """What a question says of loss, optimizer and schedulers, in words."""
    found: list[str] = []
    for kind in ("loss", *COMPONENTS):
        made_by = next((parts[key] for end in _MADE_BY if (key := f"recipe.{kind}.{end}") in parts), None)
        args = {
            key.removeprefix(f"recipe.{kind}.args."): value
            for key, value in parts.items()
            if key.startswith(f"recipe.{kind}.args.")
        }
        if made_by is not None:
            shown = ", ".join(f"{name}={decode(value)!r}" for name, value in args.items())
            found.append(f"{str(made_by).rpartition('.')[2]}({shown})")
    return ", ".join(found)


class Cache(_Named):
    """The final state of a checkpoint, to be asked about; the answers are kept in its log. Made by `Model.cache`.

    Each question has its own answer, so a second one does not get the first one's.

    Example:
        >>> import torch
        >>> from purestate import train
        >>> model = train.Model("line", torch.nn.Linear(2, 1))
        Trainable params: 3. Untrainable params: 0. Buffers: 0.
        >>> model.cache(1).evaluate([(torch.ones(1, 2), torch.ones(1, 1))])
        Traceback (most recent call last):
        purestate.errors.MissingSnapshotError: checkpoint 1 of model 'line' has not been trained.
        Train it first: with model.checkpoint(1) as cp: cp.train(...)
    """

    def delete(self, name: str | None = None) -> None:
        """Void the answers of an op, so that they are computed again when they are asked for.

        Args:
            name: ``'evaluate'`` or ``'find_lr'``; all of them if left out.

        Raises:
            SetupError: There is no such op.

        Effects:
            A record; nothing if there is no answer.
        """
        if name is not None and name not in _CACHED:
            raise SetupError(
                f"cache of checkpoint {self.id!r}: there are no answers of {name!r}; there are those of "
                f"{' and '.join(map(repr, _CACHED))}.",
                argument="name",
            )
        for reader in READERS if name is None else (name,):
            self._log.reset(reader)
