"""A user's script, or a function, run in new processes, and what its logs hold then. For `_verify`, which compares them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from purestate.errors import ScriptError
from purestate.run._ledger import Ledger
from purestate.run._maintain import items_of
from purestate.run._mode import VARIABLE
from purestate.run._script import Target, command
from purestate.store._disk import DiskBackend

__all__ = ["Answers", "Asked", "First", "Run", "Runs"]

Asked = tuple[Any, ...]
"""What an answer is to: store, checkpoint, train; then which epoch, or what else."""
Answers = dict[Asked, Any]


@dataclass(frozen=True)
class Run:
    """A process that ended.

    Args:
        stores: The folder of its stores.
        code: How it ended; negative for a signal.
        events: What `_cut` noted.
        output: The end of what it printed.
    """

    stores: Path
    code: int
    events: list[dict[str, Any]]
    output: str

    @property
    def cut(self) -> bool:
        """Whether it was cut where it was ordered to be."""
        return self.code == -signal.SIGKILL and any("cut" in event for event in self.events)

    @property
    def error(self) -> str:
        """Why it failed: in a line, and below with its traceback; nothing if it did not."""
        if self.code == 0:
            return ""
        texts = [event["error"] for event in self.events if "error" in event]
        first = texts[-1].splitlines()[0] if texts else f"ended with the status {self.code}"
        _, traceback, lines = self.output.rpartition("Traceback (most recent call last):")
        return f"{first}\n{traceback}{lines}".strip()

    @property
    def trace(self) -> dict[str, tuple[str, str | None]]:
        """The hash of the state after each batch, and the digest of the batch."""
        return {str(event["batch"]): (event["hash"], event["data"]) for event in self.events if "batch" in event}

    def answers(self) -> Answers:
        """Return what the logs hold."""
        found: Answers = {}
        for folder in sorted(self.stores.iterdir()):
            backend = DiskBackend(folder)
            for id in backend.ids():
                found |= _answers(folder.name, Ledger(backend, id, must_exist=True))
        return found


def _answers(store: str, ledger: Ledger) -> Answers:
    chain = ledger.chain
    found: Answers = {}
    for op, train in enumerate(chain.trains):
        place = (store, ledger.id, op)
        found[(*place, "question")] = train.question
        found |= {(*place, "epoch", n): record.body for n, record in sorted(train.epochs.items())}
        for i, record in enumerate(train.done):
            selected = {name: record.body[name] for name in ("selection", "last", "best", "returned")}
            found[(*place, "answer", i)] = selected | {"hash": record.body["out"]["hash"]}
    for reader in sorted(chain.readers.values(), key=lambda record: record.seq):
        question = reader.body["question"]
        found[(store, ledger.id, reader.kind, question["digest"])] = {
            "answer": reader.body["answer"],
            "item": reader.body["item"],
        }
    return found


@dataclass(frozen=True)
class First:
    """The undisturbed run.

    Args:
        answers: What it recorded.
        epochs: How many steps each epoch has, by store, checkpoint, train and epoch, in the order in which they ran.
    """

    answers: Answers
    epochs: dict[Asked, int]

    @cached_property
    def steps(self) -> int:
        """How many steps there are to be cut behind."""
        return sum(self.epochs.values())

    def place(self, step: int) -> list[Any]:
        """Return store, checkpoint, train, epoch and batch of a step of the script, from 0."""
        for epoch, size in self.epochs.items():
            if step < size:
                return [*epoch, step + 1]
            step -= size
        raise IndexError(step)

    def step(self, epoch: Sequence[Any], batch: int) -> int:
        """Return the number of a batch of an epoch within its train."""
        return batch + sum(size for other, size in self.epochs.items() if other[:3] == tuple(epoch[:3]) and other[3] < epoch[3])

    def epoch(self, place: Sequence[Any]) -> dict[str, Any]:
        """Return what was recorded of an epoch."""
        return self.answers[(*place[:3], "epoch", place[3])]

    @cached_property
    def _trains(self) -> dict[Asked, int]:
        return {train: i for i, train in enumerate(dict.fromkeys(epoch[:3] for epoch in self.epochs))}

    def order(self, asked: Asked) -> int:
        """Return where an answer comes in the order in which the trains ran; those of readers are the last."""
        return self._trains.get(asked[:3], len(self._trains))


class Runs:
    """Starts processes, one after the other, in a folder of their own each."""

    def __init__(self, what: Target, folder: Path, timeout: float | None) -> None:
        self._what, self._folder, self._timeout = what, folder, timeout
        self._begun = folder / "begun"
        self._begun.mkdir()
        self._count = 0

    def undisturbed(self) -> First:
        """Run the script as it is.

        Raises:
            ScriptError: It fails, or trains nothing.
        """
        run = self.run()
        if run.code != 0:
            raise ScriptError(
                f"verify_resume: {self._what.name} fails without being disturbed: {run.error.splitlines()[0]}",
                cause=f"It ran with an empty store. The end of what it printed:\n{run.output}",
                script=self._what.name,
                output=run.output,
            )
        epochs = {tuple(event["place"]): event["steps"] for event in run.events if "place" in event}
        if not epochs:
            raise ScriptError(
                f"verify_resume: {self._what.name} trains nothing in a ps.Store.",
                cause="Only what is on disk can go on after a kill; MemoryStore and NullStore end with the process.",
                fix="Let it train through ps.Store(path).checkpoint(id).train(...).",
                script=self._what.name,
                output=run.output,
            )
        answers = run.answers()
        _keep_roots(run.stores, self._begun)
        shutil.rmtree(run.stores)
        return First(answers, epochs)

    def run(self, stores: Path | None = None, **orders: Any) -> Run:
        """Run the target in a new process.

        Args:
            stores: The folder of its stores; by default one with the roots of the undisturbed run, and nothing else.
            **orders: See `purestate.run._cut.main`.

        Raises:
            ScriptError: It took longer than the timeout.
        """
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        if stores is None:
            stores = Path(shutil.copytree(self._begun, folder / "stores"))
        events, told, printed = folder / "events", folder / "orders.json", folder / "output"
        events.touch()
        orders |= {"stores": os.fspath(stores), "events": os.fspath(events)}
        code = self._wait(command("_cut", self._what, orders, told), printed)
        output = printed.read_text(errors="replace")
        return Run(stores, code, [json.loads(line) for line in events.read_text().splitlines()], output[-_TAIL:])

    def copy(self, stores: Path) -> Path:
        """Return a copy of stores."""
        self._count += 1
        return Path(shutil.copytree(stores, self._folder / str(self._count) / "stores"))

    def _wait(self, command: list[str], printed: Path) -> int:
        environment = {**os.environ, "PYTHONHASHSEED": str(self._count), VARIABLE: "record"}
        with printed.open("wb") as output:  # no pipe: a worker that outlives the script would keep it open
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            try:
                return process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                raise ScriptError(
                    f"verify_resume: {self._what.name} did not end within {self._timeout:g} s.",
                    cause=f"The end of what it printed:\n{printed.read_text(errors='replace')[-_TAIL:]}",
                    fix="Give it longer (timeout=None waits for ever), or less to do.",
                    script=self._what.name,
                ) from None
            finally:
                with contextlib.suppress(ProcessLookupError):  # also what it started, such as loader workers
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _keep_roots(stores: Path, to: Path) -> None:
    """Make stores that hold what the logs of others begin with, up to initial states that were recorded.

    A script that seeds nothing draws other weights each time it runs from nothing, and is to be killed as one that began
    with these.
    """
    for folder in sorted(stores.iterdir()):
        source, target = DiskBackend(folder), DiskBackend(to / folder.name)
        for id in source.ids():
            records = source.log(id).records
            last = max((record.seq for record in records if record.kind == "root"), default=-1)
            begun = [record for record in records if record.seq <= last]
            for digest in {digest for record in begun for digest in items_of(record)}:
                shutil.copytree(source.item_path(digest), target.item_path(digest), dirs_exist_ok=True)
            if begun:
                log = target.log(id)
                with log.lock():
                    log.append_all([(record.kind, record.body) for record in begun])


_TAIL = 4000
"""Characters of what a script printed that are kept."""
