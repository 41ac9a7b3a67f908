"""A store from a stranger: no path out of it, no link followed, no memory that a number asks for; typed errors only."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from purestate.core._hash import tree_hash
from purestate.errors import (
    CorruptItemError,
    CorruptLogError,
    FormatVersionError,
    PureStateError,
    StoreError,
)
from purestate.store._check import check
from purestate.store._disk import DiskBackend
from purestate.store._record import EMPTY_HEAD, BadLineError, Record, decode, encode, seal, torn_tail, unseal
from purestate.store._tensors import LeafMeta
from tests.store.conftest import digest_of
from tests.store.test_care import collect, items_of, record

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def bounded() -> Iterator[None]:
    """Take the memory away that a number in a file may ask for: 8 GB more than there is now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def item(backend: DiskBackend) -> tuple[str, Path]:
    [digest] = record(backend, "a", 1)
    return digest, backend.item_path(digest)


# -------------------------------------------------------------------- links


def moved_out(path: Path, outside: Path) -> None:
    """Put what is at a path elsewhere, and a link to it in its place."""
    outside.mkdir(exist_ok=True)
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


@pytest.mark.parametrize("where", ["items", "items/xx", "items/xx/digest", "items/xx/digest/purestate.json", "file"])
def test_no_link_out_of_the_store_is_read(backend, tmp_path, where):
    digest, folder = item(backend)
    places = {
        "items": folder.parent.parent,
        "items/xx": folder.parent,
        "items/xx/digest": folder,
        "items/xx/digest/purestate.json": folder / "purestate.json",
        "file": next(path for path in folder.rglob("d/*") if path.is_file()),
    }
    moved_out(places[where], tmp_path / "outside")
    fresh = DiskBackend(backend.path)
    with pytest.raises(StoreError, match="is a symbolic link out of the store"):
        fresh.get(digest)
    assert not check(fresh, items_of, "bytes").ok


@pytest.mark.parametrize("where", ["checkpoints", "checkpoints/a", "checkpoints/a/log.jsonl"])
def test_no_log_out_of_the_store_is_read_or_written(backend, tmp_path, where):
    item(backend)
    moved_out(backend.path / where, tmp_path / "outside")
    before = (tmp_path / "outside").stat().st_mtime_ns
    fresh = DiskBackend(backend.path)
    with pytest.raises(StoreError, match="is a symbolic link out of the store"):
        fresh.log("a")
    with pytest.raises(StoreError):
        collect(fresh)
    assert (tmp_path / "outside").stat().st_mtime_ns == before


@pytest.mark.parametrize("where", ["items", "checkpoints", "checkpoints/b", "locks", "trash", "journal.jsonl"])
def test_nothing_is_written_or_removed_through_a_link(backend, tmp_path, where):
    digest, _ = item(backend)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("store", "journal", "checkpoint.b", "something", "tmp-" + "0" * 24):
        (outside / name).write_text("precious")
    link = backend.path / where
    if link.exists():
        link.rename(tmp_path / "away")
    link.symlink_to(outside / "something" if where == "journal.jsonl" else outside)
    acts: list[Callable[[DiskBackend], Any]] = [
        lambda b: record(b, "b", 2),
        lambda b: b.save_resume("b", {}, {"t": {"w": torch.ones(1)}}).result(),
        lambda b: b.put({digest: {"w": torch.ones(1)}}),
        lambda b: b.journal("test"),
        lambda b: b.delete("a"),
        lambda b: b.repair(),
        lambda b: collect(b, timeout=0),
        lambda b: b.clear_resume("b"),
    ]
    for act in acts:
        try:
            act(DiskBackend(backend.path))
        except PureStateError:
            pass
    assert {path.name: path.read_text() for path in outside.iterdir()} == dict.fromkeys(
        ("store", "journal", "checkpoint.b", "something", "tmp-" + "0" * 24), "precious"
    )


def test_a_pipe_does_not_keep_anybody_waiting(backend):
    digest, folder = item(backend)
    for path in (backend.log("a").path, folder / "purestate.json", backend.path / "format.json"):
        path.rename(path.with_suffix(".away"))
        os.mkfifo(path)
    with pytest.raises(StoreError, match="or no plain file"):
        DiskBackend(backend.path)
    (backend.path / "format.json").unlink()
    with pytest.raises(StoreError, match="or no plain file"):
        backend.log("a")
    with pytest.raises(StoreError, match="or no plain file"):
        backend.get(digest)


# -------------------------------------------------------------------- numbers


def described(backend: DiskBackend, fields: dict[str, Any], **more: Any) -> str:
    """Write an item of one leaf that a stranger described, and return its digest."""
    fields = {"key": "w", "dtype": "float32", "shape": [2], "stored": "float32", "hash": "0" * 64} | fields
    digest = tree_hash({"w": fields["hash"]})
    folder = backend.item_path(digest)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "purestate.json").write_text(json.dumps({"format": 1, "leaves": {"w": fields}} | more))
    return digest


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [1 << 40]},
        {"shape": [1 << 62, 1 << 62]},
        {"shape": [0, 1 << 62, 1 << 62]},
        {"shape": [1] * 100_000},
        {"shape": [True]},
        {"shape": [-1]},
        {"shape": [1.5]},
        {"shape": "x"},
        {"dtype": "Tensor"},
        {"dtype": "os"},
        {"stored": "complex64"},
        {"stored": "object"},
        {"key": 3},
        {"hash": None},
        {"more": 1},
        {"key": "../../../../etc/passwd"},
    ],
    ids=str,
)
def test_a_description_that_claims_too_much(backend, bounded, fields):
    if fields.get("hash", "") is None:
        fields = {"hash": 3}
    digest = described(backend, fields) if type(fields.get("hash", "")) is str else described(backend, {})
    if type(fields.get("hash", "")) is not str:
        path = backend.item_path(digest) / "purestate.json"
        path.write_text(path.read_text().replace(f'"{"0" * 64}"', "3"))
    with pytest.raises(CorruptItemError):
        backend.get(digest)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", DEEP, "\xff", "9" * 10_000),
        *('{"leaves":3}', '{"leaves":{"w":3}}', '{"leaves":{"w":{"shape":[' + "9" * 5000 + "]}}}"),
        *('{"leaves":{},"files":3}', '{"leaves":{},"files":{"a":{"size":"x"}}}', '{"leaves":{},"files":{"a":{}}}'),
    ],
    ids=lambda text: text[:20],
)
def test_a_description_that_is_none(backend, text):
    digest = tree_hash({})
    folder = backend.item_path(digest)
    folder.mkdir(parents=True)
    (folder / "purestate.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptItemError):
        backend.get(digest)
    assert list(backend.faults(digest, "an item", hashed=True)) != []


def test_arrays_that_claim_more_than_there_is(backend, bounded):
    """Both descriptions agree, and neither is right: nothing of that size is asked of the memory."""
    import tensorstore as ts

    digest = described(backend, {"shape": [1 << 38]})
    folder = backend.item_path(digest)
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    metadata = {"shape": [1 << 38], "dtype": "<f4", "chunks": [1 << 38], "compressor": None, "fill_value": 0.0}
    ts.open({"driver": "zarr", "kvstore": {**base, "path": "w/"}, "metadata": metadata}, create=True).result()
    with pytest.raises(CorruptItemError, match="1099511627776 bytes are noted"):
        backend.get(digest)


def test_bytes_that_were_packed_to_become_many(backend, bounded):
    import tensorstore as ts

    digest = described(backend, {"shape": [1000]})
    folder = backend.item_path(digest)
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    metadata = {"shape": [1000], "dtype": "<f4", "chunks": [1000], "compressor": {"id": "zlib", "level": 9}}
    array = ts.open({"driver": "zarr", "kvstore": {**base, "path": "w/"}, "metadata": metadata}, create=True).result()
    array.write(0.0).result()
    (folder / "padding").write_bytes(bytes(4000))
    with pytest.raises(CorruptItemError, match="compressor"):
        backend.get(digest)


def _places(place: list[Any]) -> Iterator[Any]:
    """Yield places of a leaf in a vector that are none."""
    for i, others in enumerate((["os", "no", 3], [[1 << 40], [-1], ["x"], [1 << 70], 3], ["1", 3], [64, -64, 1, 1 << 70, "0"])):
        yield from ([*place[:i], other, *place[i + 1 :]] for other in others)
    yield from ([], 3, None, place[:3])


def test_a_resume_point_that_claims_too_much_is_none(backend, bounded):
    backend.save_resume("a", {"n": 1}, {"t": {"w": torch.ones(2)}}).result()
    path = backend.path / "checkpoints" / "a" / "resume" / "00000001" / "point.json"
    good = json.loads(path.read_bytes())
    vector, place = good["leaves"]["0"], good["trees"]["t"]["w"]
    assert place == ["float32", [2], "0", 0]
    for change in (
        {"leaves": {"0": vector | {"shape": [1 << 40]}}},
        {"leaves": {"0": vector | {"shape": [0]}}},
        {"leaves": {}},
        {"leaves": 3},
        *({"trees": {"t": {"w": changed}}} for changed in _places(place)),
        {"trees": {"t": ["w"]}},
        {"trees": [1]},
        {"body": 3},
    ):
        fields = {key: value for key, value in (good | change).items() if key != "digest"}
        path.write_bytes(seal(json.dumps(fields, separators=(",", ":"))[1:].encode()))
        assert DiskBackend(backend.path).load_resume("a") is None
    path.write_bytes(seal(f'"body":{DEEP}}}'.encode()))
    assert DiskBackend(backend.path).load_resume("a") is None


# -------------------------------------------------------------------- logs, journal, format


def sealed(seq: int, prev: str, rest: str) -> bytes:
    return seal(f'"prev":"{prev}","seq":{seq},"kind":"{rest}}}'.encode("utf-8", "surrogatepass")) + b"\n"


@pytest.mark.parametrize(
    "rest", [f'done","body":{DEEP}', 'done","body":3', 'done"', 'done","body":{', 'done","body":NaN', '\xff","body":{}']
)
def test_a_record_that_verifies_and_is_none(backend, rest):
    item(backend)
    backend.log("a").path.write_bytes(sealed(0, EMPTY_HEAD, rest))
    log = DiskBackend(backend.path).log("a")
    assert log.records[0].kind
    if "body" not in rest or not rest.startswith("\xff"):
        with pytest.raises(CorruptLogError, match="verifies and is none"):
            _ = log.records[0].body


@pytest.mark.parametrize("line", [DEEP, "3", "[]", '{"act":3}', '{"act":"gc","items":3}', '{"act":"gc","items":[{}]}', "\xff"])
def test_a_journal_of_others(backend, line):
    digest, folder = item(backend)
    with open(backend.path / "journal.jsonl", "ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    backend.journal("after")
    assert backend.acts()[-1]["act"] == "after"
    folder.rename(folder.with_name("x"))
    with pytest.raises(StoreError, match="is not in the store"):
        backend.get(digest)


@pytest.mark.parametrize("version", ["0", "-1", "true", '"1"', '"2"', "1.0", "null", DEEP, "[1]"])
def test_a_version_that_is_none(tmp_store_path, version):
    tmp_store_path.mkdir()
    (tmp_store_path / "format.json").write_text(f'{{"purestate": {version}}}')
    with pytest.raises(StoreError, match="Expected the version of a store") as caught:
        DiskBackend(tmp_store_path)
    assert not isinstance(caught.value, FormatVersionError)


# -------------------------------------------------------------------- any bytes at all

ANY = settings(max_examples=150, derandomize=True, deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@ANY
@given(st.binary(max_size=400))
def test_any_bytes_as_a_log(data):
    whole = data[: len(data) - torn_tail(data)]
    if whole:
        with pytest.raises(BadLineError) as caught:
            list(decode(whole, 0, EMPTY_HEAD))
        assert caught.value.number == 1, "nobody writes a digest by chance"


@ANY
@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers(), max_size=3), min_size=1, max_size=4), st.data())
def test_a_changed_log_is_a_prefix_or_refused(bodies, data):
    records: list[Record] = []
    for body in bodies:
        records.append(encode(len(records), records[-1].digest if records else EMPTY_HEAD, "train", body))
    whole = b"".join(record.line + b"\n" for record in records)
    at = data.draw(st.integers(0, len(whole) - 1))
    what = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
    changed = {
        "flip": whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :],
        "cut": whole[:at],
        "insert": whole[:at] + data.draw(st.binary(min_size=1, max_size=5)) + whole[at:],
        "drop": whole[:at] + whole[at + 1 :],
    }[what]
    try:
        found = list(decode(changed[: len(changed) - torn_tail(changed)], 0, EMPTY_HEAD))
    except BadLineError:
        assert what != "cut"
        return
    assert found == records[: len(found)]


@ANY
@given(JSON)
def test_any_json_as_the_body_of_a_record(value):
    record = Record(0, sealed(0, EMPTY_HEAD, f'done","body":{json.dumps(value)}')[:-1])
    try:
        assert type(record.body) is dict
    except CorruptLogError:
        assert type(value) is not dict


@ANY
@given(JSON)
def test_any_json_sealed(value):
    text = json.dumps({"body": value})[1:].encode()
    assert unseal(seal(text)).keys() == {"body"}
    assert unseal(seal(json.dumps(value).encode())) is None or type(value) is dict or value is not None


@ANY
@given(st.dictionaries(st.sampled_from(["key", "dtype", "shape", "stored", "hash", "x"]), JSON))
def test_any_json_as_a_leaf(fields):
    try:
        leaf = LeafMeta.from_json({"key": "", "dtype": "float32", "shape": [1], "stored": "float32", "hash": ""} | fields)
    except (ValueError, TypeError, KeyError):
        return
    assert 0 <= leaf.size < 1 << 63


@settings(max_examples=60, derandomize=True, deadline=None)
@given(value=JSON, where=st.sampled_from(["whole", "leaves", "leaf", "files"]))
def test_any_json_as_a_description(tmp_path_factory, value, where):
    backend = DiskBackend(tmp_path_factory.mktemp("store"))
    leaf = {"key": "w", "dtype": "float32", "shape": [2], "stored": "float32", "hash": blake3(b"").hexdigest()}
    found = {
        "whole": value,
        "leaves": {"format": 1, "leaves": value},
        "leaf": {"format": 1, "leaves": {"w": value}},
        "files": {"format": 1, "leaves": {"w": leaf}, "files": value},
    }[where]
    digest = tree_hash({"w": leaf["hash"]})
    backend.item_path(digest).mkdir(parents=True)
    (backend.item_path(digest) / "purestate.json").write_text(json.dumps(found))
    with pytest.raises(CorruptItemError):
        backend.get(digest)
    assert all(isinstance(fault, StoreError) for fault in backend.faults(digest, "an item", hashed=True))


def test_flipped_bits_over_every_file_of_a_store_are_found(backend):
    """A stride of all bytes of all files: `check` names the file, or the leaf, or the line."""
    digest, folder = item(backend)
    backend.journal("test")
    silent: list[tuple[str, int]] = []
    for path in [backend.log("a").path, *(path for path in folder.rglob("*") if path.is_file())]:
        data = path.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 12)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
            report = check(DiskBackend(backend.path), items_of, "bytes")
            if not report.findings:
                silent.append((path.name, at))
        path.write_bytes(data)
    assert {name for name, _ in silent} <= {"purestate.json"}, silent
    assert digest_of(backend.get(digest)) == digest
