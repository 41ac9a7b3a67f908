"""Signals that wait until a step is done: SIGINT and SIGTERM, while a `train` computes in the main thread."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Deferred"]

_DEFERRED = (signal.SIGINT, signal.SIGTERM)


class Deferred:
    """Notes the first SIGINT or SIGTERM in place of what would happen; a second one happens at once.

    Handlers are installed while it is entered, in the main thread only, and those that were there are put back. A signal that
    is ignored stays ignored. What was noted happens when it is left, also by an error, or earlier where `deliver` is called.

    Attributes:
        pending: The signal that was noted, or None.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        self._install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._put_back()
        self._raise()

    @property
    def ends(self) -> bool:
        """Whether what was noted ends the process, without anybody being asked."""
        return self._before.get(self.pending or 0) is signal.SIG_DFL

    def deliver(self) -> None:
        """Let happen what was noted; where that returns, go on as before."""
        self._put_back()
        self._raise()
        self._install()

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _DEFERRED:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None is a handler that was not installed from Python
                self._before[number] = handler
                signal.signal(number, self._note)

    def _put_back(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _raise(self) -> None:
        number, self.pending = self.pending, None
        if number is not None:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()  # the default of SIGTERM ends the process without
            signal.raise_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending is None:
            self.pending = number
            return
        first, self.pending = self.pending, None
        self._put_back()
        for each in (number, first):  # where a handler returns, the other signal is not lost
            signal.raise_signal(each)
