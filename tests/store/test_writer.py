"""The writer process: it dies, we die, the disk is full, somebody forks; nothing is lost and nobody hangs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from purestate.errors import MutatedStateError, StoreWriteError
from purestate.store import _writer
from purestate.store._disk import DiskBackend
from purestate.store._writer import Writer
from tests.store.conftest import digest_of

PUT = """
import os, sys, torch
from purestate.store._disk import DiskBackend
from purestate.store._writer import shared_writer
from tests.store.conftest import digest_of
backend = DiskBackend(sys.argv[1])
def put(value, size=10):
    leaves = {"w": torch.full((size,), float(value))}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    return digest
def pid():
    return shared_writer()._process[0].popen.pid
"""


def alive(pid: int) -> bool:
    """Return whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def own(tmp_store_path):
    """A store with a writer of its own, which may be killed."""
    backend = DiskBackend(tmp_store_path)
    writer = Writer()
    backend._writer = backend._items._writer = backend._resume._writer = writer
    yield backend
    writer.close()


def put(backend: DiskBackend, value: float) -> str:
    leaves = {"w": torch.full((10,), float(value))}
    digest = digest_of(leaves)
    backend.put({digest: leaves})
    return digest


def test_a_killed_writer_is_replaced(own, wait_until):
    first = put(own, 1)
    process = own._writer._process[0].popen
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: process.poll() is not None)
    second = put(own, 2)
    assert own._writer._process[0].popen.pid != process.pid
    assert own.has(first)
    assert own.get(second)["w"].tolist() == [2.0] * 10


def test_a_writer_killed_at_work_is_an_error_and_the_next_put_works(own):
    own.warm()
    os.kill(own._writer._process[0].popen.pid, signal.SIGSTOP)  # so that the job cannot be finished before it dies
    handle = own.save_resume("a", {}, {"params": {"w": torch.ones(3)}})
    assert not handle.done()
    os.kill(own._writer._process[0].popen.pid, signal.SIGKILL)
    with pytest.raises(StoreWriteError, match="resume point of checkpoint 'a'") as caught:
        handle.result()
    assert "writer process ended early" in str(caught.value)
    assert handle.done()
    assert own.has(put(own, 1))


def test_signals_to_the_group_do_not_end_it(own):
    digest = put(own, 1)
    process = own._writer._process[0].popen
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    assert own.has(digest)
    assert own.has(put(own, 2))
    assert own._writer._process[0].popen.pid == process.pid
    assert os.getpgid(process.pid) != os.getpgid(0)


def test_closing_waits_for_the_background_and_ends_the_process(own):
    handle = own.save_resume("a", {"n": 1}, {"params": {"w": torch.ones(3)}})
    pid = own._writer._process[0].popen.pid
    own._writer.close()
    assert handle.done()
    handle.result()
    assert not alive(pid)
    assert own.load_resume("a")[0] == {"n": 1}
    assert own.has(put(own, 1))  # and starts again when it is needed


def test_it_ends_with_a_parent_that_was_killed(started, wait_until, tmp_store_path):
    with started(PUT + "put(1); print(pid(), flush=True); sys.stdin.readline()", tmp_store_path) as process:
        writer = int(process.first_line)
        assert alive(writer)
        process.kill()
        process.wait()
        wait_until(lambda: not alive(writer))


def test_it_ends_with_a_killed_parent_of_which_a_fork_lives_on(started, wait_until, tmp_store_path):
    code = """
put(1)
child = os.fork()
if child == 0:
    import time
    time.sleep(60)
print(pid(), child, flush=True)
sys.stdin.readline()
"""
    with started(PUT + code, tmp_store_path) as process:
        writer, child = map(int, process.first_line.split())
        process.kill()
        process.wait()
        wait_until(lambda: not alive(writer))
        assert alive(child)
        os.kill(child, signal.SIGKILL)


def test_the_end_of_a_script_waits_for_the_background_and_ends_it(run, tmp_store_path, wait_until):
    code = """
put(1)
backend.save_resume("a", {"n": 5}, {"params": {"w": torch.ones(1000)}})
print(pid(), [name for name in ("jax", "orbax", "tensorstore") if name in sys.modules])
"""
    writer, heavy = run(PUT + code, tmp_store_path).split(maxsplit=1)
    wait_until(lambda: not alive(int(writer)))
    assert DiskBackend(tmp_store_path).load_resume("a")[0] == {"n": 5}
    assert heavy == "[]\n"


def test_a_fork_has_a_writer_of_its_own(run, tmp_store_path):
    code = """
import warnings
from purestate.errors import StoreWriteError
put(1)
mine = pid()
handle = backend.save_resume("a", {}, {"params": {"w": torch.ones(3)}})
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    try:
        put(2)
        assert pid() != mine
        assert not handle.done()
        try:
            handle.result()
        except StoreWriteError as error:
            assert "forked" in str(error)
        backend.close()
        os._exit(0)
    finally:
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0
handle.result()
assert pid() == mine
put(3)
assert pid() == mine
"""
    run(PUT + code, tmp_store_path)
    assert len(list(tmp_store_path.glob("items/??/*"))) == 3


def test_a_full_disk_is_told_and_leaves_nothing(run, tmp_store_path):
    code = """
import subprocess
from purestate.errors import StoreWriteError
kept = put(1)
backend.close()
class Limited(subprocess.Popen):  # only the writer: shared memory counts as a file for this limit, which stands in for a disk
    def __init__(self, command, **options):
        super().__init__(["sh", "-c", 'ulimit -f 200; exec "$@"', "sh", *command], **options)
subprocess.Popen = Limited
try:
    put(2, size=1_000_000)
except StoreWriteError as error:
    print(error)
assert backend.has(kept)
assert backend.has(put(3))
print(*os.listdir(sys.argv[1] + "/items"))
"""
    out = run(PUT + code, tmp_store_path)
    assert "Cannot write 1 item at" in out
    assert "ulimit -f" in out
    assert "tmp-" not in out.splitlines()[-1]


def test_the_writer_is_bounded_and_small(own):
    """Resident, without what is shared with us: Orbax, JAX and TensorStore, and no leftovers of what was written."""
    for value in range(3):
        leaves = {"w": torch.full((5_000_000,), float(value))}
        own.put({digest_of(leaves): leaves})
    status = Path(f"/proc/{own._writer._process[0].popen.pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    assert resident < 350, status


def test_a_save_that_fails_waits_for_the_others(run, tmp_path):
    """Else they would go on writing into folders that are removed meanwhile, and make them again."""
    code = """
import os, sys
import numpy as np
from purestate.store import _worker
save = _worker._orbax()
failing, other = (os.path.join(sys.argv[1], name) for name in "ab")
for folder in failing, other:
    os.mkdir(folder)
open(os.path.join(failing, "ocdbt.process_0"), "x").close()  # where a folder has to go
try:
    save([(failing, {"w": np.ones(10)}), (other, {str(n): np.ones(1 << 20) for n in range(8)})])
except Exception as error:
    print(sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(other) for name in names), error)
"""
    size, _, error = run(code, tmp_path).partition(" ")
    assert int(size) > 8 * 8 << 20
    assert "ocdbt.process_0" in error


def test_what_failed_leaves_no_memory_behind(own):
    leaves = {"w": torch.ones(1000)}
    digest = digest_of(leaves)
    leaves["w"][3] = 2
    with pytest.raises(MutatedStateError):
        own.put({digest: leaves})
    assert "memfd:purestate" not in Path(f"/proc/{own._writer._process[0].popen.pid}/maps").read_text()


def test_orders_that_are_not_done_hold_bounded_memory(own, monkeypatch):
    from purestate.store import _writer

    monkeypatch.setattr(_writer, "_MOST_BYTES", 3 << 20)
    put(own, 1)
    pid = own._writer._process[0].popen.pid
    os.kill(pid, signal.SIGSTOP)  # so that nothing is done before we look
    handles = [own.save_resume("a", {"n": n}, {"t": {"w": torch.ones(1 << 18)}}) for n in range(2)]
    assert own._writer._held() >= 2 << 20
    import threading

    third = threading.Thread(target=lambda: handles.append(own.save_resume("b", {}, {"t": {"w": torch.ones(1 << 19)}})))
    third.start()
    third.join(0.3)
    assert third.is_alive(), "it waits"
    os.kill(pid, signal.SIGCONT)
    third.join(20)
    for handle in handles:
        handle.result()
    assert own._writer._held() == 0


TRAIN = """
import multiprocessing, sys, warnings
warnings.simplefilter("error")
import torch
import purestate as ps
from tests.run.tiny import start
from tests.helpers import batch
from torch.utils.data import DataLoader, TensorDataset

def once(root, id, workers=0):
    data = TensorDataset(*batch(8, seed=0))
    loader = DataLoader(data, batch_size=4, num_workers=workers, multiprocessing_context="fork" if workers else None)
    with ps.Store(root) as store:
        state = store.checkpoint(id, echo=None).train(start(), loader, epochs=2, progress=False)
        print(id, state.hash, flush=True)

if __name__ == "__main__":
    torch.set_num_threads(1)
    root, how = sys.argv[1:]
    if how == "workers":
        once(root, "a", workers=2)
        once(root, "b", workers=2)
    elif how == "spawn":
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=once, args=(root, id)) for id in "ab"]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
"""


@pytest.mark.parametrize("how", ["workers", "spawn"])
def test_loader_workers_and_spawned_processes_write_without_a_warning(tmp_path, tmp_store_path, how):
    import subprocess

    from tests.store.conftest import ROOT

    script = tmp_path / "script.py"
    script.write_text(TRAIN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(script), str(tmp_store_path), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    hashes = {line.split()[1] for line in done.stdout.splitlines()}
    assert len(hashes) == 1
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["a", "b"]


def test_processes_side_by_side_share_a_store(tmp_store_path, started):
    """As the workers of pytest-xdist do: each has a writer of its own."""
    from contextlib import ExitStack

    code = PUT + "print(put(1), flush=True); [put(n) for n in range(2, 5)]; print('done', flush=True); sys.stdin.readline()"
    with ExitStack() as together:
        processes = [together.enter_context(started(code, tmp_store_path)) for _ in range(2)]
        assert len({process.first_line for process in processes}) == 1
        for process in processes:
            assert process.stdout.readline() == "done\n"
    backend = DiskBackend(tmp_store_path)
    assert len(list(backend.items())) == 4
    assert all(not list(backend.faults(digest, "an item", hashed=True)) for digest in backend.items())
    assert list(tmp_store_path.glob("items/tmp-*")) == []


@pytest.mark.parametrize("sent", [False, True])
def test_an_order_that_was_interrupted_leaves_no_doubt_for_the_next(own, monkeypatch, sent):
    """Whether it was sent cannot be told, so nobody waits for its answer, and its memory is not used again."""

    def interrupt(*args: Any) -> None:
        if sent:
            send_fds(*args)
        raise KeyboardInterrupt

    send_fds = _writer.send_fds
    own.warm(1)
    with monkeypatch.context() as patched:
        patched.setattr(_writer, "send_fds", interrupt)
        with pytest.raises(KeyboardInterrupt):
            put(own, 1)
    assert own._writer._kept == []
    assert own.get(put(own, 2))["w"].tolist() == [2.0] * 10
    own.save_resume("a", {}, {"params": {"w": torch.ones(3)}}).result()
    own._writer.close()


def test_an_answer_that_was_interrupted_at_any_line_is_taken_in_later(own, wait_until):
    own.save_resume("a", {}, {"params": {"w": torch.ones(3)}}).result()
    interrupted = []

    def at(line: int) -> Any:
        def trace(frame: Any, event: str, _: object) -> Any:
            if frame.f_code is not _writer._receive.__code__:
                return None
            if event == "line" and frame.f_lineno == line and line not in interrupted:
                interrupted.append(line)
                raise KeyboardInterrupt
            return trace

        return trace

    for line in sorted({line for *_, line in _writer._receive.__code__.co_lines() if line}):
        handle = own.save_resume("a", {"line": line}, {"params": {"w": torch.ones(3)}})
        before = sys.gettrace()
        sys.settrace(at(line))
        try:
            handle.result()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        wait_until(handle.done)
        handle.result()
        assert own.has(put(own, line))
    assert len(interrupted) > 8
    assert own.load_resume("a")[0] == {"line": line}


def test_an_answer_that_the_handler_of_a_signal_has_taken_in_is_not_waited_for(own, monkeypatch):
    """The handler runs in the middle of the wait, and writes itself: it gets both answers."""

    def handle(*arguments: Any) -> bool:
        if not handled:
            handled.append(None)
            handled[0] = put(own, 2)
        return readable(*arguments)

    handled: list[Any] = []
    readable = _writer._readable
    monkeypatch.setattr(_writer, "_readable", handle)
    monkeypatch.setattr(_writer, "_LOOK_AGAIN_SECONDS", 0.01)
    first = put(own, 1)
    assert own.get(first)["w"].tolist() == [1.0] * 10
    assert own.get(handled[0])["w"].tolist() == [2.0] * 10


def test_what_the_handler_of_a_signal_writes_while_memory_is_filled_goes_elsewhere(own):
    def points(value: float) -> dict[str, dict[str, torch.Tensor]]:
        return {"t": {str(n): torch.full((100,), value) for n in range(3)}}

    def interrupted(write: Any) -> Any:
        def fill(data: Any, offset: int) -> None:
            write(data, offset)
            if not handled:
                handled.append(None)
                own.save_resume("b", {}, points(2)).result()

        return fill

    handled: list[Any] = []
    own.save_resume("a", {}, points(0)).result()  # keeps its memory
    memory = own._writer._kept[0]
    memory.write = interrupted(memory.write)
    own.save_resume("a", {}, points(1)).result()
    for id, value in (("a", 1), ("b", 2)):
        assert all(leaf.tolist() == [value] * 100 for leaf in own.load_resume(id)[1]["t"].values())


def test_memory_that_cannot_be_had_in_advance_is_asked_for_again(own, monkeypatch):
    def refuse() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(_writer, "_scratch", refuse)
        own.warm(1 << 20)
        with pytest.raises(StoreWriteError, match="resume point of checkpoint 'a'"):
            own.save_resume("a", {}, {"params": {"w": torch.ones(3)}})
    own.save_resume("a", {}, {"params": {"w": torch.ones(3)}}).result()


def test_more_open_files_than_select_knows(run, tmp_store_path):
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
assert backend.has(put(1))
"""
    run(PUT + code, tmp_store_path)
