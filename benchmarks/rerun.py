"""The second run of a script: ``examples/digits.py`` in fresh processes, and what ``import purestate`` costs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks._measure import Row, child, figure

__all__ = ["rows"]

GROUP = "rerun"
WHOLE = "examples/digits.py, second run, whole process"
PEER = "torch.load, load_state_dict"


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    rounds = 1 if quick else 9
    with tempfile.TemporaryDirectory() as folder:
        store, files = Path(folder) / "store", Path(folder) / "files"
        files.mkdir()
        first = child("_rerun", "example", store)
        child("_rerun", "write", files)
        again, loaded = [], []
        for _ in range(rounds):
            again.append(child("_rerun", "example", store))
            loaded.append(child("_rerun", "read", files))
    outside = [found["purestate"] + found["main"] for found in again]
    wall = [found["wall"] for found in again]
    theirs = [found["wall"] - found["purestate"] for found in loaded]  # the models are in a file that imports it
    return [
        figure(GROUP, WHOLE, wall, [first["wall"]] * rounds, against="first run", unit="s"),
        figure(GROUP, WHOLE, wall, theirs, against=f"{PEER}, whole process", unit="s"),
        figure(
            GROUP,
            "share outside torch, scikit-learn and data",
            outside,
            [found["main"] for found in loaded],
            against=f"{PEER}, the same share",
            unit="s",
        ),
        figure(GROUP, "of it: the ops from the log", [found["main"] for found in again], unit="s"),
        figure(
            GROUP,
            "import torch, purestate",
            [found["torch"] + found["purestate"] for found in again],
            [found["torch"] for found in again],
            against="import torch",
            unit="s",
        ),
    ]
