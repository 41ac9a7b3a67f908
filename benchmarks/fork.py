"""What a fork costs: to select a snapshot and set it up under another checkpoint, and what that adds to the store."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import purestate as ps
from benchmarks._measure import Row, compare, figure, folder_bytes, timed
from benchmarks._settings import ADAM

__all__ = ["rows"]

GROUP = "fork"
SGD = dict(lr=1e-3, momentum=0.9)


class Wide(nn.Sequential):
    """2.6 million parameters: with Adam's moments a state of 31.5 MB."""

    def __init__(self) -> None:
        super().__init__(*(nn.Linear(724, 724) for _ in range(5)))


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    rounds = 5 if quick else 15
    batches = [(torch.rand(4, 724), torch.rand(4, 724))]
    with tempfile.TemporaryDirectory() as folder, ps.Store(Path(folder) / "store") as store:
        state = ps.setup(ps.init(Wide, seed=0), loss_cls=nn.MSELoss, optimizer_cls=torch.optim.Adam, optimizer_args=ADAM)
        store.checkpoint("root", echo=None).train(state, batches, epochs=1)
        file = _by_hand_file(Path(folder))
        numbers = itertools.count()

        def selected() -> tuple[Any, ps.State]:
            return store.checkpoint(f"fork-{next(numbers)}", echo=None), store.load("root", like=state)

        def fork() -> tuple[Any, ps.State]:
            checkpoint, root = selected()
            return checkpoint, ps.setup(root, optimizer_cls=torch.optim.SGD, optimizer_args=SGD)

        found: list[Row] = []
        copies = Path(folder) / "copies"
        for name, cases in {
            "as it is": {"purestate": timed(selected), "a copy of the file": timed(lambda: _copied(file, copies))},
            "with another optimizer": {
                "purestate": timed(fork),
                "torch.load, load_state_dict": timed(lambda: _fork_by_hand(file)),
            },
        }.items():
            for case in cases.values():
                case()
            found += compare(GROUP, f"fork a state of 31.5 MB, {name}", cases, rounds)
        shutil.rmtree(copies)
        added: dict[str, list[float]] = {"itself": [], "begun": [], "from a seed": []}
        for n in range(2):
            before = folder_bytes(Path(folder))
            checkpoint, forked = fork()
            added["itself"].append(folder_bytes(Path(folder)) - before)
            added["begun"].append(_begun(Path(folder), checkpoint, forked, batches))
            fresh = ps.setup(ps.init(Wide, seed=n), loss_cls=nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=SGD)
            added["from a seed"].append(_begun(Path(folder), store.checkpoint(f"seed-{n}", echo=None), fresh, batches))
        size = file.stat().st_size
        found += _frozen(Path(folder), 2 if quick else 10)
    return [
        *found,
        figure(GROUP, "bytes that a fork adds", added["itself"], [size] * 2, against="a copy of the file", unit="bytes"),
        figure(
            GROUP,
            "bytes of a fork that is begun: its question, where it is from, the first evaluation",
            added["begun"],
            added["from a seed"],
            against="the same train from a seed",
            unit="bytes",
        ),
    ]


def _begun(folder: Path, checkpoint: ps.Checkpoint, state: ps.State, batches: Any) -> int:
    """Return what a train adds before its first epoch."""
    before = folder_bytes(folder)
    epochs = checkpoint.epochs(state, batches, batches, epochs=1)
    next(epochs)
    epochs.close()
    return folder_bytes(folder) - before


def _frozen(folder: Path, forks: int) -> list[Row]:
    """Train forks of a model of which nine tenths are frozen, and hold what the store grows by against what changed."""
    state = ps.freeze(ps.init(_Backbone, seed=0), "body.*")
    state = ps.setup(state, loss_cls=nn.MSELoss, optimizer_cls=torch.optim.Adam, optimizer_args=ADAM)
    with ps.Store(folder / "frozen") as store:
        state = store.checkpoint("root", echo=None).train(state, [(torch.rand(4, 724), torch.rand(4, 724))], epochs=1)
        before = folder_bytes(folder / "frozen")
        changed = 0
        for n in range(forks):  # data of their own, or some of the moments would be the same
            batches = [(torch.rand(4, 724), torch.rand(4, 724))]
            fork = store.checkpoint(f"fork-{n}", echo=None).train(state, batches, epochs=1)
            assert fork.optimizer is not None
            changed += sum(t.nbytes for t in (*fork.params.values(), *fork.optimizer.leaves.values()))
        grown = folder_bytes(folder / "frozen") - before
    return [
        figure(
            GROUP,
            f"{forks} forks of a model with a frozen backbone of nine tenths, trained",
            [grown],
            [changed],
            against="parameters and moments that changed",
            unit="bytes",
        )
    ]


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(724, 724) for _ in range(9)))
        self.head = nn.Linear(724, 724)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def _by_hand_file(folder: Path) -> Path:
    model = Wide()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    model(torch.rand(4, 724)).sum().backward()
    optimizer.step()
    file = folder / "root.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return file


def _copied(file: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(file, folder / f"{len(os.listdir(folder))}.pt")


def _fork_by_hand(file: Path) -> None:
    model = Wide()
    model.load_state_dict(torch.load(file)["model"])
    torch.optim.SGD(model.parameters(), **SGD)
