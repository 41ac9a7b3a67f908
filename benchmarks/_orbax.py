"""Run by ``storage``: saves random trees with plain Orbax. Each line of input is ``[path, leaves, floats a leaf]``."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import orbax.checkpoint as ocp

checkpointer = ocp.PyTreeCheckpointer()
random = np.random.default_rng()
for line in sys.stdin:
    path, leaves, size = json.loads(line)
    tree = {f"leaf{i}": random.random(size, dtype=np.float32) for i in range(leaves)}
    began = time.perf_counter()
    checkpointer.save(path, tree)
    print(time.perf_counter() - began, flush=True)
