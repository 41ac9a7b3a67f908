"""Both ends of the pipe between `_bisect` and a process that it started: orders go down, events come up, a line of JSON each."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from purestate.errors import PureStateError, ScriptError
from purestate.run._mode import VARIABLE
from purestate.run._script import Target, command

__all__ = ["Pipe", "Process", "ReplayFailedError"]

_TAIL = 4000
"""Characters of what a script printed that are kept."""


class ReplayFailedError(Exception):
    """A script did not come to the train that is wanted, or could not go through it: the text says which, and why."""


class Process:
    """A script that is computed again, as it is told: to be left as a context, which ends it.

    Args:
        target: The script.
        orders: What `purestate.run._lockstep.main` is told of the run.
        folder: For its files. Made.
        timeout: Seconds that it may be silent.
    """

    def __init__(self, target: Target, orders: Mapping[str, Any], folder: Path, timeout: float | None) -> None:
        self._name, self._timeout = target.name, timeout
        folder.mkdir()
        self._printed = folder / "output"
        (theirs, self._write), (self._read, ours) = os.pipe(), os.pipe()
        line = command("_lockstep", target, {**orders, "read": theirs, "write": ours}, folder / "orders.json")
        with self._printed.open("wb") as output:
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs, ours),
                env={**os.environ, VARIABLE: "offline"},  # what the script starts writes nothing either
                start_new_session=True,
            )
        os.close(theirs)
        os.close(ours)
        self._poller = select.poll()  # `select` takes no descriptor above 1023
        self._poller.register(self._read, select.POLLIN)
        self._lines = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._write)
        os.close(self._read)
        with contextlib.suppress(ProcessLookupError):  # also what it started, such as loader workers
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def say(self, **order: Any) -> None:
        """Tell it what to do."""
        with contextlib.suppress(BrokenPipeError):  # that it ended is told by what it says last
            os.write(self._write, (json.dumps(order) + "\n").encode())

    def asked(self, **order: Any) -> dict[str, Any]:
        """Tell it what to do, and return what it says."""
        self.say(**order)
        return self.next()

    def expect(self, name: str) -> dict[str, Any]:
        """Return the next event of a kind."""
        while name not in (event := self.next()):
            pass
        return event

    def next(self) -> dict[str, Any]:
        """Return what it says next.

        Raises:
            ReplayFailedError: It ended.
            ScriptError: It says nothing for longer than the timeout.
        """
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while b"\n" not in self._lines:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._poller.poll(None if left is None else left * 1000):
                raise ScriptError(
                    f"bisect: {self._name} said nothing for {self._timeout:g} s.",
                    cause=f"The end of what it printed:\n{self._output()}",
                    script=self._name,
                )
            piece = os.read(self._read, 1 << 16)
            if not piece:
                raise ReplayFailedError(f"{self._name} ended without a word\n{self._output()}".strip())
            self._lines += piece
        line, _, self._lines = self._lines.partition(b"\n")
        event = json.loads(line)
        if "failed" in event:
            more = f"\n{self._output()}" if event["failed"] == "script" else ""
            raise ReplayFailedError(f"{self._name}: {event['text']}{more}")
        return event

    def _output(self) -> str:
        return self._printed.read_text(errors="replace")[-_TAIL:].strip()


class Pipe:
    """The way to the process that asks, and back: a line of JSON each."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read), os.fdopen(write, "w")

    def tell(self, **event: Any) -> None:
        """Say something."""
        self._write.write(json.dumps(event) + "\n")
        self._write.flush()

    def ask(self, **event: Any) -> dict[str, Any]:
        """Say something, and wait for what is to be done. Ends the process if nobody is there any more."""
        self.tell(**event)
        line = self._read.readline()
        if not line:
            os._exit(1)
        return json.loads(line)

    def leave(self, **event: Any) -> NoReturn:
        """Say the last thing, and end this process: nothing that the script would do afterwards is wanted."""
        self.tell(**event)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def fail(self, error: Exception) -> NoReturn:
        """Say what was raised, and end this process."""
        known = isinstance(error, PureStateError)
        if not known:
            traceback.print_exc()
        self.leave(failed=type(error).__name__ if known else "script", text=f"{type(error).__name__}: {error}")
