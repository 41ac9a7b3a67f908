"""States and their subtrees as JAX pytrees: `jax.tree.map(function, state)` gives a state.

The leaves are the tensors as they are. A function may return tensors or arrays of JAX or numpy, which become tensors; whatever
else JAX puts in their place, such as tracers and the markers of its own functions, stays as it is. The key, the counters, what
an optimizer holds beside tensors and the recipe are those of the first state. A hash is computed anew, since leaves are new.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from purestate.core._state import State, flatten_state, unflatten_state
from purestate.core._tree import Leaves

__all__ = ["register"]

_registered: list[Any] = []


def register(jax: Any) -> None:
    """Make `State` and its subtrees known to JAX, once a process.

    Args:
        jax: The module.
    """
    if _registered:
        return
    _registered.append(jax)
    util = jax.tree_util

    def leaves_with_keys(leaves: Leaves) -> tuple[list[tuple[Any, Any]], Any]:
        children = [(util.DictKey(name), tensor) for name, tensor in leaves.items()]
        return children, (leaves.where, tuple(leaves))

    def leaves_from(about: Any, children: Iterable[Any]) -> Leaves:
        where, names = about
        return Leaves({name: _as_tensor(jax, child) for name, child in zip(names, children, strict=True)}, where)

    def state_with_keys(state: State) -> tuple[list[tuple[Any, Any]], Any]:
        children, meta = flatten_state(state)
        named = zip(meta.structure, children, strict=True)
        return [(util.GetAttrKey(name), Leaves(tensors, name)) for name, tensors in named], meta

    util.register_pytree_with_keys(Leaves, leaves_with_keys, leaves_from)
    util.register_pytree_with_keys(State, state_with_keys, unflatten_state)


def _as_tensor(jax: Any, value: Any) -> Any:
    if isinstance(value, jax.core.Tracer) or not isinstance(value, jax.Array | np.ndarray):
        return value
    from purestate.interop._jax import from_jax

    return from_jax(value)
