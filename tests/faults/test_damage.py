"""Damage at rest: logs cut and flipped at every byte, bits and pages of every file of a store. No wrong answer is silent."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from purestate.errors import CorruptLogError, PureStateError
from purestate.store._disk import DiskBackend
from tests.helpers import bits

BODIES = [{"n": n, "text": 'a few words, "and" ümlauts @ home ' * (n % 3)} for n in range(7)]


def opened(path: Path) -> list[str]:
    return [record.digest for record in DiskBackend(path).log("a").records]


@pytest.fixture
def log(tmp_store_path: Path) -> Path:
    log = DiskBackend(tmp_store_path).log("a")
    with log.lock():
        for body in BODIES:
            log.append("note", body)
    return log.path


@pytest.fixture
def ends(log: Path) -> list[int]:
    """Return where each line ends, behind its newline."""
    return [match.end() for match in re.finditer(rb"\n", log.read_bytes())]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_log_cut_anywhere_is_its_longest_valid_prefix_and_goes_on(log, ends, tmp_store_path, step):
    data, digests = log.read_bytes(), opened(tmp_store_path)
    cuts = sorted({*range(1, len(data), step), *ends, *(end - 1 for end in ends)} - {0, len(data)})
    for cut in cuts:
        log.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert opened(tmp_store_path) == digests[:whole], f"cut at byte {cut}"
        mended = DiskBackend(tmp_store_path).log("a")
        with mended.lock():
            mended.append("note", BODIES[whole])
        assert log.read_bytes() == data[: ends[whole]], f"cut at byte {cut}, then appended"
        torn = list(log.parent.glob("torn-*"))
        assert [path.read_bytes() for path in torn] == ([data[ends[whole - 1] if whole else 0 : cut]] if cut not in ends else [])
        for path in torn:
            path.unlink()
    print(f"{len(cuts)} truncations of a log of {len(data)} bytes")


@pytest.mark.parametrize("mask", [pytest.param(range(8), marks=pytest.mark.slow), None])
def test_a_flipped_bit_anywhere_in_a_log_names_the_line(log, ends, tmp_store_path, mask):
    data, digests = log.read_bytes(), opened(tmp_store_path)
    tried = 0
    for at in range(len(data)):
        for bit in mask or [at % 8]:
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            log.write_bytes(flipped)
            tried += 1
            line = 1 + sum(end <= at for end in ends)
            if line == len(ends) and flipped[at] == 0:  # looks as if the last line never reached the disk, and is kept as torn
                assert opened(tmp_store_path) == digests[:-1]
                continue
            with pytest.raises(CorruptLogError) as caught:
                opened(tmp_store_path)
            assert caught.value.line == line, f"bit {bit} of byte {at}"
            assert f"line {line}:" in str(caught.value)
            assert str(log) in str(caught.value)
    print(f"{tried} flipped bits in a log of {len(data)} bytes")


@pytest.mark.parametrize("size", [1, 64, 512])
def test_a_zeroed_stretch_of_a_log_is_told_or_is_its_end(log, ends, tmp_store_path, size):
    """Zeros up to the last line, over all newlines between, are what a power cut leaves of lines that were being written."""
    data, digests = log.read_bytes(), opened(tmp_store_path)
    for at in range(0, len(data), max(size // 2, 7)):
        log.write_bytes(data[:at] + bytes(min(size, len(data) - at)) + data[at + size :])
        line = 1 + sum(end <= at for end in ends)
        zeroed = [end for end in ends if at < end <= at + size]
        if all(end in zeroed for end in ends[line - 1 : -1]) and not (size == 1 and zeroed):
            assert opened(tmp_store_path) == digests[: line - 1]
        else:
            with pytest.raises(CorruptLogError) as caught:
                opened(tmp_store_path)
            assert caught.value.line == line


# ---- every file of a store ----


@dataclasses.dataclass(frozen=True)
class Damage:
    """What happens to a file: a bit is flipped, or the 512 bytes around ``at`` become zeros."""

    path: Path
    at: int
    bit: int | None

    def to(self, data: bytes) -> bytes:
        if self.bit is not None:
            return data[: self.at] + bytes([data[self.at] ^ 1 << self.bit]) + data[self.at + 1 :]
        page = self.at // 512 * 512
        return data[:page] + bytes(len(data[page : page + 512])) + data[page + 512 :]

    def __str__(self) -> str:
        return f"{self.path}, {'page of ' if self.bit is None else f'bit {self.bit} of '}byte {self.at}"


def damages(store: Path, number: int, seed: int) -> Iterator[Damage]:
    """Yield damage to all files in turn, so that small ones are not spared. What a lock file says is for people."""
    generator = random.Random(seed)
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.relative_to(store).parts[0] != "locks")
    for _, path in zip(range(number), itertools.cycle(files), strict=False):
        at = generator.randrange(path.stat().st_size)
        yield Damage(path, at, None if generator.random() < 0.2 else generator.randrange(8))


def content_of(store: Path, path: Path) -> Callable[[], Any]:
    """Return what reads all that depends on a file, from nothing."""
    parts = path.relative_to(store).parts
    if parts[0] == "items":
        return lambda: {name: bits(leaf) for name, leaf in DiskBackend(store).get(parts[2]).items()}
    if "resume" in parts:
        return lambda: _point(DiskBackend(store).load_resume(parts[1]))
    if parts[0] == "checkpoints":
        return lambda: [record.line for record in DiskBackend(store).log(parts[1]).records]
    if parts[0] == "journal.jsonl":
        return lambda: DiskBackend(store).acts()
    return lambda: [DiskBackend(store).ids(), len(DiskBackend(store).log("a").records)]


def _point(loaded: Any) -> Any:
    return loaded and (
        loaded[0],
        {tree: {name: bits(leaf) for name, leaf in leaves.items()} for tree, leaves in loaded[1].items()},
    )


@pytest.fixture(scope="module")
def sound(server, tmp_path_factory) -> Path:
    """Return a store with two trains, items of several kinds of leaves, a resume point and a journal."""
    root = tmp_path_factory.mktemp("sound")
    for scenario, options in (("train", {}), ("save", dict(id="b", records=3)), ("points", {})):
        assert server.run(scenario, root, **options).status == 0
    return root / "store"


def flip(store: Path, number: int, seed: int, failures: list[str]) -> dict[str, int]:
    readers = {path: content_of(store, path) for path in store.rglob("*") if path.is_file()}
    right = {path: read() for path, read in readers.items()}
    before = {path: path.read_bytes() for path in readers}
    seen = dict.fromkeys(("told", "fell back", "harmless", "harmless, and found by check"), 0)
    for damage in damages(store, number, seed):
        path, data = damage.path, before[damage.path]
        if damage.to(data) == data:
            continue
        path.write_bytes(damage.to(data))
        try:
            content = readers[path]()
        except PureStateError as error:
            seen["told"] += 1
            named = getattr(error, "leaf", None) or getattr(error, "file", None) or getattr(error, "line", None)
            if not (named or path.name in str(error)):
                failures.append(f"seed {seed}: {damage}: names neither leaf nor file: {error}")
        except Exception as error:
            failures.append(f"seed {seed}: {damage}: a foreign error: {type(error).__name__}: {error}")
        else:
            if content != right[path]:
                if _is_fallback(store, path, content, right[path]):
                    seen["fell back"] += 1
                else:
                    failures.append(f"seed {seed}: {damage}: SILENT")
            elif "items" not in path.parts:
                seen["harmless"] += 1
            elif found := list(DiskBackend(store).faults(path.relative_to(store).parts[2], "an item", hashed=True)):
                seen["harmless, and found by check"] += 1
                if path.name not in str(found[0]):
                    failures.append(f"seed {seed}: {damage}: check does not name the file: {found[0]}")
            else:
                failures.append(f"seed {seed}: {damage}: harmless, and check does not see it")
        finally:
            path.write_bytes(data)
    return seen


def _is_fallback(store: Path, path: Path, content: Any, right: Any) -> bool:
    """Return whether it is less, as is promised: the older resume point, a log without its end, a journal without a line."""
    if "resume" in path.parts:
        return content is not None and content[0]["n"] == right[0]["n"] - 1
    if path.name == "journal.jsonl":
        return all(act in right for act in content) and bool(list(DiskBackend(store).oddities()))
    return path.name == "log.jsonl" and content == right[: len(content)] and DiskBackend(store).log(path.parent.name).torn > 0


def test_damage_to_some_places_of_every_file(sound, failures):
    print(flip(sound, 2000, 1, failures))


@pytest.mark.slow
def test_damage_to_many_places_of_every_file(sound, failures):
    print(flip(sound, 10_000, 2, failures))
