"""A training step written in JAX, as ``train(step=)`` takes one.

The parameters of the state, its optimizer's arrays and the batch are shown to JAX, whose answer is shown to torch: neither side
copies, for neither writes to what it has given away. We jit the function and donate nothing: a state that is recorded, resumed
or held by somebody keeps its bits whatever the next step does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from purestate.core._component import Component
from purestate.core._own import step_key
from purestate.core._state import Counters, State
from purestate.core._tree import Leaves
from purestate.errors import BatchError, SetupError, TreeMismatchError, UnsupportedError
from purestate.interop._cells import put_back
from purestate.interop._config import jax_config
from purestate.interop._jax import from_jax, to_jax
from purestate.interop._leaves import Layout, as_array, strong
from purestate.interop._load import load_jax
from purestate.interop._traced import traced

__all__ = ["JaxStep", "jax_step"]

_WHO = "ps.jax_step"
_Pair = tuple[torch.Tensor, Any]


def jax_step(fn: Callable[..., Any], *, init: Callable[[Any], Any] | None = None) -> JaxStep:
    """Return what `train` takes as ``step`` for a training step that is written in JAX.

    Args:
        fn: ``fn(params, opt_state, key, batch) -> (params, opt_state, metrics)``, a function that `jax.jit` takes, which is done
            here. ``params`` is a flat dict of the trainable parameters by name (``ps.nest(params)`` makes it one of dicts, for
            Flax); ``opt_state`` any pytree of arrays; ``key`` a key of JAX, another one for each step; ``batch`` what the loader
            gave, with arrays in the place of tensors, 64-bit ones narrowed where JAX is not switched to 64 bits. Metrics are
            a dict of means over the batch without dimensions.
        init: Makes the first ``opt_state`` of ``params``, such as ``optax.adam(1e-3).init``. Without it that is ``()``.

    Returns:
        The step, which modifies neither a state nor a batch. Frozen parameters and buffers stay as they are. What ``opt_state``
        holds is the optimizer of the state: hashed, recorded, resumed, and with ``load_best`` that of the best epoch.

    Raises:
        MissingExtraError: JAX is not installed.
        SetupError: It is no function.

    Example:
        >>> def descend(params: dict, opt_state: tuple, key: object, batch: tuple) -> tuple:
        ...     import jax, jax.numpy as jnp
        ...     x, y = batch
        ...     loss, slopes = jax.value_and_grad(lambda p: jnp.mean((x @ p["weight"].T + p["bias"] - y) ** 2))(params)
        ...     return {name: params[name] - 0.1 * slopes[name] for name in params}, opt_state, {"loss": loss}
        >>> def train(ck: ps.Checkpoint, state: ps.State, loader: list) -> ps.State:
        ...     return ck.train(state, loader, epochs=2, step=ps.jax_step(descend))
    """
    for name, given in (("fn", fn), ("init", init)):
        if isinstance(given, type) or not (callable(given) or (name == "init" and given is None)):
            raise SetupError(f"{_WHO}: expected {name} to be a function, got {given!r}.", argument=name)
    return JaxStep(load_jax(_WHO), fn, init)


class JaxStep:
    """A step in JAX: ``step(state, batch) -> (state, metrics)``. Made by `jax_step`."""

    def __init__(self, jax: Any, fn: Callable[..., Any], init: Callable[[Any], Any] | None) -> None:
        self._jax, self._fn, self._init = jax, fn, init
        self._layouts: dict[Any, Layout] = {}
        put_back(fn, init)
        self._shown: dict[int, _Pair] = {}
        """The arrays behind the tensors that were returned last, by the identity of these: both are the same memory."""

        def step(params: Any, opt_state: Any, words: Any, batch: Any) -> tuple[Any, Any, Any]:
            key = jax.random.wrap_key_data(words, impl="threefry2x32")
            returned = traced(_WHO, fn, params, opt_state, key, batch)
            if not (isinstance(returned, tuple) and len(returned) == 3 and isinstance(returned[2], Mapping)):
                raise SetupError(
                    f"{_WHO}: expected the function to return (params, opt_state, metrics), got {_kind(returned)}.",
                    fix="return params, opt_state, {'loss': loss}",
                    argument="fn",
                )
            new, kept, metrics = returned
            return strong(jax, new), strong(jax, kept), metrics

        self._step = jax.jit(step)

    def __purestate_fingerprint__(self) -> dict[str, Any]:
        put_back(self._fn, self._init)
        return {"fn": self._fn, "init": self._init, **jax_config(self._jax)}

    def __call__(self, state: State, batch: Any) -> tuple[State, dict[str, Any]]:
        """Take a step.

        Args:
            state: Not modified. On the CPU.
            batch: Not modified.

        Returns:
            The state behind the step, and the metrics as numbers.

        Raises:
            TreeMismatchError: The function returned other parameters, or another ``opt_state``, than it was given.
            UnsupportedError: The state is not on the CPU, or has 64-bit parameters where JAX has none.
        """
        memory = _Memory(self._jax, self._shown)
        params = {name: memory.array(tensor, f"params[{name!r}]") for name, tensor in state.params.items()}
        layout, opt_state = self._optimizer(state, params, memory)
        shown = memory.batch(batch)
        try:
            new, kept, metrics = self._jax.block_until_ready(self._step(params, opt_state, step_key(state).words, shown))
        except TypeError as error:
            if "as an abstract array" not in str(error):
                raise
            raise BatchError(
                f"{_WHO}: expected a batch of tensors and numbers: {str(error).splitlines()[0]}",
                fix="Give the loader a collate_fn that leaves out the rest.",
            ) from None
        self._must_be(params, new)
        leaves = layout.must_fit(kept, "the opt_state that the function returned")
        tensors = {name: memory.tensor(new[name]) for name in params}
        changes: dict[str, Any] = {"params": Leaves(tensors, "params")}
        if layout.places:
            optimizer = layout.component([memory.tensor(array) for array in layout.data(leaves)])
            changes["optimizer"] = Component(optimizer.skeleton, Leaves(optimizer.leaves, "optimizer"))
        self._shown = memory.returned
        after = state.based(counters=Counters(state.counters.epoch, state.counters.step + 1), **changes)
        means = {name: float(value) if _is_number(value) else from_jax(value) for name, value in metrics.items()}
        return state.after({"step": state.counters.step}, after), means

    def _optimizer(self, state: State, params: Mapping[str, Any], memory: _Memory) -> tuple[Layout, Any]:
        """Return the optimizer of a state as the function knows it."""
        jax = self._jax
        signature = tuple((name, array.shape, str(array.dtype)) for name, array in params.items())
        if signature not in self._layouts:
            init = self._init
            shapes = () if init is None else jax.eval_shape(lambda params: strong(jax, init(params)), dict(params))
            self._layouts[signature] = Layout(jax, shapes, params, _WHO)
        layout, kept = self._layouts[signature], state.optimizer
        if not layout.places or self._init is None:
            return layout, jax.tree.unflatten(layout.structure, [])
        if kept is None or kept.skeleton.get("groups_only"):
            copies = {name: array.copy() for name, array in params.items()}
            fresh = strong(jax, self._init(copies))
            return layout, jax.tree.unflatten(layout.structure, layout.must_fit(fresh, "what init returned"))
        return layout, layout.of_component(kept.leaves, memory.array)

    def _must_be(self, params: Mapping[str, Any], new: Any) -> None:
        if not isinstance(new, Mapping):
            raise TreeMismatchError(f"{_WHO}: expected the function to return params as a dict, got {_kind(new)}.", path="params")
        for name in [*params, *(name for name in new if name not in params)]:
            specs = [
                f"{tree[name].dtype}{list(tree[name].shape)}" if hasattr(tree.get(name), "shape") else None
                for tree in (params, new)
            ]
            if specs[0] != specs[1]:
                raise TreeMismatchError(
                    f"{_WHO}: params[{name!r}]: expected {specs[0] or 'no such leaf'}, got {specs[1] or 'no such leaf'} "
                    "in what the function returned.",
                    cause="Parameters come back as they were given: a flat dict with the same names, shapes and dtypes.",
                    fix="ps.flatten makes names of nested dicts.",
                    path=f"params[{name!r}]",
                    expected=specs[0],
                    actual=specs[1],
                )


class _Memory:
    """What one step shows to JAX, and what JAX returns, as tensors. Arrays here are without keys.

    Args:
        jax: The module.
        known: Arrays behind tensors, by the identity of these.
    """

    def __init__(self, jax: Any, known: Mapping[int, _Pair]) -> None:
        self._jax, self._known = jax, known
        self._given: dict[int, _Pair] = {}
        self._lent: set[int] = set()
        self.returned: dict[int, _Pair] = {}
        """The arrays behind the tensors that `tensor` returned."""

    def array(self, tensor: torch.Tensor, where: str) -> Any:
        """Return a tensor of the state as an array over its memory."""
        pair = self._known.get(id(tensor))
        if pair is None or pair[0] is not tensor:
            if not tensor.is_cpu:
                raise UnsupportedError(f"{_WHO}: expected a state on the CPU, {where} is on {tensor.device}.")
            pair = tensor, as_array(self._jax, tensor, where, _WHO)
        if tensor.numel():
            self._given[pair[1].unsafe_buffer_pointer()] = pair
        return pair[1]

    def batch(self, batch: Any) -> Any:
        """Return a batch with arrays over the memory of its tensors."""
        shown = to_jax(batch, narrow=True)
        arrays = [leaf for leaf in self._jax.tree.leaves(shown) if isinstance(leaf, self._jax.Array)]
        self._lent = {array.unsafe_buffer_pointer() for array in arrays if array.size}
        return shown

    def tensor(self, array: Any) -> torch.Tensor:
        """Return an array as a tensor over its memory.

        What JAX handed on as it is, is the tensor that it was given, so that a change of one is seen in both; or a copy where
        that was the batch, whose memory is the loader's.
        """
        at = array.unsafe_buffer_pointer() if array.size else None
        if at in self._lent:
            array = self._jax.block_until_ready(array.copy())
        given = self._given.get(at) if at is not None else None
        same = given is not None and (given[1].shape, given[1].dtype) == (array.shape, array.dtype)
        pair = given if given is not None and same else (from_jax(array), array)
        self.returned[id(pair[0])] = pair
        return pair[0]


def _is_number(value: Any) -> bool:
    return hasattr(value, "dtype") and not np.shape(value)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(item).__name__ for item in value) or 'nothing'}"
    return f"a {type(value).__name__}"
