"""The other end of ``shim.c``: builds it, says what it shall do, and reads what it wrote down."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ACTIONS", "ROLES", "Call", "Control", "Fault", "Hit", "arm", "build", "mark", "read_log"]

SOURCE = Path(__file__).with_name("shim.c")
ROLES = {"main": 0, "writer": 1}
ACTIONS = {"none": 0, "kill": 1, "fail": 2, "full": 3, "tear": 4}
"""``fail``: that call only. ``full``: a write is cut in half, and what takes space fails from then on. ``tear``: killed in the
middle of a write."""
CHANGES, OPENS, READS, LOCKS, MEMORY = 1, 2, 4, 8, 16
EVERYTHING = CHANGES | OPENS | READS | LOCKS | MEMORY

_ROLE = struct.Struct("=qqiiii16s240s")
_SIZE = 2 * _ROLE.size + 2 * 4096
_NEVER = 1 << 60


def build(folder: Path) -> Path:
    """Compile the shim and return the library.

    Raises:
        FileNotFoundError: There is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    library = folder / "faults.so"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-lpthread"]
    subprocess.run(command, check=True)
    return library


@dataclasses.dataclass(frozen=True)
class Fault:
    """One disturbance: in process ``role``, at its call ``at`` (from 1) of the kinds in ``mask``."""

    role: str = "main"
    action: str = "none"
    at: int = _NEVER
    error: int = errno.ENOSPC
    mask: int = CHANGES

    def __str__(self) -> str:
        error = f" {errno.errorcode[self.error]}" if self.action in ("fail", "full") else ""
        kinds = f" --mask {self.mask}" if self.mask != CHANGES else ""
        return f"{self.role} {self.action} {self.at}{error}{kinds}"


@dataclasses.dataclass(frozen=True)
class Hit:
    """What a role did: how many calls, how often one was disturbed, and the first of those."""

    calls: int
    hits: int
    call: str
    path: str


class Control:
    """The block of shared memory that says what happens to the calls below ``root``.

    Args:
        path: The file behind it.
        root: The folder whose calls count.
        fault: What happens.
        log: Where every call is written down.
    """

    def __init__(self, path: Path, root: Path, fault: Fault, log: Path | None = None) -> None:
        self.path = path
        roles = b""
        for name in ROLES:
            own = fault if fault.role == name else Fault(name, mask=fault.mask)
            roles += _ROLE.pack(0, own.at, ACTIONS[own.action], own.error, own.mask, 0, b"", b"")
        texts = [os.fsencode(root.resolve()), os.fsencode(log) if log else b""]
        path.write_bytes(roles + b"".join(text.ljust(4096, b"\0") for text in texts))

    def seen(self, role: str) -> Hit:
        """Return what a role did so far."""
        count, _, _, _, _, hits, call, place = _ROLE.unpack_from(self.path.read_bytes(), ROLES[role] * _ROLE.size)
        return Hit(count, hits, *(os.fsdecode(text.partition(b"\0")[0]) for text in (call, place)))


def lift(path: Path) -> None:
    """Let every call pass from now on, in all processes: there is space again."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), _SIZE) as memory:
        for i in range(len(ROLES)):
            memory[i * _ROLE.size + 16 : i * _ROLE.size + 20] = struct.pack("=i", ACTIONS["none"])


def arm(path: Path, role: str) -> None:
    """Put the calling process, in which the shim is loaded, under the control of a block."""
    if ctypes.CDLL(None).faults_arm(os.fsencode(path), ROLES[role]):
        raise OSError(f"cannot use {path}")


def mark(text: str) -> None:
    """Write a line of our own into the log, between the calls."""
    ctypes.CDLL(None).faults_mark(text.encode())


@dataclasses.dataclass(frozen=True)
class Call:
    """A system call that changes something, as the shim wrote it down."""

    name: str
    """``mark`` for a line of our own; ``path`` is its text."""
    role: int
    offset: int
    """Where was written; the new size for ``ftruncate`` and ``truncate``."""
    worked: bool
    flags: int
    path: str
    to: str
    data: bytes


def read_log(path: Path) -> Iterator[Call]:
    """Yield what the shim wrote down, in the order in which it happened."""
    data = path.read_bytes()
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        name, role, offset, ret, flags, length, place, to = data[at:end].split(b"\t")
        at = end + 1 + int(length)
        numbers = int(role), int(offset), int(ret) >= 0, int(flags)
        yield Call(name.decode(), *numbers, os.fsdecode(place), os.fsdecode(to), data[end + 1 : at])
