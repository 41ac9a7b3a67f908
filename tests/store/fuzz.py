"""Bytes of strangers, by coverage: ``python -m tests.store.fuzz [options of libFuzzer]``, where atheris is installed.

Whatever the bytes are, what reads them returns, or raises what its docstring says. `test_fuzz` runs it for a while.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from purestate.core._hash import tree_hash
from purestate.errors import CorruptItemError, CorruptLogError
from purestate.store._described import describe_item
from purestate.store._journal import _parse
from purestate.store._layout import ITEM_META
from purestate.store._record import EMPTY_HEAD, BadLineError, decode, seal, torn_tail, unseal
from purestate.store._tensors import LeafMeta

FUZZED = ["purestate.store._record", "purestate.store._described", "purestate.store._journal", "purestate.store._tensors"]


def log(data: bytes, folder: Path) -> None:
    """A log, as it is found."""
    whole = data[: len(data) - torn_tail(data)]
    with contextlib.suppress(BadLineError, CorruptLogError):
        for record in decode(whole):
            assert record.kind.isprintable() or record.kind
            _ = record.body


def record(data: bytes, folder: Path) -> None:
    """A record with the right digest and anything in it."""
    line = seal(b'"prev":"%b","seq":0,"kind":"' % EMPTY_HEAD.encode() + data.replace(b"\n", b" ") + b'"}')
    with contextlib.suppress(BadLineError, CorruptLogError, ValueError):
        [found] = decode(line + b"\n")
        with contextlib.suppress(CorruptLogError, KeyError):
            found.leading("of", "n")
        _ = found.body


def sealed(data: bytes, folder: Path) -> None:
    """A line of a journal, a resume point's description."""
    for line in (data, seal(data), b'{"act":' + data):
        assert unseal(line) is None or isinstance(unseal(line), dict)
        assert _parse(line) is None or isinstance(_parse(line), dict)


def description(data: bytes, folder: Path) -> None:
    """The description of an item."""
    for text in (data, seal(b'"format":1,"leaves":' + data + b"}") + b"\n", b'{"format":1,"leaves":' + data + b"}"):
        (folder / ITEM_META).write_bytes(text)
        with contextlib.suppress(CorruptItemError):
            describe_item(folder, folder, tree_hash({}), "an item")


def leaf(data: bytes, folder: Path) -> None:
    """What is noted of a leaf."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        fields = json.loads(data)
        meta = LeafMeta.from_json({"key": "w", "dtype": "float32", "shape": [2], "stored": "float32", "hash": "", **fields})
        assert 0 <= meta.size < 1 << 63


TARGETS: list[Callable[[bytes, Path], None]] = [log, record, sealed, description, leaf]
SEEDS = [
    b'{"digest":"","prev":"","seq":0,"kind":"train","body":{"of":1,"n":5,"metrics":{}}}\n',
    b'epoch","body":{"of":1,"n":5,"metrics":{"loss":0.5}}',
    b'{"act":"gc","items":["00"],"time":"2026-01-01T00:00:00Z"}',
    b'{"w":{"key":"w","dtype":"float32","shape":[2,3],"stored":"float32","hash":""}},"files":{"d/x":{"size":3,"hash":""}}',
    b'{"key":"w","dtype":"bfloat16","shape":[1,0,3],"stored":"uint8","hash":"00"}',
]


def give(data: bytes, folder: Path) -> None:
    """Give bytes to the target that the first of them names."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:], folder)


def main() -> None:
    import atheris

    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name, "item"), Path(name, "corpus")
        folder.mkdir()
        corpus.mkdir()
        for i, seed in enumerate(SEEDS):
            (corpus / str(i)).write_bytes(bytes([i]) + seed)
        for name in FUZZED:
            for value in vars(sys.modules[name]).values():
                if callable(value) and getattr(value, "__module__", None) == name and hasattr(value, "__code__"):
                    atheris.instrument_func(value)
        atheris.Setup([*sys.argv, str(corpus)], lambda data: give(data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
