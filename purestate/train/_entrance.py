"""Which state a block begins with: the one that the model has, or, where the block is run again, the one it began with then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from purestate.core._hash import short
from purestate.core._recipe import Recipe
from purestate.core._state import Origin, State
from purestate.errors import StaleRecordError
from purestate.run._answers import op_name
from purestate.run._ledger import Ledger
from purestate.run._lineage import Parent, ancestors, first_input, restore_parent
from purestate.store._backend import Backend

__all__ = ["Entrances"]


@dataclass(frozen=True)
class _Entrance:
    """How a block was entered. An answer is remembered by its record, so that no tensor is kept alive."""

    held: State | None
    parent: Parent | None
    recipe: Recipe | None
    device: torch.device

    def state(self, backend: Backend) -> State:
        """Return the state that the block began with."""
        if self.held is not None:
            return self.held
        assert self.parent is not None
        return restore_parent(backend, self.parent, self.recipe, self.device)


class Entrances:
    """What is known of the blocks that this process has entered.

    Args:
        backend: Where the records are.
        recipe_of: Gives the recipe of a state that a record holds, by what `Origin` says of it.
    """

    def __init__(self, backend: Backend, recipe_of: Callable[[Parent], Recipe | None]) -> None:
        self._backend, self._recipe_of = backend, recipe_of
        self._entered: dict[str, _Entrance] = {}
        self._left: dict[str, Origin] = {}
        self._unrecorded: dict[str, Parent | None] = {}

    def enter(self, ledger: Ledger, state: State, shown: str) -> State:
        """Return the state that a block begins with.

        Args:
            ledger: The checkpoint's.
            state: The model's.
            shown: What people call it.

        Raises:
            StaleRecordError: The checkpoint began from another state, and this one does not come from the checkpoint.
        """
        name, trains = ledger.id, ledger.refresh().binding()
        if self._left.get(name) is state.origin or self.is_from(name, state):
            begin = self.first_input(ledger, state)
        elif not trains or (state.origin.base or state.hash) in (trains[0].base, trains[0].input):
            begin = state
        else:
            raise self._refused(name, trains[0].start.body, state, shown)
        whole = begin.origin.parent is None or begin.origin.acts or begin.origin.base is not None
        self._entered[name] = _Entrance(begin if whole else None, begin.origin.parent, begin.recipe, begin.device)
        return begin

    def leave(self, name: str, state: State) -> None:
        """Remember what a block left."""
        self._left[name] = state.origin

    def went_on(self, before: State, state: State) -> None:
        """Remember what a state came from that was trained without a log."""
        self._unrecorded[state.hash] = self._parent(before)

    def left_with(self, name: str) -> str | None:
        """Return the digest of the answer that a block left the model with in this process; None if it left none."""
        parent = self._left[name].parent if name in self._left else None
        return parent["record"] if parent is not None and parent["checkpoint"] == name else None

    def is_from(self, name: str, state: State) -> bool:
        """Return whether a state was trained in a checkpoint, or comes from one that was."""
        return any(parent["checkpoint"] == name for parent in self._above(state))

    def first_input(self, ledger: Ledger, state: State) -> State:
        """Return the state that a block began with: in this process, else by its first record, else the given one.

        Args:
            ledger: The checkpoint's.
            state: Given back where nothing is known; gives the recipe where the first input came from no record.
        """
        if (entered := self._entered.get(ledger.id)) is not None:
            return entered.state(self._backend)
        trains = ledger.chain.binding()
        if not trains:
            return state
        parent = trains[0].start.body["parent"]
        return first_input(ledger, state.recipe if parent is None else self._recipe_of(parent), state.device)

    def _above(self, state: State) -> Iterator[Parent]:
        """Yield the records that a state comes from, past checkpoints that were deleted since this process entered them."""
        above, seen = self._parent(state), set[str]()
        while above is not None and above["checkpoint"] not in seen:
            last = above
            for last in ancestors(self._backend, above):
                seen.add(last["checkpoint"])
                yield last
            entered = self._entered.get(last["checkpoint"])
            above = None if entered is None else entered.parent

    def _parent(self, state: State) -> Parent | None:
        return state.origin.parent or self._unrecorded.get(state.origin.base or state.hash)

    def _refused(self, name: str, start: Mapping[str, Any], state: State, shown: str) -> StaleRecordError:
        then, now = start["parent"], state.origin.parent
        places = [
            f"{parent['checkpoint']} {op_name(parent['op'])}" if parent else "a state of no checkpoint" for parent in (then, now)
        ]
        hashes = start["base"], state.origin.base or state.hash
        there = then is not None and any(
            record.body["out"]["hash"] == hashes[0]
            for _, _, record in [*Ledger(self._backend, then["checkpoint"]).chain.finished()][-1:]
        )
        ways = "take another id (a fork), or delete it with model.delete_checkpoint(id) and run the block again."
        return StaleRecordError(
            f"{shown} began from {places[0]} ({short(hashes[0])}), and the model is at {places[1]} ({short(hashes[1])}).",
            cause="Its records answer for training that went on from there, and not from here.",
            fix=f"Go there with model.load_checkpoint(id) before the block, {ways}" if there else ways.capitalize(),
            checkpoint=name,
            op=0,
            changes=(("input", hashes[0], hashes[1]),),
        )
