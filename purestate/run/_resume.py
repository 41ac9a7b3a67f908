"""Resume points: what a killed `train` goes on from. Written in the background while it goes on; not records.

A point holds the working state between two steps, with what the epoch adds up to so far, or after an epoch; and the best
state so far. When one is due, a thread copies the tensors into shared memory, from which the writer process makes a folder.
Training waits for the copy only where it is about to change them: not before the next update.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import torch

from purestate.core._component import Component
from purestate.core._metrics import Metric, Sums
from purestate.core._own import Means
from purestate.core._plain import decode, encode
from purestate.core._position import Position
from purestate.core._state import COMPONENTS, SUBTREES, Counters, State
from purestate.core._train import Epoch
from purestate.core._tree import Leaves, in_order
from purestate.errors import CorruptItemError, PureStateError, StoreError
from purestate.run._cadence import Cadence
from purestate.run._chain import Trajectory
from purestate.run._ledger import Ledger
from purestate.run._signals import Deferred

__all__ = ["ResumePoints", "Resumed", "counted"]

Trees = dict[str, dict[str, torch.Tensor]]


@dataclass
class Resumed:
    """What was found of a `train` that did not end.

    Args:
        states: States after epochs, by their number.
        position: The middle of an epoch; None where the point was taken at the end of one.
        seconds: How long that epoch had taken.
        trace: What `Tracer.plain` told there; None where nobody traced it.
        damaged: What is wrong with newer points.
    """

    states: dict[int, State] = field(default_factory=dict[int, State])
    position: Position | None = None
    seconds: float = 0.0
    trace: Any = None
    damaged: list[StoreError] = field(default_factory=list[StoreError])


class ResumePoints:
    """The resume points of one `train` in progress; a `purestate.core._position.Keeper`.

    Args:
        ledger: Of the checkpoint that it belongs to.
        train: The trajectory.
        state: The input of the op: what a point shares with it is not written.
        metrics: Whose sums a position holds.
        cadence: When they are due.
        stop: Signals that wait for the end of a step.
        notify: Told where the op was left.
        trace: What is noted so far of an epoch, as JSON; None where nothing is.
    """

    def __init__(
        self,
        ledger: Ledger,
        train: Trajectory,
        state: State,
        metrics: tuple[Metric, ...],
        cadence: Cadence,
        stop: Deferred,
        notify: Callable[[str], None],
        trace: Callable[[], Any] = lambda: None,
    ) -> None:
        self._ledger, self._train, self._input = ledger, train, state
        self._trace_so_far = trace
        self._metrics, self._cadence, self._stop, self._notify = metrics, cadence, stop, notify
        self._copy: _Copy | None = None
        self._best: tuple[int, State] | None = None
        self._reserving: _Copy | None = None
        self._look = 0.0  # when it is worth a look again whether the last point is durable
        self._began = time.monotonic()  # the epoch
        self._keeps = bool(ledger.log.records)
        self._furthest = 0  # the epoch that a point was found for
        cadence.begin(self._began, _size(state))

    def load(self) -> Resumed:
        """Return what the newest point that is whole and belongs to this trajectory holds."""
        found = Resumed()
        point = self._ledger.backend.load_resume(self._ledger.id, found.damaged)
        # who accepted another input for the same answer: what a point leaves out is not what this one has
        if point is None or (point[0].get("of"), point[0].get("input")) != (self._train.start.digest, self._input.hash):
            return found
        body, trees = point
        try:
            found.states = {int(n): self._of_epoch(int(n), json, trees) for n, json in body["states"].items()}
            if "position" in body:
                found.position, found.seconds = self._position(body["position"], trees), float(body["seconds"])
                found.trace = body["position"].get("trace")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, PureStateError) as error:
            reason = f"{type(error).__name__}: {error}"
            found.damaged.append(CorruptItemError(f"A resume point of checkpoint {self._ledger.id!r} holds no state: {reason}"))
            return Resumed(damaged=found.damaged)
        self._began -= found.seconds
        self._furthest = max([*found.states, 0 if found.position is None else found.position.n], default=0)
        return found

    def keep_best(self, n: int, state: State) -> None:
        """Take the state after epoch ``n``, owned, for the best so far."""
        self._best = (n, state) if n > 0 else None

    def between(self, position: Callable[[], Position] | None, *, trained: bool) -> None:
        """Take a point if one is due. If a signal waits, take one, wait until it is durable, and let the signal happen."""
        if self._stop.pending is not None:
            self._leave(position)
        elif trained and position is not None and self._is_due(epoch=False):
            self._take(position(), first=True)

    def after(self, epoch: Epoch) -> None:
        """Take a point at the end of an epoch, if one is due."""
        self._began = time.monotonic()
        if epoch.n > 0 and self._is_due(epoch=True):
            self._take(epoch)

    def leave_after(self, epoch: Epoch) -> None:
        """Take a point at the end of an epoch, wait until it is durable, and let the signal happen that waits."""
        if epoch.n > 0:
            self._leave_at(epoch, epoch.n, "")
        else:
            self._stop.deliver()

    def release(self) -> None:
        """Wait until nobody reads the tensors of a position or of an epoch any more."""
        if self._copy is not None:
            self._copy.wait()

    def clear(self, last: int) -> None:
        """Remove the points: the op is done at epoch ``last``, so it does not matter whether the last one could be written.

        What was found is kept where it is further on: somebody asked for less than a train that did not end.
        """
        with suppress(StoreError):
            self.close()
        if self._furthest <= last:
            self._ledger.backend.clear_resume(self._ledger.id)

    def leave(self) -> None:
        """Wait for what is on its way. If that fails it is said, not raised: whoever leaves has an error of its own."""
        try:
            self.close()
        except StoreError as error:
            self._notify(error.problem)

    def close(self) -> None:
        """Wait until what is on its way is durable."""
        if self._reserving is not None:
            self._reserving.wait()
        if self._copy is not None:
            copy, self._copy = self._copy, None
            copy.result()

    def _leave(self, position: Callable[[], Position] | None) -> None:
        if position is None:
            self._stop.deliver()
        else:
            now = position()
            self._leave_at(now, now.n - 1, f" and {counted(now.batch, 'batch', 'batches')} of epoch {now.n}")

    def _leave_at(self, found: Position | Epoch, epochs: int, more: str) -> None:
        if not self._keeps:
            return self._stop.deliver()
        farewell = f"stopped after {counted(epochs, 'epoch', 'epochs')}{more}. "
        try:
            self._take(found)
            self.close()
            farewell += "Run it again to go on from there."
        except StoreError as error:  # the signal is what happens, not this
            farewell += f"{error.problem} Run it again to go on from what was kept before."
        if self._stop.ends:
            self._notify(farewell)
        try:
            self._stop.deliver()
        except BaseException:
            self._notify(farewell)
            raise

    def _is_due(self, *, epoch: bool) -> bool:
        now = time.monotonic()
        if self._copy is not None and now >= self._look:
            self._look = now + _PAUSE
            copy, self._copy = self._copy, None  # one that failed is told once
            if copy.is_durable():
                self._cadence.durable(now, copy.seconds)
            else:
                self._copy = copy
        due = self._cadence.due(now, epoch=epoch)
        return due and self._keeps and self._copy is None

    def _take(self, found: Position | Epoch, *, first: bool = False) -> None:
        """Hand a point over; its tensors may change after `release`. The first time it may be that only memory is prepared."""
        self.close()
        trees: Trees = {}
        body: dict[str, Any] = {"of": self._train.start.digest, "input": self._input.hash, "states": {}}
        if isinstance(found, Epoch):
            body["states"][str(found.n)] = self._taken(found.state, trees)
        else:
            place = {"n": found.n, "batch": found.batch, "batches": found.batches, "feed": found.feed}
            body["position"] = place | {"lr": encode(found.lr)}
            if (trace := self._trace_so_far()) is not None:
                body["position"]["trace"] = trace
            body["position"]["state"] = self._taken(found.state, trees)
            body["seconds"] = time.monotonic() - self._began
        if self._best is not None and str(self._best[0]) not in body["states"]:
            body["states"][str(self._best[0])] = self._taken(self._best[1], trees)
        if first and not self._is_reserved(sum(tensor.nbytes + 64 for tree in trees.values() for tensor in tree.values())):
            return

        def hand_over() -> Any:
            if isinstance(found, Position):
                body["position"]["sums"] = encode(found.sums.plain())
            self._ledger.log.flush()  # a point is of use only behind the records of the epochs before it
            return self._ledger.backend.save_resume(self._ledger.id, body, trees)

        self._copy = _Copy(hand_over)
        self._cadence.taken(time.monotonic())

    def _is_reserved(self, size: int) -> bool:
        """Whether the memory is there: filling fresh memory takes several times as long as filling it again."""
        if self._reserving is None:
            self._reserving = _Copy(lambda: self._ledger.backend.warm(size))
        return self._reserving.is_durable()

    def _taken(self, state: State, trees: Trees) -> dict[str, Any]:
        """Note a state without hashing it; what it shares with the op's input is in no point."""
        json: dict[str, Any] = {"key": [state.key.hi, state.key.lo], "counters": [state.counters.epoch, state.counters.step]}
        for name in (*SUBTREES, "ema"):
            leaves: Leaves | None = getattr(state, name)
            if leaves is not None and leaves is not getattr(self._input, name):
                # buffers change with the next forward, for which nobody waits
                json[name] = _put(leaves.own() if name == "buffers" else leaves, trees)
        for name in (*COMPONENTS, "extra"):
            component: Component | None = getattr(state, name)
            if component is not None and component is not getattr(self._input, name):
                assert isinstance(component.leaves, Leaves)
                json[name] = {"skeleton": component.skeleton} | _put(component.leaves, trees)
        return json

    def _restored(self, json: dict[str, Any], trees: Trees) -> State:
        fields: dict[str, Any] = {"counters": Counters(*json["counters"]), "key": type(self._input.key)(*json["key"])}
        device = self._input.device
        for name in (*SUBTREES, "ema"):
            if name in json:
                fields[name] = Leaves(_got(json[name], trees, device), name)
        for name in (*COMPONENTS, "extra"):
            if name in json:
                fields[name] = Component(json[name]["skeleton"], Leaves(_got(json[name], trees, device), name))
        for name in ("params", "frozen"):
            if name in fields and _shapes(fields[name]) != _shapes(getattr(self._input, name)):
                raise ValueError(f"its {name} are not those of the input.")
        return self._input.based(**fields)

    def _of_epoch(self, n: int, json: dict[str, Any], trees: Trees) -> State:
        state, record = self._restored(json, trees), self._train.epochs.get(n)
        if record is None or record.body["hash"] != state.hash:
            raise ValueError(f"it has another state after epoch {n} than was recorded.")
        return state

    def _position(self, json: dict[str, Any], trees: Trees) -> Position:
        state = self._restored(json["state"], trees)
        n, batch, batches = (json[name] for name in ("n", "batch", "batches"))
        if any(type(i) is not int for i in (n, batch, batches)) or n < 1 or not 0 <= batch <= batches:
            raise ValueError("there is no such place in an epoch.")
        if not isinstance(json["feed"], dict | None):
            raise TypeError("where the loader was is no object.")
        plain = decode(json["sums"])
        sums = (Means if "names" in plain else Sums).from_plain(plain, self._metrics, self._input.device)
        return Position(n, batch, batches, json["feed"], sums, [float(lr) for lr in decode(json["lr"])], state)


_PAUSE = 0.005
"""Seconds between two looks at whether a point is durable: each asks the kernel."""


class _Copy:
    """A thread that hands a point over."""

    def __init__(self, hand_over: Callable[[], Any]) -> None:
        self._hand_over = hand_over
        self._handle: Any = None
        self._error: BaseException | None = None
        self._began = time.monotonic()
        self._handing = 0.0
        self._thread = Thread(target=self._run, name="purestate-resume", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._handle = self._hand_over()
        except BaseException as error:  # raised again by whoever waits
            self._error = error
        self._handing = time.monotonic() - self._began

    def wait(self) -> None:
        """Return when the tensors may change."""
        if self._thread.is_alive():
            self._thread.join()

    def is_durable(self) -> bool:
        """Return whether all is done, without waiting.

        Raises:
            StoreWriteError: It failed.
        """
        if self._thread.is_alive():
            return False
        if self._error is None and self._handle is not None and not self._handle.done():
            return False
        self.result()
        return True

    @property
    def seconds(self) -> float:
        """How long it took from hand-over to durable."""
        return self._handing + (self._handle.seconds if self._handle is not None else 0.0)

    def result(self) -> None:
        """Wait until it is durable.

        Raises:
            StoreWriteError: It failed.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._handle is not None:
            self._handle.result()


def counted(n: int, one: str, several: str) -> str:
    """Return a number with its noun."""
    return f"{n} {one if n == 1 else several}"


def _put(leaves: Leaves, trees: Trees) -> dict[str, Any]:
    name = str(len(trees))
    trees[name] = dict(leaves)
    return {"tree": name, "orders": {leaf: list(order) for leaf, order in leaves.orders.items()}}


def _got(json: dict[str, Any], trees: Trees, device: torch.device) -> dict[str, torch.Tensor]:
    orders = {leaf: tuple(order) for leaf, order in json["orders"].items()}
    return {leaf: in_order(tensor, orders.get(leaf)).to(device) for leaf, tensor in trees[json["tree"]].items()}


def _shapes(leaves: Leaves) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in leaves.items()}


def _size(state: State) -> int:
    """Bytes of a state in training, of which the moments may not be there yet."""
    params = sum(tensor.nbytes for tensor in state.params.values())
    average = params if state.ema is not None else 0
    return 3 * params + average + sum(tensor.nbytes for tensor in state.buffers.values())
