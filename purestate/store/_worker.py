"""The writer process: writes Orbax folders, makes them durable, and nothing else. The only file that imports Orbax.

It runs as a script (``python …/_worker.py <fd of a socket>``) and imports nothing of purestate, so that neither torch nor
the user's ``__main__`` is loaded in it, and JAX never in the process that trains. `_writer` is the other end.

A request is 24 bytes, three big-endian integers ``(number, offset, length)``, with a file descriptor of shared memory: the
bytes of the arrays, and at that offset the job as JSON::

    {"folders": [{"tmp": path, "final": path, "meta": {…, "leaves": {name: {"key", "dtype", "shape", …}}}, "meta_name": …,
                  "arrays": [[name, key, dtype, shape, offset], …], "headers": {name: what its bytes are hashed behind},
                  "digest": the tree hash that the leaves must have, or null, "replace": bool}, …],
     "sync": [folders whose entries change], "prune": folder of which only the two newest generations stay, or null,
     "step": {"path": folder, "number": number, "arrays": [[subtree, key, dtype, shape, offset], …]} or null}

An answer is a JSON line: ``{"number": that of the request, "seconds": number}``, and if it failed with ``"error": text,
"errno": number | null`` in it, or ``"changed": [digest, what the leaves hash to]``. Jobs are done one after the other. The
process ends when the socket does, or when its parent is another one than at the start.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import mmap
import os
import shutil
import signal
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

_PARENT_CHECK_SECONDS = 1.0
_HASHED_FILE = 1 << 20
_DATA_FILE = 32 << 20
"""About how large a file of Orbax gets. It writes one when it has so many bytes: with its default of 2 GiB, all at the end."""
_HEAD = 128 << 10
_TREE = b"purestate/tree/1\0"
"""Before the digests of leaves: see `tree_hash` of core/_digest.py, which names what is written here."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def main(fd: int) -> None:
    """Serve jobs from the socket until it closes.

    Effects:
        Writes what the jobs say. Ignores SIGINT and SIGTERM, which a process group gets together: the parent decides.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    with socket.socket(fileno=fd) as channel:
        channel.settimeout(_PARENT_CHECK_SECONDS)
        save = _orbax()
        while (request := _receive(channel, parent)) is not None:
            began = time.monotonic()
            number, fd, offset, length = request
            answer = {"number": number, **_answer(fd, offset, length, save), "seconds": time.monotonic() - began}
            channel.settimeout(None)
            channel.sendall(json.dumps(answer).encode("ascii") + b"\n")
            channel.settimeout(_PARENT_CHECK_SECONDS)


def _receive(channel: socket.socket, parent: int) -> tuple[int, int, int, int] | None:
    """Return ``(number, fd, offset, length)`` of the next job, or None at the end."""
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(channel, 24, 1)
        except TimeoutError:
            # A fork of the parent may hold the other end of the socket open, so its closing is not the only sign.
            if os.getppid() != parent:
                return None
            continue
        if len(data) < 24 or not fds:
            return None
        number, offset, length = struct.unpack("!QQQ", data)
        return number, fds[0], offset, length


def _answer(fd: int, offset: int, length: int, save: Any) -> dict[str, Any]:
    failed: dict[str, Any] = {}
    try:
        memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)  # closed with the last array that looks into it
        _do(json.loads(memory[offset : offset + length]), memory, save)
    except _ChangedError as error:
        failed = {"changed": error.args}
    except Exception as error:  # the other side raises it: what went wrong must not end the process
        failed = {"error": f"{type(error).__name__}: {error}"[:4000], "errno": getattr(error, "errno", None)}
    finally:
        os.close(fd)
    if failed:
        gc.collect()  # errors, and the futures that raised them, hold each other and look into the memory
    return failed


class _ChangedError(Exception):
    """Leaves have another hash than they are to be written under. Its arguments are both."""


def _do(job: dict[str, Any], memory: mmap.mmap, save: Any) -> None:
    folders = job["folders"]
    try:
        for folder in folders:
            os.makedirs(folder["tmp"])
        _write(folders, memory, save)
        for folder in folders:
            _sync_tree(folder["tmp"])
        for folder in folders:
            _publish(folder["tmp"], folder["final"], folder["replace"])
        if job["step"]:
            _write_step(job["step"], memory)
        for path in job["sync"]:
            _sync(path)
        if job["prune"]:
            _prune(job["prune"])
    finally:
        for folder in folders:
            if os.path.islink(folder["tmp"]):  # what was replaced
                os.unlink(folder["tmp"])
            shutil.rmtree(folder["tmp"], ignore_errors=True)


def _write(folders: list[dict[str, Any]], memory: mmap.mmap, save: Any) -> None:
    trees: list[tuple[str, dict[str, Any]]] = []
    for folder in folders:
        tree: dict[str, Any] = {}
        for _, key, dtype, shape, offset in folder["arrays"]:
            tree[key] = _array(memory, dtype, shape, offset)
        if tree:
            trees.append((folder["tmp"], tree))
    with ThreadPoolExecutor(1) as pool:  # most of the time of both goes by without the interpreter's lock
        hashing = pool.submit(_note_hashes, folders, memory)
        save(trees)
        hashing.result()
    for folder in folders:
        if folder["digest"] is not None:
            folder["meta"]["files"] = _files(folder["tmp"])
        with open(os.path.join(folder["tmp"], folder["meta_name"]), "x", encoding="ascii") as file:
            file.write(_meta(folder["meta"]))


def _note_hashes(folders: list[dict[str, Any]], memory: mmap.mmap) -> None:
    from blake3 import blake3

    for folder in folders:
        leaves = folder["meta"]["leaves"]
        for name, _, dtype, shape, offset in folder["arrays"]:
            header = folder["headers"][name].encode("ascii")
            leaves[name]["hash"] = _hash(header, memory, offset, _array(memory, dtype, shape, offset).nbytes)
        if folder["digest"] is not None:
            hashes = json.dumps({name: leaf["hash"] for name, leaf in leaves.items()}, sort_keys=True, separators=(",", ":"))
            actual = blake3(_TREE + hashes.encode("ascii")).hexdigest()
            if actual != folder["digest"]:
                raise _ChangedError(folder["digest"], actual)


def _write_step(step: dict[str, Any], memory: mmap.mmap) -> None:
    import orbax.checkpoint as ocp

    tree: dict[str, dict[str, Any]] = {}
    for subtree, key, dtype, shape, offset in step["arrays"]:
        tree.setdefault(subtree, {})[key] = _array(memory, dtype, shape, offset)
    with ocp.CheckpointManager(step["path"], options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False)) as manager:
        manager.save(step["number"], args=ocp.args.PyTreeSave(tree))
    _sync_tree(os.path.join(step["path"], str(step["number"])))


def _array(memory: mmap.mmap, dtype: str, shape: list[int], offset: int) -> Any:
    import ml_dtypes
    import numpy as np

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    return np.frombuffer(memory, kind, math.prod(shape), offset).reshape(shape)


def _files(folder: str) -> dict[str, dict[str, Any]]:
    """Note size, and of small ones the hash, of Orbax's files: they hold what no leaf's hash covers."""
    from blake3 import blake3

    found: dict[str, dict[str, Any]] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            noted = found[os.path.relpath(path, folder)] = {"size": os.path.getsize(path)}
            if noted["size"] <= _HASHED_FILE:
                with open(path, "rb") as file:
                    noted["hash"] = blake3(file.read()).hexdigest()
    return dict(sorted(found.items()))


def _hash(header: bytes, memory: mmap.mmap, offset: int, length: int) -> str:
    from blake3 import blake3

    copied = min(length, _HEAD)  # a hash that begins with a few bytes goes on slowly
    head = header + memory[offset : offset + copied]
    with memoryview(memory) as view, view[offset + copied : offset + length] as rest:
        return blake3(head).update(rest).hexdigest()


def _meta(meta: dict[str, Any]) -> str:
    from blake3 import blake3

    text = json.dumps(meta, separators=(",", ":"))
    return f'{{"digest":"{blake3(text[1:].encode("ascii")).hexdigest()}",{text[1:]}\n'


def _orbax() -> Any:
    """Return ``save([(folder, tree), …])``, which returns when Orbax has written them all."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import logging

    logging.disable(logging.WARNING)
    import numpy as np
    import orbax.checkpoint as ocp
    from etils import epath

    # Compression halves the speed and gains little on trained weights. The handler is used without a Checkpointer around
    # it: atomic naming is done here, and synchronising hosts that are not there costs a quarter of a small item's time.
    # The arrays are copies already, which nobody changes before the answer.
    arrays = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, arrays))
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    pool = ThreadPoolExecutor(2)

    async def start(trees: list[tuple[Any, dict[str, Any]]]) -> list[Any]:
        orders = ((path, ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=_data_file(tree))) for path, tree in trees)
        saves = (handler.async_save(path, args=args) for path, args in orders)
        return await asyncio.gather(*saves, return_exceptions=True)

    def save(trees: list[tuple[str, dict[str, Any]]]) -> None:
        paths = [(epath.Path(folder), tree) for folder, tree in trees]
        started = asyncio.run(start(paths))
        with ExitStack() as waiting:  # for all, whichever fails: what is still written would come back after it was removed
            for futures in started:
                for future in () if isinstance(futures, BaseException) else futures or ():
                    waiting.callback(future.result)
            for error in started:
                if isinstance(error, BaseException):
                    raise error
        list(pool.map(handler.finalize, [path for path, _ in paths]))

    return save


def _data_file(tree: dict[str, Any]) -> int:
    """Return how large files may get: of an array that is larger, Orbax would make several pieces, and the format has one."""
    return max(_DATA_FILE, *(array.nbytes for array in tree.values()))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_tree(folder: str) -> None:
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(os.path.join(parent, name))
        _sync(parent)


def _publish(tmp: str, final: str, replace: bool) -> None:
    try:
        os.rename(tmp, final)
    except OSError:
        if not os.path.lexists(final):
            raise
        # Another process wrote the same content first; or what is there is damaged, which only who sent the job can say.
        if replace:
            _exchange(tmp, final)


def _exchange(a: str, b: str) -> None:
    """Let two folders change names in one step: at no time is there none of that name."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), a, None, b)


def _prune(folder: str) -> None:
    for name in sorted(name for name in os.listdir(folder) if name.isdecimal())[:-2]:
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    # Nothing is left to flush, and the teardown of JAX's threads takes longer than writing a small item.
    os._exit(0)
