"""Verifies a store of purestate. One file to copy: it needs Python 3.11 and blake3, and nothing else; not even purestate.

    pip install blake3
    python checker.py STORE [--expect-head CHECKPOINT=HASH]... [--json]

It reads every line of every log and of the journal and every byte of every item, and hashes leaves, items and states again as the
section "The hash" of `README.md` beside this file says. It writes nothing. The exit status is 0 where nothing is damaged or
missing, 1 where something is, 2 where the call was wrong. A log cannot show by itself that its end was cut off: note the heads
that are printed, and give them with ``--expect-head`` later.

It shares no code with purestate, so that a mistake there is not made here again: what Orbax wrote is read by a reader of its
own for OCDBT (https://google.github.io/tensorstore/kvstore/ocdbt/) and for Zstandard (RFC 8878), by which the nodes of its
trees are packed.

A store may come from a stranger: no symbolic link is followed, no length in a file is believed before the bytes are there, and
whatever is in a file, the answer is a sentence. Not looked at are resume points, on which nothing but time depends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, Literal

try:
    from blake3 import blake3
except ImportError:
    print("checker.py needs blake3: pip install blake3", file=sys.stderr)
    sys.exit(2)

__all__ = ["BadBytesError", "Finding", "Result", "check", "main"]

FORMAT = 1
_EMPTY = "0" * 64
_BLOCK = 1 << 20
_LONGEST = 1 << 28
"""Bytes of a line, or of a description: what has more is none."""
_LARGEST_NODE, _MOST_NAMES = 1 << 26, 1 << 20
"""Bytes of a node of Orbax's tree, unpacked, and names in it: what may be asked of the memory."""
_UNPACKED = 1 << 10
"""How many times its own size a node may have unpacked, beside a megabyte."""
_INLINE = 1 << 10
"""Leaves of so few bytes may be packed in the nodes of Orbax's tree, so the files can be smaller than they are together."""

_HEX2, _DIGEST = re.compile(r"[0-9a-f]{2}"), re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_RECORD = re.compile(
    rb'\{"digest":"([0-9a-f]{64})",("prev":"([0-9a-f]{64})","seq":(\d{1,18}),"kind":"([a-z][a-z0-9_]*)","body":\{.*\}\})'
)
_SEALED = re.compile(rb'\{"digest":"([0-9a-f]{64})",(.*\})', re.DOTALL)
_NAMES_NOTHING = {"checkpoint", "train", "epoch", "drop", "reset", "accept", "alias"}
_READERS = {"evaluate", "find_lr", "predict"}
_ZARR = (
    {"bool": "|b1", "uint8": "|u1", "int8": "|i1", "uint16": "<u2", "int16": "<i2", "uint32": "<u4", "int32": "<i4"}
    | {"uint64": "<u8", "int64": "<i8", "float16": "<f2", "float32": "<f4", "float64": "<f8"}
    | {"complex64": "<c8", "complex128": "<c16"}
)
"""How dtypes are written in the description of an array (zarr 2); those that numpy lacks by their names."""
_WIDTH = {
    **{name: int(text[2:]) for name, text in _ZARR.items()},
    **{f"float8_{name}": 1 for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")},
    "bfloat16": 2,
    "complex32": 4,
}
"""Bytes of an element."""


class BadBytesError(Exception):
    """What was read is not what a store holds. The text says what it is instead."""


Kind = Literal["damaged", "missing", "torn", "gone", "foreign"]


@dataclass(frozen=True)
class Finding:
    """Something in a store that is not as it should be.

    Args:
        kind: ``'damaged'`` or ``'missing'``, which lose something; ``'torn'``, which a crash leaves; ``'gone'``, which somebody
            removed by hand; or ``'foreign'``.
        place: Where, as a path below the store, with the line or the leaf.
        what: What is wrong.
    """

    kind: Kind
    place: str
    what: str


@dataclass
class Result:
    """What was found.

    Args:
        store: The folder.
        heads: The digest of the last record of each log, as far as it verifies.
        records: How many verify.
        items: How many are there.
        bytes: How many bytes of tensors were hashed.
        findings: What is wrong.
    """

    store: str
    heads: dict[str, str] = field(default_factory=dict[str, str])
    records: int = 0
    items: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not any(finding.kind in ("damaged", "missing") for finding in self.findings)

    def add(self, kind: Kind, place: str, what: str) -> None:
        """Note something that is not as it should be."""
        self.findings.append(Finding(kind, place, what))

    def __str__(self) -> str:
        size = f"{len(self.heads)} logs, {self.records} records, {self.items} items, {self.bytes} bytes of tensors"
        told = [f"{found.kind}: {found.place}: {found.what}" for found in self.findings]
        return "\n".join([f"{'ok' if self.ok else 'NOT ok'}: {size}", *told, *(f"head {id}={d}" for id, d in self.heads.items())])


def check(store: str, expected: Mapping[str, str] | None = None) -> Result:
    """Return what is wrong in a store. Nothing is written.

    Args:
        store: The folder.
        expected: By checkpoint, the digest that its last record had once, or the digits that it begins with.
    """
    result = Result(store)
    try:
        version = json.loads(_read(store, "format.json", 1 << 12))["purestate"]
        if type(version) is not int or not 1 <= version <= FORMAT:
            result.add("damaged", "format.json", f"the store has format {version!r:.40}, and this file knows {FORMAT}")
            return result
    except (BadBytesError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        result.add("damaged", "format.json", _said(error))
        return result
    collected, begun = _journal(store, result)
    needed, states = _logs(store, result, dict(expected or {}))
    there = {digest: _item(store, digest, result) for digest in sorted(_items(store, result))}
    result.items = len(there)
    for digest, what in needed.items():
        if digest not in there and digest not in collected:
            result.add("missing", f"items/{digest[:2]}/{digest}", f"{what} is not there")
    for place, snapshot in states:
        try:
            _state(snapshot, there)
        except _SHAPE as error:
            result.add("damaged", place, _said(error))
    for id in sorted(begun - result.heads.keys()):
        result.add("gone", f"checkpoints/{id}", "the journal says that it was begun, and not that it was deleted")
    damaged = {finding.place.partition(",")[0] for finding in result.findings if finding.kind == "damaged"}
    for id in sorted(id for id in begun if result.heads.get(id) == _EMPTY):
        if (place := f"checkpoints/{id}/log.jsonl") not in damaged:
            result.add("gone", place, "it holds no record, and the journal says that it was begun")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Check what the command line names, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(prog="checker.py", description="Verify a store of purestate. Nothing is written.")
    parser.add_argument("store", help="the folder with format.json in it")
    parser.add_argument(
        "--expect-head", metavar="CHECKPOINT=HASH", action="append", default=[], help="a head that was noted before"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    expected: dict[str, str] = {}
    for text in given.expect_head:
        id, _, digest = text.partition("=")
        expected[id] = digest.removeprefix("b3:")
        if not _ID.fullmatch(id) or not re.fullmatch(r"[0-9a-f]{8,64}", expected[id]):
            parser.error(f"expected CHECKPOINT=HASH with at least 8 hexadecimal digits, got {text!r}")
    if not os.path.isfile(os.path.join(given.store, "format.json")):
        parser.error(f"{given.store!r} is no store: there is no file format.json in it")
    result = check(given.store, expected)
    text = json.dumps({"ok": result.ok, **asdict(result)}) if given.json else str(result)
    try:
        print(text.encode("ascii", "backslashreplace").decode(), flush=True)
    except BrokenPipeError:  # who reads it has seen enough; nothing is left to flush when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if result.ok else 1


# ---------------------------------------------------------------- files


def _open(root: str, path: str) -> BinaryIO:
    """Open a plain file below a folder to read it. No symbolic link is followed on the way."""
    full = os.path.join(os.path.realpath(root), *path.split("/"))
    if os.path.realpath(full) != full:
        raise BadBytesError("a symbolic link leads there")
    if not stat.S_ISREG(os.lstat(full).st_mode):
        raise BadBytesError("it is no plain file")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return open(os.open(full, flags), "rb")


def _read(root: str, path: str, most: int) -> bytes:
    with _open(root, path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BadBytesError(f"it has more than {most} bytes")
    return data


def _lines(root: str, path: str) -> Iterator[tuple[int, bytes, bool]]:
    """Yield ``(number, line, whether it is the last)``."""
    with _open(root, path) as file:
        line, number = file.readline(_LONGEST + 1), 1
        while line:
            if len(line) > _LONGEST:
                raise BadBytesError(f"line {number} has more than {_LONGEST} bytes")
            after = file.readline(_LONGEST + 1)
            yield number, line, not after
            line, number = after, number + 1


def _folders(root: str, path: str, pattern: re.Pattern[str], result: Result) -> list[str]:
    """Return the names of the folders in a folder, sorted, and note where a symbolic link is instead."""
    full = os.path.join(os.path.realpath(root), *path.split("/"))
    if not os.path.lexists(full):
        return []
    if os.path.realpath(full) != full or not os.path.isdir(full):
        result.add("damaged", path, "it is a symbolic link, or no folder")
        return []
    with os.scandir(full) as entries:
        there = {entry.name: entry.is_symlink() for entry in entries if entry.is_symlink() or entry.is_dir()}
    for name in sorted(there):
        if there[name] and pattern.fullmatch(name):
            result.add("damaged", f"{path}/{name}", "it is a symbolic link")
    return sorted(name for name in there if pattern.fullmatch(name) and not there[name])


def _sealed(line: bytes) -> bool:
    """Return whether the digest that an object begins with is that of the bytes behind it."""
    found = _SEALED.fullmatch(line)
    return found is not None and blake3(found[2]).hexdigest().encode() == found[1]


def _said(error: Exception) -> str:
    """Return what an error says of a file: what it lacks, in a line."""
    if isinstance(error, OSError):
        return error.strerror or "it cannot be read"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (
        str(error)[:200]
        if isinstance(error, BadBytesError)
        else f"it does not hold what it should ({type(error).__name__}: {error!s:.120})"
    )


_SHAPE = (BadBytesError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What comes of values that are not what a store writes, and of files that cannot be read."""


# ---------------------------------------------------------------- logs and the journal


def _journal(store: str, result: Result) -> tuple[set[str], set[str]]:
    """Verify the journal, and return the items that it says were collected, and the checkpoints that should be there."""
    gone, begun = set[str](), set[str]()
    try:
        for number, line, _ in _lines(store, "journal.jsonl"):
            try:
                if not line.endswith(b"\n") or not (line.startswith(b'{"act":') or _sealed(line[:-1])):
                    raise BadBytesError("its bytes differ from its digest, or a crash cut it short")
                act = json.loads(line)
                if type(act["act"]) is not str:
                    raise BadBytesError("it says no act")
                if act["act"] == "gc":
                    gone |= {digest for digest in act["items"] if type(digest) is str}
                if act["act"] in ("create", "copy", "rename"):
                    begun.add(str(act.get("to", act["checkpoint"])))
                if act["act"] in ("delete", "rename"):
                    begun.discard(act["checkpoint"])
            except _SHAPE as error:
                # one that a crash cut short is ended by the next act, and stays
                kind = "damaged" if line.endswith(b"}\n") else "torn"
                if line.strip():
                    result.add(kind, f"journal.jsonl, line {number}", _said(error))
    except FileNotFoundError:
        pass  # of a store that was only copied: acts are not needed to read it
    except (BadBytesError, OSError) as error:
        result.add("damaged", "journal.jsonl", _said(error))
    return gone, begun


_Snapshots = list[tuple[str, dict[str, Any]]]
"""Where each state at rest was recorded, and what was."""


def _logs(store: str, result: Result, expected: dict[str, str]) -> tuple[dict[str, str], _Snapshots]:
    """Verify the logs, and return the items that their records need, with what each is, and the states."""
    needed: dict[str, str] = {}
    states: _Snapshots = []
    for id in _folders(store, "checkpoints", re.compile(r".*", re.DOTALL), result):
        if not _ID.fullmatch(id) or not os.path.lexists(os.path.join(store, "checkpoints", id, "log.jsonl")):
            result.add("foreign", f"checkpoints/{id!r:.140}", "it is no checkpoint, and is not looked at")
            continue
        records = _log(store, id, result, expected.pop(id, None))
        place = f"checkpoints/{id}/log.jsonl"
        try:
            needed |= {digest: f"{what} of {id}" for digest, what in _needed(records).items()}
            for seq, (kind, body) in enumerate(records):
                states += [(f"{place}, line {seq + 1}", snapshot) for snapshot in _kept(kind, body)]
        except _SHAPE as error:
            result.add("damaged", place, _said(error))
    for id in expected:
        result.add("missing", f"checkpoints/{id}/log.jsonl", "there is no such log, and a head of it was expected")
    return needed, states


_Records = list[tuple[str, dict[str, Any]]]
"""Kind and body of each."""


def _log(store: str, id: str, result: Result, expected: str | None) -> _Records:
    place, head, seen = f"checkpoints/{id}/log.jsonl", _EMPTY, False
    records: _Records = []
    number = 0
    try:
        for number, line, last in _lines(store, place):
            if last and (b"\0" in line or not (line.endswith(b"\n") or _sealed(line[:-1]))):
                what = f"a last line of {len(line)} bytes was never finished: a crash cut it short"
                result.add("torn", f"{place}, line {number}", what)
                break
            head, kind = _follows(line, head, number - 1)
            body = json.loads(line)["body"] if kind != "epoch" else {}
            records.append((kind, body if kind not in _NAMES_NOTHING or kind in ("reset", "drop") else {}))
            seen = seen or (expected is not None and head.startswith(expected))
    except _SHAPE as error:
        result.add("damaged", f"{place}, line {number}" if number else place, _said(error))
    result.heads[id] = head
    result.records += len(records)
    if expected is not None and not seen:
        result.add("missing", place, f"no record has the expected head {expected}: records were cut off or written anew")
    return records


def _follows(line: bytes, head: str, seq: int) -> tuple[str, str]:
    """Return digest and kind of a line that follows the record with a digest."""
    found = _RECORD.fullmatch(line[:-1])
    if found is None or not line.endswith(b"\n"):
        raise BadBytesError("it is no record")
    if blake3(found[2]).hexdigest().encode() != found[1]:
        raise BadBytesError("its bytes differ from its digest")
    if found[3].decode() != head or int(found[4]) != seq:
        raise BadBytesError(f"it does not follow record {head[:8]} as number {seq}")
    return found[1].decode(), found[5].decode()


def _needed(records: _Records) -> dict[str, str]:
    """Return the items that records name and that neither a reset voided nor a drop took back."""
    voided = {seq for kind, body in records if kind == "reset" for seq in body["of"]}
    kept: dict[tuple[int, int], list[int]] = {}
    for seq, (kind, body) in enumerate(records):
        if kind == "keep":
            kept.setdefault((body["of"], body["n"]), []).append(seq)
        for n in body["epochs"] if kind == "drop" else ():
            voided.update(kept.pop((body["of"], n), ()))
    found: dict[str, str] = {}
    for seq, (kind, body) in enumerate(records):
        if seq not in voided and (kind not in ("keep", "done") or body["of"] not in voided):
            for digest, part in _named(kind, body):
                if not _DIGEST.fullmatch(digest):
                    raise BadBytesError(f"record {seq} names an item {digest!r:.80}")
                found.setdefault(digest, f"{part} of record {seq}")
    return found


def _named(kind: str, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if kind not in _NAMES_NOTHING | _READERS | {"root", "keep", "done"}:
        raise BadBytesError(
            f"there is a record of the kind {kind!r}, which this file does not know: it may be of a newer version"
        )
    if kind in _READERS and body["item"] is not None:
        yield body["item"], "the answer"
    for snapshot in _kept(kind, body):
        for name, part in snapshot.items():
            if name not in ("hash", "key", "counters") and part.get("item"):
                yield part["item"], name
    for digest in body.get("code", {}).get("items", []):
        yield digest, "the source text"


def _kept(kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states that a record keeps."""
    if kind == "done":
        return [body["out"], *body["kept"].values(), *([body["input"]] if "input" in body else [])]
    return [body["state"]] if kind in ("root", "keep") else []


def _state(snapshot: dict[str, Any], items: Mapping[str, Mapping[str, str]]) -> None:
    """Hash a state again, from the digests of its parts, and those from the leaves of the items that are there."""
    found: dict[str, str] = {}
    for name in ("params", "frozen", "buffers", "optimizer", "epoch_scheduler", "step_scheduler", "ema", "extra"):
        part = snapshot.get(name)
        if name == "buffers" and "beside" in snapshot["params"]:
            part = {**snapshot["params"]["beside"], "item": snapshot["params"]["item"]}
        if part is None:
            found |= {} if name in ("ema", "extra") else {name: _tree_hash({})}
            continue
        found[name] = actual = f"fresh:{part['fresh']}" if "fresh" in part else part["digest"]
        if "skeleton" in part:
            actual = _tree_hash({"leaves": part["leaves"], "skeleton": _scalar_hash(part["skeleton"])})
        elif "fresh" not in part and (not part["names"] or items.get(part["item"])):
            actual = _tree_hash({leaf: items[part["item"]][leaf] for leaf in part["names"]})
        if actual != found[name]:
            raise BadBytesError(f"{name} of a state hash to {actual}, not {found[name]}")
    found |= {"key": _scalar_hash(snapshot["key"]), "counters": _scalar_hash(snapshot["counters"])}
    if (actual := f"b3:{_tree_hash(found)}") != snapshot["hash"]:
        raise BadBytesError(f"the parts of a state hash to {actual}, not {snapshot['hash']}")


# ---------------------------------------------------------------- items


@dataclass(frozen=True)
class _Leaf:
    """What is noted of a leaf."""

    key: str
    dtype: str
    shape: list[int]
    stored: str
    hash: str

    @property
    def size(self) -> int:
        """Bytes of the leaf."""
        return math.prod(self.shape) * _WIDTH[self.dtype]

    @property
    def array(self) -> tuple[str, str]:
        """The names in Orbax's tree under which the description of its array is, and the array."""
        return f"{self.key}/.zarray", f"{self.key}/{'.'.join('0' * len(self.stored_shape)) or '0'}"

    @property
    def stored_shape(self) -> list[int]:
        """The shape of the array: of bytes, where Orbax lacks the dtype."""
        return self.shape if self.stored == self.dtype else [*self.shape, _WIDTH[self.dtype]]


def _items(store: str, result: Result) -> Iterator[str]:
    for folder in _folders(store, "items", _HEX2, result):
        yield from _folders(store, f"items/{folder}", re.compile(folder + "[0-9a-f]{62}"), result)


def _item(store: str, digest: str, result: Result) -> dict[str, str]:
    """Verify an item, and return the hashes of its leaves that are noted; nothing where they are not those that name it."""
    place = f"items/{digest[:2]}/{digest}"
    root = os.path.join(store, place)
    about = f"{place}/purestate.json"
    try:
        leaves, files = _description(root, digest, result, about)
    except _SHAPE as error:
        result.add("damaged", about, _said(error))
        return {}
    hashes = {name: leaf.hash for name, leaf in leaves.items()}
    try:
        there = dict(_files(root))
        _noted(root, place, files, there, result)
        claimed = sum(leaf.size for leaf in leaves.values() if leaf.size > _INLINE)
        if claimed > sum(there.values()):
            raise BadBytesError(f"{claimed} bytes are noted, and the folder has {sum(there.values())}")
        stored = [leaf for leaf in leaves.values() if leaf.size]
        if stored and "manifest.ocdbt" not in there:
            raise BadBytesError("Orbax's file 'manifest.ocdbt' is missing")
        names = {name.encode() for leaf in stored for name in leaf.array}
        values = _orbax(root, there["manifest.ocdbt"], names) if stored else {}
    except _SHAPE as error:
        result.add("damaged", place, _said(error))
        return hashes
    for name, leaf in leaves.items():
        try:
            _verify(root, leaf, values)
            result.bytes += leaf.size
        except _SHAPE as error:
            value = values.get(leaf.array[1].encode())
            file = f"/{value.path}" if isinstance(value, _Place) else ""
            result.add("damaged", f"{place}{file}, leaf {name!r}", _said(error))
    return hashes


def _description(root: str, digest: str, result: Result, place: str) -> tuple[dict[str, _Leaf], dict[str, Any]]:
    """Return the leaves that are noted, once they are found to be those that the item is named by, and the files."""
    data = _read(root, "purestate.json", _LONGEST)
    intact = data.startswith(b'{"format":1,"leaves":{') or (data.endswith(b"\n") and _sealed(data[:-1]))
    if not intact:
        result.add("damaged", place, "its bytes differ from their digest")
    found = json.loads(data)
    leaves = {name: _Leaf(**fields) for name, fields in found["leaves"].items()}
    for name, leaf in leaves.items():
        sizes = leaf.shape if type(leaf.shape) is list and len(leaf.shape) <= 32 else [-1]
        if any(type(n) is not int or n < 0 for n in sizes) or leaf.size >= 1 << 63:
            raise BadBytesError(f"leaf {name!r} has a shape that is none")
        if leaf.stored != "uint8" and (leaf.stored != leaf.dtype or leaf.stored in ("complex32", "float8_e8m0fnu")):
            raise BadBytesError(f"leaf {name!r} is stored as {leaf.stored!r:.40}")
    if (actual := _tree_hash({name: leaf.hash for name, leaf in leaves.items()})) != digest:
        raise BadBytesError(f"its leaves hash to {actual}")
    return leaves, found.get("files", {}) if intact else {}


def _files(root: str) -> Iterator[tuple[str, int]]:
    """Yield ``(path below the folder, size)`` of each file."""
    waiting = [""]
    while waiting:
        above = waiting.pop()
        with os.scandir(os.path.join(root, above)) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(f"{above}{entry.name}/")
                elif stat.S_ISREG(status.st_mode):
                    yield f"{above}{entry.name}", status.st_size
                else:
                    raise BadBytesError(f"{above}{entry.name!r} is a symbolic link, or no plain file")


def _noted(root: str, place: str, files: Mapping[str, Mapping[str, Any]], there: Mapping[str, int], result: Result) -> None:
    """Compare the files of an item with what was noted of them."""
    for name, noted in files.items():
        if name not in there:
            result.add("damaged", f"{place}/{name}", "it is missing")
        elif there[name] != noted["size"]:
            result.add("damaged", f"{place}/{name}", f"it has {there[name]} bytes, not {noted['size']}")
        elif "hash" in noted and _Place(name, 0, there[name]).hash(root) != noted["hash"]:
            result.add("damaged", f"{place}/{name}", "its bytes differ from their hash")


def _verify(root: str, leaf: _Leaf, values: Mapping[bytes, bytes | _Place]) -> None:
    """Hash the bytes of a leaf again."""
    hasher = blake3(_compact(["purestate/leaf/1", leaf.dtype, leaf.shape]) + b"\0")
    if leaf.size:
        about, value = (values.get(name.encode()) for name in leaf.array)
        if not isinstance(about, bytes) or value is None:
            raise BadBytesError("Orbax's tree lacks it")
        array = json.loads(about)
        expected = (leaf.stored_shape, leaf.stored_shape, _ZARR.get(leaf.stored, leaf.stored), None, None, "C")
        if tuple(array[name] for name in ("shape", "chunks", "dtype", "compressor", "filters", "order")) != expected:
            raise BadBytesError(f"its array is of another kind than noted: {about!r:.120}")
        if len(value) != leaf.size:
            raise BadBytesError(f"its array has {len(value)} bytes, not {leaf.size}")
        for block in [value] if isinstance(value, bytes) else value.blocks(root):
            hasher.update(block)
    if (actual := hasher.hexdigest()) != leaf.hash:
        raise BadBytesError(f"its hash is {actual}, not {leaf.hash}")


def _tree_hash(children: Mapping[str, str]) -> str:
    return blake3(b"purestate/tree/1\0" + _compact(children)).hexdigest()


def _scalar_hash(value: Any) -> str:
    return blake3(b"purestate/scalar/1\0" + _compact(value)).hexdigest()


def _compact(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


# ---------------------------------------------------------------- what Orbax wrote: OCDBT


@dataclass(frozen=True)
class _Place:
    """Bytes in a file of an item."""

    path: str
    offset: int
    length: int
    base: str = ""
    """What the paths begin with that are written there."""

    def __len__(self) -> int:
        return self.length

    def hash(self, root: str) -> str:
        """Return their digest."""
        hasher = blake3()
        for block in self.blocks(root):
            hasher.update(block)
        return hasher.hexdigest()

    def blocks(self, root: str) -> Iterator[bytes]:
        """Yield them, a piece at a time."""
        with _open(root, self.path) as file:
            if self.offset + self.length > os.fstat(file.fileno()).st_size:
                raise BadBytesError("the file ends before it does")
            file.seek(self.offset)
            for left in range(self.length, 0, -_BLOCK):
                yield file.read(min(left, _BLOCK))


class _Fields:
    """The fields of a node, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if size > len(self._data) - self._at:
            raise BadBytesError("a node of Orbax's tree ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self) -> int:
        """Return the next integer: seven bits a byte, the lowest first."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise BadBytesError("there is a number of too many bytes in a node of Orbax's tree")

    def numbers(self, count: int) -> list[int]:
        """Return so many of them. Each has a byte at least."""
        if count > min(len(self._data) - self._at, _MOST_NAMES):
            raise BadBytesError("a node of Orbax's tree ends too early")
        return [self.number() for _ in range(count)]

    def texts(self, count: int, *columns: int) -> Iterator[tuple[bytes, list[int]]]:
        """Yield texts of which each says how much of its beginning it shares with the one before, and the columns after that.

        Args:
            count: How many there are.
            columns: How many columns of integers lie between the lengths and the texts.
        """
        shared = [0, *self.numbers(count - 1)] if count else []
        rest = self.numbers(count)
        beside = [self.numbers(count) for _ in columns]
        text, size = b"", 0
        for i in range(count):
            size += shared[i] + rest[i]
            if shared[i] > len(text) or size > _LARGEST_NODE:
                raise BadBytesError("there is a name that is none in a node of Orbax's tree")
            text = text[: shared[i]] + self.take(rest[i])
            yield text, [column[i] for column in beside]

    def places(self, base: str) -> list[tuple[str, str]]:
        """Return the files that a node refers to: where each is, and what the paths in it begin with."""
        count = self.number()
        if count > 1 << 16:
            raise BadBytesError(f"a node of Orbax's tree names {count} files")
        found: list[tuple[str, str]] = []
        for text, [length] in self.texts(count, 1):
            path = base + text.decode()
            if path and not re.fullmatch(r"(?!.*//)(?!(.*/)?\.*(/|$))[A-Za-z0-9_./-]{1,1024}", path):
                raise BadBytesError(f"a node of Orbax's tree names a file {path!r:.80}")
            found.append((path, base + text[:length].decode()))
        return found


def _orbax(root: str, size: int, wanted: set[bytes]) -> dict[bytes, bytes | _Place]:
    """Return the values of names in Orbax's tree, as far as they are there: as bytes, or where in a file they lie.

    Args:
        root: The folder of an item.
        size: How many bytes its ``manifest.ocdbt`` has.
        wanted: The names.
    """
    fields = _Fields(_node(root, _Place("manifest.ocdbt", 0, size), 0x0CDB3A2A))
    fields.take(16)
    if fields.number() != 0:
        raise BadBytesError("the manifest of Orbax's tree is of a kind that no store has")
    fields.numbers(2)
    fields.take(1)
    fields.take(4 if fields.number() else 0)
    files = fields.places("")
    count = fields.number()
    fields.numbers(count)
    heights = fields.take(count)
    ids, offsets, lengths = (fields.numbers(count) for _ in range(3))
    if not count:
        raise BadBytesError("Orbax's tree has no version")
    path, base = files[ids[-1]]
    found: dict[bytes, bytes | _Place] = {}
    visited: set[tuple[str, int]] = set()
    waiting = [(_Place(path, offsets[-1], lengths[-1], base), heights[-1], b"")]
    while waiting:
        place, height, prefix = waiting.pop()
        if (place.path, place.offset) in visited:
            raise BadBytesError("two nodes of Orbax's tree are one")
        visited.add((place.path, place.offset))
        waiting += _nodes(_Fields(_node(root, place, 0x0CDB20DE)), place, height, prefix, wanted, found)
    return found


def _nodes(
    fields: _Fields, place: _Place, height: int, prefix: bytes, wanted: set[bytes], found: dict[bytes, bytes | _Place]
) -> list[tuple[_Place, int, bytes]]:
    """Put what a node has of what is wanted into ``found``, and return its children."""
    if fields.take(1)[0] != height:
        raise BadBytesError("a node of Orbax's tree is not of its height")
    files = fields.places(place.base)
    count = fields.number()
    names = list(fields.texts(count, *([1] if height else [])))
    if height:
        ids, offsets, lengths = (fields.numbers(count) for _ in range(3))
        return [
            (_Place(files[id][0], offset, length, files[id][1]), height - 1, prefix + name[: more[0]])
            for (name, more), id, offset, length in zip(names, ids, offsets, lengths, strict=True)
        ]
    lengths, kinds = fields.numbers(count), fields.numbers(count)
    apart = [i for i in range(count) if kinds[i]]
    ids, offsets = fields.numbers(len(apart)), fields.numbers(len(apart))
    outside = {i: (files[id][0], offset) for i, id, offset in zip(apart, ids, offsets, strict=True)}
    for i, (name, _) in enumerate(names):
        value = _Place(*outside[i], lengths[i]) if i in outside else fields.take(lengths[i])
        if prefix + name in wanted:
            found[prefix + name] = value
    return []


def _node(root: str, place: _Place, magic: int) -> bytes:
    """Return the content of a node, unpacked, once its checksum is found to be right."""
    if place.length > _LARGEST_NODE:
        raise BadBytesError(f"a node of Orbax's tree has {place.length} bytes")
    data = b"".join(place.blocks(root))
    head = _Fields(data)
    if int.from_bytes(head.take(4)) != magic or int.from_bytes(head.take(8), "little") != len(data):
        raise BadBytesError(f"{place.path!r} is not of Orbax's tree")
    version, packed = head.numbers(2)
    if version or packed > 1 or len(data) < 18 or _crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise BadBytesError(f"a node of Orbax's tree in {place.path!r} differs from its checksum")
    return unpack(data[14:-4], min(_LARGEST_NODE, _BLOCK + _UNPACKED * len(data))) if packed else data[14:-4]


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [(value >> 1) ^ (0x82F63B78 * (value & 1)) for value in table]
    return table


_CRC = _crc_table()

# ---------------------------------------------------------------- Zstandard, RFC 8878


def unpack(data: bytes, most: int) -> bytes:
    """Return what frames of Zstandard hold.

    Args:
        data: The frames, one behind the other.
        most: How many bytes that may be.

    Raises:
        BadBytesError: It is more, or they are damaged.
    """
    out, at = bytearray(), 0
    try:
        while at < len(data):
            at = _frame(data, at, out, most)
    except (IndexError, ValueError, KeyError, OverflowError):
        raise BadBytesError(_DAMAGED) from None
    return bytes(out)


def _sound(fine: bool) -> None:
    if not fine:
        raise BadBytesError(_DAMAGED)


_DAMAGED = "what Zstandard packed is damaged"


def _frame(data: bytes, at: int, out: bytearray, most: int) -> int:
    flags = data[at + 4]
    _sound(data[at : at + 4] == b"\x28\xb5\x2f\xfd" and not flags & 11)
    single, size = flags >> 5 & 1, flags >> 6
    at += 5 + (not single) + ((1 << size) if size else single)
    window, tables = _Window(out, len(out), most), _Tables()
    last = False
    while not last:
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        block = data[at + 3 : at + 3 + (1 if kind == 1 else size)]
        at += 3 + (1 if kind == 1 else size)
        _sound(at <= len(data) and kind < 3)
        if kind == 2:
            _block(block, window, tables)
        else:
            window.add(block * size if kind else block)
    return at + 4 * (flags >> 2 & 1)  # the checksum of the content; the nodes have another


class _Window:
    """What was unpacked of a frame, bounded."""

    def __init__(self, out: bytearray, start: int, most: int) -> None:
        self._out, self._start, self._most = out, start, most

    def add(self, data: bytes) -> None:
        """Append bytes."""
        self._out += data
        if len(self._out) > self._most:
            raise BadBytesError(f"unpacked it has more than {self._most} bytes")

    def again(self, offset: int, length: int) -> None:
        """Append bytes that are there, from so far back on; where they run out, they begin anew."""
        have = len(self._out)
        _sound(0 < offset <= have - self._start)
        piece = bytes(self._out[have - offset : have - offset + length])
        self.add((piece * (length // len(piece) + 1))[:length] if len(piece) < length else piece)


class _Bits:
    """A stream of bits that is read from its end, which a bit that is set marks."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.left = 8 * len(data) - 9 + data[-1].bit_length()
        _sound(data[-1] > 0)

    def peek(self, count: int) -> int:
        """Return the next bits; zeros behind the last one."""
        start = self.left - count
        if start < 0:
            return (self._at(0, self.left) << -start) if self.left > 0 else 0
        return self._at(start, count)

    def read(self, count: int) -> int:
        """Return the next bits and go on behind them."""
        value = self.peek(count)
        self.left -= count
        return value

    def _at(self, start: int, count: int) -> int:
        return int.from_bytes(self._data[start >> 3 : (start >> 3) + 8], "little") >> (start & 7) & ((1 << count) - 1)


_Table = list[tuple[int, int, int]]
"""Of each state: its symbol, how many bits the next one takes, and the number that they are added to."""


def _fse(counts: list[int], log: int) -> _Table:
    size = 1 << log
    spread, high = [0] * size, size
    for symbol, count in enumerate(counts):
        if count < 0:
            high -= 1
            spread[high] = symbol
    at, step = 0, (size >> 1) + (size >> 3) + 3
    for symbol, count in enumerate(counts):
        for _ in range(count):
            spread[at] = symbol
            at = (at + step) & (size - 1)
            while at >= high:
                at = (at + step) & (size - 1)
    following = [abs(count) for count in counts]
    table: _Table = []
    for symbol in spread:
        state = following[symbol]
        following[symbol] += 1
        bits = log + 1 - state.bit_length()
        table.append((symbol, bits, (state << bits) - size))
    return table


def _fse_header(data: bytes, most: int) -> tuple[_Table, int]:
    """Return the table that is described, and in how many bytes."""
    bits = int.from_bytes(data[:512], "little")
    log, at = (bits & 15) + 5, 4
    _sound(log <= most)
    left, counts = 1 << log, list[int]()
    while left > 0 and len(counts) < 256:
        width = (left + 1).bit_length()
        value, low = bits >> at & ((1 << width) - 1), (1 << (width - 1)) - 1
        threshold = (1 << width) - 2 - left
        at += width
        if (value & low) < threshold:
            value &= low
            at -= 1
        elif value > low:
            value -= threshold
        counts.append(value - 1)
        left -= abs(value - 1)
        while value == 1:
            more = bits >> at & 3
            at += 2
            counts += [0] * more
            value = 1 if more == 3 and len(counts) < 256 else 0
    _sound(left == 0 and len(counts) <= 256)
    return _fse(counts, log), (at + 7) // 8


class _Tables:
    """What a block may take over from the one before: tables, and the three last offsets."""

    def __init__(self) -> None:
        self.huffman: list[tuple[int, int]] = []
        self.codes: list[_Table] = [[], [], []]
        self.offsets = [1, 4, 8]


def _block(data: bytes, window: _Window, tables: _Tables) -> None:
    literals, at = _literals(data, tables)
    count = data[at]
    at += 1
    if count >= 128:
        count = ((count - 128) << 8) + data[at] if count < 255 else int.from_bytes(data[at : at + 2], "little") + 0x7F00
        at += 1 if data[at - 1] < 255 else 2
    if not count:
        return window.add(literals)
    modes = data[at]
    at += 1
    for i, (shift, most) in enumerate(((6, 9), (4, 8), (2, 9))):
        mode = modes >> shift & 3
        if mode == 0:
            tables.codes[i] = _fse(*_PREDEFINED[i])
        elif mode == 1:
            tables.codes[i] = [(data[at], 0, 0)]
            at += 1
        elif mode == 2:
            tables.codes[i], used = _fse_header(data[at:], most)
            at += used
    _sequences(_Bits(data[at:]), count, literals, window, tables)


def _sequences(bits: _Bits, count: int, literals: bytes, window: _Window, tables: _Tables) -> None:
    of_literals, of_offsets, of_matches = tables.codes
    x, y, z = (bits.read((len(table) - 1).bit_length()) for table in tables.codes)
    at, last = 0, tables.offsets
    for i in range(count):
        (a, p, u), (b, q, v), (c, r, w) = of_literals[x], of_offsets[y], of_matches[z]
        offset = (1 << b) + bits.read(b)
        match = _MATCH[c][0] + bits.read(_MATCH[c][1])
        literal = _LITERAL[a][0] + bits.read(_LITERAL[a][1])
        if offset > 3:
            last[:] = [offset - 3, last[0], last[1]]
        elif (which := offset - (literal != 0)) != 0:
            again = last[which] if which < 3 else last[0] - 1
            last[:] = [again, *([last[0], last[1]] if which > 1 else [last[0], last[2]])]
        window.add(literals[at : at + literal])
        at += literal
        window.again(last[0], match)
        if i < count - 1:
            x, z, y = u + bits.read(p), w + bits.read(r), v + bits.read(q)
        _sound(bits.left >= 0 and at <= len(literals))
    window.add(literals[at:])


def _literals(data: bytes, tables: _Tables) -> tuple[bytes, int]:
    """Return the literals of a block, and where its sequences begin."""
    kind, form = data[0] & 3, data[0] >> 2 & 3
    if kind < 2:
        at = (1, 2, 1, 3)[form]
        size = int.from_bytes(data[:at], "little") >> (3, 4, 3, 4)[form]
        _sound(size <= 1 << 17 and (kind == 1 or at + size <= len(data)))
        return (data[at : at + 1] * size, at + 1) if kind else (data[at : at + size], at + size)
    at, width = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
    sizes = int.from_bytes(data[:at], "little") >> 4
    size, packed = sizes & ((1 << width) - 1), sizes >> width
    body, used = data[at : at + packed], 0
    _sound(size <= 1 << 17 and len(body) == packed)
    if kind == 2:
        tables.huffman, used = _huffman(body)
    body = body[used:]
    if form == 0:
        return _decoded(body, size, tables.huffman), at + packed
    ends, each, out = [6], (size + 3) // 4, b""
    for i in range(3):
        ends.append(ends[-1] + int.from_bytes(body[2 * i : 2 * i + 2], "little"))
    ends.append(len(body))
    for i in range(4):
        out += _decoded(body[ends[i] : ends[i + 1]], each if i < 3 else size - 3 * each, tables.huffman)
    return out, at + packed


def _decoded(data: bytes, size: int, table: list[tuple[int, int]]) -> bytes:
    bits, width, out = _Bits(data), (len(table) - 1).bit_length(), bytearray()
    for _ in range(size):
        symbol, used = table[bits.peek(width)]
        bits.left -= used
        out.append(symbol)
    _sound(bits.left == 0)
    return bytes(out)


def _huffman(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return, by the bits that come next, a symbol and how many of them it takes; and in how many bytes that is described."""
    if data[0] >= 128:
        count = data[0] - 127
        used = 1 + (count + 1) // 2
        weights = [nibble for byte in data[1:used] for nibble in (byte >> 4, byte & 15)][:count]
    else:
        used = 1 + data[0]
        table, begin = _fse_header(data[1:used], 6)
        weights = _weights(_Bits(data[1 + begin : used]), table)
    total = sum(1 << weight >> 1 for weight in weights)
    width = total.bit_length()
    last = (1 << width) - total
    _sound(total > 0 and width <= 11 and not last & (last - 1))
    weights.append(last.bit_length())
    found: list[tuple[int, int]] = []
    for weight in range(1, width + 1):
        for symbol, other in enumerate(weights):
            if other == weight:
                found += [(symbol, width + 1 - weight)] * (1 << weight >> 1)
    return found, used


def _weights(bits: _Bits, table: _Table) -> list[int]:
    log = (len(table) - 1).bit_length()
    states, out = [bits.read(log), bits.read(log)], list[int]()
    while len(out) < 255:
        symbol, count, base = table[states[len(out) & 1]]
        states[len(out) & 1] = base + bits.read(count)
        out.append(symbol)
        if bits.left < 0:
            return [*out, table[states[len(out) & 1]][0]]
    raise BadBytesError(_DAMAGED)


_Codes = list[tuple[int, int]]
"""Of each code the number that it begins with, and how many bits are added to that."""


def _codes(first: int, plain: int, widths: list[int]) -> _Codes:
    found: _Codes = [(first + i, 0) for i in range(plain)]
    start = first + plain
    for width in widths:
        found.append((start, width))
        start += 1 << width
    return found


_LITERAL = _codes(0, 16, [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
_MATCH = _codes(3, 32, [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
_PREDEFINED: list[tuple[list[int], int]] = [
    ([4, 3, *[2] * 11, 1, 1, 1, *[2] * 9, 3, 2, *[1] * 5, *[-1] * 4], 6),
    ([*[1] * 6, 2, 2, 2, *[1] * 15, *[-1] * 5], 5),
    ([1, 4, 3, *[2] * 6, *[1] * 37, *[-1] * 7], 6),
]

if __name__ == "__main__":
    sys.exit(main())
