"""What resume points cost: how long one holds the training thread, and what the default budget leaves of the throughput."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps
from benchmarks._measure import Case, Peer, Row, compare, figure
from benchmarks._models import CNN, adam_state
from purestate.run._resume import ResumePoints

__all__ = ["rows"]

GROUP = "resume"
NEVER = "100000 h"


class Deep(nn.Sequential):
    """Five square layers; with Adam's moments ``60 * width ** 2`` bytes."""

    def __init__(self, width: int) -> None:
        super().__init__(*(nn.Linear(width, width) for _ in range(5)))


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    return [*_held(quick), *_throughput("CNN, 28x28", *_pictures(quick), quick), *_throughput("50 MB", *_deep(913, quick), quick)]


def _held(quick: bool) -> list[Row]:
    """Points of a state of 170 MB, one as soon as the last is durable."""
    state, loader = _deep(560 if quick else 1683, quick)
    epochs = 2 if quick else 12
    with tempfile.TemporaryDirectory() as folder, ps.Store(Path(folder) / "store") as store, _watched() as held:
        store.checkpoint("held", echo=None).train(state, loader, epochs=epochs, resume_every="1 steps")
        points = [seconds * 1e3 for seconds in held[1:]]  # the first only gets memory
        with Peer("_orbax_async", 60 * (560 if quick else 1683) ** 2, needs=["orbax"]) as orbax:
            name = f"a resume point of {sum(t.nbytes for t in state.params.values()) * 3 // 10**6} MB holds the training thread"
            if not callable(orbax.case):
                return [figure(GROUP, name, points, note=f"longest {max(points):.3g} ms")]
            theirs = [orbax.case() * 1e3 for _ in points]
    return [figure(GROUP, name, points, theirs, against="Orbax, asynchronous", note=f"longest {max(points):.3g} ms")]


@contextmanager
def _watched() -> Iterator[list[float]]:
    """Give the seconds of each point: those of taking it, and those for which training then waits before it goes on."""
    held: list[float] = []
    take, release = ResumePoints._take, ResumePoints.release  # pyright: ignore[reportPrivateUsage]

    def taking(self: ResumePoints, *args: Any, **options: Any) -> None:
        began = time.perf_counter()
        take(self, *args, **options)
        held.append(time.perf_counter() - began)

    def releasing(self: ResumePoints) -> None:
        began = time.perf_counter()
        release(self)
        if held:
            held[-1] += time.perf_counter() - began

    ResumePoints._take, ResumePoints.release = taking, releasing  # pyright: ignore[reportPrivateUsage]
    try:
        yield held
    finally:
        ResumePoints._take, ResumePoints.release = take, release  # pyright: ignore[reportPrivateUsage]


def _throughput(what: str, state: ps.State, loader: Any, quick: bool) -> list[Row]:
    epochs, rounds = (2, 1) if quick else (_epochs_of(state, loader, 25.0), 5)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder, ps.Store(folder) as store:

        def case(**options: Any) -> Case:
            def timed() -> float:
                checkpoint = store.checkpoint(f"run-{next(numbers)}", echo=None)
                began = time.perf_counter()
                checkpoint.train(state, loader, epochs=epochs, **options)
                return time.perf_counter() - began

            return timed

        cases = {"purestate": case(), "without points": case(resume_every=NEVER)}
        return compare(GROUP, f"train with resume points at the default budget, {what}", cases, rounds, unit="s")


def _epochs_of(state: ps.State, loader: Any, seconds: float) -> int:
    """Return how many epochs take about so many seconds: a few points have to fall into them."""
    began = time.perf_counter()
    ps.NullStore().checkpoint("x", echo=None).train(state, loader, epochs=3)
    return max(3, round(seconds / (time.perf_counter() - began) * 3))


def _pictures(quick: bool) -> tuple[ps.State, Any]:
    generator = torch.Generator().manual_seed(0)
    size = 256 if quick else 2048
    data = TensorDataset(torch.rand(size, 1, 28, 28, generator=generator), torch.randint(10, (size,), generator=generator))
    return adam_state(CNN), DataLoader(data, batch_size=64, shuffle=True)


def _deep(width: int, quick: bool) -> tuple[ps.State, Any]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(*(torch.rand(8 * 64, width, generator=generator) for _ in range(2)))
    state = ps.setup(
        ps.init(lambda: Deep(width), seed=0), loss_cls=nn.MSELoss, optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=1e-4)
    )
    return state, DataLoader(data, batch_size=64, shuffle=True)
