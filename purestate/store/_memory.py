"""Backends that keep nothing on disk: `MemoryBackend` for as long as the process lives, `NullBackend` not at all."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from purestate.core._hash import dtype_name, leaf_hash, short, tree_hash
from purestate.errors import MissingSnapshotError, MutatedStateError, StoreError
from purestate.store._backend import Handle, Leaf, Outlived, Point, not_found, taken_name
from purestate.store._described import missing
from purestate.store._items import unknown_leaf
from purestate.store._journal import entry
from purestate.store._layout import check_id
from purestate.store._log import not_locked
from purestate.store._record import EMPTY_HEAD, Record, decode, encode, to_json
from purestate.store._report import Finding, GcReport, RepairReport
from purestate.store._taken import taken

__all__ = ["MemoryBackend", "NullBackend"]

Tree = Mapping[str, torch.Tensor]


class MemoryBackend:
    """A store in memory: the same answers as `DiskBackend`, gone with the object."""

    anonymous = False

    def __init__(self) -> None:
        self._logs: dict[str, list[Record]] = {}
        self._items: dict[str, dict[str, torch.Tensor]] = {}
        self._points: dict[str, tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]] = {}
        self._acts: list[dict[str, Any]] = []

    def log(self, id: str, *, must_exist: bool = False) -> _MemoryLog:
        """Return the log of a checkpoint."""
        if must_exist and not self._logs.get(check_id(id)):
            raise not_found(id, self.ids(), "this store")
        return _MemoryLog(check_id(id), self._logs)

    def ids(self) -> list[str]:
        """Return the ids of the checkpoints, sorted."""
        return sorted(self._logs)

    def rename(self, old: str, new: str, timeout: float | None = 10.0) -> None:
        """Give a checkpoint another name."""
        del timeout
        log = self.log(old, must_exist=True)
        if check_id(new) in self._logs:
            raise taken_name(new, "this store")
        self.journal("rename", checkpoint=old, to=new, head=log.head)
        self._logs[new] = self._logs.pop(old)
        if old in self._points:
            self._points[new] = self._points.pop(old)

    def writing(self, timeout: float | None = 60.0) -> AbstractContextManager[None]:
        """Return a context in which no item disappears."""
        del timeout
        return contextlib.nullcontext()

    def has(self, digest: str) -> bool:
        """Return whether an item is there."""
        return digest in self._items

    def items(self) -> Iterator[str]:
        """Yield the digests of the items that are there."""
        yield from self._items

    def put(self, items: Mapping[str, Tree]) -> None:
        """Keep copies of the items that are not there."""
        for digest, leaves in items.items():
            if digest not in self._items:
                self._items[digest] = _checked(leaves, digest)

    def get(self, digest: str, names: Iterable[str] | None = None, *, what: str = "an item") -> dict[str, torch.Tensor]:
        """Return copies of an item, or of some leaves of it."""
        leaves = self._leaves(digest, what)
        wanted = list(leaves if names is None else names)
        for name in wanted:
            if name not in leaves:
                raise unknown_leaf(name, leaves, what)
        return {name: leaves[name].clone() for name in wanted}

    def describe(self, digest: str, *, what: str = "an item") -> dict[str, Leaf]:
        """Return what is known of the leaves of an item."""
        return {
            name: Leaf(dtype_name(leaf.dtype), tuple(leaf.shape), leaf.nbytes, leaf_hash(leaf))
            for name, leaf in self._leaves(digest, what).items()
        }

    def faults(self, digest: str, what: str, *, hashed: bool) -> Iterator[StoreError]:
        """Yield that an item is missing. Nobody else has these copies, so they are what they were."""
        del hashed
        try:
            self._leaves(digest, what)
        except MissingSnapshotError as error:
            yield error

    def _leaves(self, digest: str, what: str) -> dict[str, torch.Tensor]:
        if digest not in self._items:
            raise missing(digest, what, taken(self._acts).get(digest))
        return self._items[digest]

    def warm(self, size: int = 0) -> None:
        """Do nothing."""

    def save_resume(self, id: str, body: dict[str, Any], leaves: Mapping[str, Tree]) -> Handle:
        """Keep copies as the resume point of a checkpoint."""
        to_json(body, "the body of a resume point")
        self._points[check_id(id)] = copy.deepcopy(body), {name: _copies(tree) for name, tree in leaves.items()}
        return _Done()

    def load_resume(self, id: str, damaged: list[StoreError] | None = None) -> Point | None:
        """Return copies of the resume point, or None."""
        del damaged
        if check_id(id) not in self._points:
            return None
        body, leaves = self._points[id]
        return copy.deepcopy(body), {name: _copies(tree) for name, tree in leaves.items()}

    def clear_resume(self, id: str) -> None:
        """Forget the resume point of a checkpoint."""
        self._points.pop(check_id(id), None)

    def delete(self, id: str, timeout: float | None = 10.0) -> None:
        """Forget a checkpoint."""
        del timeout
        log = self.log(id, must_exist=True)
        self.journal("delete", checkpoint=id, head=log.head, records=len(log.records))
        del self._logs[id]
        self._points.pop(id, None)

    def journal(self, act: str, **details: Any) -> None:
        """Note an act on the store."""
        self._acts.append(entry(act, details))

    def acts(self) -> list[dict[str, Any]]:
        """Return what `journal` noted, oldest first."""
        return list(self._acts)

    def oddities(self) -> Iterator[Finding]:
        """Yield nothing: there is no file that could be damaged."""
        return iter(())

    def strays(self, named: Collection[str] | None, outlived: Outlived | None = None) -> Iterator[Finding]:
        """Yield the items that no record names."""
        del outlived
        for digest in self._items:
            if named is not None and digest not in named:
                yield Finding("rubbish", f"item {short(digest)}", "no record names it", "store.gc() removes it.")

    def repair(self, outlived: Outlived | None = None) -> RepairReport:
        """Do nothing: no kill leaves anything."""
        del outlived
        return RepairReport((), (), 0)

    def collect(self, named: Callable[[], Collection[str]], *, dry_run: bool, timeout: float | None, **details: Any) -> GcReport:
        """Forget the items that are not named."""
        del timeout
        keep = frozenset(named())
        doomed = sorted(self._items.keys() - keep)
        size = sum(leaf.nbytes for digest in doomed for leaf in self._items[digest].values())
        report = GcReport(tuple(doomed), size, len(self._items) - len(doomed), dry_run)
        if doomed and not dry_run:
            self.journal("gc", items=doomed, bytes=size, **details)
            for digest in doomed:
                del self._items[digest]
        return report

    def close(self) -> None:
        """Do nothing."""


class NullBackend(MemoryBackend):
    """A store that accepts everything and keeps nothing: ops compute as if they were never asked before."""

    anonymous = True

    def log(self, id: str, *, must_exist: bool = False) -> _NullLog:
        """Return a log that stays empty."""
        if must_exist:
            raise not_found(id, (), "this store, which keeps nothing")
        return _NullLog(check_id(id), {})

    def put(self, items: Mapping[str, Tree]) -> None:
        """Keep nothing."""

    def save_resume(self, id: str, body: dict[str, Any], leaves: Mapping[str, Tree]) -> Handle:
        """Keep nothing."""
        check_id(id)
        return _Done()

    def journal(self, act: str, **details: Any) -> None:
        """Keep nothing."""


class _MemoryLog:
    torn = 0

    def __init__(self, id: str, logs: dict[str, list[Record]]) -> None:
        self.id = id
        self._logs = logs
        self._held = 0

    @property
    def records(self) -> Sequence[Record]:
        return self._logs.get(self.id, [])

    @property
    def head(self) -> str:
        return self.records[-1].digest if self.records else EMPTY_HEAD

    def exists(self) -> bool:
        return self.id in self._logs

    def refresh(self) -> None:
        """Do nothing: all logs of a checkpoint share its records."""

    @contextlib.contextmanager
    def lock(self, timeout: float | None = 10.0) -> Generator[None, None, None]:
        del timeout
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def append(self, kind: str, body: dict[str, Any]) -> Record:
        if not self._held:
            raise not_locked(self.id)
        record = encode(len(self.records), self.head, kind, body, self.id)
        self._keep(record)
        return record

    append_soon = append  # nothing is waited for

    def flush(self) -> None:
        """Do nothing."""

    def append_all(self, bodies: Sequence[tuple[str, dict[str, Any]]]) -> list[Record]:
        records, seq, head = list[Record](), len(self.records), self.head
        if not self._held:
            raise not_locked(self.id)
        for kind, body in bodies:
            records.append(encode(seq + len(records), head, kind, body, self.id))
            head = records[-1].digest
        for record in records:
            self._keep(record)
        return records

    def extend(self, records: Sequence[Record]) -> None:
        if not self._held:
            raise not_locked(self.id)
        lines = b"".join(record.line + b"\n" for record in records)
        for record in list(decode(lines, len(self.records), self.head, self.id)):
            self._keep(record)

    def _keep(self, record: Record) -> None:
        self._logs.setdefault(self.id, []).append(record)


class _NullLog(_MemoryLog):
    def _keep(self, record: Record) -> None:
        del record


class _Done:
    seconds = 0.0

    def done(self) -> bool:
        return True

    def result(self) -> None:
        return None


def _copies(tree: Tree) -> dict[str, torch.Tensor]:
    return {name: leaf.detach().to("cpu", copy=True).contiguous() for name, leaf in tree.items()}


def _checked(leaves: Tree, digest: str) -> dict[str, torch.Tensor]:
    copies = _copies(leaves)
    if (actual := tree_hash({name: leaf_hash(leaf) for name, leaf in copies.items()})) != digest:
        raise MutatedStateError(
            f"Expected leaves that hash to {short(digest)}, got {short(actual)}: they changed after they were hashed.",
            fix="Call state.verify() to see which.",
        )
    return copies
