"""The source text behind a question, kept beside the answer: the digest of code that nobody kept proves nothing.

A train keeps its text as an item, which forks and runs of the same code share: a leaf a piece (see `purestate.code._text`),
named by the digest by which the question knows it. A reader names the items of its checkpoint that have its text, and holds in
its record what none of them has: it writes no item otherwise, and waits for no disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from purestate.code._text import encoded, pieces
from purestate.core._hash import leaf_hash, tree_hash
from purestate.errors import StoreError
from purestate.run._chain import RecordLike, as_recorded
from purestate.run._ledger import Ledger
from purestate.run._named import code_of
from purestate.run._snapshot import Items
from purestate.store._backend import Backend

__all__ = ["of_reader", "of_train", "texts"]

Field = dict[str, Any]


def of_train(ledger: Ledger, question: Mapping[str, Any]) -> tuple[Field, Items]:
    """Return what the record of an answer says of its code (nothing, where there is none of the user), and what to put.

    Args:
        ledger: The checkpoint; its lock is held.
        question: As the record of the train holds it.
    """
    wanted = pieces(question["parts"].values())
    items, left = _named(ledger, wanted)
    if not left:
        return _field(items, {}), {}
    leaves = {digest: _tensor(encoded(digest)) for digest in sorted(wanted)}
    item = tree_hash({name: leaf_hash(leaf) for name, leaf in leaves.items()})
    return _field([item], {}), {item: leaves}


def of_reader(ledger: Ledger, question: Mapping[str, Any]) -> Field:
    """Return what the record of a reader's answer says of its code.

    Args:
        ledger: The checkpoint; its lock is held.
        question: As the record is going to hold it.
    """
    wanted = pieces(question["parts"].values())
    items, left = _named(ledger, wanted) if wanted else ([], wanted)
    left = left.difference(*(_inline(record) for record in _records(ledger))) if left else left
    return _field(items, {digest: encoded(digest).decode("ascii") for digest in sorted(left)})


def texts(records: Iterable[RecordLike], backend: Backend, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return pieces of code that the records of a checkpoint keep, by digest; those that none keeps are left out.

    Args:
        records: All of them.
        backend: Where their items are.
        wanted: The digests.

    Raises:
        CorruptItemError: An item is damaged.
        CorruptLogError: A record does not hold what its kind does.
    """
    left, found = set(wanted), dict[str, bytes]()
    items: dict[str, None] = {}
    for record in records:
        if record.kind not in _WITH_CODE:
            continue
        inline = _inline(record)
        found |= {digest: inline[digest].encode("ascii") for digest in left & inline.keys()}
        with as_recorded(record):
            items |= dict.fromkeys(code_of(record.body))
    for item in items:
        left -= found.keys()
        try:
            there = left.intersection(backend.describe(item, what="the text of code")) if left else ()
        except StoreError:
            continue  # a collection took it with the answer that named it, or `check` says what is wrong with it
        if there:
            leaves = backend.get(item, sorted(there), what="the text of code")
            found |= {digest: leaf.numpy().tobytes() for digest, leaf in leaves.items()}
    return found


_WITH_CODE = frozenset({"done", "evaluate", "find_lr", "predict"})


def _named(ledger: Ledger, wanted: set[str]) -> tuple[list[str], set[str]]:
    """Return the items of records in effect that have some of the pieces, and the pieces that none of them has."""
    found: list[str] = []
    left = set(wanted)
    for item in dict.fromkeys(item for record in _records(ledger) for item in code_of(record.body)):
        try:
            here = left.intersection(ledger.backend.describe(item, what="the text of code")) if left else set[str]()
        except StoreError:
            continue  # then it is written once more
        if here:
            found.append(item)
            left -= here
    return found, left


def _records(ledger: Ledger) -> Iterator[RecordLike]:
    for train in ledger.chain.trains:
        yield from train.done
    yield from ledger.chain.readers.values()


def _inline(record: RecordLike) -> Mapping[str, str]:
    with as_recorded(record):
        found = record.body.get("code", {}).get("pieces", {})
        if not all(isinstance(text, str) for text in found.values()):
            raise TypeError("there is a text that is none")
        return found


def _field(items: list[str], inline: Mapping[str, str]) -> Field:
    told = {"items": items, "pieces": inline}
    return {"code": {name: value for name, value in told.items() if value}} if items or inline else {}


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
