"""Tensors to JAX arrays and back: the same memory where both sides can have it, the same bits anyway.

JAX takes a tensor's memory as it is if it is on a device of both, in rows, and begins at a multiple of 64 bytes, as torch's own
allocations do. Arrays of JAX do not change, and neither do the tensors of a state, so neither side needs a copy for safety.
How trees are walked, and what `like` asks, is here too; what layers of Flax are called is in `_flax`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch

from purestate.core._component import Component
from purestate.core._hash import dtype_name
from purestate.core._state import State
from purestate.core._tree import LeafSpec, Leaves, check_same_names, in_order, spec_of, stride_order
from purestate.errors import PureStateWarning, StateError, TreeMismatchError, UnsupportedError
from purestate.interop._load import load_jax

__all__ = ["FromJax", "ToJax", "from_jax", "to_jax"]

_WIDE = {
    torch.int64: np.int32,
    torch.uint64: np.uint32,
    torch.float64: np.float32,
    torch.complex128: np.complex64,
}
"""What JAX without 64-bit types would make of those of torch."""
_COMMON = {
    name: getattr(torch, name)
    for name in (
        "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 bfloat16 float16 float32 float64 complex64 complex128 "
        "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
    ).split()
}
"""The dtypes that torch and JAX have, by their name in both."""
_SHARED = frozenset(_COMMON.values())
_NAMED = 8
"""How many leaves a warning lists."""


def to_jax(tree: Any, *, copy: bool = False, narrow: bool = False) -> Any:
    """Return the tensors of a state or a tree as JAX arrays, without a copy where device, dtype and strides allow it.

    What shares memory is lent: the array stays what it is as long as nobody writes to the tensor, which holds for a state. JAX
    does not write to it; on the CPU not even where the array is donated (``donate_argnums``), which deletes the array only.
    What is written through another view of it changes the state behind torch's back, ``torch.from_dlpack(array).add_(1)``
    for example: ``state.verify()`` finds it if the state had been hashed.

    Args:
        tree: A `State`, or dicts, lists, tuples and other pytrees of tensors and arrays. Not modified. Of tensors that a module
            trains on, take copies.
        copy: Copy all of it.
        narrow: Let JAX make 32-bit numbers of 64-bit ones where it is not switched to 64 bits. Without it such leaves stay
            numpy arrays, and a `PureStateWarning` names them.

    Returns:
        The tree with arrays; of a state a dict of its parts (``'params'``, ``'frozen'``, ``'buffers'``, ``'optimizer'``, those
        that there are) with arrays by name. What is neither a tensor nor an array is handed on.

    Raises:
        MissingExtraError: JAX is not installed.
        UnsupportedError: A leaf has a dtype that JAX has not, or is not dense; or `narrow` would change an integer.

    Example:
        >>> from collections.abc import Mapping
        >>> def double(tree: Mapping) -> dict:
        ...     arrays = ps.to_jax(tree)  # jax.numpy works on them
        ...     return ps.from_jax({name: array * 2 for name, array in arrays.items()}, like=tree)
    """
    jax = load_jax("to_jax")
    wide: list[str] = []
    convert = ToJax(jax, copy, narrow, wide)
    found = _mapped(jax, tree, "tree", convert)
    if wide:
        more = f" and {len(wide) - _NAMED} more" if len(wide) > _NAMED else ""
        warnings.warn(
            f"to_jax: JAX would make 32-bit numbers of {', '.join(wide[:_NAMED])}{more}; they stay numpy arrays. "
            "jax.config.update('jax_enable_x64', True) keeps them 64 bits wide, narrow=True lets it.",
            PureStateWarning,
            stacklevel=2,
        )
    return found


def from_jax(tree: Any, *, like: Any = None, copy: bool = False) -> Any:
    """Return JAX arrays as tensors, without a copy where the device and the layout allow it.

    Args:
        tree: Pytrees of arrays of JAX or numpy; with a state as `like`, what `to_jax` makes of one, in whole or some of its
            parts. Not modified. JAX does not write to an array whose memory is shared; torch does where a tensor is changed in
            place, as an optimizer changes parameters: copy what is trained on outside of a state.
        like: A `State`, or a tree of tensors: the result has its names, order, dtypes, strides and devices.
        copy: Copy all of it.

    Returns:
        The tree with tensors; with a state as `like`, that state with other tensors in the parts that are given. Its key and
        counters are those of `like`; ``state.replace(key=..., counters=...)`` changes them.

    Raises:
        MissingExtraError: JAX is not installed.
        TreeMismatchError: Names, shapes or dtypes are not those of `like`.
        StateError: An array was deleted or donated, is spread over several devices, or has no value yet.
        UnsupportedError: An array has a dtype that torch has not.
    """
    jax = load_jax("from_jax")
    convert = FromJax(jax, copy)
    if like is None:
        return _mapped(jax, tree, "tree", convert)
    if isinstance(like, State):
        return _state_like(like, tree, convert)
    return _like(jax, tree, like, "tree", convert)


def _mapped(jax: Any, tree: Any, where: str, leaf: Callable[[Any, str], Any]) -> Any:
    """Return a tree with its leaves exchanged. Dicts keep their order, which JAX's own functions sort."""
    if isinstance(tree, dict | Leaves):
        return {key: _mapped(jax, value, f"{where}[{key!r}]", leaf) for key, value in tree.items()}
    if isinstance(tree, State):
        return {part: _mapped(jax, leaves, part, leaf) for part, leaves in tree._leaves().items()}
    if isinstance(tree, torch.Tensor | np.ndarray | jax.Array):
        return leaf(tree, where)
    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    if jax.tree_util.treedef_is_leaf(structure):
        return tree
    below = [_mapped(jax, child, where + jax.tree_util.keystr(path), leaf) for path, child in paths]
    return jax.tree_util.tree_unflatten(structure, below)


def _state_like(like: State, tree: Any, convert: Callable[[Any, str], Any]) -> State:
    parts = like._leaves()
    if not isinstance(tree, Mapping):
        raise TreeMismatchError(f"from_jax: expected a dict of parts of a state, got a {type(tree).__name__}.", path="tree")
    changes: dict[str, Any] = {}
    for part, arrays in tree.items():
        if part not in parts or not isinstance(arrays, Mapping):
            raise TreeMismatchError(
                f"from_jax: expected parts of a state ({', '.join(parts)}) with arrays by name, got {part!r}.",
                cause="Parameters alone belong below their part.",
                fix="Give from_jax({'params': arrays}, like=state); nested dicts become names by ps.flatten.",
                path=str(part),
                expected=tuple(parts),
            )
        tensors = _leaves_like(parts[part], arrays, part, convert)
        old = getattr(like, part)
        changes[part] = Component(old.skeleton, Leaves(tensors, part)) if isinstance(old, Component) else tensors
    return like.replace(**changes)


def _leaves_like(like: Mapping[str, Any], arrays: Mapping[str, Any], where: str, convert: Any) -> dict[str, torch.Tensor]:
    """Return the arrays of one part, in the order of ``like``."""
    specs = like.spec if isinstance(like, Leaves) else {name: spec_of(tensor) for name, tensor in like.items()}
    found = {name: convert(array, f"{where}[{name!r}]") for name, array in arrays.items()}
    if no_tensor := next((name for name, value in found.items() if not isinstance(value, torch.Tensor)), None):
        raise _unlike(f"{where}[{no_tensor!r}]", specs.get(no_tensor), found[no_tensor])
    check_same_names(where, specs, {name: spec_of(tensor) for name, tensor in found.items()}, "the tree from JAX")
    return {name: _in_place_of(like[name], found[name], spec) for name, spec in specs.items()}


def _like(jax: Any, tree: Any, like: Any, where: str, convert: Any) -> Any:
    if isinstance(like, Mapping):
        if isinstance(tree, Mapping) and all(isinstance(value, torch.Tensor) for value in like.values()):
            return _leaves_like(cast("Mapping[str, Any]", like), tree, where, convert)
        if not isinstance(tree, Mapping) or tree.keys() != like.keys():
            names = sorted(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
            raise TreeMismatchError(
                f"{where}: expected {sorted(map(str, like))}, got {names} in the tree from JAX.",
                fix="ps.nest and ps.flatten go between nested dicts and dotted names.",
                path=where,
                expected=tuple(like),
            )
        return {key: _like(jax, tree[key], value, f"{where}[{key!r}]", convert) for key, value in like.items()}
    if isinstance(like, list | tuple) and type(tree) is type(like) and len(tree) == len(like):
        below = [_like(jax, a, b, f"{where}[{i}]", convert) for i, (a, b) in enumerate(zip(tree, like, strict=True))]
        return type(like)(*below) if hasattr(like, "_fields") else type(like)(below)
    if not isinstance(like, torch.Tensor):
        if jax.tree_util.all_leaves([like]) and not isinstance(tree, jax.Array | np.ndarray):
            return tree
        raise _unlike(where, type(like).__name__, tree)
    found = convert(tree, where)
    if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != (like.shape, like.dtype):
        raise _unlike(where, spec_of(like), found)
    return _in_place_of(like, found, spec_of(like))


def _in_place_of(like: torch.Tensor, tensor: torch.Tensor, spec: LeafSpec) -> torch.Tensor:
    return in_order(tensor.to(like.device), spec.order)


def _unlike(where: str, expected: Any, value: Any) -> TreeMismatchError:
    got = spec_of(value) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
    is_wide = isinstance(expected, LeafSpec) and expected.dtype in _WIDE
    return TreeMismatchError(
        f"{where}: expected {expected or 'no such leaf'}, got {got} in the tree from JAX.",
        cause="JAX without 64-bit types makes 32-bit numbers of 64-bit ones." if is_wide else None,
        fix="Nested dicts become names by ps.flatten." if isinstance(value, Mapping) else None,
        path=where,
        expected=expected,
        actual=got,
    )


class ToJax:
    """A tensor or an array of anybody as an array of JAX; collects the names of those that JAX would narrow."""

    def __init__(self, jax: Any, copy: bool, narrow: bool, wide: list[str]) -> None:
        self.jax, self.copy, self.narrow, self.wide = jax, copy, narrow, wide
        self.is_64_bit = bool(jax.config.jax_enable_x64)

    def __call__(self, value: Any, where: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensor = value.detach() if value.requires_grad else value
        elif isinstance(value, self.jax.Array):
            return value.copy() if self.copy else value
        else:
            tensor = _of_numpy("to_jax", value, where)
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            raise UnsupportedError(
                f"to_jax: expected a dense tensor with elements at {where}, got {tensor.layout} on {tensor.device}.",
                fix="Make it one: tensor.to_dense() or tensor.dequantize().",
            )
        if tensor.dtype not in _SHARED:
            raise _no_dtype("to_jax", where, dtype_name(tensor.dtype), "JAX")
        tensor = _in_rows(tensor.resolve_conj().resolve_neg())
        if not tensor.is_cpu and not (tensor.is_cuda and _has_cuda(self.jax)):
            tensor = tensor.cpu()
        if tensor.dtype in _WIDE and not self.is_64_bit:
            return self._wide(tensor, where)
        return self.jax.dlpack.from_dlpack(tensor.clone() if self.copy else tensor)

    def _wide(self, tensor: torch.Tensor, where: str) -> Any:
        array = tensor.numpy(force=True)
        if self.narrow:
            narrow = array.astype(_WIDE[tensor.dtype])
            if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex and not (narrow == array).all():
                raise UnsupportedError(
                    f"to_jax: an integer at {where} needs 64 bits.",
                    fix="Switch them on: jax.config.update('jax_enable_x64', True).",
                )
            return self.jax.numpy.asarray(narrow)
        self.wide.append(where)
        array = array.copy() if self.copy else array
        array.flags.writeable = self.copy  # what is lent is not written to
        return array


class FromJax:
    """An array of JAX or numpy as a tensor."""

    def __init__(self, jax: Any, copy: bool) -> None:
        self.jax, self.copy = jax, copy

    def __call__(self, value: Any, where: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensor = value.detach()
        elif isinstance(value, np.ndarray):
            tensor = _of_numpy("from_jax", value, where)
        elif isinstance(value, self.jax.Array):
            tensor = self._tensor(value, where)
        else:
            return value
        return tensor.clone() if self.copy else tensor

    def _tensor(self, array: Any, where: str) -> torch.Tensor:
        if isinstance(array, self.jax.core.Tracer):
            raise StateError(
                f"from_jax: {where} has no value yet.",
                cause="The call is inside a function that JAX transforms (jit, grad, vmap).",
                fix="Call from_jax on what that function returns.",
                path=where,
            )
        if array.is_deleted():
            raise StateError(
                f"from_jax: {where} is deleted.",
                cause="It was donated to a jitted function (donate_argnums), or deleted.",
                fix="Take what that function returned in its place.",
                path=where,
            )
        if array.dtype.name not in _COMMON:
            remedy = "Give its words: jax.random.key_data(key)." if "key<" in str(array.dtype) else None
            raise _no_dtype("from_jax", where, str(array.dtype), "torch", remedy)
        devices = array.sharding.device_set
        if len(devices) > 1:
            if not array.is_fully_replicated:
                raise StateError(
                    f"from_jax: {where} is spread over {len(devices)} devices, and a tensor is on one.",
                    fix="Bring it together: jax.device_put(array, jax.devices()[0]).",
                    path=where,
                )
            array = array.addressable_data(0)
        if next(iter(devices)).platform not in ("cpu", "gpu"):
            return _of_numpy("from_jax", np.asarray(array), where)
        return torch.from_dlpack(self.jax.block_until_ready(array))


def _in_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in rows. JAX would take others as they are, and then copy them each time that a function is called."""
    if stride_order(tensor) is None:
        return tensor
    if tensor.is_contiguous():  # strides of axes of length 1 are anything
        return tensor.as_strided(tensor.shape, torch.empty(tensor.shape, device="meta").stride())
    return tensor.contiguous()


def _of_numpy(who: str, array: np.ndarray[Any, Any], where: str) -> torch.Tensor:
    dtype = _COMMON.get(array.dtype.name)
    if dtype is None:
        raise _no_dtype(who, where, str(array.dtype), "torch")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not native.flags.writeable or not native.flags.c_contiguous:
        native = native.copy(order="C")  # torch has no tensors that cannot be written to
    if dtype in (torch.bool, torch.complex64, torch.complex128) or (array.dtype.kind in "iuf" and array.dtype.isbuiltin == 1):
        return torch.from_numpy(native)
    return torch.from_numpy(native.reshape(-1).view(np.uint8)).view(dtype).reshape(array.shape)


def _has_cuda(jax: Any) -> bool:
    return any(device.platform == "gpu" for device in jax.devices())


def _no_dtype(who: str, where: str, dtype: str, whose: str, fix: str | None = None) -> UnsupportedError:
    return UnsupportedError(f"{who}: {whose} has no dtype for {dtype} at {where}.", fix=fix)
