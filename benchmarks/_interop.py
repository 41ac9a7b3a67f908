"""Run by ``interop``: a state to JAX and back, in a process that may import it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import torch

from benchmarks._measure import interleave, timed
from purestate.core._key import Key
from purestate.core._state import State
from purestate.core._tree import Leaves
from purestate.interop._jax import from_jax, to_jax

megabytes, leaves, rounds = map(int, sys.argv[1:])
numbers = megabytes * 250_000 // leaves
tensors = {f"leaf{i}": torch.full((numbers,), float(i)) for i in range(leaves)}
state = State(params=Leaves(tensors, "params"), frozen=Leaves(), buffers=Leaves(), key=Key.from_seed(0))
arrays = to_jax(state)
copied = jnp.array(torch.ones(numbers).numpy(), copy=True)  # what the first call of each brings


def resident() -> float | None:
    """Return the resident memory in MB, where the kernel tells."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4096 / 1e6 if pages.exists() else None


before = resident()
kept = [(to_jax(state), from_jax(arrays, like=state)) for _ in range(5)]
after = resident()
shared = all(
    array.unsafe_buffer_pointer() == tensors[name].data_ptr() == kept[0][1].params[name].data_ptr()
    for name, array in kept[0][0]["params"].items()
)
del kept
seconds = interleave(
    {
        "to": timed(lambda: to_jax(state)),
        "copy": timed(lambda: jax.block_until_ready({n: jnp.array(t.numpy(), copy=True) for n, t in tensors.items()})),
        "from": timed(lambda: from_jax(arrays, like=state)),
        "clone": timed(lambda: {name: torch.from_dlpack(array).clone() for name, array in arrays["params"].items()}),
    },
    rounds,
)
grown = None if before is None or after is None else max(0.0, after - before)
print(json.dumps({**seconds, "shared": shared, "grown": grown}))
