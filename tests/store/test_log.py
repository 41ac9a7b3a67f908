"""Logs on disk: durable appends, verified reads, torn tails, one writer."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest

import purestate.store
from purestate.errors import CorruptLogError, StoreLockedError, StoreWriteError, UnsupportedError
from purestate.store._disk import DiskBackend
from purestate.store._record import EMPTY_HEAD

APPEND = """
import sys
from purestate.store._disk import DiskBackend
log = DiskBackend(sys.argv[1]).log("a")
with log.lock(None):
    for i in range(int(sys.argv[2])):
        log.append("train", {"by": sys.argv[3], "i": i})
"""
HOLD = """
import sys
from purestate.store._disk import DiskBackend
log = DiskBackend(sys.argv[1]).log("a")
with log.lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


def filled(backend: DiskBackend, count: int = 3):
    log = backend.log("a")
    with log.lock():
        for i in range(count):
            log.append("train", {"i": i})
    return log


def test_a_record_is_there_for_others_when_append_returns(backend):
    log = backend.log("a")
    assert (log.exists(), list(log.records), log.head) == (False, [], EMPTY_HEAD)
    with log.lock():
        record = log.append("train", {"loss": 0.5})
        assert backend.log("a").records[0].body == {"loss": 0.5}
    assert log.exists()
    assert log.head == record.digest == backend.log("a").head
    assert (record.seq, record.kind, record.prev) == (0, "train", EMPTY_HEAD)


def test_opening_a_log_writes_nothing(tmp_path):
    backend = DiskBackend(tmp_path / "store")
    assert list(backend.log("a").records) == []
    assert backend.ids() == []
    assert os.listdir(tmp_path) == []


def test_refresh_takes_in_what_others_appended(backend):
    log = filled(backend, 1)
    filled(DiskBackend(backend.path), 3)
    assert len(log.records) == 1
    log.refresh()
    assert [record.body["i"] for record in log.records] == [0, 0, 1, 2]


def test_an_append_goes_behind_what_others_appended(backend):
    log = filled(backend, 1)
    filled(DiskBackend(backend.path), 1)
    with log.lock():
        assert log.append("train", {}).seq == 2
    assert len(backend.log("a").records) == 3


def test_a_log_that_was_made_again_is_read_again(backend):
    log = filled(backend)
    backend.delete("a")
    log.refresh()
    assert (list(log.records), log.exists()) == ([], False)
    filled(backend, 5)
    log.refresh()
    assert len(log.records) == 5


def test_append_needs_the_lock(backend):
    with pytest.raises(StoreLockedError, match="without holding its lock"):
        backend.log("a").append("train", {})
    assert backend.ids() == []


def test_a_refused_body_leaves_the_log_as_it_was(backend):
    log = filled(backend)
    before = log.path.read_bytes()
    with log.lock(), pytest.raises(UnsupportedError):
        log.append("train", {"a": (1, 2)})
    assert log.path.read_bytes() == before


def test_a_torn_line_is_ignored_by_readers_and_cut_off_by_the_next_writer(backend):
    log = filled(backend)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"digest":"12')
    reader = backend.log("a")
    assert len(reader.records) == 3
    assert log.path.read_bytes() == whole + b'{"digest":"12'
    with reader.lock():
        reader.append("train", {"i": 3})
    assert [record.body["i"] for record in backend.log("a").records] == [0, 1, 2, 3]
    [copy] = log.path.parent.glob("torn-*")
    assert copy.read_bytes() == b'{"digest":"12'


def test_damage_before_the_last_line_names_the_line(backend):
    log = filled(backend)
    data = bytearray(log.path.read_bytes())
    data[data.index(b"\n") + 100] ^= 1
    log.path.write_bytes(data)
    with pytest.raises(CorruptLogError, match="damaged at line 2") as caught:
        backend.log("a")
    assert (caught.value.line, caught.value.path) == (2, str(log.path))
    assert isinstance(caught.value, OSError)


def test_a_write_that_fails_leaves_the_log_as_it_was(backend, run):
    log = filled(backend)
    before = log.path.read_bytes()
    out = run(
        """
import resource, sys
from purestate.errors import StoreWriteError
from purestate.store._disk import DiskBackend
backend = DiskBackend(sys.argv[1])
log = backend.log("a")
with log.lock():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]) + 100, resource.RLIM_INFINITY))
    try:
        log.append("train", {"text": "x" * 1000})
    except StoreWriteError as error:
        print(error, error.path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(len(log.records), log.append("train", {"i": 3}).seq)
""",
        backend.path,
        len(before),
    )
    assert "a record of checkpoint 'a'" in out
    assert "ulimit -f" in out
    assert out.endswith("3 3\n")
    assert log.path.read_bytes().startswith(before)
    assert len(backend.log("a").records) == 4


def test_a_lock_names_who_holds_it_and_is_free_when_that_is_killed(backend, started):
    with started(HOLD, backend.path) as process:
        assert process.first_line == "held"
        with pytest.raises(StoreLockedError, match=f"process {process.pid} on") as caught, backend.log("a").lock(0.05):
            pass
        assert caught.value.pid == process.pid
        assert caught.value.host == os.uname().nodename
        process.kill()
        process.wait()
        with backend.log("a").lock(60):
            pass


def test_a_lock_is_waited_for(backend):
    taken, order = threading.Event(), []

    def hold():
        with DiskBackend(backend.path).log("a").lock():
            taken.set()
            time.sleep(0.1)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    with backend.log("a").lock(None):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_lock_is_reentrant_in_its_object_and_excludes_another(backend):
    log = backend.log("a")
    with log.lock(), log.lock():
        with pytest.raises(StoreLockedError, match="this process"), backend.log("a").lock(0):
            pass
    with backend.log("a").lock(0):
        pass


def test_a_fork_of_the_holder_does_not_keep_the_lock(backend, run):
    out = run(
        """
import os, sys, time
from purestate.store._disk import DiskBackend
log = DiskBackend(sys.argv[1]).log("a")
reader, writer = os.pipe()
with log.lock():
    if not (child := os.fork()):
        os.write(writer, b"x")
        time.sleep(600)
        os._exit(0)
    os.read(reader, 1)
    os.close(log._lock._fd)  # as the kernel does when the holder is killed
    log._lock._fd = os.open(os.devnull, os.O_RDONLY)
    with DiskBackend(sys.argv[1]).log("a").lock(60):
        print("free")
os.kill(child, 9)
os.waitpid(child, 0)
""",
        backend.path,
    )
    assert out == "free\n"


def test_two_processes_append_one_chain(backend, started):
    log = backend.log("a")
    with started("print(flush=True)" + APPEND, backend.path, 20, "x") as other:
        for _ in range(20):
            with log.lock(None):
                log.append("train", {"by": "y"})
        assert other.wait(600) == 0
    log.refresh()
    assert len(log.records) == 40
    assert {record.body["by"] for record in log.records} == {"x", "y"}


def test_a_folder_that_is_a_file_is_an_error_with_a_way_out(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "checkpoints").write_text("")
    log = DiskBackend(tmp_path / "store").log("a")
    with log.lock(), pytest.raises(StoreWriteError, match="There is a file where a folder should be"):
        log.append("train", {})


def test_the_check_by_hand_in_the_readme_holds(backend):
    log = filled(backend, 4)
    readme = (Path(purestate.store.__file__).parent / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = code.replace('open("log.jsonl", "rb")', "lines")
    lines = log.path.read_bytes().splitlines(keepends=True)
    scope = {"lines": lines}
    exec(code, scope)
    assert scope["before"] == log.head
    with pytest.raises(AssertionError):
        exec(code, {"lines": [lines[0], lines[1].replace(b'"i":1', b'"i":2'), *lines[2:]]})
