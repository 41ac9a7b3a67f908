"""Two states at rest, compared leaf by leaf: hashes first, and bytes only of the leaves whose hashes differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from purestate.core._digest import short
from purestate.errors import CorruptLogError, PureStateError
from purestate.report._leaf import LeafComparison, leaf_table
from purestate.report._report import Report, fragment
from purestate.store._backend import Backend
from purestate.view import html_table

if TYPE_CHECKING:
    import torch

__all__ = ["PartComparison", "StateComparison", "compare_states"]

_TREES = ("params", "frozen", "buffers", "ema")
_COMPONENTS = ("optimizer", "epoch_scheduler", "step_scheduler", "extra")

Snapshot = Mapping[str, Any]


@dataclass(frozen=True)
class PartComparison:
    """A subtree of two states.

    Args:
        name: ``'params'``.
        verdict: ``'equal'``, ``'changed'``, or in which of the two it is.
        equal: How many leaves are.
        changed: What differs.
    """

    name: str
    verdict: Literal["equal", "changed", "only in a", "only in b"]
    equal: int
    changed: tuple[LeafComparison, ...] = ()

    def __str__(self) -> str:
        many = f" ({self.equal} leaves)" if self.verdict == "equal" and self.equal else ""
        some = f" ({len(self.changed)} differ, {self.equal} leaves are equal)" if self.changed else ""
        return "\n".join([f"{self.name}: {self.verdict}{many}{some}", *(f"  {leaf}" for leaf in self.changed)])


@dataclass(frozen=True)
class StateComparison(Report):
    """Two states, compared.

    Args:
        a: The hash of the first.
        b: Of the second.
        parts: Their subtrees; none where the hashes are equal.
        read: How many leaves, or packed vectors of them, were read for that.
    """

    a: str
    b: str
    parts: tuple[PartComparison, ...]
    read: int

    @property
    def ok(self) -> bool:
        """Whether they are equal."""
        return self.a == self.b

    def __str__(self) -> str:
        if self.ok:
            return f"states: equal, {short(self.a)}"
        return "\n".join(
            [
                f"states: {short(self.a)} | {short(self.b)}",
                *(f"  {line}" for part in self.parts for line in str(part).splitlines()),
            ]
        )

    def to_html(self) -> str:
        """Return the subtrees as a table, and the leaves that differ as another: a fragment for a page."""
        if self.ok:
            return fragment(str(self))
        rows = [[part.name, part.verdict, part.equal, len(part.changed)] for part in self.parts]
        changed = [leaf for part in self.parts for leaf in part.changed]
        parts = ("states", html_table(rows, ["part", "verdict", "equal leaves", "changed"]))
        return fragment(f"{short(self.a)} | {short(self.b)}", parts, *leaf_table(changed))


def compare_states(a: Snapshot, b: Snapshot, backends: tuple[Backend, Backend], names: tuple[str, str]) -> StateComparison:
    """Compare two states.

    Args:
        a: A snapshot, as a record holds it.
        b: Another.
        backends: The stores that they are in.
        names: What they are called.

    Raises:
        MissingSnapshotError: The bytes of a leaf that differs are not in the store.
        CorruptItemError: They are damaged.
        CorruptLogError: A snapshot is none.
    """
    try:
        if a["hash"] == b["hash"]:
            return StateComparison(a["hash"], b["hash"], (), 0)
        sides = _Side(_opened(a), backends[0], names[0]), _Side(_opened(b), backends[1], names[1])
        parts = tuple(_compared(name, *sides) for name in dict.fromkeys([*sides[0].parts, *sides[1].parts]))
        return StateComparison(a["hash"], b["hash"], parts, sum(side.read for side in sides))
    except PureStateError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CorruptLogError(
            f"A record keeps a state that is none ({type(error).__name__}: {error}).",
            cause="It verifies, so it was written so: by another program, or by a version with a bug.",
            fix="Put back a copy of the log, or delete the checkpoint.",
        ) from None


@dataclass
class _Side:
    """One of the two: its parts, and where its bytes are."""

    parts: Snapshot
    backend: Backend
    name: str
    read: int = 0
    _described: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def hashes(self, item: str, what: str) -> dict[str, str]:
        """Return the hashes that are noted beside an item."""
        if item not in self._described:
            found = self.backend.describe(item, what=f"{what} of {self.name}")
            self._described[item] = {name: leaf.hash for name, leaf in found.items()}
        return self._described[item]

    def tensors(self, item: str, names: Sequence[str], what: str) -> dict[str, torch.Tensor]:
        """Read some leaves of an item."""
        if not names:
            return {}
        self.read += len(names)
        return self.backend.get(item, names, what=f"{what} of {self.name}")


def _opened(snapshot: Snapshot) -> Snapshot:
    """Return the parts of a snapshot by name, the buffers that lie beside the parameters among them."""
    found: dict[str, Any] = {}
    for name, part in snapshot.items():
        if name == "hash":
            continue
        found[name] = part
        if isinstance(part, Mapping) and "beside" in part:
            found["buffers"] = {**part["beside"], "item": part["item"]}
    return found


def _compared(name: str, a: _Side, b: _Side) -> PartComparison:
    x, y = a.parts.get(name), b.parts.get(name)
    if x is None or y is None:
        return PartComparison(name, "only in b" if x is None else "only in a", 0)
    if name in ("key", "counters"):
        return _value(name, x == y, str(x), str(y))
    if "fresh" in x or "fresh" in y:
        ours, theirs = (f"not built yet, {short(part['fresh'][6:])}" if "fresh" in part else "built" for part in (x, y))
        return _value(name, x.get("fresh") == y.get("fresh"), ours, theirs)
    if x["digest"] == y["digest"]:
        return PartComparison(name, "equal", _count(x))
    if name in _TREES:
        equal, changed = _trees(name, x, y, a, b)
    else:
        equal, changed = _components(name, x, y, a, b)
    whole = LeafComparison(name, short(x["digest"]), short(y["digest"]))
    return PartComparison(name, "changed", equal, tuple(changed) or (whole,))


def _value(name: str, same: bool, a: str, b: str) -> PartComparison:
    return PartComparison(name, "equal", 0) if same else PartComparison(name, "changed", 0, (LeafComparison(name, a, b),))


def _count(part: Mapping[str, Any]) -> int:
    if "names" in part:
        return len(part["names"])
    return len(part["inline"]) if "inline" in part else sum(len(entries) for entries in part.get("layout", {}).values())


def _trees(name: str, x: Mapping[str, Any], y: Mapping[str, Any], a: _Side, b: _Side) -> tuple[int, list[LeafComparison]]:
    hashes = [side.hashes(part["item"], name) if part["names"] else {} for side, part in ((a, x), (b, y))]
    both = [leaf for leaf in x["names"] if leaf in y["names"]]
    differing = [leaf for leaf in both if hashes[0][leaf] != hashes[1][leaf]]
    changed = [_missing(name, leaf, leaf in x["names"]) for leaf in dict.fromkeys([*x["names"], *y["names"]]) if leaf not in both]
    if differing:
        ours, theirs = a.tensors(x["item"], differing, name), b.tensors(y["item"], differing, name)
        changed += _leaves(name, differing, ours, theirs)
    return len(both) - len(differing), changed


def _components(name: str, x: Mapping[str, Any], y: Mapping[str, Any], a: _Side, b: _Side) -> tuple[int, list[LeafComparison]]:
    from purestate.core._diff import diff_skeletons

    equal, changed = _count(x), list[LeafComparison]()
    if x["leaves"] != y["leaves"]:
        ours, theirs, untouched = _unpacked(name, x, y, a, b)
        both = [leaf for leaf in ours if leaf in theirs]
        differing = [leaf for leaf in both if not _same(ours[leaf], theirs[leaf])]
        equal = untouched + len(both) - len(differing)
        changed += _leaves(name, differing, ours, theirs)
        changed += [_missing(name, leaf, leaf in ours) for leaf in dict.fromkeys([*ours, *theirs]) if leaf not in both]
    changed += [LeafComparison(found.path, found.a, found.b) for found in diff_skeletons(name, x["skeleton"], y["skeleton"])]
    return equal, changed


def _missing(name: str, leaf: str, in_a: bool) -> LeafComparison:
    return LeafComparison(f"{name}[{leaf!r}]", "there" if in_a else "none", "none" if in_a else "there")


_Tensors = Mapping[str, "torch.Tensor"]


def _unpacked(name: str, x: Mapping[str, Any], y: Mapping[str, Any], a: _Side, b: _Side) -> tuple[_Tensors, _Tensors, int]:
    """Return the leaves of two components that may differ, and how many others there are: vectors of equal hashes stay unread."""
    from purestate.run._snapshot import component_leaves

    same: list[str] = []
    if "item" in x and "item" in y:
        hashes = a.hashes(x["item"], name), b.hashes(y["item"], name)
        same = [v for v in x["layout"] if x["layout"][v] == y["layout"].get(v) and hashes[0].get(v) == hashes[1].get(v)]

    def leaves(part: Mapping[str, Any], side: _Side) -> dict[str, torch.Tensor]:
        layout = {vector: entries for vector, entries in part.get("layout", {}).items() if vector not in same}
        there = [vector for vector in layout if vector in side.hashes(part["item"], name)] if "item" in part else []
        return component_leaves({**part, "layout": layout}, side.tensors(part["item"], there, name) if there else {})

    return leaves(x, a), leaves(y, b), sum(len(x["layout"][vector]) for vector in same)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    from purestate.core._hash import leaf_hash

    return leaf_hash(a) == leaf_hash(b)


def _leaves(name: str, names: Sequence[str], a: _Tensors, b: _Tensors) -> Iterator[LeafComparison]:
    if names:
        from purestate.report._numbers import compare_leaves

        for leaf in names:
            yield compare_leaves(f"{name}[{leaf!r}]", a[leaf], b[leaf])
