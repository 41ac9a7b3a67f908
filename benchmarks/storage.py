"""Saving and restoring: the commit of a small op, larger trees against plain Orbax and `torch.save`, what a repeat writes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import purestate as ps
from benchmarks._measure import Row, child, compare, figure, folder_bytes, interleave, timed
from benchmarks._models import MLP, adam_state
from purestate.core._tree import Leaves
from purestate.run._snapshot import snapshot
from purestate.store._disk import DiskBackend

__all__ = ["rows"]

GROUP = "storage"
TREES = {
    "30 leaves, 31.5 MB": (30, 262_144, 10),
    "1,000 leaves of 1 KB": (1000, 256, 10),
    "100 leaves, 170 MB": (100, 425_000, 4),
    "32 leaves, 480 MB": (32, 3_750_000, 3),
}
"""Leaves, float32 elements of each, rounds."""


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        backend = DiskBackend(path / "store")
        try:
            found = _commits(backend, path, 5 if quick else 20)
            with _Orbax() as orbax:
                for name, (*shape, rounds) in list(TREES.items())[: 2 if quick else None]:
                    found += _trees(backend, path / f"files-{shape[0]}", orbax, name, tuple(shape), 2 if quick else rounds)
        finally:
            backend.close()
    return found


def _commits(backend: DiskBackend, path: Path, rounds: int) -> list[Row]:
    """Commit what a small train returned: new items, then the record; and again, where the items are there."""
    batch = (torch.rand(32, 64), torch.randint(10, (32,)))
    quiet = ps.NullStore().checkpoint("a", echo=None)
    # the first one warms the writer up
    states = [quiet.train(adam_state(MLP, seed), [batch], epochs=1) for seed in range(rounds + 1)]
    log = backend.log("small")
    written: dict[str, list[float]] = {"new": [], "unchanged": []}

    def commit(state: ps.State) -> None:
        with log.lock(), backend.writing():
            body, items = snapshot(state)
            missing = {digest: leaves for digest, leaves in items.items() if not backend.has(digest)}
            if missing:
                backend.put(missing)
            log.append("done", {"out": body})

    def measured(kind: str, state: ps.State) -> float:
        before = folder_bytes(path)
        seconds = timed(lambda: commit(state))()
        written[kind].append(folder_bytes(path) - before)
        return seconds

    def by_hand(state: ps.State) -> None:
        assert state.optimizer is not None
        _torch_save({"model": dict(state.params), "optimizer": dict(state.optimizer.leaves)}, path / "small.pt")

    commit(states[0])
    new, unchanged, hand = iter(states[1:]), iter(states[1:]), itertools.cycle(states)
    cases = {
        "purestate": lambda: measured("new", next(new)),
        "torch.save, fsync": timed(lambda: by_hand(next(hand))),
    }
    found = compare(GROUP, "commit of a small op: 2 items, 1 record", cases, rounds)
    seconds = [measured("unchanged", next(unchanged)) * 1e3 for _ in range(rounds)]
    size = os.path.getsize(path / "small.pt")
    return [
        *found,
        figure(GROUP, "commit with unchanged items", seconds, unit="ms"),
        *(
            figure(
                GROUP,
                f"bytes of a small commit, {kind} items",
                written[kind],
                [size] * rounds,
                against="torch.save",
                unit="bytes",
            )
            for kind in written
        ),
    ]


def _trees(backend: DiskBackend, path: Path, orbax: _Orbax, name: str, shape: tuple[int, ...], rounds: int) -> list[Row]:
    path.mkdir()
    numbers = itertools.count()
    last: dict[str, str] = {}

    def tree() -> dict[str, torch.Tensor]:
        return {f"leaf{i}": torch.rand(shape[1]) for i in range(shape[0])}

    def put() -> float:
        leaves = tree()
        last["purestate"] = digest = Leaves(leaves).digest  # a State knows it by then
        return timed(lambda: backend.put({digest: leaves}))()

    def torch_save() -> float:
        leaves, last["torch"] = tree(), str(path / f"{next(numbers)}.pt")
        return timed(lambda: _torch_save(leaves, Path(last["torch"])))()

    def orbax_save() -> float:
        last["orbax"] = str(path / f"{next(numbers)}.orbax")
        return orbax.save(last["orbax"], shape)

    cases = {"purestate": put, "Orbax": orbax_save, "torch.save, fsync": torch_save}
    interleave(cases, 1)
    found = compare(GROUP, f"put {name}", cases, rounds)
    sources: dict[str, tuple[str, ...]] = {
        "purestate": ("purestate", os.fspath(backend.path), last["purestate"]),
        "Orbax": ("orbax", last["orbax"]),
        "torch.load": ("torch", last["torch"]),
    }
    restores: dict[str, Callable[[], float]] = {who: _restore(source) for who, source in sources.items()}
    return found + compare(GROUP, f"restore {name}, fresh process, after import torch", restores, max(1, rounds // 2))


def _restore(source: tuple[str, ...]) -> Callable[[], float]:
    return lambda: child("_restore", *source)["seconds"]


def _torch_save(tree: Any, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(tree, file)
        file.flush()
        os.fsync(file.fileno())


class _Orbax:
    """Plain Orbax in a process of its own, so that this one never imports JAX."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks._orbax"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            text=True,
        )

    def save(self, path: str, shape: tuple[int, ...]) -> float:
        """Save a tree of random leaves and return the seconds that saving took there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([path, *shape]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def __enter__(self) -> _Orbax:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
