"""Processes in which everything is imported already, and which fork one for each disturbance.

A training process takes seconds to import torch, a writer process to import Orbax; what follows is the same code in the same
kind of process. ``Server`` is the side of the tests. It starts two interpreters with the shim loaded: one forks the
processes that train, the other their writer processes, in place of ``python _worker.py``. Both have one thread when they
fork. With ``real=True`` a process starts its writer as everybody's does.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import shim
from tests.faults.shim import Control, Fault, Hit

__all__ = ["Child", "Outcome", "Server"]

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds after which something hangs. Everything here takes less than one on an idle machine, and many on a busy one."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a process.

    Args:
        status: Its exit code, or minus the signal.
        said: What it acknowledged, oldest first.
        again: What it acknowledged the second time, after an error.
        errors: The errors that reached its caller: class names from the error's own to its bases, and the text.
        main: What the shim saw in it.
        writer: What the shim saw in its writer processes.
        output: The end of what it and its writers printed.
    """

    status: int
    said: list[dict[str, Any]]
    again: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    main: Hit
    writer: Hit
    output: str


class Child:
    """A process that the server forked."""

    def __init__(self, server: Server, pid: int, out: Path, control: Control) -> None:
        self._server, self.pid, self.out, self._control = server, pid, out, control

    def lines(self) -> list[dict[str, Any]]:
        """Return what it wrote down so far."""
        return [json.loads(line) for line in self.out.read_bytes().split(b"\n")[:-1]]

    def wait(self, timeout: float = PATIENCE) -> Outcome:
        """Wait until it and its writers are gone."""
        status = self._server.wait(self.pid, timeout)
        lines = self.lines()
        assert status != 97, f"what was lifted still fails:\n{self.out.with_suffix('.err').read_text()}"
        for pid in (line["writer"] for line in lines if "writer" in line):
            until(lambda pid=pid: not alive(pid), f"the writer process {pid} outlives its parent", timeout)

        def of(kind: str) -> list[Any]:
            return [line[kind] for line in lines if kind in line]

        seen = self._control.seen("main"), self._control.seen("writer")
        text = self.out.with_suffix(".err").read_text(errors="replace")[-4000:]
        return Outcome(status, of("said"), of("again"), of("error"), *seen, text)


class Server:
    """Starts processes. One for a whole test run.

    Args:
        library: The shim.
        folder: For its sockets, control blocks and outputs.
    """

    def __init__(self, library: Path, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._channel, theirs = socket.socketpair()
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        writers = str(folder / "writers")
        arguments = (["main", str(theirs.fileno()), writers], ["writers", writers])
        with theirs:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-m", "tests.faults.server", *more],
                    env=environment,
                    cwd=ROOT,
                    pass_fds=(theirs.fileno(),) if more[0] == "main" else (),
                    stdin=subprocess.PIPE,  # whose end tells it that nobody is left to fork for
                )
                for more in arguments
            ]
        self._answers = self._channel.makefile("r")
        self._ask({"do": "hello"})
        until(lambda: os.path.exists(writers), "no process for writers", PATIENCE)

    def start(
        self,
        scenario: str,
        store: Path,
        fault: Fault | None = None,
        *,
        log: Path | None = None,
        real: bool = False,
        **options: Any,
    ) -> Child:
        """Start a scenario (a function of `scenarios`) in a process of its own.

        Args:
            scenario: Its name.
            store: The folder whose system calls count; the scenario's store lies in it as ``store``.
            fault: What happens to it.
            log: Where its calls are written down.
            real: Start the writer process as a script.
            options: Arguments of the scenario.
        """
        self._count += 1
        out = self._folder / f"{self._count}.out"
        out.touch()
        control = Control(out.with_suffix(".control"), store, fault or Fault(), log)
        order = {"scenario": scenario, "store": str(store / "store"), "options": options, "out": str(out)}
        answer = self._ask({"do": "start", "control": str(control.path), "real": real, **order})
        return Child(self, answer["pid"], out, control)

    def run(self, scenario: str, store: Path, fault: Fault | None = None, **options: Any) -> Outcome:
        """Start a scenario and wait for its end."""
        return self.start(scenario, store, fault, **options).wait()

    def wait(self, pid: int, timeout: float = PATIENCE) -> int:
        """Return the exit code of a child, or minus the signal that ended it."""
        found: list[int] = []

        def ended() -> bool:
            status = self._ask({"do": "poll", "pid": pid})["status"]
            found.extend([status] if status is not None else [])
            return bool(found)

        try:
            until(ended, f"process {pid} hangs", timeout)
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            raise
        return found[0]

    def left(self) -> list[int]:
        """Return the processes of the server's that still run, besides itself."""
        mine = {process.pid for process in self._processes}
        return sorted(pid for parent in mine for pid in _children(parent))

    def close(self) -> None:
        """End it."""
        self._channel.shutdown(socket.SHUT_RDWR)
        self._answers.close()
        self._channel.close()
        for process in self._processes:
            process.kill()
            process.communicate()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self._channel.sendall(json.dumps(order).encode() + b"\n")
        line = self._answers.readline()
        assert line, "the server is gone"
        return json.loads(line)


def until(condition: Callable[[], bool], complaint: str, timeout: float) -> None:
    """Wait until something is so."""
    deadline, wait = time.monotonic() + timeout, 0.001
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(wait)
        wait = min(2 * wait, 0.02)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children(parent: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except FileNotFoundError:
        return []


# ---- in the process that forks those that train ----


def _serve_main(channel: socket.socket, writers: str) -> None:
    import tensorstore  # noqa: F401
    import torch
    import torch._dynamo

    import purestate.run._compute  # noqa: F401
    from tests.faults import scenarios  # noqa: F401

    torch.set_num_threads(1)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    with channel.makefile("r") as orders:
        for line in orders:
            order = json.loads(line)
            answer: dict[str, Any] = {}
            if order["do"] == "start":
                answer["pid"] = os.fork()
                if answer["pid"] == 0:
                    _be_child(channel, order, writers)
            elif order["do"] == "poll":
                pid, status = os.waitpid(order["pid"], os.WNOHANG)
                answer["status"] = os.waitstatus_to_exitcode(status) if pid else None
            channel.sendall(json.dumps(answer).encode() + b"\n")


def _be_child(channel: socket.socket, order: dict[str, Any], writers: str) -> None:
    """Run one scenario and end."""
    try:
        os.close(channel.fileno())
        out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        err = os.open(Path(order["out"]).with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(err, 1)
        os.dup2(err, 2)

        def tell(kind: str, what: Any) -> None:
            line = json.dumps({kind: what})
            shim.mark(line)
            os.write(out, line.encode() + b"\n")

        if order["real"]:
            os.environ["FAULTS_CONTROL"] = order["control"]
        else:
            _fork_writers(writers, order["control"], tell)
        shim.arm(Path(order["control"]), "main")
        _play(order, tell)
        os._exit(0)
    finally:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(97)


def _play(order: dict[str, Any], tell: Callable[[str, Any], None]) -> None:
    """Run a scenario; if an error comes out of it, lift the fault and run it again in the same process."""
    from purestate.store._writer import shared_writer
    from tests.faults import scenarios

    scenario = getattr(scenarios, order["scenario"])
    try:
        scenario(order["store"], lambda what: tell("said", what), **order["options"])
    except Exception as error:
        tell("error", {"classes": [cls.__qualname__ for cls in type(error).__mro__], "text": str(error), "where": _frames(error)})
        shim.lift(Path(order["control"]))
        scenario(order["store"], lambda what: tell("again", what), **order["options"])
    shared_writer().close()
    tell("end", True)


def _frames(error: BaseException) -> list[str]:
    import traceback

    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


def _fork_writers(writers: str, control: str, tell: Callable[[str, Any], None]) -> None:
    """Let the writer processes of this process be forked from where Orbax is imported."""
    import tempfile

    from purestate.store import _writer

    class Forked:
        """What `subprocess.Popen` is for a writer process."""

        def __init__(self, channel: int, errors: int) -> None:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(writers)
                socket.send_fds(asked, [control.encode()], [channel, errors])
                self.pid = int(asked.recv(32))
            self._fd = os.pidfd_open(self.pid)
            self.returncode: int | None = None
            tell("writer", self.pid)

        def poll(self) -> int | None:
            return 0 if select.select([self._fd], [], [], 0)[0] else None

        def kill(self) -> None:
            if self.poll() is None:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

        def wait(self) -> None:
            select.select([self._fd], [], [])
            os.close(self._fd)

    class Process(_writer._Process):
        def __init__(self) -> None:
            self.errors = tempfile.TemporaryFile()
            self.channel, theirs = socket.socketpair()
            with theirs:
                self.popen: Any = Forked(theirs.fileno(), self.errors.fileno())
            self.waiting = []
            self.numbers = itertools.count()
            self.received = []

    _writer._Process = Process


# ---- in the process that forks writer processes ----


def _serve_writers(path: str) -> None:
    sys.path.insert(0, str(ROOT / "purestate" / "store"))
    import _worker
    import orbax.checkpoint  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        while door in select.select([door, sys.stdin], [], [])[0]:
            asked, _ = door.accept()
            with asked:
                control, (channel, errors), _, _ = socket.recv_fds(asked, 4096, 2)
                pid = os.fork()
                if pid:
                    asked.send(str(pid).encode())
                    os.close(channel)
                    os.close(errors)
                    continue
            door.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.dup2(errors, 1)
            os.dup2(errors, 2)
            shim.arm(Path(os.fsdecode(control)), "writer")
            try:
                _worker.main(channel)
            finally:
                os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "main":
        _serve_main(socket.socket(fileno=int(sys.argv[2])), sys.argv[3])
    else:
        _serve_writers(sys.argv[2])
