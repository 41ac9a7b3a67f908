"""An iterable dataset that is being read in one process: where it stands, as one text, and going on from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from purestate.core._hash import canonical_json
from purestate.data._position import freeze, is_stateful, thaw
from purestate.errors import UnsupportedError

__all__ = ["Home", "Reading", "missing"]


class Reading:
    """One pass over an iterable dataset, from its beginning or from where another one stood.

    The dataset and its iterator are asked in the order of torchdata's Stateful protocol: the dataset's state is loaded, the
    iterator made, its state loaded. An iterator that is the dataset itself is asked once.

    Args:
        dataset: The user's. Where it is stateful and a place is given, it is moved there.
        place: What `tell` told; None for the beginning.
    """

    def __init__(self, dataset: Any, place: str | None) -> None:
        saved: dict[str, Any] = {} if place is None else json.loads(place)
        self.dataset = dataset
        self.given: int = saved.get("given", 0)
        self.ended: bool = saved.get("ended", False)
        if "dataset" in saved:
            dataset.load_state_dict(thaw(saved["dataset"]))
        self.samples: Iterator[Any] = iter(dataset)
        if "iterator" in saved:
            iterator: Any = self.samples
            iterator.load_state_dict(thaw(saved["iterator"]))

    def tell(self) -> str:
        """Return where the reading stands: how many samples it gave, and what is stateful; or what is missing for that."""
        place: dict[str, Any] = {"given": self.given, "ended": self.ended}
        parts: dict[str, Any] = {"iterator": self.samples}
        if self.samples is not self.dataset:
            parts["dataset"] = self.dataset
        parts = {name: part for name, part in parts.items() if is_stateful(part)}
        if not parts:
            place["missing"] = "the dataset has no state_dict()"
        try:
            place |= {name: freeze(part.state_dict()) for name, part in parts.items()}
        except UnsupportedError as error:
            place["missing"] = f"in what the dataset gives, {error.problem}"
        return canonical_json(place).decode("ascii")


class Home:
    """The state in which a stateful dataset was found: every pass in this process begins there, and leaves it there.

    Args:
        dataset: The user's. One that is not stateful, or whose state is no plain data, stays wherever a pass leaves it.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._state = self._now()

    def go(self) -> None:
        """Bring the dataset back, if it was moved."""
        if self._state is not None and self._now() != self._state:
            self._dataset.load_state_dict(thaw(self._state))

    def _now(self) -> Any:
        if not is_stateful(self._dataset):
            return None
        try:
            return freeze(self._dataset.state_dict())
        except UnsupportedError:  # the first position says so, and is replayed
            return None


def missing(places: list[str | None]) -> str | None:
    """Return what keeps places from being gone on from; None if nothing does."""
    return next((text for place in places if place and (text := json.loads(place).get("missing"))), None)
