"""Run by ``storage``: restores one tree in a fresh process. The clock starts after ``import torch``, which all of them have."""

from __future__ import annotations

import json
import sys
import time

import torch

kind, path, *rest = sys.argv[1:]
began = time.perf_counter()
if kind == "purestate":
    from purestate.store._disk import DiskBackend

    tree = DiskBackend(path).get(rest[0])
elif kind == "orbax":
    import orbax.checkpoint as ocp

    tree = {name: torch.as_tensor(leaf) for name, leaf in ocp.PyTreeCheckpointer().restore(path).items()}
else:
    tree = torch.load(path)
print(json.dumps({"seconds": time.perf_counter() - began, "leaves": len(tree)}))
