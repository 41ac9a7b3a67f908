"""Compiled steps: close to the uncompiled ones, the same wherever a run is cut, and refused where they cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps
from purestate.errors import SetupError, UnsupportedError
from tests.helpers import batch

ROOT = Path(__file__).parents[2]


class Net(nn.Module):
    """Something of each: buffers that forward writes, a tied and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.hidden = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.hidden.weight
        self.last = nn.Linear(4, 3)
        self.last.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.again(torch.relu(self.hidden(self.norm(self.first(x)))))))


def loader() -> DataLoader[Any]:
    """Batches of 4, 4 and 2: the last one is of another kind."""
    return DataLoader(TensorDataset(*batch(10)), batch_size=4, shuffle=True)


def state(**options: Any) -> ps.State:
    return ps.setup(
        ps.init(Net, seed=0),
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=torch.optim.SGD,
        optimizer_args=dict(lr=0.1),
        **options,
    )


def checkpoint() -> ps.Checkpoint:
    return ps.MemoryStore().checkpoint("a", echo=None)


@pytest.fixture(scope="module")
def compiled() -> ps.State:
    """Two epochs, compiled. What torch keeps of it makes the other tests fast."""
    return checkpoint().train(state(compile="inductor"), loader(), loader(), epochs=2, metrics=[ps.metric_accuracy])


def test_it_is_close_to_what_is_not_compiled(compiled):
    plain = checkpoint().train(state(), loader(), loader(), epochs=2, metrics=[ps.metric_accuracy])
    for subtree in ("params", "frozen", "buffers"):
        for name, tensor in getattr(plain, subtree).items():
            # short sums in another order: some units in the last place (6e-8) a step, over six steps of SGD
            torch.testing.assert_close(getattr(compiled, subtree)[name], tensor, rtol=1e-5, atol=1e-6)
    assert compiled.counters == plain.counters
    assert compiled.key == plain.key


def test_a_cut_changes_nothing(compiled):
    ck = checkpoint()
    ck.train(state(compile="inductor"), loader(), loader(), epochs=1, metrics=[ps.metric_accuracy])
    assert ck.train(state(compile="inductor"), loader(), loader(), epochs=2, metrics=[ps.metric_accuracy]) == compiled


def test_another_process_gets_the_same_bits(compiled, tmp_path):
    script = tmp_path / "again.py"
    script.write_text(
        "from tests.core.test_inductor import *\n"
        "asked = checkpoint().train(state(compile='inductor'), loader(), loader(), epochs=2, metrics=[ps.metric_accuracy])\n"
        "print(asked.hash)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == compiled.hash


def test_it_is_another_question():
    ck = checkpoint()
    ck.train(state(), loader(), epochs=1)
    with pytest.raises(ps.StaleRecordError, match="compile was not there when this was recorded, now 'inductor'"):
        ck.train(state(compile="inductor"), loader(), epochs=1)
    ck.train(ps.setup(state(compile="inductor"), compile="none"), loader(), epochs=1)
    assert ck.last is not None
    assert ck.last.cached


def test_dropout_draws_from_the_generator_of_the_step():
    def of(seed: int, **options: Any) -> ps.State:
        start = ps.setup(
            ps.init(lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)), seed=seed),
            loss_cls=nn.CrossEntropyLoss,
            optimizer_cls=torch.optim.SGD,
            optimizer_args=dict(lr=0.1),
            **options,
        )
        return checkpoint().train(start, [batch(8)], epochs=2)

    one, two, plain = of(0, compile="inductor"), of(0, compile="inductor"), of(0)
    assert one == two
    # the masks are those of the uncompiled step, or the first layer would be elsewhere; the tolerance is that of above
    torch.testing.assert_close(dict(one.params), dict(plain.params), rtol=1e-5, atol=1e-6)


class Counts(nn.Linear):
    """What forward counts in a plain attribute belongs to no state, so it cannot be captured."""

    seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + 1
        return super().forward(x) * self.seen


def test_what_cannot_be_captured_is_refused_and_not_run_uncompiled():
    start = ps.setup(
        ps.init(lambda: Counts(3, 3), seed=0),
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=torch.optim.SGD,
        optimizer_args=dict(lr=0.1),
        compile="inductor",
    )
    ck = checkpoint()
    with pytest.raises(UnsupportedError, match=r"compile='inductor' cannot be used here: forward changes .*seen"):
        ck.train(start, loader(), epochs=1)
    assert [record.kind for record in ck._ledger.log.records if record.kind in ("epoch", "done")] == []


def test_without_a_compiler_it_is_refused(tmp_path):
    script = tmp_path / "none.py"
    script.write_text(
        "from tests.core.test_inductor import *\n"
        "try:\n    checkpoint().train(state(compile='inductor'), loader(), epochs=1)\n"
        "except UnsupportedError as error:\n    print(error)\n"
    )
    nowhere = {"CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": os.fspath(tmp_path / "cache"), "PATH": "/nonexistent"}
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), **nowhere}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("compile='inductor' cannot be used here: ")


def test_other_compilers_are_refused():
    with pytest.raises(SetupError, match="compile must be one of 'none', 'inductor', got 'magic'") as caught:
        state(compile="magic")
    assert caught.value.argument == "compile"


def test_compiled_and_uncompiled_trains_do_not_meet_in_one_process(compiled):
    first = state()

    def of(start: ps.State) -> ps.State:
        return checkpoint().train(start, loader(), loader(), epochs=2, metrics=[ps.metric_accuracy])

    plain = of(first)
    assert of(ps.setup(first, compile="inductor")) == compiled
    assert of(first) == plain
    assert of(ps.setup(first, compile="inductor")) == compiled
