"""The process that `verify_resume` starts: a user's script, with its stores elsewhere, cut between two steps or traced.

Everything that is put in another place here is put there in this process only, which runs nothing else. What is compared,
and what that means, is in `_verify`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from purestate.core._batch import Batch
from purestate.core._position import Position
from purestate.core._state import State
from purestate.core._train import Epoch
from purestate.data._feed import feed
from purestate.data._position import batch_digest
from purestate.run import _again, _compute
from purestate.run._again import TellingFeed
from purestate.run._resume import Resumed, ResumePoints
from purestate.run._script import play
from purestate.run._verdict import END
from purestate.store._disk import DiskBackend
from purestate.store._placed import elsewhere

__all__ = ["main"]

Place = list[Any]
"""Store, checkpoint, train, epoch."""


def main(orders: dict[str, Any]) -> None:
    """Run the target of the orders as this process's script.

    Args:
        orders: ``target``: a path, or a module and a function. ``args``: of the script. ``stores``: the folder in which stores
            are put, numbered as they are first named. ``events``: the file that says what happened, a line of JSON each.
            ``cut``: a place and a batch after which a resume point is made durable and the process killed. ``trace``: a
            place, the steps of whose epoch are hashed, after which the process is killed. ``expected``: the hashes of an
            earlier trace; at the first other one it is cut.
    """
    _Watched.orders = ours = _Orders(orders)
    elsewhere(ours.moved)
    _compute.__dict__["ResumePoints"] = _Watched
    if ours.trace is not None:
        _again.__dict__["feed"] = lambda loader, **options: TellingFeed(feed(loader, **options), ours.on_batch)
    try:
        play(orders, "verify")
    except Exception as error:  # the script may raise anything: it is told to who asked, and goes on
        ours.tell(error=f"{type(error).__name__}: {error}")
        raise


class _Orders:
    """What is to happen, and what happened."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.stores = Path(orders["stores"])
        self.cut: Place | None = orders.get("cut")
        self.trace: Place | None = orders.get("trace")
        self.expected: dict[str, Any] | None = orders.get("expected")
        self.batch: str | None = None
        """The digest of the batch that was given last."""
        self._events = Path(orders["events"])
        self._paths: list[Path] = []

    def moved(self, path: Path) -> Path:
        """Return where a folder that the script names is in this process: by number, so that temporary names do not matter."""
        if path not in self._paths:
            self._paths.append(path)
            self.tell(folder=os.fspath(path))
        return self.stores / str(self._paths.index(path))

    def on_batch(self, batch: Batch) -> None:
        """Note what the next step is given."""
        self.batch = batch_digest(batch)  # now: forward may write to it

    def tell(self, **event: Any) -> None:
        """Note what happened; there even if this process is killed next."""
        with self._events.open("a") as file:
            file.write(json.dumps(event) + "\n")


class _Watched(ResumePoints):
    """Resume points that are taken where it was ordered, and nowhere else."""

    orders: ClassVar[_Orders]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        backend = self._ledger.backend
        # what is in memory is gone with the process, so there is no place in it to be cut at
        store = backend.path.name if isinstance(backend, DiskBackend) else None
        self._place: Place = [store, self._ledger.id, self._ledger.chain.index(self._train)]
        self._n = self._batch = 0  # the epoch, and its batches so far

    def load(self) -> Resumed:
        found = super().load()
        if (position := found.position) is not None and self._is(self.orders.trace, position.n):
            self._trace(position.batch, position.state, position)
        return found

    def between(self, position: Callable[[], Position] | None, *, trained: bool) -> None:
        if trained and position is not None:
            self._count(position)
            if self._is(self.orders.cut, self._n, self._batch):
                self._cut(position())
            elif self._is(self.orders.trace, self._n):
                now = position()
                self._trace(now.batch, now.state, now)
        super().between(position, trained=trained)

    def after(self, epoch: Epoch) -> None:
        if epoch.n and self._place[0] is not None:
            self.orders.tell(place=[*self._place, epoch.n], steps=self._batch)
        if self._is(self.orders.cut, epoch.n, END):
            self._cut(epoch)
        if self._is(self.orders.trace, epoch.n):
            self._trace(END, epoch.state, epoch)
            _die()
        self._n, self._batch = epoch.n + 1, 0
        super().after(epoch)

    def _is_due(self, *, epoch: bool) -> bool:
        return False

    def _count(self, position: Callable[[], Position]) -> None:
        """Count this batch. Where a train goes on, only the position tells where it is."""
        if self._n == 0:
            now = position()
            self._n, self._batch = now.n, now.batch
        else:
            self._batch += 1

    def _is(self, place: Place | None, n: int, *batch: int | str) -> bool:
        return place == [*self._place, n, *batch]

    def _trace(self, batch: int | str, state: State, where: Position | Epoch) -> None:
        self.orders.tell(batch=batch, hash=state.hash, data=None if batch == END else self.orders.batch)
        if self.orders.expected is not None and self.orders.expected.get(str(batch), state.hash) != state.hash:
            self._cut(where)

    def _cut(self, where: Position | Epoch) -> NoReturn:
        """Make a point durable, and end like a process that is killed."""
        self._take(where)
        self.close()
        self.orders.tell(cut=True)
        _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process goes on after SIGKILL")
