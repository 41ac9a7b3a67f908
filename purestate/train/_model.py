"""`Model`: a module, the state of its training, and the checkpoints it went through. A shell over `run`.

It holds one state and one store. Every method takes the state, calls an op or selects a snapshot, and keeps the new state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purestate.core._hash import short
from purestate.core._init import init
from purestate.core._recipe import Recipe
from purestate.core._state import Origin, State
from purestate.errors import MissingSnapshotError, SetupError, StaleRecordError, StateError, TreeMismatchError
from purestate.run import Checkpoint, CheckpointInfo, EpochView, MemoryStore, NullStore, Store
from purestate.run._answers import counted
from purestate.run._chain import RecordLike, Trajectory
from purestate.run._ledger import Ledger
from purestate.run._load import answer_of, backup_of, metrics_of, snapshot_of
from purestate.run._rebuild import rebuild
from purestate.train._board import Board
from purestate.train._checkpoint import Cache, ModelCheckpoint
from purestate.train._delete import delete_model, remove_runs
from purestate.train._entrance import Entrances
from purestate.train._live import LiveModule
from purestate.train._ops import Trains
from purestate.train._params import count_line, params_table
from purestate.train._place import Id, Place, checkpoint_word, here, sort_key, word
from purestate.train._said import said
from purestate.train._states import keep_schedulers, leaves_from

__all__ = ["Model"]


class Model(Trains):
    """A module with the state of its training, and checkpoints that answer for it.

    The first model of an id records its initial state. Later ones begin with that, whatever weights their module has, so
    that a script which seeds nothing can be run again.

    Args:
        id: Letters, digits, ``.``, ``_``, ``-``.
        module: Moves to the accelerator, if there is one. It stays the user's to look at: see `model`.
        description: What it is about; recorded.
        seed: Seeds all randomness of training. The module's weights are taken as they are.
        store: Where checkpoints are kept: ``ckpts`` in the root folder, see `set_root_folder`, if left out.

    Raises:
        InvalidIdError: The id cannot name a model.
        TreeMismatchError: A module of another structure was recorded under this id; the first differing leaves are named.
        StaleRecordError: One was recorded with another seed.
        UnsupportedError: The module cannot be made pure, as one with lazy parameters.

    Effects:
        The first time, the initial state in the store. Prints one line of parameter counts.

    Example:
        >>> import torch
        >>> from purestate import train
        >>> loader = torch.utils.data.DataLoader([(torch.ones(2), torch.ones(1))] * 4, batch_size=2)
        >>> model = train.Model("line", torch.nn.Linear(2, 1))
        Trainable params: 3. Untrainable params: 0. Buffers: 0.
        >>> with model.checkpoint(1) as cp:
        ...     _ = cp.setup(loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
        ...     history = cp.train(loader, epochs=2, load_best=False)  # doctest: +ELLIPSIS
        Epoch 1/2: train_loss=...
        Epoch 2/2: train_loss=...
        >>> model.epoch, model.step
        (2, 4)
    """

    def __init__(
        self,
        id: str,
        module: nn.Module,
        description: str | None = None,
        *,
        seed: int = 0,
        store: Store | MemoryStore | None = None,
    ) -> None:
        self.id, self.description = word(id, "the id of a model"), description
        self.place: Place = here()
        self.place.name(id, 0)  # an id that cannot be joined is refused now
        if not isinstance(module, nn.Module):
            raise SetupError(
                f"Model: expected a torch.nn.Module, got {type(module).__name__}.",
                fix="Build it: train.Model('id', MyModule()).",
                argument="module",
            )
        if not isinstance(store, Store | MemoryStore | None):
            raise SetupError(
                f"Model: expected store to be a Store or a MemoryStore, got {type(store).__name__}.",
                fix="store=ps.Store(path); or without a log: model.train(...) outside of a block.",
                argument="store",
            )
        self.store: Store | MemoryStore = Store(self.place.store) if store is None else store
        if torch.accelerator.is_available():
            module = module.to(torch.accelerator.current_accelerator())
        initial = init(module, seed=seed)
        self._state = self._initial = self._rooted(initial)
        self._live = LiveModule(module, initial, self.id)
        self._acts = initial.origin.acts
        self._entrances = Entrances(self.store._backend, self._recipe_of)
        self._recipes: dict[str, Recipe | None] = {}
        self._block: ModelCheckpoint | None = None
        print(count_line(initial))

    # ---------------------------------------------------------------- state and module

    @property
    def state(self) -> State:
        """The state: an immutable value. Hold it, train on, and it is what it was; assign it, and the model is there again."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        if not isinstance(state, State):
            raise StateError(
                f"model {self.id!r}: expected a State, got {type(state).__name__}.",
                fix="model.state = other.state, or model.load_state_dict(...) for tensors by name.",
            )
        self._outside("model.state = ...")
        self._live.must_be_untouched()
        if state.recipe is None:
            state = state.replace(recipe=self._state.recipe, origin=state.origin)
        self._live.must_fit(state)
        self._state = state

    @property
    def model(self) -> nn.Module:
        """The module, holding the parameters and buffers of the state. It is filled when somebody looks.

        It is in eval mode when the state is another one than at the last look; else in the mode that it was left in.

        What is done to it does not train: the next block notices, and says how to `adopt` it or to `discard` it.
        """
        return self._live.look(self._state)

    @property
    def epoch(self) -> int:
        """Finished epochs of the state, over all checkpoints that it went through."""
        return self._state.counters.epoch

    @property
    def step(self) -> int:
        """Steps of the optimizer, likewise."""
        return self._state.counters.step

    def adopt(self) -> None:
        """Make a new state of the live module as it is.

        Where names, shapes and what requires a gradient are as they were, optimizer and schedulers go on; else they start
        afresh.

        Raises:
            MutatedStateError: The module holds an earlier state than the model: nobody has looked at `model` since.
        """
        self._outside("adopt")
        self._state = self._live.adopt(self._state)

    def discard(self) -> None:
        """Drop whatever was done to the live module. Where that was more than to its tensors, `model` is another object then."""
        self._live.discard(self._state)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what ``module.state_dict()`` has, as copies: training on does not change it."""
        self._live.must_be_untouched()
        return self._state.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Go on from tensors by name: a new state, with the optimizer, schedulers and counters that there are.

        Args:
            state_dict: From `state_dict`, or ``module.state_dict()``. Copied.

        Raises:
            TreeMismatchError: Names, shapes or dtypes differ; the first is named.
        """
        self._outside("load_state_dict")
        self._live.must_be_untouched()
        for name in sorted(set(state_dict) ^ set(self._state.state_dict())):
            who, other = ("the given one", "the model") if name in state_dict else ("the model", "the given one")
            raise TreeMismatchError(
                f"load_state_dict, model {self.id!r}: {who} has {name!r}, and {other} has not.",
                cause="A state holds tensors, and no extra state of a module: leave it out."
                if name.endswith("_extra_state")
                else "It is of a module of another structure.",
                path=name,
            )
        self._state = self._state.replace(**leaves_from(state_dict, self._state))

    def print_params(self, full: bool = True) -> None:
        """Print how many parameters there are.

        Args:
            full: A line for each tensor, layer by layer; else only the counts.
        """
        print((params_table if full else count_line)(self._state))

    # ---------------------------------------------------------------- checkpoints

    def checkpoint(self, id: Id, description: str | None = None) -> ModelCheckpoint:
        """Return a checkpoint. In a ``with`` block it trains; as an object it evaluates what it has trained.

        Args:
            id: A number or a word. Numbers sort as numbers, and 1.5 is between 1 and 2. The word ``'1'`` is another one than 1.
            description: What it is about; recorded with its first record.

        Raises:
            InvalidIdError: The id cannot name a checkpoint.
        """
        return ModelCheckpoint(self, id, description)

    def cache(self, id: Id) -> Cache:
        """Return what asks about the final state of a checkpoint, and remembers the answers.

        Args:
            id: As for `checkpoint`.
        """
        return Cache(self, id)

    def load_checkpoint(self, id: Id, from_backup: bool = False, load_schedulers: bool = True) -> None:
        """Go to the state at the end of a checkpoint: parameters, optimizer, schedulers, key and counters.

        Args:
            id: As for `checkpoint`.
            from_backup: Take the best epoch, where the checkpoint returned its last (``load_best=False``). Without such a
                backup it says so and takes the last.
            load_schedulers: Else the schedulers of the model stay, with the learning rates that they have come to.

        Raises:
            MissingSnapshotError: Nothing was trained under that id.
            StateError: The process has not run the block, and its components cannot be made again from the record.

        Effects:
            Prints what it loaded. Bytes are read when somebody looks.
        """
        self._outside("load_checkpoint")
        self._live.must_be_untouched()
        log = ModelCheckpoint(self, id)._log
        state = self._final_state(log, id)
        train, record = self._answer(log)
        backup = backup_of(record)
        if from_backup and backup is None:
            print(
                f"Checkpoint {id!r} of {self.id} has no backup: its last state is the best one, or was loaded. Taking the latest."
            )
        best = from_backup and backup is not None
        if best:
            state = self._restored(log, best=True)
        if not load_schedulers:
            state = keep_schedulers(state, self._state)
        self._state = state
        which = f"the best epoch of checkpoint {id!r}" if best else f"checkpoint {id!r}"
        metrics = said(metrics_of(train, record, best=best))
        print(f"Loaded {self.id} from {which}: epoch={self.epoch}, step={self.step}{', ' if metrics else ''}{metrics}.")

    def delete_checkpoint(self, id: Id) -> None:
        """Remove a checkpoint: its log, and its TensorBoard files. A model that is at its end goes back to where it began.

        Args:
            id: As for `checkpoint`.

        Effects:
            Removes files; prints what. Parameters stay in the store, since other checkpoints may share them.
        """
        self._outside("delete_checkpoint")
        self._live.must_be_untouched()
        name = self.place.name(self.id, id)
        if name not in self.store._backend.ids():
            print(f"{self.id} has no checkpoint {id!r} to delete.")
            return
        parent, back, where = self._state.origin.parent, self._state, ""
        if parent is not None and parent["checkpoint"] == name:
            try:
                back, where = self._entrances.first_input(self._log(name)._ledger, back), " The model is where it was before it."
            except MissingSnapshotError:
                back, where = self._initial, " What it began from is gone, so the model is where it was at first."
        self.store.delete(name)
        remove_runs(self.place.runs / self.id, checkpoint_word(id))
        self._recipes.pop(name, None)
        self._state = back
        print(f"Deleted checkpoint {id!r} of {self.id}.{where}")

    def delete(self) -> None:
        """Remove the model and all its checkpoints. The object goes back to its initial state, and can be used again.

        Effects:
            Removes files; prints what.
        """
        self._outside("delete")
        initial = self._initial.own().replace(origin=Origin(None, self._acts))
        delete_model(self.id, store=self.store, place=self.place)
        self._initial = self._state = initial
        self._recipes.clear()
        self._entrances = Entrances(self.store._backend, self._recipe_of)

    def checkpoints(self) -> list[CheckpointInfo]:
        """Return what is known of the checkpoints, by id, without reading a tensor."""
        named = [(self.place.own(self.id, info.id), info) for info in self.store.checkpoints()]
        own = [(sort_key(word), info) for word, info in named if word is not None]
        return [info for _, info in sorted(own, key=lambda pair: pair[0])]

    def write_tensorboard(self, example: Any = None) -> Path:
        """Write TensorBoard's files of all checkpoints again, from the log, and return the folder.

        Args:
            example: A batch as a loader gives it. With one the graph is written, too.

        Raises:
            MissingExtraError: TensorBoard is not installed.

        Effects:
            Replaces TensorBoard's files under ``runs/``; prints why there is no graph, if the module cannot be traced.
        """
        folder = self.place.runs / self.id
        for info in self.checkpoints():
            board = Board(folder / (self.place.own(self.id, info.id) or ""), Ledger(self.store._backend, info.id))
            board.rewrite()
            board.close()
            if example is not None:
                board.graph(self._state, example)
        return folder

    # ---------------------------------------------------------------- shown

    def __repr__(self) -> str:
        rows = [f"Model({self.id!r}{f', {self.description!r}' if self.description else ''})", f"  {count_line(self._state)}"]
        rows.append(f"  at epoch {self.epoch}, step {self.step}, {short(self._state.hash)}")
        for info in self.checkpoints():
            rows.append("  " + "  ".join(str(cell) for cell in self._row(info) if cell))
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        from purestate.view import html_table

        rows = [self._row(info) for info in self.checkpoints()]
        table = html_table(rows, ["checkpoint", "description", "epochs", "metrics", "state"])
        return f"<p><b>{self.id}</b>, epoch {self.epoch}, step {self.step}, {short(self._state.hash)}</p>{table}"

    def _row(self, info: CheckpointInfo) -> list[str]:
        metrics = {name: value for name, value in info.metrics.items() if name.startswith("val_")} or info.metrics
        return [
            self.place.own(self.id, info.id) or "",
            info.description or "",
            counted(info.epochs, "epoch"),
            said(metrics),
            short(info.state) if info.state else "",
        ]

    # ---------------------------------------------------------------- for the ops, and for checkpoints

    def _asked(self) -> tuple[Checkpoint, State]:
        self._live.must_be_untouched()
        return NullStore().checkpoint(self.id, echo=None, notify=print), self._state

    def _trains(self) -> tuple[Checkpoint, State]:
        self._outside("model.train and model.setup")
        return self._asked()

    def _took(self, state: State) -> None:
        if self._block is None and state.origin == Origin():  # the answer of a train that no log has
            self._entrances.went_on(self._state, state)
        self._state = state

    def _told(self, epoch: EpochView, train_dl: Any) -> None:
        """Nobody follows what is not recorded."""

    def _enter(self, block: ModelCheckpoint, log: Checkpoint) -> None:
        """Begin a block: at the model's state, or where the block began when it was run before."""
        self._outside(f"checkpoint {block.id!r}")
        self._live.must_be_untouched()
        if self._state is self._initial and self._initial.origin.parent is None:  # the model was deleted since
            self._state = self._initial = self._rooted(self._initial)
        before = self._state
        self._state = self._entrances.enter(log._ledger, before, f"checkpoint {block.id!r} of model {self.id!r}")
        self._block = block
        left_out = {act for acts in before.origin.acts for act in acts} & {"adopt", "replace"}
        if left_out and self._state is not before:
            print(f"Checkpoint {block.id!r} is run again, from where it began: without what {self.id} was given by hand since.")

    def _leave(self, log: Checkpoint) -> None:
        self._block = None
        self._entrances.leave(log.id, self._state)
        if self._entrances.left_with(log.id) is not None:
            self._recipes[log.id] = self._state.recipe

    def _outside(self, what: str) -> None:
        if self._block is not None:
            raise SetupError(
                f"model {self.id!r}: {what} was called inside the block of checkpoint {self._block.id!r}.",
                cause="A block trains one checkpoint from the state that it began with.",
                fix="End the block first. Inside of it there are cp.setup, cp.train, cp.evaluate and cp.find_lr.",
            )

    def _final_state(self, log: Checkpoint, id: Id) -> State:
        """The state that a checkpoint ended with, as the model would have it after `load_checkpoint`."""
        if not any(log._ledger.refresh().finished()):
            raise MissingSnapshotError(
                f"checkpoint {id!r} of model {self.id!r} has not been trained.",
                fix=f"Train it first: with model.checkpoint({id!r}) as cp: cp.train(...)",
            )
        return self._restored(log, best=False)

    def _answer(self, log: Checkpoint) -> tuple[Trajectory, RecordLike]:
        """The answer that a checkpoint ended with: the one that its block left, if this process ran it; else the newest."""
        left = self._entrances.left_with(log.id)
        answers = [(train, record) for train in log._ledger.refresh().trains for record in train.done]
        return next((answer for answer in answers if answer[1].digest == left), None) or answer_of(log._ledger)

    def _restored(self, log: Checkpoint, *, best: bool) -> State:
        train, record = self._answer(log)
        state = log._ledger.restore(snapshot_of(record, best=best), self._recipe(log), self._state.device)
        return state.answered(log._ledger.parent(train, record, state.hash, record.body["last"]))

    def _recipe(self, log: Checkpoint) -> Recipe | None:
        """What the block of a checkpoint set up: known if this process ran it, else made again from its record."""
        if log.id not in self._recipes:
            train, _ = answer_of(log._ledger)
            assert self._state.recipe is not None
            self._recipes[log.id] = rebuild(self._state.recipe, train.question["parts"], f"checkpoint {log.id!r}")
        return self._recipes[log.id]

    def _recipe_of(self, parent: Mapping[str, Any]) -> Recipe | None:
        """What the state of a record was set up with."""
        if parent["op"] is None:
            return self._initial.recipe
        return self._recipe(self._log(parent["checkpoint"]))

    def _log(self, name: str) -> Checkpoint:
        return self.store.checkpoint(name, echo=None, notify=print)

    def _rooted(self, initial: State) -> State:
        ck = self.store.checkpoint(self.id, description=self.description, echo=None, notify=print)
        fix = f"Take another id, undo the change, or begin anew: train.delete_model({self.id!r}) removes it and its checkpoints."
        try:
            return ck.root(initial)
        except TreeMismatchError as error:
            names = dict(path=error.path, expected=error.expected, actual=error.actual)
            raise TreeMismatchError(error.problem, cause=error.cause, fix=fix, **names) from None
        except StaleRecordError as error:
            names = dict(checkpoint=error.checkpoint, changes=error.changes)
            raise StaleRecordError(error.problem, cause=error.cause, fix=fix, **names) from None
