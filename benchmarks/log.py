"""Opening a log of 10,000 records: every line read, its digest and its link to the one before verified."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import nn

import purestate as ps
from benchmarks._measure import Row, compare, timed
from benchmarks._settings import ADAM

__all__ = ["rows"]

_RECORDS = 10_000


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    records = _RECORDS // 10 if quick else _RECORDS
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        state = ps.setup(ps.init(_Small, seed=0), loss_cls=nn.MSELoss, optimizer_cls=torch.optim.Adam, optimizer_args=ADAM)
        batches = [(torch.rand(4, 4), torch.rand(4, 1))]
        # beside its epochs a log has the records of the checkpoint, of the train, and of its end
        with ps.Store(root) as store:
            store.checkpoint("long", echo=None).train(state, batches, epochs=records - 3)
        log = root / "checkpoints" / "long" / "log.jsonl"
        with open(log, "rb") as file:
            lines = sum(1 for _ in file)
        if lines != records:
            raise RuntimeError(f"{lines} records, and {records} were meant")

        def parse() -> None:
            with open(log, "rb") as file:
                for line in file:
                    json.loads(line)

        cases = {
            "purestate": timed(lambda: ps.Store(root).open("long", echo=None)),
            "json.loads of each line": timed(parse),
        }
        for case in cases.values():
            case()
        return compare("log", f"open a checkpoint of {records:,} records, all verified", cases, 3 if quick else 15)


class _Small(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 1)
