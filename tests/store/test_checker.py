"""The independent checker: it needs nothing but blake3, agrees with the store's own check, and finds every byte that changed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import pytest
import tensorstore as ts
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import purestate as ps
from purestate.core._hash import dtype_name
from purestate.errors import PureStateError
from purestate.store import checker
from purestate.store._disk import DiskBackend
from purestate.store._record import seal, unseal
from tests.report.planted import GOLDEN, rewrite
from tests.run.tiny import Ask
from tests.store.conftest import digest_of

LOG = "checkpoints/a/log.jsonl"
DTYPES = "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 bfloat16 float16 float32 float64 complex64 complex128".split()
DTYPES += "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu complex32".split()


def leaf(name: str, size: int, generator: torch.Generator) -> torch.Tensor:
    dtype = getattr(torch, name)
    data = torch.randint(2 if name == "bool" else 256, (size * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return data.view(dtype)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two trains of which epochs are kept, one that was voided, answers of readers, and a deleted checkpoint."""
    path = tmp_path_factory.mktemp("checker") / "store"
    ask = Ask()
    with ps.Store(path) as store:
        ck = store.checkpoint("a", echo=None)
        s1 = ask.of(ck, keep=ps.keep.last(2))
        ck.predict(s1, ask.val_dl)
        ck.train(s1, ask.train_dl, epochs=1)
        ck.reset(1)
        ck.train(s1, ask.train_dl, epochs=2)
        store.checkpoint("gone", echo=None).root(s1)
        store.delete("gone")
    return path


@pytest.fixture
def store(recorded: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(recorded, tmp_path / "store"))


def told(path: Path) -> list[tuple[str, str]]:
    return [(found.kind, f"{found.place}: {found.what}") for found in checker.check(os.fspath(path)).findings]


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.parent.name != "locks")


# -------------------------------------------------------------------- what is whole


def test_leaves_that_are_larger_than_orbax_makes_a_file_are_in_one_piece(tmp_path):
    leaves = {"larger": torch.arange(9_000_000.0), "large": torch.arange(7_000_000.0), "small": torch.ones(3)}
    backend = DiskBackend(tmp_path / "store")
    backend.put({digest_of(leaves): leaves})
    assert [found for found in told(backend.path) if found[0] == "damaged"] == []


def test_a_real_store_is_clean(recorded):
    found = checker.check(os.fspath(recorded))
    with ps.Store(recorded) as store:
        assert found.heads == {"a": store.open("a").head.removeprefix("b3:")}
        assert (found.ok, found.findings) == (store.check("bytes").ok, []) == (True, [])
    assert (found.records, found.items) == (
        len((recorded / LOG).read_bytes().splitlines()),
        len(list(recorded.glob("items/*/*"))),
    )


def test_the_frozen_store_is_clean():
    found = checker.check(os.fspath(GOLDEN))
    assert (found.findings, found.records, found.items) == ([], 11, 3)


LARGE = {"w": torch.arange(400_000.0), "v": torch.ones(3)}
EMPTY = {"e": torch.zeros(0)}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A store of items alone, and the leaves of one of them: of every dtype, small and large, under every kind of name."""
    generator = torch.Generator().manual_seed(0)
    leaves = {f"{name}/{size}.x": leaf(name, size, generator) for name in DTYPES for size in (5, 2000)}
    leaves |= {"": torch.ones(2, 3, 4), "..": torch.tensor(3.5), "gr\u00fc\u00df": torch.zeros(3, 7), "none": torch.zeros(0, 3)}
    backend = DiskBackend(tmp_path_factory.mktemp("items") / "store")
    backend.put({digest_of(tree): tree for tree in (leaves, LARGE, EMPTY)})
    backend.close()
    return backend.path, leaves


def test_leaves_of_every_dtype_and_name(items):
    path, leaves = items
    found = checker.check(os.fspath(path))
    assert (found.findings, found.items) == ([], 3)
    assert found.bytes == sum(tensor.nbytes for tree in (leaves, LARGE) for tensor in tree.values())
    assert {dtype_name(tensor.dtype) for tensor in leaves.values()} == set(DTYPES)


def test_it_runs_where_nothing_but_blake3_is(recorded, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(Path(blake3.__file__).parent, alone / "blake3")
    script = Path(shutil.copy(Path(checker.__file__), tmp_path))
    code = (
        "import importlib.util as u, runpy, sys\n"
        f"sys.path.append({os.fspath(alone)!r})\n"
        "sys.argv = sys.argv[1:]\n"
        "names = ['torch', 'purestate', 'numpy', 'tensorstore', 'orbax', 'blake3']\n"
        "print([name for name in names if u.find_spec(name)], file=sys.stderr)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, os.fspath(script)]
    ran = subprocess.run([*command, os.fspath(recorded), "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "['blake3']\n")
    assert json.loads(ran.stdout)["ok"] is True
    shutil.rmtree(alone / "blake3")
    ran = subprocess.run([*command, os.fspath(recorded)], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (2, "[]\nchecker.py needs blake3: pip install blake3\n")


# -------------------------------------------------------------------- the command line


def test_a_reader_that_goes_away_and_names_of_any_kind_are_no_traceback(store):
    os.mkdir(os.fsencode(store / "checkpoints") + b"/\xff\n\xc3\xbc")
    command = [sys.executable, os.fspath(Path(checker.__file__)), os.fspath(store)]
    ran = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"foreign: checkpoints/" in ran.stdout
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        ran = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_the_exit_status_says_it(store, capsys):
    head = checker.check(os.fspath(store)).heads["a"]
    for arguments, status in (
        ([], 0),
        (["--expect-head", f"a={head}"], 0),
        (["--expect-head", f"a=b3:{head[:8]}", "--json"], 0),
        (["--expect-head", "a=" + "0" * 64], 1),
        (["--expect-head", "b=" + head], 1),
    ):
        assert checker.main([os.fspath(store), *arguments]) == status
    assert f"head a={head}" in capsys.readouterr().out
    for wrong in ([os.fspath(store / "items")], [os.fspath(store), "--expect-head", "a=12"], [], [os.fspath(store), "--what"]):
        with pytest.raises(SystemExit) as exit:
            checker.main(wrong)
        assert exit.value.code == 2


def test_records_that_were_cut_off_are_seen_by_the_head_alone(store):
    head = checker.check(os.fspath(store)).heads["a"]
    lines = (store / LOG).read_bytes().splitlines(keepends=True)
    (store / LOG).write_bytes(b"".join(lines[:-1]))
    assert checker.check(os.fspath(store)).ok
    found = checker.check(os.fspath(store), {"a": head})
    assert [(one.kind, one.place) for one in found.findings] == [("missing", LOG)]


# -------------------------------------------------------------------- damage


def test_every_byte_that_changed_is_found_and_its_file_is_named(store):
    rng = random.Random(0)
    files = [path for path in files_of(store) if path.name != "format.json"]
    assert {path.relative_to(store).parts[0] for path in files} == {"checkpoints", "items", "journal.jsonl"}
    for path in files:
        whole = path.read_bytes()
        ends = {0, len(whole) - 1} if path.suffix else set[int]()  # of the files that are lines; Orbax's have no suffix
        for at in {rng.randrange(len(whole)), *ends}:
            changed = bytearray(whole)
            changed[at] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            found = told(store)
            name = os.fspath(path.relative_to(store))
            assert any(name in text for _, text in found), (name, at, found)
        path.write_bytes(whole)
    assert told(store) == []


def test_a_byte_of_a_leaf_in_a_file_that_is_too_large_to_be_noted(items, tmp_path):
    path = Path(shutil.copytree(items[0], tmp_path / "store"))
    large = max(files_of(path), key=lambda file: file.stat().st_size)
    with large.open("r+b") as file:
        file.seek(800_000)
        file.write(b"\xff")
    [(kind, text)] = told(path)
    assert (kind, f"{large.relative_to(path)}, leaf 'w'" in text) == ("damaged", True)


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    fields = unseal(path.read_bytes().removesuffix(b"\n"))
    assert fields is not None
    change(fields)
    path.write_bytes(seal(json.dumps(fields, separators=(",", ":"))[1:].encode("ascii")) + b"\n")


def an_item(store: Path) -> Path:
    """The item of the parameters, which two records name."""
    [body] = [json.loads(line)["body"] for line in (store / LOG).read_bytes().splitlines() if b'"kind":"done"' in line][:1]
    digest = body["out"]["params"]["item"]
    return store / "items" / digest[:2] / digest


def largest(store: Path) -> Path:
    return max((path for path in (an_item(store) / "ocdbt.process_0/d").iterdir()), key=lambda path: path.stat().st_size)


def leaf_named(fields: dict[str, Any], **values: Any) -> None:
    next(iter(fields["leaves"].values())).update(values)


def exchanged(lines: list[bytes]) -> bytes:
    return b"".join([*lines[:2], lines[3], lines[2], *lines[4:]])


def elsewhere(store: Path, path: Path) -> None:
    away = Path(shutil.move(path, store.parent / "away"))
    path.symlink_to(away)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "an item that is gone": lambda store: shutil.rmtree(an_item(store)),
    "an item without description": lambda store: (an_item(store) / "purestate.json").unlink(),
    "a file of an item that is gone": lambda store: largest(store).unlink(),
    "the manifest that is gone": lambda store: (an_item(store) / "manifest.ocdbt").unlink(),
    "a file that was cut": lambda store: edit(largest(store), lambda data: data[:-9]),
    "a file of zeros": lambda store: edit(largest(store), lambda data: bytes(len(data))),
    "a description of zeros": lambda store: edit(an_item(store) / "purestate.json", lambda data: bytes(len(data))),
    "a leaf of another hash": lambda store: resealed(an_item(store) / "purestate.json", lambda f: leaf_named(f, hash="0" * 64)),
    "a leaf of another dtype": lambda store: resealed(
        an_item(store) / "purestate.json", lambda f: leaf_named(f, dtype="int32", stored="int32")
    ),
    "a leaf of an endless shape": lambda store: resealed(
        an_item(store) / "purestate.json", lambda f: leaf_named(f, shape=[1 << 50])
    ),
    "a leaf of no shape": lambda store: resealed(an_item(store) / "purestate.json", lambda f: leaf_named(f, shape=[-1])),
    "a leaf under another key": lambda store: resealed(an_item(store) / "purestate.json", lambda f: leaf_named(f, key="../x")),
    "a leaf of no dtype": lambda store: resealed(an_item(store) / "purestate.json", lambda f: leaf_named(f, dtype="__class__")),
    "a description that is deep": lambda store: edit(an_item(store) / "purestate.json", lambda _: b"[" * 100_000),
    "a line that was edited": lambda store: edit(store / LOG, lambda data: data.replace(b'"epochs":2', b'"epochs":9', 1)),
    "a line that was dropped": lambda store: edit(store / LOG, lambda data: b"".join(data.splitlines(keepends=True)[1:])),
    "two lines that were exchanged": lambda store: edit(store / LOG, lambda data: exchanged(data.splitlines(keepends=True))),
    "a line that is doubled": lambda store: edit(store / LOG, lambda data: data + data.splitlines(keepends=True)[-1]),
    "another newline": lambda store: edit(store / LOG, lambda data: data[:-1] + b"x"),
    "a log with a hole": lambda store: edit(store / LOG, lambda data: data[:2000] + bytes(512) + data[2512:]),
    "a log that is a folder": lambda store: ((store / LOG).unlink(), (store / LOG).mkdir()),
    "a record of a newer kind": lambda store: rewrite(store / LOG, lambda bodies: [*bodies, ("hologram", {})]),
    "records without content": lambda store: rewrite(store / LOG, lambda bodies: [(kind, {}) for kind, _ in bodies]),
    "an item that is no digest": lambda store: rewrite(
        store / LOG, lambda bodies: next(body for kind, body in bodies if kind == "predict").update(item="../../etc")
    ),
    "a newer format": lambda store: (store / "format.json").write_text('{"purestate": 99}'),
    "no format": lambda store: (store / "format.json").write_text("[" * 5000),
    "items outside": lambda store: elsewhere(store, store / "items"),
    "an item outside": lambda store: elsewhere(store, an_item(store)),
    "a file outside": lambda store: elsewhere(store, largest(store)),
    "a log outside": lambda store: elsewhere(store, store / LOG),
    "checkpoints outside": lambda store: elsewhere(store, store / "checkpoints"),
}
HARMLESS: dict[str, Callable[[Path], object]] = {
    "a torn line": lambda store: edit(store / LOG, lambda data: data + b'{"digest":"9f'),
    "a torn line of zeros": lambda store: edit(store / LOG, lambda data: data + bytes(20) + b"\n"),
    "a log of zeros, as a crash leaves one": lambda store: edit(store / LOG, lambda data: bytes(len(data))),
    "a torn act": lambda store: edit(store / "journal.jsonl", lambda data: data + b'{"digest":"9f'),
    "no journal": lambda store: (store / "journal.jsonl").unlink(),
    "a strange file": lambda store: (store / "items/notes.txt").write_text("hello"),
    "a folder that is no checkpoint": lambda store: (store / "checkpoints/a b").mkdir(),
    "an item that is being written": lambda store: (store / f"items/tmp-{'0' * 24}").mkdir(),
    "an item that only a voided answer names": lambda store: shutil.rmtree(voided_item(store)),
}
DIFFERENT: dict[str, tuple[Callable[[Path], object], str]] = {
    "an act that was changed": (
        lambda store: edit(store / "journal.jsonl", lambda data: data.replace(b'"gone"', b'"come"')),
        "no answer depends on the journal, so that for the store such a line is one that a crash cut short",
    ),
    "an item that no record names": (
        lambda store: shutil.copytree(an_item(store), store / "items/00" / ("0" * 64)),
        "the store calls it rubbish and does not read it",
    ),
    "a record that says another hash of its state": (
        lambda store: rewrite(store / LOG, lambda bodies: an_answer(bodies).update(hash="b3:" + "0" * 64)),
        "what bodies mean is decided above the store, which never computes a state's hash from a record",
    ),
    "a record that names another item of the same kind": (
        lambda store: rewrite(store / LOG, lambda bodies: an_answer(bodies)["params"].update(item=other_params(bodies))),
        "likewise",
    ),
    "a scheduler that was edited": (
        lambda store: rewrite(store / LOG, lambda bodies: an_answer(bodies)["epoch_scheduler"]["skeleton"].update(last_epoch=99)),
        "likewise",
    ),
    "checkpoints that are a link to nothing": (
        lambda store: (shutil.rmtree(store / "checkpoints"), (store / "checkpoints").symlink_to("nowhere")),
        "for the store that is one without checkpoints",
    ),
}


def an_answer(bodies: Any) -> dict[str, Any]:
    return next(body["out"] for kind, body in bodies if kind == "done")


def other_params(bodies: Any) -> str:
    answers = [body["out"]["params"]["item"] for kind, body in bodies if kind == "done"]
    return next(item for item in answers if item != answers[0])


def voided_item(store: Path) -> Path:
    bodies = [json.loads(line)["body"] for line in (store / LOG).read_bytes().splitlines() if b'"kind":"done"' in line]
    others = json.dumps([bodies[0], bodies[2]])
    [digest] = {
        part["item"] for part in bodies[1]["out"].values() if isinstance(part, dict) and part.get("item", others) not in others
    }
    return store / "items" / digest[:2] / digest


def of_the_store(path: Path) -> bool:
    """What the store's own check says."""
    try:
        with ps.Store(path) as opened:
            return opened.check("bytes").ok
    except PureStateError:
        return False


@pytest.mark.parametrize("damage", DAMAGE)
def test_it_finds_what_the_store_itself_finds(damage, store):
    DAMAGE[damage](store)
    assert (checker.check(os.fspath(store)).ok, of_the_store(store)) == (False, False)


@pytest.mark.parametrize("case", HARMLESS)
def test_what_does_no_harm_is_no_damage_to_either(case, store):
    HARMLESS[case](store)
    assert (checker.check(os.fspath(store)).ok, of_the_store(store)) == (True, True)


@pytest.mark.parametrize("case", DIFFERENT)
def test_where_they_differ(case, store):
    DIFFERENT[case][0](store)
    assert (checker.check(os.fspath(store)).ok, of_the_store(store)) == (False, True), DIFFERENT[case][1]


@pytest.mark.parametrize("left", [b"", bytes(1000), b'{"digest":'])
def test_a_log_that_lost_all_records_is_told_before_a_collection_takes_its_states(store, left):
    (store / LOG).write_bytes(left)
    for report in (checker.check(os.fspath(store)), ps.Store(store).check("records")):
        assert ("gone", LOG) in [(one.kind, one.place) for one in report.findings]


def test_a_checkpoint_that_somebody_removed_by_hand_is_told(store):
    shutil.rmtree(store / "checkpoints/a")
    found = checker.check(os.fspath(store))
    assert [(one.kind, one.place) for one in found.findings] == [("gone", "checkpoints/a")]
    with ps.Store(store) as opened:
        told = opened.check("records")
    assert (told.ok, [(one.kind, one.place) for one in told.findings]) == (True, [("gone", "checkpoints/a")])
    assert "before store.gc()" in told.findings[0].remedy
    assert not checker.check(os.fspath(store), {"a": "0" * 64}).ok


# -------------------------------------------------------------------- its readers of OCDBT and Zstandard


def content(kind: int, size: int, rng: random.Random) -> bytes:
    """Bytes that are packed in one way or another: as they are, repeated, by Huffman's codes, by sequences."""
    if kind == 0:
        return rng.randbytes(size)
    if kind == 1:
        return bytes(rng.choices(range(256), weights=[1 / (i + 1) for i in range(256)], k=size))
    if kind == 2:
        return b"".join(b'{"chunks":[%d],"dtype":"<f4"}' % rng.randrange(1000) for _ in range(size // 30 + 1))
    base = rng.randbytes(size // 8 + 1)
    return b"".join(base[rng.randrange(len(base)) :][: rng.randrange(1, 400)] for _ in range(size // 200 + 1)) + bytes(size)


@pytest.mark.parametrize("level", [-5, 1, 3, 9, 19, None])
@pytest.mark.parametrize("node", [1000, 100_000_000])
def test_it_reads_what_tensorstore_writes(level, node, tmp_path):
    rng = random.Random(f"{level} {node}")
    config = {"max_inline_value_bytes": 1 << 16, "max_decoded_node_bytes": node}
    config["compression"] = None if level is None else {"id": "zstd", "level": level}
    place = tmp_path / "tree"
    kept = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{place}/", "config": config}).result()
    values = {f"{'k' * (i % 5)}/{i}".encode(): content(i % 4, rng.choice([0, 7, 900, 30_000]), rng) for i in range(24)}
    values |= {b"large": content(0, 80_000, rng)}
    with ts.Transaction() as transaction:
        for key, value in values.items():
            kept.with_transaction(transaction).write(key, value).result()
    found = checker._orbax(os.fspath(place), (place / "manifest.ocdbt").stat().st_size, {*values, b"no such key"})
    read = {key: value if isinstance(value, bytes) else b"".join(value.blocks(os.fspath(place))) for key, value in found.items()}
    assert read == values


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=150, deadline=None)
def test_rubbish_is_refused_and_never_a_traceback(data, packed):
    frame = b"\x28\xb5\x2f\xfd" + data if packed else data
    with contextlib.suppress(checker.BadBytesError):
        assert len(checker.unpack(frame, 1 << 20)) <= 1 << 20


def test_nothing_is_unpacked_without_bound():
    bomb = b"\x28\xb5\x2f\xfd\x00\x58" + (((1 << 17) << 3) | 2).to_bytes(3, "little") * 1 + b"\0"
    many = bomb[:6] + bomb[6:] * 2000
    with pytest.raises(checker.BadBytesError, match="more than 1048576 bytes"):
        checker.unpack(many, 1 << 20)


def node(magic: int, content: bytes) -> bytes:
    data = magic.to_bytes(4) + (18 + len(content)).to_bytes(8, "little") + b"\0\0" + content
    return data + checker._crc32c(data).to_bytes(4, "little")


def number(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def manifest(path: bytes, offset: int, length: int, height: int = 0) -> bytes:
    files = number(1) + number(len(path)) + number(0) + path
    version = number(1) + number(1) + bytes([height]) + number(0) + number(offset) + number(length) + bytes(11)
    return node(0x0CDB3A2A, bytes(16) + number(0) + number(1024) + number(10**8) + b"\4" + number(0) + files + version)


def reached(below: bytes, height: int = 0) -> tuple[bytes, bytes]:
    """Return a manifest whose newest version is a node, and that node."""
    return manifest(b"d/x", 0, len(below), height), below


TREES: dict[str, tuple[tuple[bytes, bytes], str]] = {
    "a path out of the item": ((manifest(b"../../../secret", 0, 10), b""), "names a file"),
    "an absolute path": ((manifest(b"/etc/passwd", 0, 10), b""), "names a file"),
    "a path with a dot": ((manifest(b"d/./x", 0, 10), b""), "names a file"),
    "a node of endless length": ((manifest(b"d/x", 0, 1 << 62), b""), "a node of Orbax's tree has 4611686018427387904 bytes"),
    "a node behind the end": ((manifest(b"d/x", 1 << 40, 20), b""), "the file ends before it does"),
    "endless names": (reached(node(0x0CDB20DE, b"\0\0" + number(1 << 30))), "ends too early"),
    "endless files": (reached(node(0x0CDB20DE, b"\0" + number(1 << 30))), "names 1073741824 files"),
    "a number without end": (reached(node(0x0CDB20DE, b"\0" + b"\xff" * 20)), "a number of too many bytes"),
    "a node of another height": (reached(node(0x0CDB20DE, b"\1\0\0"), 9), "not of its height"),
    "a node that is its own child": (
        reached(node(0x0CDB20DE, b"\1\1\3\0d/x\1\0\0\0\0" + number(32) + b"\0\0\0"), 1),
        "two nodes of Orbax's tree are one",
    ),
    "no tree at all": ((b"hello", b""), "'manifest.ocdbt' is not of Orbax's tree"),
    "another checksum": ((manifest(b"d/x", 0, 10)[:-1] + b"\0", b""), "differs from its checksum"),
}


@pytest.mark.parametrize("case", TREES)
def test_a_tree_of_a_stranger(case, store):
    (written, below), expected = TREES[case]
    folder = an_item(store)
    (folder / "manifest.ocdbt").write_bytes(written)
    (folder / "d/x").write_bytes(below)
    found = told(store)
    assert any(kind == "damaged" and expected in text for kind, text in found), found


def test_a_line_is_not_read_into_memory_before_it_ends(store, monkeypatch):
    monkeypatch.setattr(checker, "_LONGEST", 1000)
    found = told(store)
    assert any(place.startswith(LOG) and place.endswith("has more than 1000 bytes") for _, place in found)


def test_the_findings_are_plain_data(store):
    largest(store).unlink()
    found = checker.check(os.fspath(store))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["findings"][0]["kind"] == "damaged"
    assert str(found).startswith("NOT ok: 1 logs")
