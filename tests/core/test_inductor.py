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
from purestate.errors import ImpurityError, SetupError, UnsupportedError
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


JOINED: dict[str, tuple[Any, dict[str, Any]]] = {
    "Adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "AdamW fused": (torch.optim.AdamW, {"fused": True}),
    "SGD nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
}
OUTSIDE: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "RMSprop": (torch.optim.RMSprop, {}, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}, {}),
    "clipped": (torch.optim.SGD, {}, {"clip_grad_norm": 0.1}),
}


@pytest.fixture
def class_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an entry for each step that was not part of a compiled one."""
    from purestate.core import _update

    steps: list[int] = []
    original = _update.Update.__call__

    def call(self: Any, gradients: Any) -> None:
        if gradients is not _update.TAKEN:
            steps.append(1)
        original(self, gradients)

    monkeypatch.setattr(_update.Update, "__call__", call)
    return steps


def small(optimizer: Any, options: dict[str, Any], **setup: Any) -> ps.State:
    """A start with rates that move after each step and each epoch."""
    return ps.setup(
        ps.init(lambda: nn.Linear(3, 3), seed=0),
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=optimizer,
        optimizer_args=dict(lr=0.05, **options),
        step_scheduler_cls=torch.optim.lr_scheduler.ExponentialLR,
        step_scheduler_args=dict(gamma=0.9),
        epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR,
        epoch_scheduler_args=dict(step_size=1, gamma=0.5),
        **setup,
    )


SMALL = [batch(4, seed=i) for i in range(4)]


@pytest.mark.parametrize("name", [*JOINED, *OUTSIDE])
def test_the_optimizers_step_is_compiled_with_the_gradient_where_it_can_be(name, class_steps):
    optimizer, options, setup = OUTSIDE[name] if name in OUTSIDE else (*JOINED[name], {})
    ours = checkpoint().train(small(optimizer, options, compile="inductor", **setup), SMALL, epochs=3)
    assert len(class_steps) == (12 if name in OUTSIDE else 0)
    plain = checkpoint().train(small(optimizer, options, **setup), SMALL, epochs=3)
    assert ours.optimizer is not None
    assert plain.optimizer is not None
    # twelve steps of sums of four products in another order: some units in the last place each. A step of Adam divides by
    # the root of small squares, which makes more of them
    tolerance = dict(rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dict(ours.params), dict(plain.params), **tolerance)
    assert list(ours.optimizer.leaves) == list(plain.optimizer.leaves)
    torch.testing.assert_close(dict(ours.optimizer.leaves), dict(plain.optimizer.leaves), **tolerance)
    assert ours.optimizer.skeleton == plain.optimizer.skeleton


def test_the_first_step_is_the_classs_own_where_slots_of_zeros_would_be_another_beginning(class_steps):
    start = small(torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}, compile="inductor")
    whole = checkpoint().train(start, SMALL, epochs=2)
    assert len(class_steps) == 1
    ck = checkpoint()
    ck.train(start, SMALL, epochs=1)
    assert ck.train(start, SMALL, epochs=2) == whole


@pytest.mark.parametrize("name", JOINED)
def test_a_joined_step_can_be_cut_anywhere(name):
    optimizer, options = JOINED[name]
    whole = checkpoint().train(small(optimizer, options, compile="inductor"), SMALL, epochs=3)
    for epochs in (1, 2):
        ck = checkpoint()
        ck.train(small(optimizer, options, compile="inductor"), SMALL, epochs=epochs)
        assert ck.train(small(optimizer, options, compile="inductor"), SMALL, epochs=3) == whole


def test_find_lr_steps_with_the_rate_of_the_step(class_steps):
    start = small(*JOINED["Adam"], compile="inductor")
    ours = checkpoint().find_lr(start, SMALL, min_rate=1e-3, max_rate=1.0)
    assert class_steps == []
    plain = checkpoint().find_lr(small(*JOINED["Adam"]), SMALL, min_rate=1e-3, max_rate=1.0)
    assert ours.losses == pytest.approx(plain.losses, rel=1e-4)


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
    with pytest.raises(ImpurityError, match=r"moved module\.seen from 1 to 2"):
        ck.train(start, loader(), epochs=1)
    with pytest.raises(UnsupportedError, match=r"compile='inductor' cannot be used here: forward changes .*seen"):
        ck.train(start, loader(), epochs=1, guard="off")
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
