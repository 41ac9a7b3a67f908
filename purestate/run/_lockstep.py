"""The process that `bisect` starts for each of two runs: a script, in which a recorded epoch is computed again, step by step.

The script is audited, so everything that it asks before comes from the log, and nothing is written into a store. When it asks
for the train that is wanted, the process does what it is told through a pipe, and ends. What is told, and what the answers
mean, is in `_bisect`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from purestate.core._batch import Batch, owned
from purestate.core._position import Position
from purestate.core._state import State
from purestate.data._position import batch_bits
from purestate.errors import StoreError
from purestate.run._again import stream
from purestate.run._chain import RecordLike, Trajectory
from purestate.run._handed import read_state, write_leaves, write_state
from purestate.run._ledger import Ledger
from purestate.run._mode import audited_by
from purestate.run._operators import retrace
from purestate.run._pipe import Pipe
from purestate.run._readers import Reader
from purestate.run._script import play
from purestate.run._snapshot import restore
from purestate.run._tracer import leaves_by_part
from purestate.run._training import Training
from purestate.store._disk import DiskBackend
from purestate.store._placed import elsewhere

__all__ = ["main"]


def main(orders: dict[str, Any]) -> None:
    """Run the target of the orders as this process's script.

    Args:
        orders: As `purestate.run._script.command` wrote them, with ``store``, ``checkpoint``: the run. ``record``: the
            train that is wanted, by the digest of its first record. ``read``, ``write``: the descriptors of two pipes.
    """
    pipe = Pipe(orders["read"], orders["write"])
    elsewhere(_Placing(Path(orders["store"]), orders["checkpoint"]))
    audited_by(_Wanted(pipe, orders["record"]))
    try:
        play(orders, orders["store"])
    except Exception as error:  # the script may raise anything: it is told to who asked
        pipe.fail(error)
    except SystemExit as end:
        pipe.leave(failed="never", text=f"it ended with the status {end.code!r} before it asked for that train")
    pipe.leave(failed="never", text="it ended, and never asked for that train")


class _Placing:
    """Says where folders are that the script names: one that has the run's checkpoint, or none at all, is the run's store.

    The two runs have a store each, and one script names one of them.
    """

    def __init__(self, store: Path, checkpoint: str) -> None:
        self._store, self._checkpoint = store, checkpoint
        self._places: dict[Path, Path] = {}

    def __call__(self, path: Path) -> Path:
        if path not in self._places:
            self._places[path] = path  # it is looked at as it is
            with contextlib.suppress(StoreError):  # whoever asks it for something is told
                ids = DiskBackend(path).ids()
                self._places[path] = self._store if not ids or self._checkpoint in ids else path
        return self._places[path]


class _Wanted:
    """Looks at each op of the script, and takes the process over at the one that is wanted: a `_mode.Auditor`."""

    def __init__(self, pipe: Pipe, record: str) -> None:
        self._pipe, self._record = pipe, record

    def train(self, call: Training, train: Trajectory | None) -> None:
        if train is None or train.start.digest != self._record:
            return
        try:
            _Lockstep(self._pipe, call, train).run()
        except Exception as error:  # forward and loss are the user's: it is told to who asked
            self._pipe.fail(error)

    def reader(self, reader: Reader, ledger: Ledger, record: RecordLike | None) -> None:
        """Let it be."""

    def missing(self, ledger: Ledger, op: str, why: str, train: Trajectory | None) -> NoReturn:
        self._pipe.leave(failed="question", text=f"the {op} that it asks of checkpoint {ledger.id!r} is not recorded: {why}")


class _Lockstep:
    """A recorded epoch, computed again step by step as it is told: a `purestate.core._position.Keeper`."""

    def __init__(self, pipe: Pipe, call: Training, train: Trajectory) -> None:
        self._pipe, self._call, self._train = pipe, call, train
        self._epoch = 0
        self._before: State | None = None
        self._batch: Batch = None
        self._data = ""
        self._n = self._number = 0
        self._on = True  # whether steps are still compared

    def run(self) -> NoReturn:
        """Go to the beginning of the epoch that is wanted, then through it a step each time that it is told to."""
        call, pipe = self._call, self._pipe
        order = pipe.ask(ready=True, input=call.state.hash)
        self._epoch, start = order["epoch"], order["start"]
        state = self._beginning(start, order["from"])
        self._n = start + 1
        if start == self._epoch - 1:
            self._before = state.own()
        with contextlib.closing(stream(call, state, start, keeper=self, on_batch=self._on_batch)) as epochs:
            for epoch, _ in epochs:
                if epoch.n == self._epoch:
                    pipe.leave(epoch=epoch.n, hash=epoch.state.hash, **_looks(epoch.state))
                pipe.tell(epoch=epoch.n, hash=epoch.state.hash)
                self._n, self._number = epoch.n + 1, 0
                if epoch.n == self._epoch - 1:
                    self._before = epoch.state.own()
                    if order["hand"] is not None:
                        write_state(Path(order["hand"]), epoch.state)
                        pipe.tell(handed=order["hand"])
        raise AssertionError("a train ends by itself")

    def _beginning(self, n: int, source: Any) -> State:
        recipe, device = self._call.state.recipe, self._call.state.device
        if n == 0:
            return self._call.state
        if "file" in source:
            return read_state(Path(source["file"]), recipe, device)
        return restore(source["snapshot"], DiskBackend(Path(source["store"])), recipe=recipe, device=device)

    def _on_batch(self, batch: Batch) -> None:
        if self._on and self._n == self._epoch:
            self._data, self._batch = batch_bits(batch).hex(), owned(batch)

    def release(self) -> None:
        """Return: what is wanted of a state is copied at once."""

    def between(self, position: Callable[[], Position] | None, *, trained: bool) -> None:
        if not trained or position is None:
            return
        if self._n != self._epoch or not self._on:
            self._pipe.tell(step=True)
            return
        now = position()
        self._number = now.batch
        order = self._pipe.ask(batch=now.batch, of=now.batches, data=self._data, hash=now.state.hash)
        while "go" not in order:
            order = self._pipe.ask(**self._shown(order, now))
        if order["go"] == "end":
            os._exit(0)
        self._on = order["go"] == "compare"
        self._before = now.state.own() if self._on else None

    def _shown(self, order: dict[str, Any], now: Position) -> dict[str, Any]:
        if "leaves" in order:
            leaves = _tensors(now.state)
            return {"dumped": write_leaves(Path(order["leaves"]), {name: leaves[name] for name in order["names"]})}
        if "retrace" in order:
            return self._retraced(now)
        return _looks(now.state)

    def _retraced(self, now: Position) -> dict[str, Any]:
        if self._call.step is not None:
            return {"unknown": "the steps are taken by a function of the script"}
        assert self._before is not None
        try:
            found = retrace(self._call, self._before, self._batch, now.n, now.batch, now.batches)
        except Exception as error:  # what a dispatch mode does not bear is no reason to lose what is known
            return {"unknown": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        if found.hash != now.state.hash:
            return {"unknown": "taken by itself, operator by operator, the step gives other bits"}
        return {"retraced": found.json()}


def _looks(state: State) -> dict[str, Any]:
    """Return the hashes of a state's leaves by path, and what is plain in it, with the digests of that."""
    parts, plain = leaves_by_part(state)
    hashes = {f"{part}[{name!r}]": digest for part, inside in parts.items() for name, digest in inside.items()}
    return {
        "hashes": hashes,
        "plain": plain,
        "skeletons": {name: getattr(state, name).skeleton for name in plain if name in parts},
    }


def _tensors(state: State) -> dict[str, Any]:
    return {f"{part}[{name!r}]": leaf for part, leaves in state._leaves().items() for name, leaf in leaves.items()}
