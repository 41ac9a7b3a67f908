"""Records that become durable while the caller goes on: in order, none lost that was waited for, and failures that are told."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import warnings

import pytest

from purestate.errors import StoreWriteError
from purestate.store._disk import DiskBackend
from purestate.store._memory import MemoryBackend, NullBackend


@pytest.fixture
def log(backend):
    log = backend.log("a")
    with log.lock():
        log.append("train", {})
    return log


def on_disk(log) -> list[str]:
    """Return the digests that somebody else reads."""
    return [line[11:75].decode() for line in log.path.read_bytes().splitlines()]


@pytest.fixture
def syncs(monkeypatch) -> list[int]:
    """Return how large the log was at each of its syncs."""
    sizes: list[int] = []
    fdatasync = os.fdatasync

    def counted(fd):
        size = os.fstat(fd).st_size
        fdatasync(fd)
        sizes.append(size)

    monkeypatch.setattr(os, "fdatasync", counted)
    return sizes


@pytest.fixture
def gate(monkeypatch, syncs) -> threading.Event:
    """Return an event that syncs wait for."""
    gate = threading.Event()
    fdatasync = os.fdatasync

    def held_back(fd):
        assert gate.wait(60)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", held_back)
    return gate


def threads_of(log) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"purestate log {log.id}"]


def test_it_is_in_the_chain_at_once_and_durable_when_the_lock_is_left(log, gate, syncs):
    with log.lock():
        records = [log.append_soon("epoch", {"n": n}) for n in range(5)]
        assert [record.digest for record in log.records[1:]] == [record.digest for record in records]
        assert log.head == records[-1].digest
        log.refresh()
        assert len(log.records) == 6
        assert syncs == []
        gate.set()
    assert on_disk(log) == [record.digest for record in log.records]
    assert syncs[-1] == log.path.stat().st_size
    assert threads_of(log) == []


def test_it_becomes_durable_while_the_caller_does_something_else(log, syncs, wait_until):
    with log.lock():
        log.append_soon("epoch", {"n": 0})
        wait_until(lambda: syncs == [log.path.stat().st_size])
        wait_until(lambda: threads_of(log) == [])


def test_what_comes_meanwhile_is_synced_together(log, gate, syncs):
    with log.lock():
        for n in range(20):
            log.append_soon("epoch", {"n": n})
        gate.set()
    assert syncs[-1] == log.path.stat().st_size
    assert len(syncs) <= 2  # the thread may have been at one of them


def test_an_append_waits_for_all_before_it(log, gate, syncs):
    with log.lock():
        first = log.append_soon("epoch", {"n": 0})
        threading.Timer(0.05, gate.set).start()
        last = log.append("done", {})
        assert syncs[-1] == log.path.stat().st_size
        assert on_disk(log)[1:] == [first.digest, last.digest]


def test_records_that_are_appended_together_take_one_sync(backend, syncs):
    log = backend.log("a")
    with log.lock():
        first, second = log.append_all([("checkpoint", {}), ("train", {"epochs": 1})])
        assert syncs == [log.path.stat().st_size]
    assert second.prev == first.digest
    assert on_disk(backend.log("a")) == [first.digest, second.digest]


@pytest.mark.parametrize("then", ["append", "append_soon", "leave"])
def test_a_failure_is_told_once_and_nothing_is_appended_after_it(log, monkeypatch, then):
    fdatasync, calls = os.fdatasync, []

    def broken(fd):
        calls.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = log.path.read_bytes()
    with pytest.raises(StoreWriteError, match="a record of checkpoint 'a'") as caught, log.lock():  # noqa: PT012
        monkeypatch.setattr(os, "fdatasync", broken)
        log.append_soon("epoch", {"n": 0})
        log.finish()
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        if then != "leave":
            with pytest.raises(StoreWriteError) as told:
                getattr(log, then)("epoch", {"n": 1})
            assert len(log.records) == 1
            with pytest.raises(StoreWriteError) as again:
                log.append("epoch", {"n": 1})
            assert again.value is told.value
            raise told.value
    assert caught.value.errno == errno.EIO
    assert len(calls) == 1, "a sync that failed was tried again"
    assert log.path.read_bytes() == before
    assert [record.kind for record in log.records] == ["train"]
    with log.lock():  # whoever comes back finds the log as it is
        log.append("epoch", {"n": 0})
    assert len(DiskBackend(log.path.parents[2]).log("a").records) == 2


def test_a_failure_behind_what_was_written_leaves_that(log, monkeypatch):
    with log.lock():
        log.append_soon("epoch", {"n": 0})
        log.finish()
        monkeypatch.setattr(os, "fdatasync", _refuse)
        log.append_soon("epoch", {"n": 1})
        log.finish()
        monkeypatch.undo()
        with pytest.raises(StoreWriteError):
            log.append("done", {})
        assert [record.body for record in log.records] == [{}, {"n": 0}]
    assert on_disk(log) == [record.digest for record in log.records]


def _refuse(fd):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_append_of_ones_own_can_be_followed_by_another(log, monkeypatch):
    with log.lock():
        log.append_soon("epoch", {"n": 0})
        log.finish()
        monkeypatch.setattr(os, "fdatasync", _refuse)
        with pytest.raises(StoreWriteError):
            log.append("done", {})
        monkeypatch.undo()
        log.append("done", {})
    assert [record.kind for record in log.records] == ["train", "epoch", "done"]
    assert on_disk(log) == [record.digest for record in log.records]


def test_a_log_that_was_removed_does_not_come_back_with_a_hole(log):
    with log.lock():
        log.append("epoch", {"n": 0})
        log.path.unlink()
        with pytest.raises(StoreWriteError, match="No such file"):
            log.append("epoch", {"n": 1})
        log.append("train", {})
    assert [record.seq for record in log.records] == [0]


class Interrupted(BaseException):
    pass


def test_an_interrupt_while_it_is_waited_for_loses_nothing(log, monkeypatch):
    """The lock is not let go of before the thread is done with the file."""
    main = threading.main_thread().ident
    assert main is not None
    interrupted = threading.Event()
    fdatasync = os.fdatasync

    def interrupt(number, frame):
        interrupted.set()
        raise Interrupted

    def interrupting(fd):
        while len(log.records) < 3:  # until the append is there that waits
            time.sleep(0.001)
        if not interrupted.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            assert interrupted.wait(60)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", interrupting)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted), log.lock():  # noqa: PT012
            log.append_soon("epoch", {"n": 0})
            log.append("done", {})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert on_disk(log) == [record.digest for record in log.records]
    assert [record.kind for record in log.records] == ["train", "epoch", "done"]
    with DiskBackend(log.path.parents[2]).log("a").lock(0):
        pass


def test_a_fork_waits_for_it_and_the_child_leaves_it_alone(log):
    with warnings.catch_warnings(), log.lock():
        warnings.simplefilter("error")  # of Python, where a process with threads forks
        record = log.append_soon("epoch", {"n": 0})
        child = os.fork()
        if not child:
            alone = threads_of(log) == [] and record.digest in on_disk(log)
            log.finish()
            os._exit(0 if alone else 1)
        log.append_soon("epoch", {"n": 1})
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(on_disk(log)) == 3


def test_without_a_thread_it_is_written_at_once(log, monkeypatch):
    def no_more(thread):
        raise RuntimeError("can't start new thread")

    with log.lock():
        monkeypatch.setattr(threading.Thread, "start", no_more)
        record = log.append_soon("epoch", {"n": 0})
        assert record.digest in on_disk(log)


def test_a_process_that_ends_without_leaving_the_lock_has_written_it(backend, run):
    run(
        """
import sys
from purestate.store._disk import DiskBackend
log = DiskBackend(sys.argv[1]).log("a")
held = log.lock()
held.__enter__()
for n in range(50):
    log.append_soon("epoch", {"n": n})
""",
        backend.path,
    )
    assert [record.body["n"] for record in backend.log("a").records] == list(range(50))


def test_a_process_that_is_killed_leaves_a_beginning(backend, started):
    code = """
import itertools, sys
from purestate.store._disk import DiskBackend
log = DiskBackend(sys.argv[1]).log("a")
with log.lock():
    for n in itertools.count():
        log.append_soon("epoch", {"n": n})
        if n == 100:
            log.finish()
            print("durable", flush=True)
"""
    with started(code, backend.path) as process:
        assert process.first_line == "durable"
        process.kill()
        process.wait()
    numbers = [record.body["n"] for record in backend.log("a").records]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 100


@pytest.mark.parametrize("make", [MemoryBackend, NullBackend])
def test_in_memory_it_is_as_an_append(make):
    log = make().log("a")
    with log.lock():
        first = log.append_soon("epoch", {"n": 0})
        kept = make is MemoryBackend
        assert (len(log.records), log.head == first.digest) == (int(kept), kept)
        both = log.append_all([("epoch", {"n": 1}), ("done", {})])
        assert [record.seq for record in both] == ([1, 2] if kept else [0, 1])
