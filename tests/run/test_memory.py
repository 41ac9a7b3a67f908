"""How much memory of tensors a `train` has at once: counted by torch's own allocator, in bytes, not by the system."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile

import purestate as ps

WIDTH, LAYERS = 512, 12
SIZE = LAYERS * (WIDTH * WIDTH + WIDTH) * 4
"""Bytes of the parameters."""
ROOM = 0.5 * SIZE
"""For activations, batches, what an optimizer is probed with, and the tensors of a layer or two, each a twelfth of the size. A
copy of the parameters or of the gradients is twice as large."""
DATA = [(torch.full((4, WIDTH), 0.1 * i), torch.full((4, WIDTH), 0.2 * i)) for i in range(5)]


class Deep(nn.Sequential):
    def __init__(self):
        super().__init__(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def begin():
    state = ps.init(Deep, seed=0)
    return ps.setup(state, loss_cls=nn.MSELoss, optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=1e-4))


def counted(run: Callable[[], object]) -> tuple[int, int]:
    """The most bytes of tensors that there were at once while it ran, and how many are left, without those of before."""
    seen: Any = profile(profile_memory=True)
    with seen:
        run()
    now = most = 0
    for event in seen.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(now, most)
    return most, now


@pytest.fixture(autouse=True)
def _no_collection():
    """What a cycle kept alive would be counted at one time and not at another."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def by_hand():
    with torch.random.fork_rng():
        model, loss = Deep(), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for x, y in DATA * 2:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def test_a_loop_by_hand_has_parameters_gradients_and_two_moments():
    assert 4 * SIZE <= counted(by_hand)[0] <= 4 * SIZE + ROOM


def train(*loaders: Any) -> Callable[[], object]:
    state = begin()
    return lambda: ps.NullStore().checkpoint("a", echo=None).train(state, *loaders, epochs=3)


def test_train_has_no_more_than_the_loop_by_hand():
    assert counted(train(DATA))[0] <= 4 * SIZE + ROOM


def test_what_is_watched_costs_one_copy_of_parameters_and_moments():
    most, _ = counted(train(DATA, DATA[:2]))
    assert 6 * SIZE < most <= 4 * SIZE + 3 * SIZE + ROOM


def test_nothing_of_a_train_is_left_but_its_answer():
    run = train(DATA, DATA[:2])
    run()  # what is imported and kept for other trains is there
    assert counted(run)[1] < 0.01 * SIZE


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_does_not_take_its_memory_from_the_kernel_again() -> None:
    """Pages that are given back after each step and taken again made steps take up to 1.7 times as long."""
    script = """
import resource
import torch
from torch import nn
import purestate as ps

class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Tanh())))

data = [(torch.ones(16384, 64), torch.ones(16384, 64))] * 5
state = ps.setup(ps.init(Wide, seed=0), loss_cls=nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
ps.NullStore().checkpoint("a", echo=None).train(state, data, epochs=3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
ps.NullStore().checkpoint("b", echo=None).train(state, data, epochs=4)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() // 20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16384 * 64 * 4, "a step took more fresh memory than one of its eight activations has"
