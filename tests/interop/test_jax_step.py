"""`ps.jax_step`: a training step in JAX, recorded, cut, resumed and asked for like any other; no memory has two writers."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import purestate as ps
from purestate.core._own import step_key
from purestate.core._seeds import preserved_generators
from purestate.errors import (
    BatchError,
    ImpurityError,
    MetricError,
    SetupError,
    StaleRecordError,
    TreeMismatchError,
    UnsupportedError,
)
from tests.helpers import batch, bits
from tests.interop.cuts import cut_everywhere

DATA = [batch(4, seed=i) for i in range(3)]
VALIDATION = [batch(4, seed=9)]


@pytest.fixture
def optax(jax: Any) -> Any:
    import optax

    return optax


def start() -> ps.State:
    return ps.setup(ps.init(lambda: nn.Linear(3, 2), seed=0), loss_cls=nn.CrossEntropyLoss)


def fit(jax: Any, optax: Any, transformation: Any) -> Callable[..., Any]:
    """A step of cross entropy with dropout on what comes in."""

    def step(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            x, y = batch
            kept = jax.random.bernoulli(key, 0.8, x.shape)
            out = jax.numpy.where(kept, x / 0.8, 0.0) @ params["weight"].T + params["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = transformation.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {"loss": value, "norm": optax.tree.norm(gradients)}

    return step


@pytest.fixture(scope="module")
def step() -> Any:
    """Compiled once for all."""
    import jax
    import optax

    adam = optax.adam(optax.cosine_decay_schedule(0.1, 8))  # writes to its own closure when it is first called
    return ps.jax_step(fit(jax, optax, adam), init=adam.init)


def test_the_bits_of_the_loop_in_jax(jax, optax, step):
    """What one writes without us: the same weights, moments, losses, keys."""
    s0, ck = start(), ps.MemoryStore().checkpoint("a", echo=None)
    s1 = ck.train(s0, DATA, epochs=2, step=step)
    adam = optax.adam(optax.cosine_decay_schedule(0.1, 8))
    params = {name: jax.numpy.array(p.numpy()) for name, p in s0.params.items()}
    opt_state, jitted, losses = adam.init(params), jax.jit(fit(jax, optax, adam)), list[float]()
    base = jax.random.fold_in(jax.random.wrap_key_data(s0.key.words), 4)
    for i, (x, y) in enumerate(DATA * 2):
        given = jax.numpy.array(x.numpy()), jax.numpy.array(y.numpy())
        params, opt_state, metrics = jitted(params, opt_state, jax.random.fold_in(base, i), given)
        losses.append(float(metrics["loss"]))
    assert {name: bits(p) for name, p in s1.params.items()} == {name: np.asarray(a).tobytes() for name, a in params.items()}
    kept = {path: bits(leaf) for path, leaf in s1.optimizer.leaves.items()}
    assert sorted(kept.values()) == sorted(np.asarray(a).tobytes() for a in jax.tree.leaves(opt_state))
    assert kept["optimizer.state['0.count']"] == np.int32(6).tobytes()
    assert kept["state/weight/0.mu"] == np.asarray(opt_state[0].mu["weight"]).tobytes()
    assert ck.last is not None
    assert ck.last.history["train_loss"] == [sum(losses[:3]) * 4 / 12, sum(losses[3:]) * 4 / 12]
    assert (s1.counters.step, s1.key) == (
        6,
        ps.MemoryStore().checkpoint("b", echo=None).train(s0, DATA, epochs=2, step=still).key,
    )


def still(state: ps.State, batch: Any) -> Any:
    return state, {}


def test_cut_after_every_batch(step):
    def train(ck: ps.Checkpoint) -> ps.State:
        return ck.train(start(), DATA, VALIDATION, epochs=2, load_best=True, step=step)

    cut_everywhere(train, batches=1 + 2 * (3 + 1))


def test_on_disk_and_back_in_another_op(jax, optax, tmp_path):
    def again() -> ps.State:
        adam = optax.adam(optax.cosine_decay_schedule(0.1, 12))
        ck = ps.Store(tmp_path / "a").checkpoint("a", echo=None, notify=said.append)
        step = ps.jax_step(fit(jax, optax, adam), init=adam.init)
        s1 = ck.train(start(), DATA, VALIDATION, epochs=2, load_best=True, step=step)
        s2 = ck.train(s1, DATA, VALIDATION, epochs=2, step=step)
        cached.append(ck.last.cached)
        return s2

    cached, said = list[bool](), list[str]()
    s2 = again()
    assert (again(), cached, said) == (s2, [False, True], [])
    s2.verify()
    assert s2.optimizer.leaves["optimizer.state['0.count']"] > 6


def test_a_step_is_a_function(step):
    s0 = start()
    new, metrics = step(s0, DATA[0])
    assert (step(s0, DATA[0])[0], step(s0, DATA[0])[1]) == (new, metrics)
    assert s0 == start()
    assert (new.counters.step, new.key) == (1, s0.key)
    assert step(new, DATA[0])[0] == step(new.own(), DATA[0])[0]
    assert step_key(new) != step_key(s0)


@pytest.mark.parametrize("jitted", [True, False])
def test_no_state_is_written_to_by_later_steps(jax, optax, jitted):
    """Whatever is donated inside, or handed on as it is: states that somebody holds keep their bits."""
    adam = optax.adam(0.1)
    donating = jax.jit(fit(jax, optax, adam), donate_argnums=(0, 1))

    def init(params: Any) -> Any:
        return adam.init(params), params, jax.numpy.zeros((4, 3))

    def keeps(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        new, inner, metrics = donating(params, opt_state[0], key, batch)
        return new, (inner, params, batch[0]), metrics

    step = ps.jax_step(keeps, init=init)
    batches = [(x.clone(), y.clone()) for x, y in DATA]
    state, held = start(), list[tuple[ps.State, str, Any]]()
    for one in batches * 2:
        with nullcontext() if jitted else jax.disable_jit():
            state, _ = step(state, one)
        held.append((state, state.hash, {path: bits(leaf) for path, leaf in state.optimizer.leaves.items()}))
    for x, _ in batches:
        x.zero_()  # the loader's own memory
    for state, digest, leaves in held:
        assert {path: bits(leaf) for path, leaf in state.optimizer.leaves.items()} == leaves
        state.verify()
        assert state.own().hash == digest
    assert len({digest for _, digest, _ in held}) == 6


def test_numbers_in_opt_state_have_a_dtype_from_the_first_step_on(jax):
    """As they have when a tensor is what they come back from."""
    follows = list[bool]()

    def decay(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        follows.append(opt_state["rate"].weak_type)
        rate = jax.numpy.where(True, 0.5, opt_state["rate"].astype(float))
        return {name: p - rate * p for name, p in params.items()}, {"rate": rate}, {}

    step = ps.jax_step(decay, init=lambda params: {"rate": 0.1})
    state, _ = step(start(), DATA[0])
    step(state, DATA[0])
    step(state.own(), DATA[0])
    assert follows == [False], "traced once"


def test_what_is_handed_on_is_the_same_leaf(jax):
    """So that a change in place of the one is noticed in the other."""

    def half(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        return {**params, "bias": params["bias"] + 1}, opt_state, {}

    s0 = start()
    with jax.disable_jit():  # or JAX makes a new one
        s1, _ = ps.jax_step(half)(s0, DATA[0])
    assert s1.params["weight"] is s0.params["weight"]
    assert s1.optimizer is None
    assert s1.params["bias"].equal(s0.params["bias"] + 1)


def test_a_recorded_run_keeps_its_bits_while_another_goes_on(step, tmp_path):
    ck = ps.Store(tmp_path / "a").checkpoint("a", echo=None)
    seen = [(epoch.hash, epoch.state) for epoch in ck.epochs(start(), DATA, VALIDATION, epochs=3, step=step)]
    for digest, state in seen:
        assert state.own().hash == digest
        state.verify()
    with ps.Store(tmp_path / "a") as store:
        assert store.check().ok


def test_the_code_and_what_it_holds_are_asked_for(jax, optax):
    ck = ps.MemoryStore().checkpoint("a", echo=None)

    def ask(rate: float, scale: Any = 1.0, init: Any = None) -> bool:
        adam = optax.adam(rate)

        def scaled(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
            return fit(jax, optax, adam)(params, opt_state, key, (batch[0] * scale, batch[1]))

        ck.train(start(), DATA, epochs=1, step=ps.jax_step(jax.jit(scaled), init=init or adam.init))
        assert ck.last is not None
        return ck.last.cached

    assert [ask(0.1), ask(0.1), ask(0.1)] == [False, True, True]
    for changed in (
        dict(rate=0.2),
        dict(rate=0.1, scale=jax.numpy.float32(2)),
        dict(rate=0.1, init=lambda params: optax.adam(0.1).init(params)),
    ):
        with pytest.raises(StaleRecordError, match="code of step changed"):
            ask(**changed)


def test_a_module_of_flax_is_asked_for_by_what_it_is(jax):
    """Flax numbers its modules, and a run that finds an answer in the log makes fewer of them."""
    from flax import linen, nnx

    def ask(name: str, apply: Callable[..., Any]) -> bool:
        def step(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
            return (
                params,
                opt_state,
                {"loss": apply({"params": {"kernel": params["weight"].T, "bias": params["bias"]}}, batch[0])},
            )

        ck.train(start(), DATA, epochs=1, step=ps.jax_step(lambda *given: step(*given)))
        return ck.last.cached

    def of_linen(features: int, activation: Any) -> Callable[..., Any]:
        net = linen.Dense(features, kernel_init=activation)
        return lambda variables, x: net.apply(variables, x).mean()

    def of_nnx(bias: bool) -> Callable[..., Any]:
        graph, values = nnx.split(nnx.Linear(3, 2, use_bias=bias, rngs=nnx.Rngs(0)))
        return lambda variables, x: nnx.merge(graph, values)(x).mean()

    for name, make, same, other in (
        ("linen", of_linen, (2, linen.initializers.zeros), (2, linen.initializers.ones)),
        ("nnx", of_nnx, (True,), (False,)),
    ):
        ck = ps.MemoryStore().checkpoint(name, echo=None)
        assert [ask(name, make(*same)), ask(name, make(*same))] == [False, True]
        with pytest.raises(StaleRecordError, match="code of step changed"):
            ask(name, make(*other))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_in_what_init_made_are_kept(jax, impl):
    def step(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        words = jax.random.key_data(opt_state["key"])
        turned = jax.random.wrap_key_data(words[::-1] + 1, impl=jax.random.key_impl(opt_state["key"]))
        return {name: p + words[0] for name, p in params.items()}, {"key": turned}, {}

    kept = ps.jax_step(step, init=lambda params: {"key": jax.random.key(3, impl=impl)})
    whole = ps.MemoryStore().checkpoint("a", echo=None).train(start(), DATA, epochs=2, step=kept)
    assert not whole.params["bias"].equal(start().params["bias"])
    ck = ps.MemoryStore().checkpoint("b", echo=None)
    ck.train(start(), DATA, epochs=1, step=kept)
    assert ck.train(start(), DATA, epochs=2, step=kept).hash == whole.hash


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), lambda: random.random(), lambda: float(torch.rand(()))])
def test_what_is_drawn_while_jax_traces_is_refused(jax, optax, draw):
    def step(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        return jax.tree.map(lambda p: p + draw(), params), opt_state, {}

    with pytest.raises(ImpurityError, match=r"ps\.jax_step: the function drew from \w+'s generator while JAX traced it"):
        ps.MemoryStore().checkpoint("a", echo=None).train(start(), DATA, epochs=1, step=ps.jax_step(step))
    drawn = optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * draw(), updates))
    state = ps.setup(start(), optimizer_fn=ps.optax(drawn))
    with pytest.raises(ImpurityError, match=r"ps\.optax: the function drew from"):
        ps.MemoryStore().checkpoint("b", echo=None).train(state, DATA, epochs=1)


def test_a_module_that_is_imported_while_jax_traces_may_draw(jax):
    imported: list[bool] = []

    def step(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        if not imported:
            imported.append(bool(np.random.rand() + 1))
        return params, opt_state, {}

    s0 = start()
    with preserved_generators():
        s1, _ = ps.jax_step(step)(s0, DATA[0])
    assert imported == [True]
    assert s1.params == s0.params


def test_bad_answers_are_refused_by_name(jax):
    zeros = jax.numpy.zeros

    def train(fn: Any, init: Any = None, data: Any = DATA) -> Any:
        return ps.MemoryStore().checkpoint("a", echo=None).train(start(), data, epochs=1, step=ps.jax_step(fn, init=init))

    cases = [
        (lambda p, o, k, b: (p, o), None, SetupError, r"\(params, opt_state, metrics\), got a tuple of dict, tuple"),
        (lambda p, o, k, b: ([*p.values()], o, {}), None, TreeMismatchError, "params as a dict, got a list"),
        (lambda p, o, k, b: ({"weight": p["weight"]}, o, {}), None, TreeMismatchError, r"params\['bias'\]: .*got no such leaf"),
        (
            lambda p, o, k, b: ({**p, "bias": zeros(3)}, o, {}),
            None,
            TreeMismatchError,
            r"expected float32\[2\], got float32\[3\]",
        ),
        (lambda p, o, k, b: (p, {"m": o["m"][0]}, {}), lambda p: {"m": zeros(2)}, TreeMismatchError, r"'m'\] was float32\[2\]"),
        (lambda p, o, k, b: (p, [o], {}), lambda p: zeros(2), TreeMismatchError, "opt_state .* has another structure"),
        (lambda p, o, k, b: (p, o, {"loss": b[0]}), None, MetricError, r"'loss' to be a number or a 0-d tensor"),
        (lambda p, o, k, b: (p, o, {"loss": None}), None, MetricError, r"'loss' to be a number .* got a NoneType"),
    ]
    for fn, init, error, says in cases:
        with pytest.raises(error, match=says):
            train(fn, init)
    with pytest.raises(BatchError, match="expected a batch of tensors and numbers"):
        train(lambda p, o, k, b: (p, o, {}), data=[(torch.ones(2), "text")])
    with pytest.raises(SetupError, match="expected fn to be a function"):
        ps.jax_step(3)
    with pytest.raises(UnsupportedError, match=r"params\['weight'\] to fit into 32 bits, got float64"):
        ps.jax_step(lambda p, o, k, b: (p, o, {}))(ps.init(lambda: nn.Linear(2, 1).double(), seed=0), DATA[0])


def test_the_blocks_of_the_readme_run(jax, optax):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", readme.split("### Optax, and a step in JAX")[1].split("\n## ")[0], re.M | re.S
    )
    make = lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))  # noqa: E731
    s1 = ps.setup(ps.init(make, seed=0), loss_cls=nn.CrossEntropyLoss)
    data = [batch(8, (64,), classes=10)]
    with ps.MemoryStore() as store:
        names = {"ps": ps, "jax": jax, "optax": optax, "s1": s1, "store": store, "train_dl": data, "val_dl": data}
        exec(block, names)
    assert names["o1"].optimizer.leaves["optimizer.state['0.count']"] == 2
    assert sorted(names["j1"].optimizer.leaves)[0] == "optimizer.state['0.count']"


def test_a_state_of_another_optimizer_is_refused(step):
    s1 = ps.make_step(s0 := ps.setup(start(), optimizer_cls=torch.optim.Adam))(s0, DATA[0])[0]
    with pytest.raises(TreeMismatchError, match="no leaf"):
        step(s1, DATA[0])


def test_a_train_forks_without_a_warning_and_jax_is_not_needed_before(tmp_path):
    """The writer process is started beside JAX, where warnings are errors; and without JAX it is said what to install."""
    code = """
import sys, torch, purestate as ps
assert "jax" not in sys.modules
sys.modules["jax"] = None
for ask in (lambda: ps.jax_step(len), lambda: ps.optax(type("T", (), {"init": len, "update": len})())):
    try:
        ask()
    except ps.PureStateError as error:
        print(type(error).__name__, error.problem, error.fix)
del sys.modules["jax"]
def fn(params, opt_state, key, batch):
    return {name: p * 0.5 for name, p in params.items()}, opt_state, {}
s0 = ps.init(lambda: torch.nn.Linear(3, 2), seed=0)
with ps.Store(sys.argv[1]) as store:
    s1 = store.checkpoint("a", echo=None).train(s0, [torch.ones(2, 3)], epochs=2, step=ps.jax_step(fn))
print(bool((s1.params["bias"] == s0.params["bias"] / 4).all()))
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "MissingExtraError ps.jax_step: JAX is not installed. Install it: pip install 'purestate[jax]'.",
        "MissingExtraError ps.optax: JAX is not installed. Install it: pip install 'purestate[jax]'.",
        "True",
    ]
