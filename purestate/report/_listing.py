"""The checkpoints of a store, with where each came from and what each weighs: what ``purestate ls`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purestate.core._digest import short
from purestate.errors import PureStateError, StoreError
from purestate.report._name import RunName
from purestate.report._opened import Run, bytes_of, open_store, time_of
from purestate.report._report import Report, fragment, seconds
from purestate.run._chain import as_recorded
from purestate.run._maintain import named
from purestate.store._disk import DiskBackend
from purestate.store._report import in_bytes
from purestate.view import html_table, text_table

__all__ = ["Listed", "Origin", "StoreListing", "list_store"]


@dataclass(frozen=True)
class Origin:
    """Where the first train of a checkpoint began.

    Args:
        checkpoint: The checkpoint, by the name that it has now; as recorded, if it is gone.
        op: Its train.
        hash: The state.
    """

    checkpoint: str
    op: int | None
    hash: str


@dataclass(frozen=True)
class Listed:
    """A checkpoint.

    Args:
        id: Its name.
        description: What it is about.
        trains: How many trains its chain has.
        unfinished: How many of them have no answer yet.
        epochs: How many epochs are recorded.
        seconds: How long they took.
        metrics: Of the state that its last finished train returned.
        state: The hash of that state; of the root, if there is none.
        parent: Where it came from; None for a root.
        created: When, as the journal says.
        records: How many records it has.
        own: Bytes of the items that no other checkpoint names.
        shared: Bytes of those that others name too.
        torn: Bytes of a last line that is being written, or that a crash cut short.
        problem: Why nothing more is known of it.
    """

    id: str
    description: str | None = None
    trains: int = 0
    unfinished: int = 0
    epochs: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] | None = None
    state: str | None = None
    parent: Origin | None = None
    created: str | None = None
    records: int = 0
    own: int = 0
    shared: int = 0
    torn: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class StoreListing(Report):
    """What a store holds. Prints as a tree.

    Args:
        store: The folder.
        checkpoints: By id.
        bytes: Of all items that they name.
    """

    store: Path
    checkpoints: tuple[Listed, ...]
    bytes: int

    @property
    def ok(self) -> bool:
        """Whether every log could be read."""
        return all(found.problem is None for found in self.checkpoints)

    def __str__(self) -> str:
        if not self.checkpoints:
            return f"{self.store}: no checkpoint"
        return "\n".join([text_table(self._rows(), _HEADER), *self._problems(), f"{in_bytes(self.bytes)} in {self.store}"])

    def to_html(self) -> str:
        """Return the tree as a table: a fragment for a page."""
        table = [("", html_table(self._rows(), _HEADER))] if self.checkpoints else []
        return fragment(*table, *self._problems(), f"{in_bytes(self.bytes)} in {self.store}")

    def _rows(self) -> list[list[Any]]:
        return [[branch + found.id, *_cells(found)] for branch, found in _tree(self.checkpoints)]

    def _problems(self) -> list[str]:
        return [f"{found.id}: {found.problem}" for found in self.checkpoints if found.problem]


_HEADER = ["checkpoint", "from", "trains", "epochs", "metrics", "state", "time", "own", "shared", "description"]


def list_store(path: Path) -> StoreListing:
    """Return the checkpoints of a store, without reading a tensor. What cannot be read is told of the checkpoint that it is in.

    Raises:
        UsageError: There is no store.
        StoreError: It cannot be read at all.
    """
    backend = open_store(path)
    created = {str(act.get("checkpoint")): str(act.get("time")) for act in backend.acts() if act["act"] == "create"}
    runs: dict[str, Run] = {}
    problems: dict[str, str] = {}
    items: dict[str, frozenset[str]] = {}
    for id in backend.ids():
        try:
            runs[id] = Run(RunName(path, id), backend, backend.log(id))
            items[id] = frozenset(named(runs[id].chain and runs[id].log.records))
        except StoreError as error:
            problems[id] = error.problem
    homes = {record.digest: id for id in reversed(list(runs)) for record in runs[id].records}
    found = [_listed(runs[id], homes, created.get(id), items, backend) for id in runs if id not in problems]
    found += [Listed(id, created=created.get(id), problem=problem) for id, problem in problems.items()]
    total = bytes_of(backend, frozenset().union(*items.values()))
    return StoreListing(path, tuple(sorted(found, key=lambda one: one.id)), total)


def _listed(
    run: Run, homes: dict[str, str], created: str | None, items: dict[str, frozenset[str]], backend: DiskBackend
) -> Listed:
    chain, log = run.chain, run.log
    others = frozenset[str]().union(*(held for id, held in items.items() if id != run.id))
    try:
        trains, finished = chain.binding(), list(chain.finished())
        metrics, state = None, None
        if chain.root is not None:
            with as_recorded(chain.root):
                state = chain.root.body["state"]["hash"]
        if finished:
            _, train, record = finished[-1]
            with as_recorded(record):
                metrics, state = train.history()[record.body["returned"]], record.body["out"]["hash"]
        return Listed(
            id=run.id,
            description=chain.description,
            trains=len(trains),
            unfinished=sum(not train.done for train in trains),
            epochs=sum(n > 0 for train in trains for n in train.epochs),
            seconds=sum(time_of(train) for train in trains),
            metrics=metrics,
            state=state,
            parent=_origin(run, homes),
            created=created,
            records=len(log.records),
            own=bytes_of(backend, items[run.id] - others),
            shared=bytes_of(backend, items[run.id] & others),
            torn=log.torn,
        )
    except PureStateError as error:
        return Listed(run.id, created=created, records=len(log.records), problem=error.problem)


def _origin(run: Run, homes: dict[str, str]) -> Origin | None:
    """Return the parent of the first train, if another checkpoint has it: by its record, since names change."""
    parent = run.chain.trains[0].start.body["parent"] if run.chain.trains else None
    if parent is None:
        return None
    own = any(record.digest == parent["record"] for record in run.records[parent["seq"] : parent["seq"] + 1])
    return None if own else Origin(homes.get(parent["record"], str(parent["checkpoint"])), parent.get("op"), parent["hash"])


def _cells(found: Listed) -> list[Any]:
    if found.problem is not None:
        return ["", None, None, "unreadable, see below", "", "", "", "", found.description or ""]
    told = [f"{name} {value:.4g}" for name, value in (found.metrics or {}).items() if name.startswith("val_")]
    origin = "" if found.parent is None else f"{found.parent.checkpoint}@{'root' if found.parent.op is None else found.parent.op}"
    going = " (unfinished)" if found.unfinished else ""
    state = short(found.state) if found.state else ""
    return [
        origin,
        f"{found.trains}{going}" if going else found.trains,
        found.epochs,
        ", ".join(told),
        state,
        seconds(found.seconds),
        in_bytes(found.own),
        in_bytes(found.shared),
        found.description or "",
    ]


def _tree(checkpoints: Sequence[Listed]) -> list[tuple[str, Listed]]:
    """Return checkpoints with the branch that is drawn before each, parents first. None is lost, whatever their logs claim."""
    ids = {found.id for found in checkpoints}
    children: dict[str | None, list[Listed]] = {}
    for found in checkpoints:
        above = found.parent.checkpoint if found.parent and found.parent.checkpoint in ids - {found.id} else None
        children.setdefault(above, []).append(found)
    drawn: list[tuple[str, Listed]] = []

    def draw(found: Listed, branch: str, below: str) -> None:
        drawn.append((branch, found))
        for i, child in enumerate(children.get(found.id, [])):
            last = i == len(children[found.id]) - 1
            draw(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))

    for root in children.get(None, []):
        draw(root, "", "")
    seen = {found.id for _, found in drawn}  # two that name each other as parents have no root
    return drawn + [("? ", found) for found in checkpoints if found.id not in seen]
