"""The TensorBoard files of one checkpoint: a fold over its log, and over the epochs of a train as they come."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from purestate.core._init import to_module
from purestate.core._module import fresh_copy
from purestate.core._plain import decode
from purestate.core._state import State
from purestate.data._feed import feed
from purestate.errors import MissingExtraError
from purestate.run import EpochView
from purestate.run._ledger import Ledger
from purestate.train._tensorboard import Scalars, rewrite, write_graph

__all__ = ["Board"]


class Board:
    """What TensorBoard is told of a checkpoint.

    Args:
        folder: Where its files go.
        ledger: The checkpoint's records.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder, self._ledger = folder, ledger
        self._scalars: Scalars | None = None
        self._broken = False

    def rewrite(self) -> None:
        """Write all recorded epochs, in place of what is there."""
        self.close()
        epochs: list[tuple[int, dict[str, float], list[float]]] = []
        for op, train in enumerate(self._ledger.refresh().trains):
            last = train.done[-1].body["last"] if train.done else max(train.epochs, default=0)
            bodies = [train.epochs[n].body for n in range(last + 1) if n in train.epochs and (n or not op)]
            epochs += [(body["epoch"], decode(body["metrics"]), body["lr"]) for body in bodies]
        self._scalars = rewrite(self._folder, epochs)

    def follow(self, epoch: EpochView, state: State, loader: Any) -> None:
        """Add an epoch that was computed and is recorded; with the first one, the graph of a model that begins.

        A disk that cannot be written stops the curves and not the training, whose log has all of them.
        """
        try:
            if self._scalars is not None and epoch.n:
                self._scalars.add(epoch.epoch, epoch.metrics, epoch.lr)
            elif self._scalars is None and not self._broken:
                self.rewrite()
                if state.counters.epoch == 0:
                    self._graph_of(state, loader)
        except (OSError, MissingExtraError) as error:
            self.close()
            self._broken = True
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        print(f"TensorBoard: {self._folder} cannot be written ({error}). model.write_tensorboard() does it from the log.")

    def graph(self, state: State, batch: Any) -> None:
        """Write the graph of a state's module, or print why there is none."""
        assert state.recipe is not None
        module = to_module(state, fresh_copy(state.recipe.template))
        if (reason := write_graph(self._folder, module, batch)) is not None:
            print(f"TensorBoard: {reason}")

    def _graph_of(self, state: State, loader: Any) -> None:
        """Write the graph with the first batch of a loader, which is not moved."""
        with closing(feed(loader, device=state.device)) as batches, closing(batches.epoch(state.key)) as epoch:
            self.graph(state, next(epoch))

    def close(self) -> None:
        """Close the files."""
        scalars, self._scalars = self._scalars, None
        if scalars is not None:
            try:
                scalars.close()
            except OSError as error:
                self._tell(error)
