"""A script that is killed again and again: ``python -m tests.run.kills FOLDER KILLS SEED``.

Each round is one SIGKILL at a random moment in a store (a fresh one, or that of the round before, which is not done), and
a run of the same script after it. Every answer has to be that of a run that nobody killed, and what is loaded again is
what comes after the newest resume point. Prints what it saw, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before the forks, as `_compute` below: importing takes a second
from torch import nn
from torch.utils.data import DataLoader, Dataset

import purestate as ps
import purestate.run._compute
from purestate.errors import CheckpointNotFoundError
from purestate.store._disk import DiskBackend
from purestate.store._layout import RESUME_META
from purestate.store._record import unseal

EPOCHS = (12, 8)
SAMPLES, BATCH = 32, 4
X = torch.arange(3.0 * SAMPLES).reshape(SAMPLES, 3).sin()
Y = (X.sum(1) > 0).long()


class Slow(Dataset[Any]):
    """Counts what is loaded."""

    loaded = 0

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> Any:
        time.sleep(0.003)
        Slow.loaded += 1
        return X[i], Y[i]

    def __purestate_fingerprint__(self) -> str:
        return "slow"


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))


def script(store: Any, say: Callable[[dict[str, Any]], object]) -> None:
    """Two trains, the second from what the first returns."""
    loader = DataLoader(Slow(), batch_size=BATCH, shuffle=True)
    state = ps.setup(ps.init(net, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam)
    ck = store.checkpoint("a", echo=None)
    for epochs in EPOCHS:
        state = ck.train(state, loader, [(X, Y)], epochs=epochs, load_best=True, resume_every="3 steps")
        say({"hash": state.hash, "cached": ck.last.cached, "history": ck.last.history["val_loss"]})
    say({"loaded": Slow.loaded})


def in_a_child(store: Any, delay: float | None = None) -> list[dict[str, Any]]:
    """Return what the script says in a process of its own, which is killed after ``delay`` seconds."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            script(store, lambda answer: os.write(write, (json.dumps(answer) + "\n").encode()))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(write)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    with open(read) as answers:
        said = [json.loads(line) for line in answers]
    os.waitpid(pid, 0)
    return said


def samples_left(path: Path) -> int:
    """Return how many samples a run has to load that goes on from what is in a store, at most."""
    try:
        log = DiskBackend(path).log("a", must_exist=True)
    except CheckpointNotFoundError:
        return sum(EPOCHS) * SAMPLES
    kinds = [record.kind for record in log.records]
    done = kinds.count("done")
    left = sum(EPOCHS[done:]) * SAMPLES
    point = newest_point(path)
    starts = [record for record in log.records if record.kind == "train"]
    if point is None or len(starts) == done or point["of"] != starts[-1].digest:
        return left
    if "position" not in point:
        return left - max(map(int, point["states"])) * SAMPLES
    position = point["position"]
    recorded = [record.body["n"] for record in log.records if record.kind == "epoch" and record.body["of"] == starts[-1].seq]
    if position["n"] - 1 > max(recorded):
        return left
    again = BATCH if position["batch"] < SAMPLES // BATCH else 0  # the batch before the cut is compared
    return left - (position["n"] - 1) * SAMPLES - position["batch"] * BATCH + again


def newest_point(path: Path) -> dict[str, Any] | None:
    """Return the body of the newest resume point. Its tensors stay unread: who has imported TensorStore cannot fork."""
    folder = path / "checkpoints" / "a" / "resume"
    names = [name for name in os.listdir(folder) if name.isdecimal()] if folder.exists() else []
    if not names:
        return None
    point = unseal((folder / max(names, key=int) / RESUME_META).read_bytes().removesuffix(b"\n"))
    assert point is not None
    return point["body"]


def main(folder: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill, run, compare."""
    torch.set_num_threads(1)
    random.seed(seed)
    *expected, _ = in_a_child(ps.MemoryStore())
    began = time.monotonic()
    in_a_child(ps.Store(Path(folder, "whole")))
    lasts = time.monotonic() - began
    seen: dict[str, Any] = {"kills": kills, "unequal": [], "redone": [], "lost": [], "cut": 0, "left": []}
    for n in range(kills):
        path = Path(folder, f"store{n}")
        killed = in_a_child(ps.Store(path), random.uniform(0, lasts))
        answered = [answer for answer in killed if "hash" in answer]
        most = samples_left(path) if path.exists() else sum(EPOCHS) * SAMPLES
        again = in_a_child(ps.Store(path))
        *answers, last = again or [{}]
        if [(a["hash"], a["history"]) for a in answers] != [(e["hash"], e["history"]) for e in expected]:
            seen["unequal"].append(n)
        if not all(answer["cached"] for answer in answers[: len(answered)]):
            seen["lost"].append(n)
        if last.get("loaded", 10**9) > most:
            seen["redone"].append((n, last.get("loaded"), most))
        if path.exists() and os.listdir(path / "checkpoints" / "a") != ["log.jsonl"]:
            seen["left"].append(n)
        seen["cut"] += len(answered) < len(expected)
    return seen


def say(folder: str, kills: int, seed: int) -> None:
    """Print what was seen."""
    print(json.dumps(main(folder, kills, seed)))


if __name__ == "__main__":
    say(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
