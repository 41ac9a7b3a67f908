"""Run by ``memory``: a training of a few steps, and the most memory that the process ever had.

``hand LAYERS``, or by the library ``plain``, ``watched``, ``stored`` with ``LAYERS FOLDER``.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
from torch import nn

import purestate as ps

WIDTH = 2048
EPOCHS = 2
OPTIONS = dict(lr=1e-4)


class Wide(nn.Sequential):
    """So many layers of 4.2 million parameters."""

    def __init__(self) -> None:
        super().__init__(*(nn.Linear(WIDTH, WIDTH) for _ in range(int(sys.argv[2]))))


def by_hand(train: list[tuple[torch.Tensor, torch.Tensor]]) -> nn.Module:
    model, loss_fn = Wide(), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), **OPTIONS)
    for _ in range(EPOCHS):
        for x, y in train:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
    return model


def ours(how: str, train: list[tuple[torch.Tensor, torch.Tensor]], folder: str) -> ps.State:
    state = ps.init(Wide, seed=0)
    state = ps.setup(state, loss_cls=nn.MSELoss, optimizer_cls=torch.optim.Adam, optimizer_args=OPTIONS)
    store = ps.Store(folder) if how == "stored" else ps.NullStore()
    val = [] if how == "plain" else [train[:1]]
    return store.checkpoint("a", echo=None).train(state, train, *val, epochs=EPOCHS)


def peak() -> int:
    """Return bytes. On Linux ``ru_maxrss`` of a fresh process begins at what its parent had: the kernel's own mark does not."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


batches = [(torch.rand(16, WIDTH), torch.rand(16, WIDTH)) for _ in range(3)]
kept = by_hand(batches) if sys.argv[1] == "hand" else ours(sys.argv[1], batches, sys.argv[3])
print(json.dumps({"peak": peak()}))
