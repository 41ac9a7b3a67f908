"""`ps.optax`: the bits that Optax gives under `jax.jit` on the same arrays, recorded, resumed and asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import purestate as ps
from purestate.core._work import Working
from purestate.errors import SetupError, StaleRecordError, UnsupportedError
from tests.helpers import batch, bits, build
from tests.interop.cuts import cut_everywhere

DATA = [batch(4, seed=i) for i in range(3)]
VALIDATION = [batch(4, seed=9)]


class Net(nn.Module):
    """Parameters of one, two and no dimensions, and one that is not in rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(3, 8), nn.Linear(8, 2), nn.Parameter(torch.ones(()))
        self.first.weight = nn.Parameter(self.first.weight.detach().t().contiguous().t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x))) * self.scale


def labels(params: Any) -> Any:
    return {name: "none" if name == "scale" else "weights" if value.ndim > 1 else "others" for name, value in params.items()}


def matrices(params: Any) -> Any:
    return {name: value.ndim > 1 for name, value in params.items()}


TRANSFORMATIONS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda o: o.adam(1e-2),
    "adamw, scheduled and masked": lambda o: o.adamw(o.cosine_decay_schedule(0.1, 8), weight_decay=0.1, mask=matrices),
    "sgd with momentum": lambda o: o.sgd(0.1, momentum=0.9, nesterov=True),
    "clipped adam": lambda o: o.chain(o.clip_by_global_norm(0.1), o.adam(1e-2)),
    "lamb": lambda o: o.lamb(1e-2),
    "adafactor": lambda o: o.adafactor(1e-2, min_dim_size_to_factor=2),
    "lion": lambda o: o.lion(1e-3),
    "several": lambda o: o.multi_transform({"weights": o.adam(1e-2), "others": o.sgd(0.1), "none": o.set_to_zero()}, labels),
    "every second step": lambda o: o.MultiSteps(o.adam(1e-2), 2).gradient_transformation(),
    "rates in the state": lambda o: o.inject_hyperparams(o.adam)(learning_rate=o.linear_schedule(0.1, 0.0, 8)),
    "noise": lambda o: o.chain(o.add_noise(0.1, 0.5, 3), o.sgd(0.1)),
    "handed on": lambda o: o.chain(remember(o), o.sgd(0.1)),
}

SLOW = {"clipped adam", "sgd with momentum", "lion", "every second step", "rates in the state", "adafactor"}
"""Each compiles a function of its own, twice. Those that are left are of every kind."""


def remember(o: Any) -> Any:
    """A transformation whose new state is what it was given: JAX hands such arrays on as they are."""
    return o.GradientTransformation(lambda params: (params, params), lambda updates, state, params: (updates, (updates, params)))


def start(transformation: Any, **recipe: Any) -> ps.State:
    return ps.setup(ps.init(Net, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_fn=ps.optax(transformation), **recipe)


@pytest.fixture
def optax(jax: Any) -> Any:
    import optax

    return optax


def gradients(n: int) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(n):
        yield {name: torch.randn(p.shape, generator=generator) for name, p in build(Net).named_parameters()}


def in_jax(jax: Any, optax: Any, transformation: Any, params: dict[str, Any], steps: int) -> tuple[Any, Any]:
    """What one writes who uses Optax alone."""
    state = transformation.init(params)

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients(steps):
        params, state = step(params, state, {name: jax.numpy.array(g.numpy()) for name, g in gradient.items()})
    return params, state


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in TRANSFORMATIONS])
def test_the_bits_of_optax_under_jit(jax, optax, name):
    transformation, steps = TRANSFORMATIONS[name](optax), 5
    work = Working(start(transformation))
    arrays = {name: jax.numpy.array(p.numpy()) for name, p in work.params.items()}
    lent = list[tuple[ps.State, dict[str, bytes]]]()
    for gradient in gradients(steps):
        work.update(gradient, {})
        state = work.lend()
        assert state.optimizer is not None
        lent.append((state, {path: bits(leaf) for path, leaf in state.optimizer.leaves.items()}))
    params, kept = in_jax(jax, optax, transformation, arrays, steps)
    assert {name: bits(p) for name, p in work.params.items()} == {name: np.asarray(a).tobytes() for name, a in params.items()}
    words = [jax.random.key_data(a) if "key<" in str(a.dtype) else a for a in jax.tree.leaves(kept)]
    assert sorted(lent[-1][1].values()) == sorted(np.asarray(a).tobytes() for a in words)
    for state, expected in lent:
        assert {path: bits(leaf) for path, leaf in state.optimizer.leaves.items()} == expected, "JAX wrote to what was lent"


def test_what_jax_hands_on_is_not_the_memory_of_a_parameter(jax, optax):
    """As it does where it does not jit."""
    work, expected = Working(start(TRANSFORMATIONS["handed on"](optax))), list[bytes]()
    for gradient in gradients(3):
        expected = sorted(map(bits, [*gradient.values(), *work.params.values()]))
        with jax.disable_jit():
            work.update(gradient, {})
    state = work.lend()
    assert state.optimizer is not None
    assert sorted(map(bits, state.optimizer.leaves.values())) == expected


def test_what_is_kept_is_called_by_parameter_and_place(optax):
    ck = ps.MemoryStore().checkpoint("a", echo=None)
    state = ck.train(start(TRANSFORMATIONS["several"](optax)), DATA, epochs=1)
    assert state.optimizer is not None
    assert sorted(state.optimizer.leaves) == [
        "optimizer.state['inner_states.weights.inner_state.0.count']",
        "state/first.weight/inner_states.weights.inner_state.0.mu",
        "state/first.weight/inner_states.weights.inner_state.0.nu",
        "state/last.weight/inner_states.weights.inner_state.0.mu",
        "state/last.weight/inner_states.weights.inner_state.0.nu",
    ]


def test_cut_after_every_batch(optax):
    """Of schedules, moments under other names, keys of JAX and arrays that are handed on."""
    parts = TRANSFORMATIONS["noise"](optax), TRANSFORMATIONS["several"](optax), TRANSFORMATIONS["rates in the state"](optax)
    state = start(optax.chain(remember(optax), *parts), clip_grad_norm=1.0, ema_decay=0.9)

    def train(ck: ps.Checkpoint) -> ps.State:
        return ck.train(state, DATA, VALIDATION, epochs=2, load_best=True)

    cut_everywhere(train, batches=1 + 2 * (3 + 1))


def test_on_disk_and_back_in_another_op(optax, tmp_path):
    first = ps.Store(tmp_path / "a").checkpoint("a", echo=None)
    s2 = twice(first, optax)
    again = ps.Store(tmp_path / "a").checkpoint("a", echo=None)
    assert twice(again, optax) == s2
    assert again.last is not None
    assert again.last.cached
    s1 = start(optax.adam(optax.linear_schedule(0.1, 0.0, 12)))
    whole = ps.MemoryStore().checkpoint("a", echo=None).train(s1, DATA, epochs=4)
    count = "optimizer.state['0.count']"
    assert s2.optimizer.leaves[count] == whole.optimizer.leaves[count] == 12, "the schedule and the moments went on"
    assert list(s2.optimizer.leaves) == list(whole.optimizer.leaves)
    s2.verify()


def twice(ck: ps.Checkpoint, optax: Any) -> ps.State:
    state = start(optax.adam(optax.linear_schedule(0.1, 0.0, 12)))
    return ck.train(ck.train(state, DATA, epochs=2), DATA, epochs=2)


def test_frozen_parameters_are_not_seen_and_begin_anew(optax):
    ck = ps.MemoryStore().checkpoint("a", echo=None)
    s1 = ck.train(start(optax.adam(0.1)), DATA, epochs=1)
    s2 = ck.train(ps.freeze(s1, "first.*"), DATA, epochs=1)
    assert s2.optimizer is not None
    assert not any("first" in path for path in s2.optimizer.leaves)
    assert s2.frozen["first.weight"].equal(s1.params["first.weight"])


def test_a_parameter_without_a_gradient_is_given_zeros(optax):
    work = Working(start(optax.sgd(0.1, momentum=0.9)))
    before = {name: p.clone() for name, p in work.params.items()}
    given = {name: None if name == "scale" else torch.ones(p.shape) for name, p in before.items()}
    work.update(given, {})
    assert work.params["scale"].equal(before["scale"])
    assert not work.params["last.bias"].equal(before["last.bias"])


def test_make_step_gives_the_same(optax):
    state = start(optax.adamw(optax.cosine_decay_schedule(0.1, 8)))
    ck = ps.MemoryStore().checkpoint("a", echo=None)
    expected = ck.train(state, DATA, epochs=2)
    assert ps.MemoryStore().checkpoint("a", echo=None).train(state, DATA, epochs=2, step=ps.make_step(state)) == expected


def test_what_the_transformation_holds_is_asked_for(jax, optax):
    def asks(transformation: Any) -> str:
        return start(transformation).hash

    assert asks(optax.adam(1e-3)) == asks(optax.adam(1e-3))
    different = [
        *(optax.adam(1e-3), optax.adam(1e-4), optax.adam(jax.numpy.float32(1e-3)), optax.adam(1e-3, b1=0.8)),
        *(optax.adam(optax.linear_schedule(1e-3, 0, n)) for n in (8, 9)),
        *(optax.adamw(1e-3, mask=mask) for mask in (None, matrices, lambda params: dict.fromkeys(params, True))),
    ]
    assert len({asks(transformation) for transformation in different}) == len(different)
    ck = ps.MemoryStore().checkpoint("a", echo=None)
    ck.train(start(optax.adam(1e-3)), DATA, epochs=1)
    with pytest.raises(StaleRecordError, match="optimizer"):
        ck.train(start(optax.adam(1e-4)), DATA, epochs=1)
    plain = asks(optax.adam(1e-3))
    jax.config.update("jax_enable_x64", True)
    assert asks(optax.adam(1e-3)) != plain


def test_a_schedule_that_writes_to_its_closure_is_the_same_question_before_and_after(jax, optax):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 9)
    said, store = list[str](), ps.MemoryStore()
    for id, made in (("adam", optax.adam(schedule)), ("sgd", optax.chain(optax.clip(1.0), optax.sgd(schedule)))):
        state, ck = start(made), store.checkpoint(id, echo=None, notify=said.append)
        s1 = ck.train(state, DATA, epochs=1)
        assert ck.train(state, DATA, epochs=1) == s1
        assert ck.last is not None
        assert ck.last.cached
    assert said == []
    fresh = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 9)
    assert start(optax.sgd(schedule)).hash == start(optax.sgd(fresh)).hash, "this script might have found the first in the log"


def test_it_is_the_same_question_in_another_process(optax):
    code = (
        "import optax, purestate as ps, torch; s = ps.init(lambda: torch.nn.Linear(3, 2), seed=0); "
        "print(ps.setup(s, optimizer_fn=ps.optax(optax.chain(optax.clip(1.0), optax.adam(optax.linear_schedule(1, 0, 9))))).hash)"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    s = ps.init(lambda: nn.Linear(3, 2), seed=0)
    chain = optax.chain(optax.clip(1.0), optax.adam(optax.linear_schedule(1, 0, 9)))
    assert there == ps.setup(s, optimizer_fn=ps.optax(chain)).hash + "\n"


def test_rates_are_the_business_of_the_transformation(optax):
    state = start(optax.adam(1e-3))
    ck = ps.MemoryStore().checkpoint("a", echo=None)
    with pytest.raises(SetupError, match="train: warmup=1 was given, and the optimizer has no") as caught:
        ck.train(state, DATA, epochs=1, warmup=1)
    assert caught.value.argument == "warmup"
    with pytest.raises(SetupError, match="find_lr: a rate is swept, and the optimizer has no"):
        ck.find_lr(state, DATA)
    with pytest.raises(SetupError, match="setup: there is a step_scheduler, and the optimizer has no"):
        start(optax.adam(1e-3), step_scheduler_cls=torch.optim.lr_scheduler.StepLR, step_scheduler_args=dict(step_size=1))
    s1 = ck.train(state, DATA, epochs=1)
    with pytest.raises(SetupError, match="set_lr: a rate was given, and the optimizer has no"):
        ps.set_lr(s1, 0.1)
    assert ck.last is not None
    assert ck.last.history["lr"] == [[]]


def test_what_is_no_transformation_is_refused(optax):
    for thing in (optax.adam, 1e-3, torch.optim.Adam):
        with pytest.raises(SetupError, match=r"ps\.optax: expected a gradient transformation"):
            ps.optax(thing)
    ck = ps.MemoryStore().checkpoint("a", echo=None)
    with pytest.raises(UnsupportedError, match="cannot be updated with gradients, state and parameters"):
        ck.train(start(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())), DATA, epochs=1)
    wide = ps.setup(ps.init(lambda: Net().double(), seed=0), loss_cls=nn.MSELoss, optimizer_fn=ps.optax(optax.sgd(0.1)))
    with pytest.raises(UnsupportedError, match=r"to fit into 32 bits, got float64"):
        Working(wide).update({name: torch.ones_like(p) for name, p in wide.params.items()}, {})


def test_bfloat16_and_64_bits(jax, optax):
    for dtype in (torch.bfloat16, torch.float64):
        if dtype is torch.float64:
            jax.config.update("jax_enable_x64", True)
        state = ps.setup(
            ps.init(lambda dtype=dtype: nn.Linear(3, 2, dtype=dtype), seed=0), optimizer_fn=ps.optax(optax.adam(0.1))
        )
        work = Working(state)
        arrays = {name: ps.to_jax(p.clone()) for name, p in work.params.items()}
        given = {name: torch.full_like(p, 0.3) for name, p in work.params.items()}
        transformation = optax.adam(0.1)
        updates, _ = jax.jit(transformation.update)(ps.to_jax(given), transformation.init(arrays), arrays)
        work.update(given, {})
        moved = jax.jit(optax.apply_updates)(arrays, updates)
        assert {name: p.dtype for name, p in work.params.items()} == dict.fromkeys(("weight", "bias"), dtype)
        if dtype is torch.bfloat16:
            assert {name: bits(p) for name, p in work.params.items()} == {
                name: np.asarray(a).tobytes() for name, a in moved.items()
            }
