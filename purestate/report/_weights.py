"""A file of somebody, compared with a run or another file: leaf by leaf, by name. Hashes first, then the leaves that differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purestate.report._foreign import leaves_of, tensors_of
from purestate.report._leaf import LeafComparison, LeafHash, leaf_table
from purestate.report._opened import Run
from purestate.report._report import Report, fragment
from purestate.run._chain import as_recorded
from purestate.view import html_table

if TYPE_CHECKING:
    import torch

__all__ = ["WeightsComparison", "compare_weights"]

_TREES = ("params", "frozen", "buffers", "ema")
_STATE_DICT = _TREES[:3]
_COMPONENTS = ("optimizer", "epoch_scheduler", "step_scheduler", "extra")


@dataclass(frozen=True)
class WeightsComparison(Report):
    """The tensors of a file and of a run, or of two files, compared by name.

    Args:
        a: The name of the first.
        b: Of the second.
        equal: How many leaves are.
        changed: Those that both have and that differ.
        only_a: The names of those that only the first has.
        only_b: That only the second has.
        left_out: Subtrees of a run of which the file has no leaf: they are not compared.
    """

    a: str
    b: str
    equal: int
    changed: tuple[LeafComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all that was compared is equal, and something was."""
        return self.equal > 0 and not (self.changed or self.only_a or self.only_b)

    def __str__(self) -> str:
        changed = [f"  {leaf}" for leaf in self.changed]
        lone = [f"  {name}: only in {side}" for name, side in self._lone()]
        left_out = [f"not compared, since the file has none of them: {', '.join(self.left_out)}"] if self.left_out else []
        return "\n".join([f"a: {self.a}", f"b: {self.b}", self._verdict(), *changed, *lone, *left_out])

    def to_html(self) -> str:
        """Return the leaves that differ as tables: a fragment for a page."""
        lone = [("leaves of one of them", html_table(self._lone(), ["leaf", "only in"]))] if self.only_a or self.only_b else []
        left_out = [f"not compared: {', '.join(self.left_out)}"] if self.left_out else []
        return fragment(f"a: {self.a}", f"b: {self.b}", self._verdict(), *leaf_table(self.changed), *lone, *left_out)

    def _lone(self) -> list[tuple[str, str]]:
        return [(name, side) for side, names in (("a", self.only_a), ("b", self.only_b)) for name in names]

    def _verdict(self) -> str:
        if self.ok:
            return f"weights: equal ({self.equal} leaves)"
        counts = f"{len(self.changed)} differ, {self.equal} are equal, {len(self.only_a)} only in a, {len(self.only_b)} only in b"
        return f"weights: changed ({counts})"


@dataclass(frozen=True)
class _Side:
    """One of the two.

    Args:
        name: What it is called.
        leaves: By name.
        parts: The names of the leaves of each subtree of a run; nothing for a file.
        read: Returns tensors by name.
    """

    name: str
    leaves: Mapping[str, LeafHash]
    parts: Mapping[str, Collection[str]]
    read: Callable[[Collection[str]], Mapping[str, torch.Tensor]]


def compare_weights(a: Run | Path, b: Run | Path) -> WeightsComparison:
    """Compare a run with a file, or two files.

    The names of a run are those of its ``state_dict``: parameters, frozen ones and buffers. Where a file says of its leaves which
    subtree they are of, ``params.fc.weight``, as what `Store.export_orbax` wrote, all subtrees of the run are looked for.

    Args:
        a: A run, of which the answer is compared, or a file: an Orbax folder, a safetensors file, a torch file of weights.
        b: Likewise.

    Raises:
        UsageError: A file cannot be read, or a run has no answer.
        MissingSnapshotError: The bytes of a leaf that differs are not in the store.
        CorruptItemError: They are damaged.
    """
    files = {side: _of_file(side) for side in (a, b) if isinstance(side, Path)}
    ours, theirs = (
        files[side] if isinstance(side, Path) else _of_run(side, next(iter(files.values())).leaves.keys()) for side in (a, b)
    )
    left_out = {**_absent(ours, theirs), **_absent(theirs, ours)}
    passed = {name for names in left_out.values() for name in names}
    both = [name for name in ours.leaves if name in theirs.leaves]
    differing = [name for name in both if ours.leaves[name].hash != theirs.leaves[name].hash]
    return WeightsComparison(
        a=ours.name,
        b=theirs.name,
        equal=len(both) - len(differing),
        changed=_compared(differing, ours, theirs),
        only_a=tuple(name for name in ours.leaves if name not in theirs.leaves and name not in passed),
        only_b=tuple(name for name in theirs.leaves if name not in ours.leaves and name not in passed),
        left_out=tuple(f"{part} ({len(names)} leaves)" for part, names in left_out.items()),
    )


def _absent(run: _Side, file: _Side) -> dict[str, Collection[str]]:
    """Return the subtrees of a run of which a file has nothing. Without parameters it is another thing altogether."""
    there = {part: any(name in file.leaves for name in names) for part, names in run.parts.items()}
    return {part: run.parts[part] for part, found in there.items() if not found and part != "params"}


def _compared(names: Collection[str], a: _Side, b: _Side) -> tuple[LeafComparison, ...]:
    if not names:
        return ()
    from purestate.report._numbers import compare_leaves

    ours, theirs = a.read(names), b.read(names)
    return tuple(compare_leaves(name, ours[name], theirs[name]) for name in names)


def _of_file(path: Path) -> _Side:
    return _Side(str(path), {leaf.name: leaf for leaf in leaves_of(path)}, {}, partial(tensors_of, path))


def _of_run(run: Run, names: Collection[str]) -> _Side:
    """Return the leaves of a run's answer, under the names that a file has for them."""
    _, _, record, snapshot = run.answer()
    with as_recorded(record):
        trees = {name: part for name, part in _trees(snapshot).items() if part["names"]}
        qualified = any(f"{tree}.{leaf}" in names for tree, part in trees.items() for leaf in part["names"])
        leaves: dict[str, LeafHash] = {}
        places: dict[str, tuple[str, str]] = {}
        parts: dict[str, list[str]] = {}
        for tree, part in trees.items() if qualified else ((tree, trees[tree]) for tree in _STATE_DICT if tree in trees):
            noted = run.backend.describe(part["item"], what=f"{tree} of {run.name}")
            named = {f"{tree}.{leaf}" if qualified else leaf: leaf for leaf in part["names"]}
            leaves |= {
                name: LeafHash(name, noted[leaf].dtype, noted[leaf].shape, noted[leaf].hash) for name, leaf in named.items()
            }
            places |= {name: (part["item"], leaf) for name, leaf in named.items()}
            parts[tree] = [*named]
        components = _components(run, snapshot, names) if qualified else {}
    known: dict[str, torch.Tensor] = {}
    for component, tensors in components.items():
        parts[component] = [*tensors]
        leaves |= _hashes(tensors)
        known |= tensors
    return _Side(str(run.name), leaves, parts, partial(_read, run, places, known))


def _trees(snapshot: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the subtrees that are tensors by name, the buffers that lie beside the parameters among them."""
    found: dict[str, Mapping[str, Any]] = {name: snapshot[name] for name in _TREES if name in snapshot}
    if "beside" in found.get("params", {}):
        found["buffers"] = {**found["params"]["beside"], "item": found["params"]["item"]}
    return found


def _components(run: Run, snapshot: Mapping[str, Any], names: Collection[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of optimizer, schedulers and ``extra`` where the file has some: they are packed, and so must be read."""
    from purestate.run._snapshot import component_leaves

    found: dict[str, dict[str, torch.Tensor]] = {}
    for component in _COMPONENTS:
        part = snapshot.get(component, {"fresh": ""})
        if "fresh" not in part and any(name.startswith(f"{component}.") for name in names):
            read = run.backend.get(part["item"], what=f"{component} of {run.name}") if "item" in part else {}
            found[component] = {f"{component}.{name}": leaf for name, leaf in component_leaves(part, read).items()}
    return {component: tensors for component, tensors in found.items() if tensors}


def _hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, LeafHash]:
    from purestate.core._hash import dtype_name, leaf_hash

    return {name: LeafHash(name, dtype_name(leaf.dtype), tuple(leaf.shape), leaf_hash(leaf)) for name, leaf in tensors.items()}


def _read(
    run: Run, places: Mapping[str, tuple[str, str]], known: Mapping[str, torch.Tensor], names: Collection[str]
) -> dict[str, torch.Tensor]:
    found = {name: known[name] for name in names if name in known}
    for item in dict.fromkeys(places[name][0] for name in names if name in places):
        there = {name: places[name][1] for name in names if name in places and places[name][0] == item}
        read = run.backend.get(item, list(there.values()), what=f"a part of {run.name}")
        found |= {name: read[leaf] for name, leaf in there.items()}
    return found
