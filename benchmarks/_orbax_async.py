"""How long Orbax holds the caller when it saves in the background. A process of its own: it imports JAX."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from benchmarks._measure import serve

if __name__ == "__main__":
    size = int(sys.argv[1]) // 4
    tree = {f"leaf{i}": np.ones(size // 15, np.float32) for i in range(15)}
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder, ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:

        def case() -> float:
            began = time.perf_counter()
            checkpointer.save(Path(folder) / str(next(numbers)), args=ocp.args.PyTreeSave(tree))
            seconds = time.perf_counter() - began
            checkpointer.wait_until_finished()
            return seconds

        serve(case)
