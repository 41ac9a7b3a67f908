"""What layers of torch are called in Flax, and which axis is where: `to_flax`, `from_flax`.

One row a layer, in `_LAYERS`. Values are moved and never computed, so that the way back gives the same bits. Flax itself is not
imported: its parameters are plain dicts of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from purestate.core._state import SUBTREES, State, require
from purestate.core._tree import in_order, spec_of, stride_order
from purestate.errors import TreeMismatchError, UnsupportedError
from purestate.interop._jax import from_jax, to_jax
from purestate.interop._names import flatten, nest

__all__ = ["from_flax", "to_flax"]

_Move = Callable[[Sequence[Tensor]], Sequence[Tensor]]
_COLLECTIONS = ("params", "batch_stats")


@dataclass(frozen=True)
class _Row:
    """Some tensors of a layer and what they are in Flax, by their names in the layer."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    there: _Move
    back: _Move
    collection: str = "params"


def to_flax(source: State | nn.Module, *, names: Mapping[str, str] | None = None, nnx: bool = False) -> dict[str, Any]:
    """Return the parameters and running statistics of a module as Flax has them: nested dicts of JAX arrays.

    Known are ``Linear``, ``Conv1d`` to ``3d``, ``ConvTranspose1d`` to ``3d`` (as ``ConvTranspose(transpose_kernel=True)``),
    ``LayerNorm``, ``RMSNorm``, ``GroupNorm``, ``InstanceNorm``, ``BatchNorm1d`` to ``3d``, ``Embedding`` and
    ``MultiheadAttention``. Parameters that a class of yours registers itself keep their name and shape. Only values move over:
    that the Flax module has the same ``epsilon``, padding and data format (channels last) is for whoever writes it, and the
    ``momentum`` of its BatchNorm is one minus torch's.

    Args:
        source: A state that knows its module, or a module. Not modified. A tied parameter is there once, under its first name.
        names: What submodules are called in Flax, by their name in torch, or the beginning of it: ``{"net.0": "Dense_0"}``.
            Others keep theirs, as nested dicts.
        nnx: Return what ``nnx.replace_by_pure_dict`` takes, with numbers as keys and statistics beside parameters, in place of
            ``{'params': ..., 'batch_stats': ...}`` for ``linen``.

    Returns:
        New dicts. Buffers that Flax has no place for (``num_batches_tracked``, those of your own classes) are left out.

    Raises:
        MissingExtraError: JAX is not installed.
        UnsupportedError: A layer with parameters has no counterpart.
        TreeMismatchError: ``names`` gives two layers one name, or names what is no submodule.
    """
    tensors = _tensors(source, "to_flax")
    found: dict[str, dict[str, Any]] = {collection: {} for collection in _COLLECTIONS}
    for row, ours, theirs in _rows(source, tensors, names or {}):
        leaves = found[row.collection]
        for name, tensor in zip(theirs, row.there([tensors[name] for name in ours]), strict=True):
            if name in leaves:
                raise TreeMismatchError(f"to_flax: two leaves would be called {name!r}.", fix="See names=.", path=name)
            leaves[name] = tensor
    if nnx:
        return _with_numbers(nest(to_jax(found["params"] | found["batch_stats"])))
    arrays = to_jax(found)
    return {collection: nest(leaves) for collection, leaves in arrays.items() if leaves or collection == "params"}


@overload
def from_flax(variables: Mapping[str, Any], like: State, *, names: Mapping[str, str] | None = None) -> State: ...
@overload
def from_flax(variables: Mapping[str, Any], like: nn.Module, *, names: Mapping[str, str] | None = None) -> dict[str, Tensor]: ...
def from_flax(variables: Mapping[str, Any], like: State | nn.Module, *, names: Mapping[str, str] | None = None) -> Any:
    """Return what `to_flax` made, or a Flax module of that structure trained, as torch has it.

    Args:
        variables: Of ``linen``, with the collections ``'params'`` and ``'batch_stats'``, or the pure dict of an ``nnx`` module.
            Arrays of JAX or numpy, or tensors. Not modified.
        like: A state that knows its module, or a module. Not modified.
        names: As for `to_flax`.

    Returns:
        The state with these parameters and statistics; for a module what its ``load_state_dict`` takes. What Flax has no
        place for is that of `like`.

    Raises:
        MissingExtraError: There are arrays, and JAX is not installed.
        TreeMismatchError: A leaf is missing, is none of the module's, or has another shape or dtype; or ``names`` names what
            is no submodule.
        UnsupportedError: A layer with parameters has no counterpart.
        StateError: As for `from_jax`.
    """
    tensors = _tensors(like, "from_flax")
    linen = "params" in variables
    given = {
        collection: _arrays(
            variables.get(collection, {}) if linen else variables, f"variables[{collection!r}]" if linen else "variables"
        )
        for collection in (_COLLECTIONS if linen else ("params",))
    }
    found: dict[str, Tensor] = {}
    used: set[tuple[str, str]] = set()
    for row, ours, theirs in _rows(like, tensors, names or {}):
        collection = row.collection if linen else "params"
        expected = row.there([tensors[name].to("meta") for name in ours])
        leaves = [_leaf(given, collection, name, want, ours) for name, want in zip(theirs, expected, strict=True)]
        used |= {(collection, name) for name in theirs}
        for name, tensor in zip(ours, row.back(leaves), strict=True):
            found[name] = in_order(tensor.to(tensors[name].device), stride_order(tensors[name]))
    if more := [name for collection, leaves in given.items() for name in leaves if (collection, name) not in used]:
        raise TreeMismatchError(
            f"from_flax: the module has no place for {more[0]!r}.",
            fix="Leave it out of the tree, or say which layer it belongs to: names={'net.0': 'Dense_0'}.",
            path=more[0],
            actual=tuple(more),
        )
    if isinstance(like, nn.Module):
        return {name: found.get(name, tensor) for name, tensor in tensors.items()}
    parts = {part: {name: found.get(name, tensor) for name, tensor in getattr(like, part).items()} for part in SUBTREES}
    return like.replace(**{part: leaves for part, leaves in parts.items() if found.keys() & leaves.keys()})


# ---------------------------------------------------------------- layers


def _same(ours: str, theirs: str, collection: str = "params") -> _Row:
    return _Row((ours,), (theirs,), list, list, collection)


def _permuted(ours: str, theirs: str, order: Sequence[int]) -> _Row:
    back = [order.index(d) for d in range(len(order))]
    return _Row((ours,), (theirs,), lambda ts: [ts[0].permute(*order)], lambda ts: [ts[0].permute(*back)])


def _linear(_: nn.Module) -> Iterator[_Row]:
    yield _permuted("weight", "kernel", (1, 0))
    yield _same("bias", "bias")


def _conv(module: Any) -> Iterator[_Row]:
    dims = len(module.kernel_size)
    if module.transposed and module.groups > 1:
        raise _unsupported(module, "Flax has no transposed convolution of groups")
    yield _permuted("weight", "kernel", (*range(2, 2 + dims), 1, 0))
    yield _same("bias", "bias")


def _norm(module: Any) -> Iterator[_Row]:
    if isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d) and module.track_running_stats:
        raise _unsupported(module, "Flax's InstanceNorm keeps no running statistics")
    yield _same("weight", "scale")
    yield _same("bias", "bias")
    yield _same("running_mean", "mean", "batch_stats")
    yield _same("running_var", "var", "batch_stats")


def _embedding(_: nn.Module) -> Iterator[_Row]:
    yield _same("weight", "embedding")


def _attention(module: Any) -> Iterator[_Row]:
    if module.bias_k is not None or module.add_zero_attn:
        raise _unsupported(module, "Flax's attention adds no keys and values of its own")
    width, heads, size = module.embed_dim, module.num_heads, module.head_dim
    theirs = ("query", "key", "value")

    def split(weight: Tensor) -> Tensor:
        return weight.t().reshape(weight.shape[1], heads, size)

    def joined(kernel: Tensor) -> Tensor:
        return kernel.reshape(kernel.shape[0], width).t()

    yield _Row(
        ("in_proj_weight",),
        tuple(f"{name}.kernel" for name in theirs),
        lambda ts: [split(weight) for weight in ts[0].chunk(3)],
        lambda ts: [torch.cat([joined(kernel) for kernel in ts])],
    )
    for name in theirs:  # in the place of that, where keys or values have another width
        yield _Row((f"{name[0]}_proj_weight",), (f"{name}.kernel",), lambda ts: [split(ts[0])], lambda ts: [joined(ts[0])])
    yield _Row(
        ("in_proj_bias",),
        tuple(f"{name}.bias" for name in theirs),
        lambda ts: [bias.reshape(heads, size) for bias in ts[0].chunk(3)],
        lambda ts: [torch.cat([bias.reshape(-1) for bias in ts])],
    )
    yield _Row(
        ("out_proj.weight",),
        ("out.kernel",),
        lambda ts: [ts[0].t().reshape(heads, size, width)],
        lambda ts: [ts[0].reshape(width, width).t()],
    )
    yield _same("out_proj.bias", "out.bias")


_LAYERS: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any], Iterator[_Row]]], ...] = (
    ((nn.MultiheadAttention,), _attention),
    ((nn.Linear,), _linear),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _norm),
    ((nn.LayerNorm, nn.RMSNorm, nn.GroupNorm), _norm),
    ((nn.Embedding,), _embedding),
)


def _rows(
    source: State | nn.Module, tensors: Mapping[str, Tensor], names: Mapping[str, str]
) -> Iterator[tuple[_Row, tuple[str, ...], tuple[str, ...]]]:
    """Yield each row that has its tensors, with its full names here and in Flax."""
    module = source if isinstance(source, nn.Module) else require(source, "template", "to_flax").template
    layers = [path for path, _ in module.named_modules(remove_duplicate=False)]
    if idle := [name for name in names if name not in layers]:
        raise TreeMismatchError(
            f"names: the module has no submodule {idle[0]!r}.",
            cause=f"It has {', '.join(layers[1:9]) or 'none'}.",
            fix="Give the names of torch first: names={'net.0': 'Dense_0'}.",
            path=idle[0],
        )
    inside = ""  # of a layer that speaks for its submodules
    for path, layer in module.named_modules():
        if inside and path.startswith(inside):
            continue
        make = next((make for classes, make in _LAYERS if isinstance(layer, classes)), None)
        if make is _attention:
            inside = f"{path}." if path else ""
        try:
            rows = list(make(layer) if make else _own(layer))
            if more := _present(layer) - {name for row in rows for name in row.ours}:
                raise _unsupported(layer, f"expected no parameter {min(more)!r} of a layer that Flax has")
        except _NoCounterpartError as error:
            raise UnsupportedError(f"{error} at {path or 'the root'!r}.", fix="Give the module without it.") from None
        for row in rows:
            ours = tuple(_join(path, name) for name in row.ours)
            if all(name in tensors for name in ours):
                yield row, ours, tuple(_join(_renamed(path, names), name) for name in row.theirs)
        if make is _attention and not path:
            return


class _NoCounterpartError(Exception):
    """A layer is like none of Flax."""


def _unsupported(module: nn.Module, why: str) -> _NoCounterpartError:
    return _NoCounterpartError(f"{why}, got {type(module).__name__}")


def _present(module: nn.Module) -> set[str]:
    return {name for name, parameter in module._parameters.items() if parameter is not None}


def _own(module: nn.Module) -> Iterator[_Row]:
    """Yield the parameters that a class registers itself, as they are; torch's own classes are in the table or unknown."""
    for name in module._parameters:
        if name in _present(module):
            if type(module).__module__.startswith("torch."):
                raise _unsupported(module, "expected a layer that Flax has, too")
            yield _same(name, name)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _renamed(path: str, names: Mapping[str, str]) -> str:
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        if (begin := ".".join(parts[:i])) in names:
            return ".".join([names[begin], *parts[i:]])
    return path


# ---------------------------------------------------------------- trees


def _tensors(source: Any, who: str) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return {name: tensor.detach() for name, tensor in (*source.named_parameters(), *source.named_buffers())}
    require(source, "template", who)
    return {name: tensor for part in SUBTREES for name, tensor in getattr(source, part).items()}


def _arrays(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise TreeMismatchError(f"from_flax: expected nested dicts at {where}, got a {type(tree).__name__}.", path=where)
    return flatten(tree)


def _leaf(given: Mapping[str, Mapping[str, Any]], collection: str, name: str, want: Tensor, ours: tuple[str, ...]) -> Tensor:
    leaves = given[collection]
    if name in leaves:
        leaf = leaves[name]
        tensor = leaf.detach() if isinstance(leaf, Tensor) else from_jax({name: leaf})[name]  # JAX only for what is of JAX
        if isinstance(tensor, Tensor) and (tensor.shape, tensor.dtype) == (want.shape, want.dtype):
            return tensor
        got = str(spec_of(tensor)) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
    else:
        got = "no such leaf"
    expected = str(spec_of(want.contiguous()))
    raise TreeMismatchError(
        f"from_flax: expected {expected} at {name!r} of {collection}, for {' and '.join(ours)}, got {got}.",
        cause=f"There are {', '.join(sorted(leaves)[:8])}." if name not in leaves and leaves else None,
        fix="Say what layers are called in Flax: names={'net.0': 'Dense_0'}." if name not in leaves else None,
        path=name,
        expected=expected,
        actual=got,
    )


def _with_numbers(tree: dict[str, Any]) -> dict[Any, Any]:
    """Return nested dicts with numbers for the keys that are digits, as nnx counts the entries of a list."""
    return {
        int(key) if key.isdecimal() else key: _with_numbers(value) if isinstance(value, dict) else value
        for key, value in tree.items()
    }
