"""SIGINT and SIGTERM in processes of their own: a resume point first, then what the signal does anyway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purestate.run._signals import Deferred
from tests.run.conftest import ROOT

SCRIPT = """
import os, random, signal, sys
import torch, torch._dynamo
from torch import nn
from torch.utils.data import DataLoader, Dataset
import purestate as ps

where, workers, plan = sys.argv[1], int(sys.argv[2]), [word for word in sys.argv[3:]]
torch.set_num_threads(1)
x = torch.arange(96.0).reshape(32, 3).sin()
y = (x.sum(1) > 0).long()


class Data(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        return x[i] + random.random(), y[i]


def signals():
    # at the 13th batch, which is the fifth of the second epoch, what the plan says
    from purestate.run._resume import ResumePoints
    between, batches = ResumePoints.between, iter(range(1, 10**9))

    def noisy(self, *args, **options):
        if next(batches) == 13:
            for word in plan:
                if word == "group":
                    os.killpg(0, signal.SIGTERM)
                elif word != "handler":
                    signal.raise_signal(getattr(signal, word))
        between(self, *args, **options)

    ResumePoints.between = noisy


if "handler" in plan:
    signal.signal(signal.SIGTERM, lambda number, frame: print("handled", number, flush=True))
if plan:
    signals()
if __name__ == "__main__":
    net = lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 2))
    state = ps.setup(ps.init(net, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam)
    loader = DataLoader(Data(), batch_size=4, shuffle=True, num_workers=workers)
    try:
        state = ps.Store(where).checkpoint("a").train(state, loader, epochs=3)
    finally:
        print("handlers", signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)
    print(state.hash)
"""


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    script = tmp_path_factory.mktemp("script") / "script.py"
    script.write_text(SCRIPT)

    def run(store: Path, workers: int, *plan: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(script), str(store), str(workers), *plan]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False, start_new_session=True
        )

    return run


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("whole") / "store", 0).stdout.splitlines()[-1]


def test_sigterm_to_the_whole_group_saves_first(run: Run, tmp_path: Path, undisturbed: str):
    """Loader workers get it, too. They were seen to die first and to take the save with them."""
    killed = run(tmp_path, 2, "group")
    assert killed.returncode == -signal.SIGTERM
    assert killed.stderr == ""
    assert killed.stdout == "a: stopped after 1 epoch and 5 batches of epoch 2. Run it again to go on from there.\n"
    again = run(tmp_path, 2)
    assert again.stdout.splitlines()[0] == "a: goes on after epoch 1 and 5 batches."
    assert again.stdout.splitlines()[-1] == undisturbed
    assert not (tmp_path / "checkpoints" / "a" / "resume").exists()


def test_sigint_is_a_keyboard_interrupt_after_a_point(run: Run, tmp_path: Path, undisturbed: str):
    killed = run(tmp_path, 0, "SIGINT")
    assert killed.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert killed.returncode == -signal.SIGINT
    assert "stopped after 1 epoch and 5 batches of epoch 2" in killed.stdout
    assert "handlers True" in killed.stdout
    assert run(tmp_path, 0).stdout.splitlines()[-1] == undisturbed


def test_a_second_sigint_stops_at_once(run: Run, tmp_path: Path, undisturbed: str):
    killed = run(tmp_path, 0, "SIGINT", "SIGINT")
    assert killed.returncode == -signal.SIGINT
    assert "stopped after" not in killed.stdout
    assert "handlers True" in killed.stdout
    again = run(tmp_path, 0).stdout.splitlines()
    assert "batches" not in again[0]
    assert again[-1] == undisturbed


def test_a_handler_of_the_users_is_called_and_training_goes_on_where_it_returns(run: Run, tmp_path: Path, undisturbed: str):
    done = run(tmp_path, 0, "handler", "SIGTERM")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"handled {signal.SIGTERM.value}"
    assert lines[-1] == undisturbed
    assert "stopped" not in done.stdout


def test_only_the_main_thread_has_handlers():
    seen: list[Any] = []

    def inside() -> None:
        with Deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_what_is_ignored_stays_ignored_and_all_is_put_back():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Deferred() as stop:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
            assert stop.pending is None
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def failing() -> None:
    with Deferred():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_a_signal_happens_when_the_block_is_left_also_by_an_error():
    with pytest.raises(KeyboardInterrupt), Deferred():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        failing()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def raise_both() -> None:
    signal.raise_signal(signal.SIGINT)  # waits
    signal.raise_signal(signal.SIGTERM)


def test_of_two_signals_none_is_lost_where_a_handler_returns():
    handled: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), Deferred():
            raise_both()
        assert handled == [signal.SIGTERM]
        with Deferred():
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
        assert len(handled) == 3
    finally:
        signal.signal(signal.SIGTERM, before)
