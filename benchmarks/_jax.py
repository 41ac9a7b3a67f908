"""Run by ``training`` and ``step``: the same by JAX. ``train EPOCHS``: the MLP on digits; ``step TIMES``: steps of the MLP.

One jitted function a step, parameters and moments donated; the data lie on the device and the step selects its rows.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

if os.environ.get("OMP_NUM_THREADS") == "1":  # as many threads as the others have
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._measure import Case, serve, timed
from benchmarks._settings import ADAM, BATCH, DECAY, STEP_WIDTHS, TRAINED

Params = list[tuple[jax.Array, jax.Array]]


def adam(rate: Any) -> optax.GradientTransformation:
    """As torch's Adam, whose weight decay is added to the gradient."""
    return optax.chain(optax.add_decayed_weights(ADAM["weight_decay"]), optax.adam(rate))


def init(widths: tuple[int, ...], seed: int) -> Params:
    random = np.random.default_rng(seed)
    pairs = itertools.pairwise(widths)
    return [tuple(jnp.array(random.uniform(-1, 1, s) / a**0.5, jnp.float32) for s in ((a, b), (b,))) for a, b in pairs]  # type: ignore[misc]


def forward(params: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Apply the MLP, with dropout behind the first layer if there is a key."""
    for i, (w, b) in enumerate(params[:-1]):
        x = jax.nn.relu(x @ w + b)
        if key is not None and i == 0:
            x = jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0.0)
    return x @ params[-1][0] + params[-1][1]


def loss_and_hits(params: Params, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    out = forward(params, x, key)
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), (out.argmax(1) == y).sum()


def steps(times: int) -> Case:
    optimizer = adam(ADAM["lr"])
    random = np.random.default_rng(0)
    x, y = jnp.array(random.random((64, STEP_WIDTHS[0]), np.float32)), jnp.array(random.integers(10, size=64))
    params = init(STEP_WIDTHS, 0)
    held: list[Any] = [params, optimizer.init(params)]

    def step(params: Params, moments: Any, x: jax.Array, y: jax.Array) -> tuple[Params, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(lambda p: loss_and_hits(p, x, y)[0])(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))

    def run() -> None:
        params, moments = held
        for _ in range(times):
            params, moments, _ = jitted(params, moments, x, y)
        held[:] = jax.block_until_ready((params, moments))

    return timed(run)


def training(epochs: int) -> Case:
    from sklearn.datasets import load_digits

    pixels, numbers = load_digits(return_X_y=True)
    x, y = jnp.array(pixels / 16, jnp.float32), jnp.array(numbers)
    train_x, train_y, val_x, val_y = x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:]
    batches = -(-TRAINED // BATCH)
    rate = optax.exponential_decay(ADAM["lr"], DECAY["step_size"] * batches, DECAY["gamma"], staircase=True)
    optimizer, seeds = adam(rate), itertools.count()

    def step(params: Params, moments: Any, sums: Any, i: int, rows: jax.Array, key: jax.Array) -> tuple[Params, Any, Any]:
        x, y = train_x[rows], train_y[rows]
        lossy = jax.value_and_grad(lambda p: loss_and_hits(p, x, y, jax.random.fold_in(key, i)), has_aux=True)
        (loss, hits), gradients = lossy(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, (sums[0] + loss * len(rows), sums[1] + hits)

    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    validate = jax.jit(lambda params: loss_and_hits(params, val_x, val_y))

    def train() -> None:
        seed = next(seeds)
        random, key = np.random.default_rng(seed), jax.random.key(seed)
        params = init((64, 64, 64, 10), seed)
        moments, best, best_params, history = optimizer.init(params), -1.0, params, []
        for epoch in range(epochs):
            sums = (jnp.zeros(()), jnp.zeros((), jnp.int32))
            order = random.permutation(TRAINED).astype(np.int32)
            for i in range(batches):
                rows = order[i * BATCH : (i + 1) * BATCH]
                params, moments, sums = jitted(params, moments, sums, epoch * batches + i, rows, key)
            val_loss, val_hits = map(float, validate(params))
            history.append((float(sums[0]) / TRAINED, float(sums[1]) / TRAINED, val_loss, val_hits / len(val_y)))
            if val_hits > best:
                best, best_params = val_hits, jax.tree.map(jnp.copy, params)
        jax.block_until_ready(best_params)

    return timed(train)


what, count = sys.argv[1:]
serve({"train": training, "step": steps}[what](int(count)))
