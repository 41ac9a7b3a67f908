"""Train in torch, open what was kept with plain Orbax, go on in JAX with Optax, and bring it back.

Run it twice: ``python examples/jax_interop.py``, with ``pip install -c constraints.txt -e '.[examples,jax]' optax``. There are
two processes. The one that trains in torch never imports JAX or Orbax. The one that trains in JAX (``--in-jax``) has nothing
of purestate: it reads an Orbax folder and writes one, and computes hashes as `purestate/store/README.md` describes them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def tree_hash(tree: dict) -> str:
    """Return what ``ps.tree_hash`` gives for JAX arrays by name, without purestate."""
    from blake3 import blake3

    def text(value) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    def leaf(array) -> str:
        return blake3(text(["purestate/leaf/1", array.dtype.name, list(array.shape)]) + b"\0" + array.tobytes()).hexdigest()

    return "b3:" + blake3(b"purestate/tree/1\0" + text({name: leaf(array) for name, array in tree.items()})).hexdigest()


def in_jax(params: Path, trained: Path) -> None:
    """Evaluate the parameters in an Orbax folder, train them for five epochs, and write another folder."""
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    x, y = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits)

    def logits(params, x):  # names and axes are torch's: (out, in)
        hidden = jax.nn.relu(x @ params["0.weight"].T + params["0.bias"])
        return hidden @ params["2.weight"].T + params["2.bias"]

    def accuracy(params):
        return (logits(params, x[1438:]).argmax(-1) == y[1438:]).mean()

    tree = jax.tree.map(jnp.asarray, ocp.PyTreeCheckpointer().restore(params.absolute()))
    print(f"JAX, from plain Orbax: accuracy {accuracy(tree):.4f}, {tree_hash(tree)[:11]}")

    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(tree)
    for _ in range(5):
        for i in range(0, 1438, 32):
            tree, state = step(tree, state, x[i : i + 32], y[i : i + 32])
    print(f"JAX, after 5 epochs of Optax: accuracy {accuracy(tree):.4f}, {tree_hash(tree)[:11]}")
    ocp.PyTreeCheckpointer().save(trained.absolute(), {"params": tree, "optimizer": state})
    assert not any(name.startswith("purestate") for name in sys.modules)


def main(folder: str) -> None:
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    import purestate as ps

    torch.set_num_threads(1)
    pixels, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    train_dl = DataLoader(TensorDataset(x[:1438], y[:1438]), batch_size=32, shuffle=True)
    val_dl = DataLoader(TensorDataset(x[1438:], y[1438:]), batch_size=256)
    metrics = [ps.metric_accuracy]

    s0 = ps.init(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), seed=0)
    s0 = ps.setup(s0, loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam)
    with ps.Store(folder) as store:
        ck = store.checkpoint("torch")
        s1 = ck.train(s0, train_dl, val_dl, epochs=10, metrics=metrics, progress=False)
        measured = ck.evaluate(s1, val_dl, metrics=metrics)
        print(f"torch: accuracy {measured['accuracy']:.4f}, {ps.tree_hash(s1.params)[:11]}", flush=True)  # before JAX's lines

        params, trained = store.path("torch", "params"), Path(folder) / "from-jax"
        if not trained.exists():
            subprocess.run([sys.executable, __file__, "--in-jax", params, trained], check=True)

        found = ps.from_orbax(trained, like=s1, rename={"params": ""}).check()
        s2 = found.into(s1)  # the optimizer and the key are those of s1
        fork = store.checkpoint("after-jax")
        accuracy = fork.evaluate(s2, val_dl, metrics=metrics)["accuracy"]
        leaves = f"{len(found.kept)} leaves, {len(found.unused)} unused"
        print(f"torch, of {leaves}: accuracy {accuracy:.4f}, {ps.tree_hash(s2.params)[:11]}")
        s3 = fork.train(s2, train_dl, val_dl, epochs=1, metrics=metrics, progress=False)
        print(f"an epoch later: {ps.tree_hash(s3.params)[:11]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="ckpts/jax_interop", help="where the log and the snapshots are kept")
    parser.add_argument("--in-jax", nargs=2, type=Path, metavar=("PARAMS", "TRAINED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_jax:
        in_jax(*arguments.in_jax)
    else:
        main(arguments.store)
