"""Snapshots: a State at rest, as JSON for a record and items for the store; and back, read when somebody looks.

Items: the parameters together with the small buffers, so that the folder reads like a ``state_dict``; the frozen parameters;
large buffers; the average; the optimizer with each slot and dtype packed into one vector, because Orbax takes a third of a
millisecond a leaf. Everything else (key, counters, schedulers, parameter groups, zero-size leaves) is in the JSON.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from purestate.core._component import Component
from purestate.core._hash import dtype_name, leaf_bytes, leaf_hash, tree_hash
from purestate.core._key import Key
from purestate.core._recipe import Recipe
from purestate.core._state import COMPONENTS, Counters, State, component_digest
from purestate.core._tree import Leaves, in_order, stride_order
from purestate.errors import CorruptLogError, PureStateError, TreeMismatchError
from purestate.run._named import items_of as items_of

__all__ = ["Items", "component_leaves", "items_of", "restore", "snapshot"]

Items = dict[str, Mapping[str, torch.Tensor]]
"""What a store keeps: flat mappings of names to tensors, by digest."""

_BESIDE_PARAMS = 64 << 10
"""Buffers of up to so many bytes in all are in the item of the parameters."""

_INLINE = 1 << 10
"""Components of up to so many bytes in all are in the record itself."""


class _Reader(Protocol):
    def get(self, digest: str) -> Mapping[str, torch.Tensor]: ...


def snapshot(state: State) -> tuple[dict[str, Any], Items]:
    """Take a state apart for the store.

    Args:
        state: Not modified; the items hold its own tensors, or make vectors of them when somebody looks.

    Returns:
        ``(json, items)``.
    """
    items: Items = {}
    buffers = state.buffers
    beside = 0 < sum(t.nbytes for t in buffers.values()) <= _BESIDE_PARAMS and len(state.params) > 0
    json: dict[str, Any] = {"hash": state.hash}
    for name in ("params", "frozen", "buffers", "ema"):
        leaves: Leaves | None = getattr(state, name)
        if leaves is not None and not (name == "buffers" and beside):
            json[name] = _put_leaves(leaves, items, also=buffers if name == "params" and beside else None)
    for name in (*COMPONENTS, "extra"):
        component: Component | None = getattr(state, name)
        if component is not None:
            json[name] = _put_component(component, items)
        elif (factory := getattr(state.recipe, name, None)) is not None:
            json[name] = {"fresh": factory.digest}
    json["key"] = [state.key.hi, state.key.lo]
    json["counters"] = {"epoch": state.counters.epoch, "step": state.counters.step}
    return json, items


def restore(json: Mapping[str, Any], reader: _Reader, *, recipe: Recipe | None, device: torch.device | str = "cpu") -> State:
    """Put a state together from its snapshot, without reading an item before somebody looks.

    Args:
        json: What `snapshot` returned.
        reader: Where items are read from: ``get(digest)`` returns verified CPU tensors.
        recipe: The static half, or None.
        device: Where the tensors go.
    """
    device = torch.device(device)
    with _written_so():
        return _restored(json, _once(reader.get), recipe, device)


def _restored(
    json: Mapping[str, Any],
    read: Callable[[str], Mapping[str, torch.Tensor]],
    recipe: Recipe | None,
    device: torch.device,
) -> State:
    fields: dict[str, Any] = {}
    for name in ("params", "frozen", "buffers", "ema"):
        if name in json:
            fields[name] = _get_leaves(json[name], read, device, name, recipe)
    if "beside" in json["params"]:
        beside = json["params"]["beside"] | {"item": json["params"]["item"]}
        fields["buffers"] = _get_leaves(beside, read, device, "buffers", recipe)
    for name in (*COMPONENTS, "extra"):
        if "skeleton" in json.get(name, {}):
            fields[name] = _get_component(json[name], read, device, name)
    hi, lo = json["key"]
    state = State(key=Key(hi, lo), counters=Counters(**json["counters"]), recipe=recipe, **fields)
    object.__setattr__(state, "_hash", json["hash"])
    return state


@contextmanager
def _written_so() -> Iterator[None]:
    """Raise `CorruptLogError` where a block finds that a snapshot is none: a log may come from a stranger."""
    try:
        yield
    except PureStateError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CorruptLogError(
            f"A record keeps a state that is none ({type(error).__name__}: {error}).",
            cause="It verifies, so it was written so: by another program, or by a version with a bug.",
            fix="Put back a copy of the log, or delete the checkpoint.",
        ) from None


def _once(get: Callable[[str], Mapping[str, torch.Tensor]]) -> Callable[[str], Mapping[str, torch.Tensor]]:
    """Two subtrees that share an item read it once."""
    seen: dict[str, Mapping[str, torch.Tensor]] = {}

    def read(digest: str) -> Mapping[str, torch.Tensor]:
        if digest not in seen:
            seen[digest] = get(digest)
        return seen[digest]

    return read


# -------------------------------------------------------------------- leaves


def _put_leaves(leaves: Leaves, items: Items, also: Leaves | None) -> dict[str, Any]:
    json = _layout(leaves)
    if also is None:
        digest, tensors = leaves.digest, dict(leaves)
    else:
        json["beside"] = _layout(also)
        digest, tensors = tree_hash({**leaves.hashes, **also.hashes}), {**leaves, **also}
    if tensors:
        json["item"] = digest
        items[digest] = tensors
    return json


def _layout(leaves: Leaves) -> dict[str, Any]:
    orders = {name: list(order) for name, order in leaves.orders.items()}
    return {"digest": leaves.digest, "names": list(leaves)} | ({"orders": orders} if orders else {})


def _get_leaves(
    json: Mapping[str, Any],
    read: Callable[[str], Mapping[str, torch.Tensor]],
    device: torch.device,
    where: str,
    recipe: Recipe | None,
) -> Leaves:
    names: list[str] = json["names"]
    orders = {name: tuple(order) for name, order in json.get("orders", {}).items()}

    def load() -> dict[str, torch.Tensor]:
        with _written_so():
            item = read(json["item"])
            found = {name: item[name] for name in names}
            if recipe is not None:
                _must_have_the_shapes_of(recipe.template, found, where)
            found = {name: in_order(tensor, orders.get(name)) for name, tensor in found.items()}
        return {name: tensor.to(device) for name, tensor in found.items()}

    return Leaves.lazy(json["digest"], load, device, orders, where) if names else Leaves(where=where)


def _must_have_the_shapes_of(template: nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse tensors of other shapes than the module's: some modules would compute something with them all the same."""
    expected = {name: tensor.shape for name, tensor in (*template.named_parameters(), *template.named_buffers())}
    for name, tensor in tensors.items():
        if name in expected and tensor.shape != expected[name]:
            path = f"{where}[{name!r}]"
            raise TreeMismatchError(
                f"{path} has the shape {tuple(tensor.shape)} in the store and {tuple(expected[name])} in the module.",
                cause="The snapshot is of a model of another size.",
                fix="Load it like the module it was trained with: store.load(id, like=module).",
                path=path,
                expected=tuple(expected[name]),
                actual=tuple(tensor.shape),
            )


def _tuple(order: list[int] | None) -> tuple[int, ...] | None:
    return None if order is None else tuple(order)


# -------------------------------------------------------------------- components


def _put_component(component: Component, items: Items) -> dict[str, Any]:
    leaves = component.leaves
    assert isinstance(leaves, Leaves)
    json: dict[str, Any] = {"digest": component_digest(component), "leaves": leaves.digest, "skeleton": component.skeleton}
    if sum(tensor.nbytes for tensor in leaves.values()) <= _INLINE:
        json["inline"] = {name: _write(tensor) for name, tensor in leaves.items()}
        return json
    vectors = _Vectors(leaves)
    json["layout"] = vectors.layout
    digest = tree_hash({name: leaf_hash(vectors[name]) for name in vectors})
    json["item"] = digest
    items[digest] = vectors
    return json


def _get_component(
    json: Mapping[str, Any], read: Callable[[str], Mapping[str, torch.Tensor]], device: torch.device, where: str
) -> Component:
    def load() -> dict[str, torch.Tensor]:
        with _written_so():
            found = component_leaves(json, {} if "inline" in json else read(json["item"]))
        return {name: tensor.to(device) for name, tensor in found.items()}

    return Component(json["skeleton"], Leaves.lazy(json["leaves"], load, device, {}, where))


def component_leaves(json: Mapping[str, Any], vectors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the leaves of a component at rest, or those of some of its vectors.

    Args:
        json: As a snapshot has it, with the part of its layout that is wanted.
        vectors: What the item holds of that; nothing for a component in the record itself.
    """
    if "inline" in json:
        return {name: _read_inline(written) for name, written in json["inline"].items()}
    return _unpack(vectors, json["layout"])


class _Vectors(Mapping[str, torch.Tensor]):
    """The leaves of each slot (last part of the path) and dtype in one vector, where they have any elements.

    A vector is made whenever it is looked at and not kept, so that there is never a second copy of all moments.
    """

    def __init__(self, leaves: Mapping[str, torch.Tensor]) -> None:
        self._leaves = leaves
        self._groups: dict[str, list[str]] = {}
        for path, tensor in leaves.items():
            self._groups.setdefault(f"{path.rsplit('/', 1)[-1]}.{dtype_name(tensor.dtype)}", []).append(path)
        self._names = [name for name, paths in self._groups.items() if any(leaves[path].numel() for path in paths)]

    @property
    def layout(self) -> dict[str, Any]:
        """What is in each vector, and in those that have no elements."""
        return {name: [_entry(path, self._leaves[path]) for path in paths] for name, paths in self._groups.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.cat([self._leaves[path].reshape(-1) for path in self._groups[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _entry(path: str, leaf: torch.Tensor) -> list[Any]:
    order = stride_order(leaf)
    return [path, list(leaf.shape)] + ([] if order is None else [list(order)])


def _unpack(vectors: Mapping[str, torch.Tensor], layout: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    leaves: dict[str, torch.Tensor] = {}
    for name, entries in layout.items():
        dtype = getattr(torch, name.rsplit(".", 1)[-1])
        vector, start = vectors.get(name, torch.empty(0, dtype=dtype)), 0
        for path, shape, *order in entries:
            stop = start + torch.Size(shape).numel()
            # a leaf of its own: optimizers update in place, and a view would keep the whole vector alive
            leaves[path] = in_order(vector[start:stop].reshape(shape).clone(), _tuple(order[0] if order else None))
            start = stop
    return leaves


def _write(tensor: torch.Tensor) -> list[Any]:
    text = base64.b64encode(leaf_bytes(tensor)).decode()
    order = stride_order(tensor)
    return [dtype_name(tensor.dtype), list(tensor.shape), text] + ([] if order is None else [list(order)])


def _read_inline(written: list[Any]) -> torch.Tensor:
    dtype, shape, text = getattr(torch, written[0]), written[1], base64.b64decode(written[2])
    # without bytes there are no elements, whatever the shape says: nothing of that size is asked of the memory
    tensor = (torch.frombuffer(bytearray(text), dtype=dtype) if text else torch.empty(0, dtype=dtype)).reshape(shape)
    return in_order(tensor, _tuple(written[3] if len(written) > 3 else None))
