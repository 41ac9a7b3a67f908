"""An Optax transformation where an optimizer of torch goes: the bits that Optax gives under `jax.jit` on the same arrays.

While steps are taken the optimizer's state stays in JAX, whose arrays nobody writes to. The parameters are torch's, updated in
place as by any optimizer. JAX sees their memory, which is theirs to change only between two calls, each of which is waited for;
gradients are copied to where JAX sees them. What JAX hands on unchanged would be such memory, so it is copied: see `_Engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from purestate.errors import MissingExtraError, SetupError, UnsupportedError
from purestate.interop._cells import put_back
from purestate.interop._config import jax_config
from purestate.interop._jax import from_jax
from purestate.interop._leaves import Layout, as_array, strong
from purestate.interop._load import load_jax
from purestate.interop._traced import traced

__all__ = ["OptaxOptimizer", "optax"]

_NOT_IN_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_STAGED = 1 << 20
"""Gradients of up to so many bytes are copied to where JAX sees them, which costs less than showing them to it."""


def optax(transformation: Any) -> Callable[[Mapping[str, nn.Parameter]], Optimizer]:
    """Return what `setup` takes as ``optimizer_fn`` for a gradient transformation of Optax.

    The transformation sees the trainable parameters as one flat dict by name, so masks and labels are made of names such as
    ``'fc.weight'``. A parameter that took no part in a loss has a gradient of zeros, as in JAX. Schedules are Optax's own: the
    steps that they count are in the state of the optimizer, which goes back to the best epoch with ``load_best``. Optimizer and
    parameters are on the CPU.

    Args:
        transformation: Such as ``optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))``. What it holds, rates and
            schedules included, is part of the question.

    Raises:
        MissingExtraError: JAX or Optax is not installed.
        SetupError: It is no transformation.

    Example:
        >>> def with_adam(state: ps.State) -> ps.State:
        ...     import optax
        ...     return ps.setup(state, optimizer_fn=ps.optax(optax.adam(1e-3)))
    """
    if isinstance(transformation, type) or not all(callable(getattr(transformation, name, None)) for name in ("init", "update")):
        raise SetupError(
            f"ps.optax: expected a gradient transformation, got {transformation!r}.",
            fix="Call what makes it: ps.optax(optax.adam(1e-3)).",
            argument="transformation",
        )
    return _Optax(load_jax("ps.optax"), transformation, _apply_updates())


def _apply_updates() -> Callable[[Any, Any], Any]:
    try:
        from optax import apply_updates
    except ModuleNotFoundError as error:
        if error.name != "optax":
            raise
        raise MissingExtraError("ps.optax: Optax is not installed.", fix="Install it: pip install optax.", extra="jax") from None
    return apply_updates


class _Optax:
    """Makes optimizers of one transformation, which share what JAX compiled."""

    takes_names = True
    """`purestate.core._optim.build_optimizer` gives the parameters by name."""
    keeps_rates = True
    """Learning rates are the transformation's own."""

    def __init__(self, jax: Any, transformation: Any, apply_updates: Callable[[Any, Any], Any]) -> None:
        self.jax, self.transformation, self._apply = jax, transformation, apply_updates
        self._compiled: dict[Any, Callable[..., Any]] = {}
        put_back(transformation)

    def __purestate_fingerprint__(self) -> dict[str, Any]:
        put_back(self.transformation)
        return {"transformation": self.transformation, **jax_config(self.jax)}

    def __call__(self, params: Mapping[str, nn.Parameter]) -> OptaxOptimizer:
        return OptaxOptimizer(self, params)

    def compiled(self, names: tuple[str, ...], structure: Any) -> Callable[..., Any]:
        """Return ``update(gradients, state, parameters) -> (parameters, state)`` on lists of arrays."""
        key = names, structure
        if key not in self._compiled:
            jax, update, apply, tree = self.jax, self.transformation.update, self._apply, self.jax.tree_util

            def step(gradients: list[Any], state: list[Any], params: list[Any]) -> tuple[list[Any], Any]:
                by_name = dict(zip(names, params, strict=True))
                given = dict(zip(names, gradients, strict=True)), tree.tree_unflatten(structure, state), by_name
                updates, new = traced("ps.optax", update, *given)
                moved = apply(by_name, updates)
                return [moved[name] for name in names], strong(jax, new)

            self._compiled[key] = self.jax.jit(step)
        return self._compiled[key]


class OptaxOptimizer(Optimizer):
    """A transformation at work on parameters. Made by what `optax` returns.

    Args:
        made_by: The transformation.
        params: Parameters by name; updated in place.
    """

    __slots__ = ("_engine",)  # no attribute that `purestate.core._component.Survey` would see

    def __init__(self, made_by: _Optax, params: Mapping[str, nn.Parameter]) -> None:
        super().__init__([{"params": list(params.values())}], {})
        self._engine = _Engine(made_by, params)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters from their ``grad``."""
        self._engine.step(self.state)

    def purestate_settle(self) -> None:
        """Put the state of now where optimizers of torch have theirs: see `purestate.core._optim.export_optimizer`."""
        self._engine.settle(self.state)


class _Engine:
    """The state of a transformation in JAX, and the memory that JAX sees."""

    def __init__(self, made_by: _Optax, params: Mapping[str, nn.Parameter]) -> None:
        self._jax, self._made_by, self._params = made_by.jax, made_by, dict(params)
        self._names = tuple(params)
        for name, param in params.items():
            if not param.is_cpu:
                raise UnsupportedError(f"ps.optax: expected parameters on the CPU, {name!r} is on {param.device}.")
        self._layout: Layout | None = None
        self._leaves: list[Any] = []
        self._update: Callable[..., Any] | None = None
        self._seen: list[_Seen] = []
        self._forwarded: list[int] | None = None
        self._settled = False

    def step(self, state: dict[Any, Any]) -> None:
        """Update the parameters. ``state`` is that of the optimizer: read at the first step, stale from then on."""
        if self._layout is None:
            self._begin(state)
        assert self._update is not None
        params = list(self._params.values())
        shown = [seen.param(param) for seen, param in zip(self._seen, params, strict=True)]
        gradients = [seen.gradient(param.grad, param) for seen, param in zip(self._seen, params, strict=True)]
        moved, new = self._called(gradients, shown)
        self._leaves = self._owned(new, [*shown, *gradients])
        for seen, param, array in zip(self._seen, params, moved, strict=True):
            seen.write(param, array)
        torch.autograd.graph.increment_version(params)  # not all that was written is counted by torch
        self._settled = False

    def settle(self, state: dict[Any, Any]) -> None:
        """Write the state of now into that of the optimizer."""
        if self._layout is None or self._settled:
            return
        state.clear()
        tensors = map(from_jax, self._layout.data(self._leaves))
        for place, tensor in sorted(zip(self._layout.places, tensors, strict=True), key=lambda pair: pair[0].slot):
            if place.param is None:
                state[place.slot] = tensor
            else:
                state.setdefault(self._params[place.param], {})[place.slot] = tensor
        self._settled = True

    def _begin(self, state: Mapping[Any, Any]) -> None:
        """Take the state of the optimizer; what is not there begins as the transformation says."""
        self._seen = [_Seen(self._jax) for _ in self._params]
        copies = {
            name: as_array(self._jax, param.detach(), f"params[{name!r}]", "ps.optax", copy=True)
            for name, param in self._params.items()
        }
        fresh = strong(self._jax, self._made_by.transformation.init(copies))
        layout = self._layout = Layout(self._jax, fresh, self._params, "ps.optax")
        self._leaves = layout.must_fit(fresh, "its state")
        for i, (param, slot) in enumerate(layout.places):
            kept = state.get(slot) if param is None else state.get(self._params[param], {}).get(slot)
            if kept is not None:
                self._leaves[i] = layout.leaf(i, as_array(self._jax, kept, slot, "ps.optax", copy=True))
        self._leaves = layout.must_fit(self._jax.tree_util.tree_unflatten(layout.structure, self._leaves), "what was kept")
        self._update = self._made_by.compiled(self._names, layout.structure)

    def _called(self, gradients: list[Any], params: list[Any]) -> tuple[list[Any], list[Any]]:
        assert self._update is not None
        assert self._layout is not None
        if self._forwarded is not None:
            moved, new = self._update(gradients, self._leaves, params)
            return moved, self._jax.tree_util.tree_leaves(new)
        try:
            moved, new = self._update(gradients, self._leaves, params)
        except TypeError as error:
            raise UnsupportedError(
                f"ps.optax: the transformation cannot be updated with gradients, state and parameters: {error}",
                cause="Some need the loss or a function of it besides, which an optimizer of torch is not given.",
                fix="Write a step of your own with it: ck.train(..., step=ps.jax_step(...)).",
            ) from error
        return moved, self._layout.must_fit(new, "its new state")

    def _owned(self, leaves: list[Any], shown: Sequence[Any]) -> list[Any]:
        """Return arrays that nobody writes to: those that JAX handed on are the memory of parameters or gradients."""
        if self._forwarded is None:  # which ones follows from what was compiled
            lent = {array.unsafe_buffer_pointer() for array in shown if array.size}
            self._forwarded = [i for i, leaf in enumerate(leaves) if _pointer(self._jax, leaf) in lent]
        for i in self._forwarded:
            leaves[i] = leaves[i].copy()
        if self._forwarded:
            self._jax.block_until_ready([leaves[i] for i in self._forwarded])
        return leaves


class _Seen:
    """The memory of one parameter and of its gradient as JAX sees it."""

    def __init__(self, jax: Any) -> None:
        self._jax = jax
        self._at = -1  # where the parameter was when it was shown
        self._array: Any = None
        self._copy: torch.Tensor | None = None
        self._target: np.ndarray[Any, Any] | None = None
        self._staged: torch.Tensor | None = None
        self._gradient: Any = None

    def param(self, param: torch.Tensor) -> Any:
        """Return a parameter as an array: over its own memory where JAX can see that, else over a copy."""
        if self._at != param.data_ptr():
            self._at, self._copy = param.data_ptr(), None
            self._target = None if param.dtype in _NOT_IN_NUMPY else param.detach().numpy()
            self._array = self._view(param.detach()) if param.is_contiguous() else None
            if self._array is None:
                self._copy = torch.empty(param.shape, dtype=param.dtype)
                self._array = self._view(self._copy)
        if self._copy is not None:
            self._copy.copy_(param)
        return self._array

    def gradient(self, gradient: torch.Tensor | None, param: torch.Tensor) -> Any:
        """Return the gradient of a parameter as an array, zeros for none."""
        if gradient is not None and gradient.nbytes > _STAGED:
            return as_array(self._jax, gradient, "a gradient", "ps.optax")
        if self._staged is None:
            self._staged = torch.empty(param.shape, dtype=param.dtype)
            self._gradient = self._view(self._staged)
        if gradient is None:
            self._staged.zero_()
        else:
            self._staged.copy_(gradient)
        return self._gradient

    def write(self, param: torch.Tensor, array: Any) -> None:
        """Write an array into a parameter, once JAX is done with it."""
        if self._target is None:
            param.copy_(from_jax(array))
        else:
            self._target[...] = np.asarray(array)

    def _view(self, tensor: torch.Tensor) -> Any:
        """Return an array over the memory of a tensor, or None where JAX made a copy of it."""
        array = as_array(self._jax, tensor, "a parameter", "ps.optax")
        return array if array.unsafe_buffer_pointer() == tensor.data_ptr() or not tensor.numel() else None


def _pointer(jax: Any, leaf: Any) -> int:
    data = jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return data.unsafe_buffer_pointer() if data.size else -1
