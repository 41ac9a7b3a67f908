"""Records that verify and are none: a stranger computed their digests. Typed errors only, no memory that a number asks for."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import purestate as ps
from purestate.errors import CorruptLogError, PureStateError, UnsupportedError
from purestate.store._record import EMPTY_HEAD, Record, encode
from tests.run.tiny import Ask, checkpoint, loader, start

JUNK = [None, 3, -1, 1 << 70, "x", [], {}, [[]], {"a": 1}, True, "b3:", 1.5, ["~"], [1 << 40], "0" * 64]
JUNK += [{"~": "numpy", "v": ["O", "AAAA"]}, {"~": "numpy", "v": ["V999999999999", ""]}, {"~": "bytes", "v": 3}]
JUNK += [
    {"~": "range", "v": [0, 1 << 62]},
    {"~": "deque", "v": [[], -5]},
    {"~": "size", "v": [1 << 62]},
    {"~": "nothing", "v": 0},
]

ACTS = {
    "load": lambda store: store.load("a").verify(),
    "load an epoch": lambda store: store.load("a", epoch=2).verify(),
    "inspect an epoch": lambda store: store.inspect("a", epoch=2),
    "kept": lambda store: store.open("a", echo=None).kept,
    "prune": lambda store: store.open("a", echo=None).prune(ps.keep.last(1)),
    "load best": lambda store: store.load("a", best=True).verify(),
    "check": lambda store: store.check("items"),
    "gc": lambda store: store.gc(dry_run=True),
    "gc of voided": lambda store: store.gc(dry_run=True, voided=True),
    "inspect": lambda store: store.inspect("a"),
    "table": lambda store: store.table(),
    "lineage": lambda store: store.lineage(),
    "show": lambda store: repr(store.open("a", echo=None)),
    "copy": lambda store: store.copy(ps.MemoryStore()),
}


@pytest.fixture(scope="module")
def written() -> tuple[ps.MemoryStore, list[Record]]:
    """A store with every kind of record, and those records."""
    store = ps.MemoryStore()
    ck = checkpoint(store)
    s1 = ck.train(ck.root(start(**Ask().recipe)), loader(), loader(4, seed=1), epochs=4, keep=ps.keep.last(1) | ps.keep.every(2))
    ck.evaluate(s1, loader())
    ck.predict(s1, loader())
    ck.reset("evaluate")
    ck.accept(0)
    return store, list(store._backend.log("a").records)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any, *, drop: bool) -> dict[str, Any]:
    body = copy.deepcopy(body)
    inner: Any = body
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return body


def relinked(records: list[Record], n: int, body: dict[str, Any]) -> list[Record]:
    """Return the records with another body in one of them, and digests that verify."""
    found: list[Record] = []
    for i, record in enumerate(records):
        found.append(encode(i, found[-1].digest if found else EMPTY_HEAD, record.kind, body if i == n else record.body))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_any_part_of_a_record_may_be_anything(written, seed):
    store, records = written
    draw = random.Random(seed)
    refused = 0
    for _ in range(60):
        n = draw.randrange(1, len(records))
        path = draw.choice(list(places(records[n].body))[1:])
        body = changed(records[n].body, path, draw.choice(JUNK), drop=draw.random() < 0.3)
        try:
            strange = relinked(records, n, body)
        except UnsupportedError:
            continue
        store._backend._logs["a"] = strange
        for name, act in ACTS.items():
            try:
                act(store)
            except PureStateError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{name}: {records[n].kind} {path} = {body!r:.200}") from error
    store._backend._logs["a"] = records
    assert refused > 20


def test_a_tensor_in_a_record_that_claims_more_than_it_has(written):
    store, records = written
    n = next(i for i, record in enumerate(records) if record.kind == "done")
    name, inline = next(iter(records[n].body["out"]["optimizer"]["inline"].items()))
    for shape, text in (([1 << 40], ""), ([1 << 40], inline[2]), ([-1, 0], inline[2])):
        written = [inline[0], shape, text]
        body = changed(records[n].body, ("out", "optimizer", "inline", name), written, drop=False)
        store._backend._logs["a"] = relinked(records, n, body)
        with pytest.raises(CorruptLogError, match="keeps a state that is none"):
            dict(store.load("a").optimizer.leaves)
    store._backend._logs["a"] = records
    assert isinstance(store.load("a").optimizer.leaves[name], torch.Tensor)
