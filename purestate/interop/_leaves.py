"""A pytree of JAX arrays as named leaves: what an optimizer of JAX keeps, the way a `purestate.State` has it.

An array that belongs to a parameter, as ``state[0].mu['fc.weight']`` of Optax does, is that parameter's slot ``0.mu``; any
other, such as a counter, has a name of its own, ``0.count``. So moments lie together at rest, follow their parameter when
others are frozen, and are compared by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from purestate.core._component import Component, Json, escape
from purestate.core._hash import dtype_name
from purestate.errors import TreeMismatchError, UnsupportedError
from purestate.interop._jax import to_jax

__all__ = ["Layout", "Place", "as_array", "strong"]

_WIDE = (torch.int64, torch.uint64, torch.float64, torch.complex128)


class Place(NamedTuple):
    """Where a leaf is: the slot of a parameter, or, without one, a name of its own."""

    param: str | None
    slot: str

    @property
    def path(self) -> str:
        """The leaf in a component, as those of torch's optimizers are called."""
        return f"optimizer.state[{self.slot!r}]" if self.param is None else f"state/{escape(self.param)}/{escape(self.slot)}"


class Layout:
    """The structure of a pytree and the place of each of its leaves.

    Args:
        jax: The module.
        tree: Arrays, or what `jax.eval_shape` gives for them. Not held.
        params: The names of parameters, as they are keys of dicts in the tree.
        who: Whose tree it is, for messages: ``'ps.optax'``.

    Raises:
        UnsupportedError: A leaf is no array, or two have one place.
    """

    def __init__(self, jax: Any, tree: Any, params: Collection[str], who: str) -> None:
        self._jax, self._who = jax, who
        found, self.structure = jax.tree_util.tree_flatten_with_path(tree)
        self.places = [_place(jax, path, params) for path, _ in found]
        self._keys = [_key_impl(jax, leaf) for _, leaf in found]
        self._specs: list[tuple[Any, ...]] = []
        for path, leaf in found:
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
                where = jax.tree_util.keystr(path)
                raise UnsupportedError(
                    f"{who}: expected an array at {where}, got {leaf!r}.", fix="Make it one: jnp.asarray(...)."
                )
            self._specs.append((tuple(leaf.shape), str(leaf.dtype)))
        if len(set(self.places)) < len(self.places):
            twice = next(place.path for place in self.places if self.places.count(place) > 1)
            raise UnsupportedError(f"{who}: two leaves are called {twice!r}.", fix="Give the keys of its dicts other names.")

    def must_fit(self, tree: Any, what: str) -> list[Any]:
        """Return the leaves of a tree of this structure.

        Raises:
            TreeMismatchError: It has another one, or other shapes or dtypes.
        """
        leaves, structure = self._jax.tree_util.tree_flatten(tree)
        if structure != self.structure:
            raise TreeMismatchError(
                f"{self._who}: {what} has another structure than before.",
                cause="It is kept by its names, so it has the same from the first step on.",
                path="optimizer",
                expected=str(self.structure),
                actual=str(structure),
            )
        for leaf, place, spec in zip(leaves, self.places, self._specs, strict=True):
            if (actual := (tuple(leaf.shape), str(leaf.dtype))) != spec:
                (shape, dtype), (new_shape, new_dtype) = spec, actual
                raise TreeMismatchError(
                    f"{self._who}: {place.path} was {dtype}{list(shape)} and is {new_dtype}{list(new_shape)} in {what}.",
                    path=f"optimizer[{place.path!r}]",
                    expected=spec,
                    actual=actual,
                )
        return leaves

    def data(self, leaves: Sequence[Any]) -> list[Any]:
        """Return leaves in the order of the tree, of keys the words."""
        words = self._jax.random.key_data
        return [leaf if impl is None else words(leaf) for leaf, impl in zip(leaves, self._keys, strict=True)]

    def leaf(self, i: int, data: Any) -> Any:
        """Return leaf ``i`` as it is in the tree: `data` undone."""
        return data if self._keys[i] is None else self._jax.random.wrap_key_data(data, impl=self._keys[i])

    def component(self, tensors: Sequence[torch.Tensor]) -> Component:
        """Return the optimizer of a state that has these tensors as its leaves, in the order of the tree."""
        leaves = dict(zip((place.path for place in self.places), tensors, strict=True))
        slots: dict[str, dict[str, Json]] = {}
        named: dict[str, Json] = {}
        for param, slot in sorted(self.places, key=lambda place: (place.param or "", place.slot)):
            node = {"~": "tensor", "v": Place(param, slot).path}
            (named if param is None else slots.setdefault(param, {}))[slot] = node
        return Component({"objects": {"optimizer": {"state": slots, **({"named_state": named} if named else {})}}}, leaves)

    def of_component(self, kept: Mapping[str, torch.Tensor], array: Callable[[torch.Tensor, str], Any]) -> Any:
        """Return the tree of what a component keeps.

        Args:
            kept: The leaves of the component.
            array: Makes an array of a tensor at a path.

        Raises:
            TreeMismatchError: There is no such leaf, or there are others.
        """
        paths = [place.path for place in self.places]
        if set(kept) != set(paths):
            path = min(set(kept) ^ set(paths))
            raise TreeMismatchError(
                f"{self._who}: the state's optimizer has {'a' if path in kept else 'no'} leaf {path!r}, "
                f"and what is begun here has {'none' if path in kept else 'one'}.",
                cause="It was made by another optimizer.",
                fix="Begin afresh: state.replace(optimizer=None).",
                path=f"optimizer[{path!r}]",
                expected=tuple(paths),
                actual=tuple(kept),
            )
        leaves = [self.leaf(i, array(kept[path], path)) for i, path in enumerate(paths)]
        tree = self._jax.tree_util.tree_unflatten(self.structure, leaves)
        self.must_fit(tree, "the state")
        return tree


def as_array(jax: Any, tensor: torch.Tensor, where: str, who: str, *, copy: bool = False) -> Any:
    """Return a tensor of a state as an array of JAX with the same bits.

    Raises:
        UnsupportedError: It has 64 bits, and JAX is not switched to that.
    """
    if tensor.dtype in _WIDE and not jax.config.jax_enable_x64:
        raise UnsupportedError(
            f"{who}: expected {where} to fit into 32 bits, got {dtype_name(tensor.dtype)}.",
            cause="JAX makes 32-bit numbers of 64-bit ones unless it is told not to.",
            fix="Switch them on, jax.config.update('jax_enable_x64', True), or make the tensor float32.",
        )
    return to_jax(tensor, copy=copy)


def strong(jax: Any, tree: Any) -> Any:
    """Return a tree whose arrays have dtypes of their own: JAX lets those made of Python's numbers follow others, no tensor does.

    Else a run that goes on from tensors would compute in other dtypes than one that was never left.
    """

    def own(leaf: Any) -> Any:
        array = leaf if hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)
        return array if _key_impl(jax, array) is not None else jax.lax.convert_element_type(array, array.dtype)

    return jax.tree.map(own, tree)


def _place(jax: Any, path: Sequence[Any], params: Collection[str]) -> Place:
    keys = [next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)) for key in path]
    dicts = [i for i, key in enumerate(path) if isinstance(key, jax.tree_util.DictKey) and keys[i] in params]
    texts = [str(key).replace(".", "\\.") for key in keys]
    if not dicts:
        return Place(None, ".".join(texts))
    at = dicts[-1]
    rest = texts[:at] + (["*", *texts[at + 1 :]] if texts[at + 1 :] else [])
    return Place(keys[at], ".".join(rest))


def _key_impl(jax: Any, leaf: Any) -> Any:
    is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    # `jax.eval_shape` gives shapes of keys, which have an implementation and do not tell it
    return jax.random.key_impl(leaf if isinstance(leaf, jax.Array) else jax.numpy.empty((), leaf.dtype)) if is_key else None
