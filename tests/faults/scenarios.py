"""What is disturbed: functions of a store and of a way to say what was acknowledged. Each can be run again at any point.

What is said is what a user was told: ``value`` is the same in every run, ``id``, ``length`` and ``head`` are how far a log
must reach from then on, ``gone`` an id that must not come back, ``point`` the resume point that can be read at least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import purestate as ps
from purestate.core._hash import leaf_hash, tree_hash
from purestate.errors import StoreLockedError, StoreWriteError
from purestate.store._disk import DiskBackend
from purestate.store._log import DiskLog
from tests.faults.verify import files_of
from tests.run.tiny import Ask, checkpoint

__all__ = ["acts", "keep", "leaves_of", "resume", "save", "train"]

Say = Callable[[dict[str, Any]], None]


def leaves_of(n: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return the items of record ``n``, by digest: parameters, and moments of another shape and type."""
    rows = torch.arange(60.0).reshape(6, 10)
    trees = {"fc.weight": rows + n, "fc.bias": rows[0] * n, "step": torch.tensor(n)}, {"0": rows.double() / (n + 1)}
    return {digest_of(tree): tree for tree in trees}


def digest_of(tree: dict[str, torch.Tensor]) -> str:
    return tree_hash({name: leaf_hash(leaf) for name, leaf in tree.items()})


def save(path: str, say: Say, *, records: int = 2, id: str = "a") -> None:
    """Put items and append the record that names them, again and again. The log is the same in every run."""
    backend = DiskBackend(path)
    log = backend.log(id)
    for n in range(records):
        with log.lock(), backend.writing():
            log.refresh()
            if fresh := n == len(log.records):
                items = leaves_of(n)
                backend.put(items)
                log.append("snapshot", {"items": list(items)})
        say(_reached(log, n + 1, fresh=fresh))


def soon(path: str, say: Say, *, records: int = 6, id: str = "a") -> None:
    """Append records that become durable behind the caller: half of them by the thread, half when the lock is left."""
    log = DiskBackend(path).log(id)
    fresh = False
    with log.lock():
        log.refresh()
        while (n := len(log.records)) < records:
            log.append_soon("epoch", {"n": n})
            fresh = True
            if 2 * (n + 1) == records:
                time.sleep(0.2)  # not that it must be enough: it is one order of the calls or another
    say(_reached(log, fresh=fresh))


def train(path: str, say: Say, *, trains: int = 2, id: str = "a", seed: int = 0) -> None:
    """Train a small module twice, and evaluate it."""
    store = ps.Store(path)
    ask, ck = Ask(seed=seed), checkpoint(store, id)
    state = ask.state()
    for _ in range(trains):
        state = _patiently(ck.train, state, ask.train_dl, ask.val_dl, epochs=2, load_best=True)
        say(_reached(ck._ledger.log, value=state.hash, fresh=not _was_cached(ck)))
    loss = _patiently(ck.evaluate, state, ask.val_dl)
    say(_reached(ck._ledger.log, value=loss, fresh=not _was_cached(ck)))


def keep(path: str, say: Say) -> None:
    """Train with epochs that are kept and dropped again, and drop more of them."""
    ask, ck = Ask(), checkpoint(ps.Store(path))

    def told(epoch: ps.EpochView) -> None:
        if epoch.n > 0:  # all of them are kept when they are finished
            say(_reached(ck._ledger.log, value=epoch.hash, fresh=not epoch.cached))

    policy = ps.keep.last(2) | ps.keep.every(3)
    state = ck.train(ask.state(), ask.train_dl, ask.val_dl, epochs=5, keep=policy, on_epoch=told)
    say(_reached(ck._ledger.log, value=state.hash, fresh=not _was_cached(ck)))
    dropped = ck.prune(ps.keep.last(1))
    say(_reached(ck._ledger.log, value=str(ck.kept), fresh=bool(dropped)))


def _patiently(op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call an op until nobody else holds its checkpoint: how long others compute depends on the machine."""
    while True:
        try:
            return op(*arguments, **options)
        except StoreLockedError:
            continue


def resume(path: str, say: Say) -> None:
    """Write three generations of a resume point, then clear them."""
    backend = DiskBackend(path)
    for n in range(3):
        backend.save_resume("a", {"n": n}, {"params": next(iter(leaves_of(n).values()))}).result()
        say({"point": n, "value": n})
    backend.clear_resume("a")
    say({"point": None, "value": "cleared"})


def acts(path: str, say: Say) -> None:
    """Delete a checkpoint, and void the end of another."""
    store = ps.Store(path)
    if there := "b" in _ids(store):
        store.delete("b")
    say({"value": "deleted", **({"gone": "b"} if there else {})})
    ck = checkpoint(store)
    if binding := len(list(ck._ledger.chain.binding())) > 1:
        ck.reset(1)
    say(_reached(ck._ledger.log, value="reset", fresh=binding))


def rename(path: str, say: Say) -> None:
    """Give a checkpoint another name."""
    store = ps.Store(path)
    if there := "b" in _ids(store):
        store.rename("b", "c")
    gone = {"gone": "b"} if there else {}
    say(gone | _reached(store.open("c", echo=None)._ledger.log, value="renamed", fresh=there))


def gc(path: str, say: Say) -> None:
    """Remove the items of a checkpoint that is deleted."""
    store = ps.Store(path)
    store.gc()
    say({"value": sorted(path.name for path in store._disk.path.glob("items/??/*"))})


def repair(path: str, say: Say) -> None:
    """Mend what `mess` left. A line of the journal that a power cut zeroed stays: it is no part of any record."""
    store = ps.Store(path)
    report = store.repair()
    findings = [finding for finding in store.check("bytes").findings if not finding.place.startswith("journal")]
    if findings or report.left:  # what a disk that fails keeps from being mended, or read, is told in reports
        raise StoreWriteError("\n".join([*map(str, findings), *report.left]))
    say({"value": "mended"})


def mess(path: str, say: Say) -> None:
    """Leave what killed processes leave: a torn last line, unfinished folders, trash."""
    root = Path(path)
    with open(root / "checkpoints" / "a" / "log.jsonl", "ab") as log:
        log.write(b'{"digest":"00')
    for place in ("items", "checkpoints/a/resume", "trash"):
        (root / place / f"tmp-{'0' * 24}").mkdir(parents=True)
        (root / place / f"tmp-{'0' * 24}" / "manifest.ocdbt").write_bytes(b"x" * 600)


def copy(path: str, say: Say) -> None:
    """Copy all checkpoints into the store beside this one."""
    other = ps.Store(Path(path).with_name("copy"))
    ps.Store(path).copy(other)
    for id in ("a", "b"):
        say({"store": "copy", **_reached(other.open(id, echo=None)._ledger.log, value=other.load(id).hash)})


def export(path: str, say: Say) -> None:
    """Export a checkpoint for Orbax, into a new folder beside the store."""
    root = Path(path).parent
    place = root / f"exported-{len(list(root.glob('exported-*')))}"
    ps.Store(path).export_orbax("a", place)
    say({"value": sorted(step.name for step in place.iterdir()), "exported": place.name, "files": files_of(place)})


def _reached(log: DiskLog | Any, length: int | None = None, value: Any = None, *, fresh: bool = True) -> dict[str, Any]:
    """Return what to say of a log that has ``length`` records; ``fresh`` if the last was appended just now.

    Finding an answer promises nothing more of its record: its writer may have been killed before it was durable, and whoever
    needs it after a power cut computes it again.
    """
    length = len(log.records) if length is None else length
    head = log.records[length - 1].digest
    promised = {"id": log.id, "length": length, "head": head} if fresh else {}
    return {**promised, "value": head if value is None else value}


def _ids(store: ps.Store) -> list[str]:
    return [info.id for info in store.checkpoints()]


def _was_cached(ck: ps.Checkpoint) -> bool:
    assert ck.last is not None
    return ck.last.cached


def points(path: str, say: Say) -> None:
    """Leave two generations of a resume point, and a journal."""
    backend = DiskBackend(path)
    for n in range(2):
        backend.save_resume("a", {"n": n}, {"params": next(iter(leaves_of(n).values()))}).result()
    backend.journal("test", note="nothing happened")
    say({"value": "written"})


def contend(path: str, say: Say, *, who: int, seconds: float, items: bool) -> None:
    """Append records to a log that others append to, as fast as it goes; every seventh with items."""
    backend = DiskBackend(path)
    log = backend.log("shared")
    end = time.monotonic() + seconds
    n = 0
    while time.monotonic() < end:
        with log.lock(None):
            body: dict[str, Any] = {"who": who, "n": n}
            if items and n % 7 == 0:
                with backend.writing():
                    trees = leaves_of(who * 1000 + n)
                    backend.put(trees)
                    log.append("note", body | {"items": list(trees)})
            else:
                log.append("note", body)
            say({"who": who, "n": n, "length": len(log.records), "id": log.id, "head": log.head, "at": time.monotonic()})
        n += 1


def collect(path: str, say: Say, *, seconds: float) -> None:
    """Delete a checkpoint and collect its items, again and again."""
    store = ps.Store(path)
    end = time.monotonic() + seconds
    n = 0
    while time.monotonic() < end:
        train(path, lambda what: None, trains=1, id="b", seed=1)
        store.delete("b")
        store.gc()
        n += 1
    say({"value": n})
