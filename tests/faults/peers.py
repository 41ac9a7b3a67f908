"""What others make of the same: run as a script, since JAX stays out of the processes of the tests.

``save FOLDER CONTROL``: two steps by Orbax's ``CheckpointManager``, the second of them watched by the shim.
``look FOLDER``: what it restores from each store in a folder. ``flip FOLDER NUMBER``: damage, and how many are noticed.
Each prints one line of JSON.
"""

from __future__ import annotations

import collections
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import shim

__all__ = ["tree"]


def tree(n: int) -> dict[str, np.ndarray]:
    """Return what is saved as step ``n``."""
    return {f"leaf{i}": np.arange(2048, dtype=np.float32).reshape(32, 64) * (n + 1) + i for i in range(8)}


def same(found: Any, expected: dict[str, np.ndarray]) -> bool:
    return all(
        np.asarray(found[name]).dtype == leaf.dtype and np.asarray(found[name]).tobytes() == leaf.tobytes()
        for name, leaf in expected.items()
    )


def save(folder: Path, control: Path) -> Any:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder / "store", options=options) as manager:
        for step in range(2):
            if step:
                shim.arm(control, "main")
            manager.save(step, args=ocp.args.StandardSave(tree(step)))
            manager.wait_until_finished()
            shim.mark("acknowledged")
    return {}


def look(folder: Path) -> Any:
    """Return for each store in ``folder``: ``new``, ``old``, ``wrong``, ``nothing`` or the name of an error."""
    import orbax.checkpoint as ocp

    def one(root: Path) -> str:
        try:
            with ocp.CheckpointManager(root / "store") as manager:
                step = manager.latest_step()
                if step is None:
                    return "nothing"
                found = manager.restore(step, args=ocp.args.StandardRestore(tree(step)))
        except Exception as error:
            return type(error).__name__
        return ("old", "new")[step] if same(found, tree(step)) else "wrong"

    return {root.name: one(root) for root in sorted(folder.iterdir())}


def flip(folder: Path, number: int) -> Any:
    """Return for each kind of file how much damage is told, harmless and silent."""
    import orbax.checkpoint as ocp
    import torch

    expected = tree(0)
    tensors = {name: torch.from_numpy(leaf) for name, leaf in expected.items()}
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(folder / "orbax", expected)
    checkpointer.wait_until_finished()
    torch.save(tensors, folder / "torch.pt")
    readers: dict[str, Callable[[], Any]] = {
        "orbax": lambda: checkpointer.restore(folder / "orbax", expected),
        "torch.pt": lambda: torch.load(folder / "torch.pt"),
    }
    try:
        from safetensors import torch as safetensors
    except ImportError:
        pass
    else:
        safetensors.save_file(tensors, folder / "safetensors")
        readers["safetensors"] = lambda: safetensors.load_file(folder / "safetensors")
    return {name: _flips(folder / name, read, expected, number) for name, read in readers.items()}


def _flips(place: Path, read: Callable[[], Any], expected: dict[str, np.ndarray], number: int) -> dict[str, int]:
    generator = random.Random(0)
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    files = [path for path in files if path.stat().st_size]
    sizes = [path.stat().st_size for path in files]
    seen: collections.Counter[str] = collections.Counter()
    for i in range(number):  # every file as often as it is large, and each at least now and then
        path = files[i % len(files)] if i % 2 else generator.choices(files, sizes)[0]
        data = path.read_bytes()
        at = generator.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :])
        try:
            seen["harmless" if same(read(), expected) else "silent"] += 1
        except Exception:
            seen["told"] += 1
        path.write_bytes(data)
    return dict(seen)


if __name__ == "__main__":
    what, folder, *more = sys.argv[1:]
    acts: dict[str, Callable[[], Any]] = {
        "save": lambda: save(Path(folder), Path(more[0])),
        "look": lambda: look(Path(folder)),
        "flip": lambda: flip(Path(folder), int(more[0])),
    }
    print(json.dumps(acts[what]()))
