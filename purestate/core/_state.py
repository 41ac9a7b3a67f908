"""The State: everything training depends on, as one immutable tree.

Nothing here computes a step or knows of disk. What a component of a state (an optimizer, a scheduler) holds is plain data
(`Component`); which class made it is in the Recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import optree
import torch
from torch.utils import _pytree as torch_pytree

from purestate.core import _module, _plain
from purestate.core._component import Component
from purestate.core._hash import scalar_hash, short, tree_hash
from purestate.core._key import Key
from purestate.core._recipe import Recipe
from purestate.core._tree import LeafSpec, Leaves, check_same_names, spec_of
from purestate.errors import FrozenStateError, MutatedStateError, SetupError, StateError, UnsupportedError

__all__ = [
    "COMPONENTS",
    "SUBTREES",
    "Counters",
    "Origin",
    "State",
    "component_digest",
    "flatten_state",
    "require",
    "state_hash",
    "unflatten_state",
]

SUBTREES = ("params", "frozen", "buffers")
"""The parts of a state that are a module's tensors: what `purestate.core._module.take_apart` gives."""

COMPONENTS = ("optimizer", "epoch_scheduler", "step_scheduler")
"""The parts of a state that live objects are built from, by the factories of that name in its recipe."""

_EMPTY = tree_hash({})


@dataclass(frozen=True, slots=True)
class Counters:
    """How far training has come: finished epochs and steps of the optimizer, over all ops."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Origin:
    """What a state was made from. Describes; takes no part in hash or equality.

    Args:
        base: The hash of the answer (or of the initial state) that it was made from; None for that state itself.
        acts: What was done since: ``({'init': {'seed': 0}}, {'setup': ['optimizer']})``.
        parent: The record that holds the answer: checkpoint, op, sequence number and digest of the record, state hash.
    """

    base: str | None = None
    acts: tuple[Mapping[str, Any], ...] = ()
    parent: Mapping[str, Any] | None = None


class State:
    """Training state: parameters, buffers, optimizer, schedulers, key and counters. Never modified.

    States are made by `purestate.init`, by ops and by `replace`, seldom by hand. Two states are equal when their hashes are.

    Attributes:
        params: Trainable parameters by name.
        frozen: Parameters that take no gradient, by name.
        buffers: Buffers by name, non-persistent ones too.
        optimizer: Moments and parameter groups; None until the first step.
        epoch_scheduler: The scheduler that steps once an epoch; None where there is none, or none yet.
        step_scheduler: The scheduler that steps after each step of the optimizer, likewise.
        key: The random key.
        counters: Finished epochs and steps.
        ema: The moving average of the parameters, see `purestate.averaged`; None where `setup` asked for none.
        extra: The user's own plain values and tensors: ``state.extra.value()``.
        recipe: What `setup` decided; None for a state that was loaded without a module.
        origin: What it was made from.

    Example:
        >>> import purestate as ps
        >>> state = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        >>> list(state.params), state.counters.step
        (['weight', 'bias'], 0)
        >>> state.hash == ps.init(lambda: torch.nn.Linear(2, 1), seed=0).hash
        True
    """

    __slots__ = (
        "_digests",
        "_hash",
        "buffers",
        "counters",
        "ema",
        "epoch_scheduler",
        "extra",
        "frozen",
        "key",
        "optimizer",
        "origin",
        "params",
        "recipe",
        "step_scheduler",
    )
    params: Leaves
    frozen: Leaves
    buffers: Leaves
    optimizer: Component | None
    epoch_scheduler: Component | None
    step_scheduler: Component | None
    key: Key
    counters: Counters
    ema: Leaves | None
    extra: Component | None
    recipe: Recipe | None
    origin: Origin
    _hash: str | None
    _digests: dict[str, str] | None

    _defaults: ClassVar[dict[str, Any]] = {
        "optimizer": None,
        "epoch_scheduler": None,
        "step_scheduler": None,
        "counters": Counters(),
        "ema": None,
        "extra": None,
        "recipe": None,
        "origin": Origin(),
    }

    def __init__(self, *, params: Leaves, frozen: Leaves, buffers: Leaves, key: Key, **rest: Any) -> None:
        fields = {"params": params, "frozen": frozen, "buffers": buffers, "key": key, **self._defaults, **rest}
        for name, value in fields.items():
            if isinstance(value, Component) and not isinstance(value.leaves, Leaves):
                value = Component(value.skeleton, Leaves(value.leaves, name))
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_digests", None)
        object.__setattr__(self, "_hash", None)

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenStateError(
            f"state.{name} cannot be assigned: a state does not change.",
            fix=f"Make a new one: state = state.replace({name}=...).",
        )

    def __delattr__(self, name: str) -> None:
        raise FrozenStateError(f"state.{name} cannot be deleted: a state does not change.")

    def __copy__(self) -> State:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return self.own()

    def __reduce__(self) -> Any:
        raise UnsupportedError(
            "a state cannot be pickled.",
            cause="A recipe holds functions and classes, which a pickle names and does not keep.",
            fix="Keep it in a store, or its tensors alone: torch.save(state.state_dict(), path).",
        )

    # ---------------------------------------------------------------- identity

    @property
    def digests(self) -> Mapping[str, str]:
        """The digest of each subtree, from which the hash is made. Computed once."""
        if self._digests is None:
            object.__setattr__(self, "_digests", self._hash_subtrees())
        return MappingProxyType(cast("dict[str, str]", self._digests))

    def _hash_subtrees(self) -> dict[str, str]:
        digests = {name: getattr(self, name).digest for name in SUBTREES}
        for name in COMPONENTS:
            component, factory = getattr(self, name), getattr(self.recipe, name, None)
            if component is not None:
                digests[name] = component_digest(component)
            else:
                digests[name] = f"fresh:{factory.digest}" if factory is not None else _EMPTY
        digests["key"] = scalar_hash([self.key.hi, self.key.lo])
        digests["counters"] = scalar_hash({"epoch": self.counters.epoch, "step": self.counters.step})
        if self.ema is not None:
            digests["ema"] = self.ema.digest
        if self.extra is not None:
            digests["extra"] = component_digest(self.extra)
        return digests

    @property
    def hash(self) -> str:
        """``'b3:'`` and 64 hexadecimal digits: the same in every process for the same bits. Computed once."""
        if self._hash is None:
            object.__setattr__(self, "_hash", f"b3:{tree_hash(self.digests)}")
        return cast("str", self._hash)

    def __eq__(self, other: object) -> bool:
        return self.hash == other.hash if isinstance(other, State) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.hash)

    def check(self) -> None:
        """Raise `MutatedStateError` if torch counted a change in place of any leaf. Ops call it on what they get."""
        for leaves in self._leaves().values():
            leaves.check()

    def verify(self) -> None:
        """Hash every leaf again.

        Raises:
            MutatedStateError: A leaf differs from what was hashed before; changes through ``.data`` or a numpy view,
                which torch does not count, are found too if the leaf had been hashed. Likewise a plain value.
        """
        for leaves in self._leaves().values():
            leaves.verify()
        actual = self._hash_subtrees()
        for name, digest in self.digests.items():
            if actual.get(name) != digest:
                raise MutatedStateError(f"{name} was changed in place after the state was made.", path=name)

    # ---------------------------------------------------------------- new states

    def replace(self, **changes: Any) -> State:
        """Return a state with some parts exchanged; what is not named is shared.

        Args:
            **changes: Attributes of the state. ``params``, ``frozen``, ``buffers`` and ``ema`` take mappings of names to
                tensors, with the names, shapes and dtypes that they had; ``extra`` takes a dict of plain values and
                tensors. Tensors are held, not copied.

        Raises:
            TreeMismatchError: Names, shapes or dtypes of a subtree differ.
            StateError: The state has no attribute of that name, or it cannot hold such a value.
            UnsupportedError: ``extra`` holds something that is neither a plain value nor a tensor.

        Example:
            >>> import purestate as ps
            >>> state = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
            >>> new = state.replace(params={**state.params, "bias": torch.zeros(1)})
            >>> new.params["bias"], new == state
            (tensor([0.]), False)
        """
        parts = {name: self._part(name, value) for name, value in changes.items()}
        if "origin" not in parts:
            parts["origin"] = self._origin_after({"replace": sorted(changes)})
        return self._with(**parts)

    def _with(self, **fields: Any) -> State:
        return State(**{**{name: getattr(self, name) for name in _PARTS}, **fields})

    def _part(self, name: str, value: Any) -> Any:
        if name not in _PARTS:
            raise StateError(f"a state has no part {name!r}; it has {', '.join(sorted(_PARTS))}.", path=name)
        if name == "extra" and isinstance(value, Mapping):
            skeleton, tensors = _plain.split(dict(value), "extra")
            return Component(skeleton, {path: tensor.detach() for path, tensor in tensors.items()})
        if not isinstance(value, _PARTS[name]):
            expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in _PARTS[name])
            raise StateError(f"replace: expected {name} to be {expected}, got {type(value).__name__}.", path=name)
        if name not in (*SUBTREES, "ema") or value is None or value is getattr(self, name):
            return value
        for key, tensor in value.items():
            if not isinstance(tensor, torch.Tensor):
                raise StateError(
                    f"replace: expected {name}[{key!r}] to be a tensor, got {type(tensor).__name__}.", path=f"{name}[{key!r}]"
                )
        new = value if isinstance(value, Leaves) else Leaves({key: tensor.detach() for key, tensor in value.items()}, name)
        check_same_names(name, getattr(self, "params" if name == "ema" else name).spec, new.spec, "the replacement")
        return new

    def _origin_after(self, act: Mapping[str, Any]) -> Origin:
        return Origin(self.origin.base or self.hash, (*self.origin.acts, act), self.origin.parent)

    def derived(self, act: Mapping[str, Any], **changes: Any) -> State:
        """Return the state with other parts, taken as they are, that remembers what was done: for `setup` and its like."""
        return self._with(origin=self._origin_after(act), **changes)

    def based(self, **changes: Any) -> State:
        """Return the state with other parts, taken as they are, that was made from nothing: what an op computes."""
        return self._with(origin=Origin(), **changes)

    def after(self, act: Mapping[str, Any], state: State) -> State:
        """Return another state as made from this one by ``act``."""
        return state._with(origin=self._origin_after(act))

    def answered(self, parent: Mapping[str, Any] | None) -> State:
        """Return the same state as the answer that a record holds, or as one that none holds."""
        state = self._with(origin=Origin(parent=parent))
        object.__setattr__(state, "_hash", self._hash)
        object.__setattr__(state, "_digests", self._digests)
        return state

    def map_leaves(self, function: Callable[[Leaves], Leaves]) -> State:
        """Return the state with ``function`` applied to each group of leaves."""
        fields: dict[str, Any] = {name: function(getattr(self, name)) for name in SUBTREES}
        for name in (*COMPONENTS, "extra"):
            component = getattr(self, name)
            if component is not None:
                fields[name] = Component(component.skeleton, function(component.leaves))
        if self.ema is not None:
            fields["ema"] = function(self.ema)
        return self._with(**fields)

    def own(self) -> State:
        """Return a copy that shares no memory. What a `train` in progress lends must be owned to be kept."""
        return self.map_leaves(Leaves.own)

    def to(self, device: torch.device | str) -> State:
        """Return the state on another device. Its hash is the same."""
        return self.map_leaves(lambda leaves: leaves.map(lambda tensor: tensor.to(device), same_bits=True))

    # ---------------------------------------------------------------- views

    @property
    def device(self) -> torch.device:
        """The device of the first parameter or buffer; CPU where there is none."""
        devices = (getattr(self, name).device for name in SUBTREES)
        return next((device for device in devices if device is not None), torch.device("cpu"))

    @property
    def spec(self) -> dict[str, dict[str, LeafSpec]]:
        """Shape, dtype and stride order of every leaf, by subtree."""
        return {name: leaves.spec for name, leaves in self._leaves().items()}

    def _leaves(self) -> dict[str, Leaves]:
        parts = {name: getattr(self, name) for name in (*SUBTREES, "ema")}
        components = {name: getattr(self, name) for name in (*COMPONENTS, "extra")}
        parts |= {name: component.leaves for name, component in components.items() if component is not None}
        return {name: leaves for name, leaves in parts.items() if leaves is not None}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what ``module.state_dict()`` has: names, tied ones twice, and copies of the tensors.

        Training on does not change it. Non-persistent buffers are left out where the state knows its module.
        """
        if self.recipe is None:
            return {name: tensor.clone() for subtree in SUBTREES for name, tensor in getattr(self, subtree).items()}
        places = _module.state_dict_names(self.recipe.template)
        return {alias: getattr(self, subtree)[name].clone() for alias, (subtree, name) in places.items()}

    def __repr__(self) -> str:
        lines = [f"State({short(self.hash)}, epoch {self.counters.epoch}, step {self.counters.step})"]
        lines += [f"  {name:<16} {text}" for name, text in self._rows()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f"<tr><th style='text-align:left'>{name}</th><td>{escape(text)}</td></tr>" for name, text in self._rows())
        return (
            f"<table><caption>State <code>{short(self.hash)}</code>, epoch {self.counters.epoch}, "
            f"step {self.counters.step}</caption>{rows}</table>"
        )

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(name, _summary(getattr(self, name))) for name in (*SUBTREES, "ema") if getattr(self, name) is not None]
        for name in COMPONENTS:
            factory, component = getattr(self.recipe, name, None), getattr(self, name)
            if factory is not None or component is not None:
                state = "not built yet" if component is None else _summary(component.leaves)
                rows.append((name, f"{factory.name}, {state}" if factory is not None else state))
        rows.append(("key", repr(self.key)))
        if self.extra is not None:
            rows.append(("extra", _summary(self.extra.leaves)))
        return rows


def require(state: State, part: str, op: str) -> Recipe:
    """Return the recipe of a state, or say what it lacks.

    Args:
        state: What the user gave as one.
        part: What the recipe must have: ``'loss'``, ``'optimizer'``; ``'template'`` for any recipe.
        op: Who asks, for the message.

    Raises:
        SetupError: It is no state, the state has no recipe, or its recipe has no such part.
    """
    if not isinstance(state, State):
        raise SetupError(
            f"{op}: expected a State first, got {type(state).__name__}.",
            fix="Make one: ps.init(module, seed=0).",
            argument="state",
        )
    if state.recipe is None:
        raise SetupError(
            f"{op}: the state does not know its module: it was loaded without one.",
            fix="Load it with one: store.load(id, like=module_or_state).",
            argument="state",
        )
    if not (state.recipe.has_loss if part == "loss" else getattr(state.recipe, part) is not None):
        example = "loss_cls=torch.nn.CrossEntropyLoss" if part == "loss" else "optimizer_cls=torch.optim.Adam"
        raise SetupError(
            f"{op}: the state has no {part}.", fix=f"Give it one: state = ps.setup(state, {example}).", argument=part
        )
    return state.recipe


def state_hash(state: State) -> str:
    """Return the hash of a state: ``'b3:'`` and 64 hexadecimal digits, the same in every process for the same bits.

    Example:
        >>> import purestate as ps
        >>> state = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        >>> state_hash(state) == state.hash == ps.state_hash(ps.init(lambda: torch.nn.Linear(2, 1), seed=0))
        True
    """
    return state.hash


def component_digest(component: Component) -> str:
    """Return the digest of an optimizer, a scheduler or ``extra``."""
    leaves = component.leaves if isinstance(component.leaves, Leaves) else Leaves(component.leaves)
    return tree_hash({"leaves": leaves.digest, "skeleton": scalar_hash(component.skeleton)})


def _summary(leaves: Mapping[str, torch.Tensor]) -> str:
    if isinstance(leaves, Leaves) and not leaves.loaded:
        return "not read yet"
    elements = sum(tensor.numel() for tensor in leaves.values())
    dtypes = sorted({str(spec_of(tensor).dtype).removeprefix("torch.") for tensor in leaves.values()})
    return f"{len(leaves)} leaves, {elements:,} elements {' '.join(dtypes)}".rstrip()


_PARTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(SUBTREES, (Mapping,)),
    **dict.fromkeys(COMPONENTS, (Component, type(None))),
    "key": (Key,),
    "counters": (Counters,),
    "ema": (Mapping, type(None)),
    "extra": (Component, type(None)),
    "recipe": (Recipe, type(None)),
    "origin": (Origin,),
}


class _Meta:
    """What flattening leaves behind. Trees fit together when they have the same parts, whatever keys and counters are."""

    __slots__ = ("state", "structure")

    def __init__(self, state: State, structure: tuple[Any, ...]) -> None:
        self.state, self.structure = state, structure

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Meta) and self.structure == other.structure

    def __hash__(self) -> int:
        return hash(self.structure)


def flatten_state(state: State) -> tuple[list[dict[str, torch.Tensor]], _Meta]:
    """Return the parts that have tensors, and what makes a state of such parts again. For whoever knows pytrees."""
    parts = state._leaves()
    return [dict(leaves) for leaves in parts.values()], _Meta(state, tuple(parts))


def unflatten_state(meta: _Meta, children: Any) -> State:
    """Return the state with other tensors in the parts that `flatten_state` returned."""
    new = dict(zip(meta.structure, children, strict=True))
    fields: dict[str, Any] = {}
    for name, tensors in new.items():
        leaves = Leaves(tensors, name)
        old = getattr(meta.state, name)
        fields[name] = Component(old.skeleton, leaves) if isinstance(old, Component) else leaves
    origin = meta.state.origin
    # a hash that is known; inside a transform none can be computed
    base = origin.base or meta.state._hash
    return meta.state._with(**fields, origin=Origin(base, (*origin.acts, {"replace": sorted(fields)}), origin.parent))


# optree's types know collections only, and its name for the namespace of everybody is not exported
cast("Any", optree).register_pytree_node(
    State,
    lambda state: (*flatten_state(state), None),
    unflatten_state,
    namespace=cast("Any", optree).registry.__GLOBAL_NAMESPACE,
)
torch_pytree.register_pytree_node(State, flatten_state, lambda children, meta: unflatten_state(meta, children))
