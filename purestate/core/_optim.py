"""Live optimizers from plain data and back, for any class.

Between ops an optimizer is a `Component`: ``state`` by the name of the parameter, ``param_groups`` with names in the place
of tensors, and the other attributes of the object. `restore_optimizer` builds with the factory and writes all of it back.

Leaf paths are ``state/<parameter>/<slot>``, in which ``~`` and ``/`` of a name are written ``~0`` and ``~1``; tensors
elsewhere, such as a tensor ``lr``, are named by place: ``optimizer.param_groups[0]['lr']``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from purestate.core._component import Component, Json, Sources, Survey, escape, own, write
from purestate.core._factory import Factory, refuse_closure
from purestate.core._plain import join
from purestate.errors import SetupError, TreeMismatchError

__all__ = [
    "build_optimizer",
    "export_optimizer",
    "learning_rates",
    "replace_learning_rates",
    "require_rates",
    "restore_optimizer",
    "stored_learning_rates",
    "with_moments_of",
    "write_optimizer",
]

ROOT = "optimizer"
HOUSEKEEPING = frozenset(
    {
        "state",  # this and the next three are written on their own
        "named_state",  # what `OptimizerSurvey` makes of the state under names, and no attribute
        "param_groups",
        "defaults",
        "step",  # the counting wrapper that a scheduler puts there
        "_zero_grad_profile_name",
        "_warned_capturable_if_run_uncaptured",
        "_optimizer_step_pre_hooks",
        "_optimizer_step_post_hooks",
        "_optimizer_state_dict_pre_hooks",
        "_optimizer_state_dict_post_hooks",
        "_optimizer_load_state_dict_pre_hooks",
        "_optimizer_load_state_dict_post_hooks",
    }
)
"""Attributes of `Optimizer` that are not state."""


_COUNT_ON_CPU = frozenset({"Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"})
"""Classes of torch that count steps on the CPU, whatever the device of the parameters, unless ``capturable`` or ``fused``."""


class _Defaults(dict[str, Any]):
    """An optimizer's ``defaults`` that knows what the constructor put there."""

    def __init__(self, built: dict[str, Any]) -> None:
        super().__init__(built)
        self.built = built


class OptimizerSurvey(Survey):
    """A `Survey` that writes optimizers, at whatever depth, by parameter name."""

    def __init__(self, optimizer: Optimizer, params: Mapping[str, torch.Tensor]) -> None:
        self.names = {id(param): name for name, param in params.items()}
        self._groups: set[int] = set()
        super().__init__(self.names)
        self.object(optimizer, ROOT)

    def object(self, thing: Any, place: str, skip: Any = ()) -> None:
        """Enter an object's attributes; of an optimizer, its state and groups too."""
        if not isinstance(thing, Optimizer):
            return super().object(thing, place, skip)
        own: dict[str, Json] = {}
        if any(id(group) not in self._groups for group in thing.param_groups):  # else they belong to the optimizer around it
            self._groups.update(map(id, thing.param_groups))
            own["param_groups"] = [self._group(group, f"{place}.param_groups[{i}]") for i, group in enumerate(thing.param_groups)]
        if not isinstance(thing.defaults, _Defaults) or thing.defaults != thing.defaults.built:
            own["defaults"] = self.value(dict(thing.defaults), f"{place}.defaults")
        super().object(thing, place, HOUSEKEEPING)
        prefix = "state" if place == ROOT else f"{escape(place)}/state"
        by_param: dict[str, Json] = {}
        by_key: dict[str, Json] = {}
        for key, slots in thing.state.items():
            if isinstance(key, str):  # user classes keep what belongs to no parameter under a name
                by_key[key] = self.value(slots, f"{place}.state[{key!r}]")
            else:
                name = self._name(key, place)
                by_param[name] = self._slots(slots, f"{prefix}/{escape(name)}")
        self.values[place] |= {**own, "state": by_param, **({"named_state": by_key} if by_key else {})}
        return None

    def _group(self, group: dict[str, Any], place: str) -> dict[str, Json]:
        options = {key: self.value(group[key], f"{place}[{key!r}]") for key in sorted(group.keys() - {"params"})}
        return {**options, "params": [self._name(param, place) for param in group["params"]]}

    def _slots(self, slots: Any, prefix: str) -> Json:
        if type(slots) is dict and all(type(slot) is str for slot in slots) and "~" not in slots:
            return {slot: self.value(slots[slot], f"{prefix}/{escape(slot)}") for slot in sorted(slots)}
        return self.value(slots, prefix)

    def _name(self, param: Any, place: str) -> str:
        try:
            return self.names[id(param)]
        except KeyError:
            what = f"a tensor of shape {tuple(param.shape)}" if isinstance(param, torch.Tensor) else repr(param)
            raise SetupError(
                f"{place} optimizes {what} that is none of the model's trainable parameters.",
                cause="The optimizer's function took parameters from elsewhere, not from its argument.",
                fix="Use the list of parameters that optimizer_fn is called with.",
                argument="optimizer_fn",
            ) from None


def build_optimizer(factory: Factory, params: Mapping[str, nn.Parameter]) -> Optimizer:
    """Build an optimizer on working parameters.

    Args:
        factory: Of kind ``'optimizer'``. A function is called with ``list(params.values())``, or with ``params`` if it says that
            it ``takes_names``.
        params: Trainable parameters by name, in the model's order. Held by the optimizer, not modified.

    Returns:
        The optimizer. It may leave out some parameters. Tensors among its options (a tensor ``lr``) are its own.

    Raises:
        SetupError: The class refused its arguments; the function returned something else, or took parameters from elsewhere.
        UnsupportedError: Its ``step`` needs a closure, or it holds something that cannot be kept.
    """
    by_name = getattr(factory.fn, "takes_names", False)
    optimizer = factory.build(dict(params) if by_name else list(params.values()))
    if not isinstance(optimizer, Optimizer):
        raise SetupError(
            f"optimizer_fn {factory.name} returned {optimizer!r}, which is not a torch.optim.Optimizer.", argument="optimizer_fn"
        )
    refuse_closure(type(optimizer))
    # a scheduler fills a tensor lr in place, and a function may have it from a closure
    owned: dict[int, torch.Tensor] = {}
    for options in (*optimizer.param_groups, optimizer.defaults):
        for key, value in options.items():
            if isinstance(value, torch.Tensor):
                options[key] = owned.setdefault(id(value), value.detach().clone())
    optimizer.defaults = _Defaults(optimizer.defaults)
    OptimizerSurvey(optimizer, params)
    return optimizer


def export_optimizer(optimizer: Optimizer, params: Mapping[str, torch.Tensor]) -> Component:
    """Return what a live optimizer knows. Nothing is copied: the leaves are the optimizer's own tensors.

    One whose state is elsewhere while it steps puts it in place when its ``purestate_settle()`` is called.

    Args:
        optimizer: From `build_optimizer` or `restore_optimizer`. Not modified.
        params: The parameters that it was built on, by name.

    Raises:
        UnsupportedError: An attribute or slot holds something that cannot be part of a state; the message names it.
    """
    settle = getattr(optimizer, "purestate_settle", None)
    if settle is not None:
        settle()
    survey = OptimizerSurvey(optimizer, params)
    return Component({"objects": survey.values}, survey.leaves)


def restore_optimizer(factory: Factory, component: Component, params: Mapping[str, nn.Parameter]) -> Optimizer:
    """Build an optimizer and make it continue where another one was, to the bit.

    Which parameter is in which group is the factory's to say. So parameters may have been frozen since, whose moments are
    dropped, or unfrozen, which start afresh with the options of their group.

    Args:
        factory: The one that the other optimizer was built with.
        component: From `export_optimizer`. Not modified: leaves are copied, strides included.
        params: Working parameters by name.

    Raises:
        TreeMismatchError: The factory makes other groups, or not the objects that the component speaks of.
    """
    optimizer = build_optimizer(factory, params)
    write_optimizer(optimizer, component, params)
    return optimizer


def write_optimizer(optimizer: Optimizer, component: Component, params: Mapping[str, nn.Parameter]) -> None:
    """Write a component into a built optimizer: attributes, groups and state. See `restore_optimizer`."""
    survey = OptimizerSurvey(optimizer, params)
    sources = Sources({**own(component.leaves), **survey.built})
    values = component.skeleton["objects"]
    if not component.skeleton.get("groups_only"):
        write(survey, values, sources, HOUSEKEEPING)
    had = {name for kept in values.values() for group in kept.get("param_groups", ()) for name in group["params"]}
    for place, target in survey.objects.items():
        if not isinstance(target, Optimizer):
            continue
        kept, built = values[place], survey.values[place]
        if "param_groups" in kept:
            _check_groups(place, kept["param_groups"], built.get("param_groups", []))
            write_groups(target, kept["param_groups"], sources)
        if "defaults" in kept:
            target.defaults.update(join(kept["defaults"], sources))
        if "state" in kept:
            _write_state(target, kept, had, sources, params)


def _write_state(
    optimizer: Optimizer, kept: Mapping[str, Json], had: Collection[str], sources: Sources, params: Mapping[str, nn.Parameter]
) -> None:
    """Replace the state of the parameters that the kept optimizer had; others keep what the constructor gave them."""
    state = {name: optimizer.state[param] for name, param in params.items() if param in optimizer.state and name not in had}
    state |= {name: join(slots, sources) for name, slots in kept["state"].items() if name in params}
    optimizer.state.clear()
    optimizer.state.update({param: state[name] for name, param in params.items() if name in state})
    _counters_on_cpu(optimizer)
    optimizer.state.update({key: join(node, sources) for key, node in kept.get("named_state", {}).items()})


def _counters_on_cpu(optimizer: Optimizer) -> None:
    """Put counters where the classes of torch look at them without waiting for the device: leaves come all on one."""
    if type(optimizer).__name__ not in _COUNT_ON_CPU or type(optimizer).__module__.partition(".")[0] != "torch":
        return
    for group in optimizer.param_groups:
        if group.get("capturable") or group.get("fused"):
            continue
        for param in group["params"]:
            slots = optimizer.state.get(param, {})
            slots.update(
                {slot: slots[slot].cpu() for slot in ("step", "mu_product") if isinstance(slots.get(slot), torch.Tensor)}
            )


def write_groups(optimizer: Optimizer, groups: Sequence[Json], sources: Sources) -> None:
    """Replace the options of an optimizer's groups; the dicts stay the same objects, since others may hold them."""
    for target, group in zip(optimizer.param_groups, groups, strict=True):
        options = {key: join(node, sources) for key, node in group.items() if key != "params"}
        for key in target.keys() - options.keys() - {"params"}:
            del target[key]
        target.update(options)


def _check_groups(place: str, kept: Sequence[Json], built: Sequence[Json]) -> None:
    expected, actual = ({name: i for i, group in enumerate(groups) for name in group["params"]} for groups in (kept, built))
    moved = sorted(name for name in expected.keys() & actual.keys() if expected[name] != actual[name])
    if len(kept) == len(built) and not moved:
        return
    raise TreeMismatchError(
        f"{place} was kept with {len(kept)} parameter groups and is built with {len(built)}"
        + (f"; {', '.join(map(repr, moved))} changed the group." if moved else "."),
        cause="The optimizer's function groups the parameters in another way than at setup, or all of a group are frozen.",
        fix="Set the optimizer up again: ps.setup(state, optimizer_fn=...).",
        path=place,
        expected=[group["params"] for group in kept],
        actual=[group["params"] for group in built],
    )


def learning_rates(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of each group that has one: an optimizer of another library keeps rates to itself."""
    return [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]


def stored_learning_rates(component: Component) -> list[float]:
    """Return the learning rate of each group of a kept optimizer that has one."""
    groups = component.skeleton["objects"][ROOT].get("param_groups", ())
    return [float(join(group["lr"], component.leaves)) for group in groups if "lr" in group]


def require_rates(factory: Factory | None, what: str, argument: str) -> None:
    """Raise `SetupError` where an optimizer has no learning rates of its own, which ``what`` would change.

    Args:
        factory: How the optimizer is made; None for none.
        what: The beginning of the message: ``'train: warmup=1 was given'``.
        argument: What was given.
    """
    if getattr(factory and factory.fn, "keeps_rates", False):
        raise SetupError(
            f"{what}, and the optimizer has no learning rate of its own.",
            cause="That of Optax is in the transformation, schedules included.",
            fix="Give it one: ps.setup(state, optimizer_fn=ps.optax(optax.adam(optax.warmup_cosine_decay_schedule(...)))).",
            argument=argument,
        )


def replace_learning_rates(component: Component, rates: Sequence[float]) -> Component:
    """Return a kept optimizer with other learning rates, one a group that has one. A tensor ``lr`` stays a tensor of its dtype.

    The base rates that schedulers remember are theirs, not the optimizer's; a scheduler overwrites the new rates when it
    steps next, as in torch.
    """
    root = component.skeleton["objects"][ROOT]
    leaves = dict(component.leaves)
    groups: list[Json] = []
    given = iter(rates)
    for i, group in enumerate(root.get("param_groups", ())):
        if "lr" not in group:
            groups.append(group)
            continue
        rate = next(given)
        lr: Json = float(rate)
        if isinstance(group["lr"], dict):
            path = f"{ROOT}.param_groups[{i}]['lr']"
            leaves[path] = torch.full_like(component.leaves[group["lr"]["v"]], rate)
            lr = {"~": "tensor", "v": path}
        groups.append({**group, "lr": lr})
    objects = {**component.skeleton["objects"], ROOT: {**root, "param_groups": groups} if groups else root}
    return Component({**component.skeleton, "objects": objects}, leaves)


def with_moments_of(last: Component, best: Component | None) -> Component:
    """Return an optimizer with the groups (rates, betas) of ``last`` and the state and attributes of ``best``.

    This is what `train` returns under ``load_best``. Nothing is copied.

    Args:
        last: From the last epoch.
        best: From the best epoch; None if that was before the first step of a fresh optimizer. Then state and attributes
            are those that the factory builds.
    """
    kept: Json = {"groups_only": True, "objects": {place: {} for place in last.skeleton["objects"]}}
    if best is not None:
        kept = best.skeleton
    objects: dict[str, Json] = dict(kept["objects"])
    for place, values in last.skeleton["objects"].items():
        if "param_groups" in values:
            objects[place] = {**objects[place], "param_groups": values["param_groups"]}
    in_groups = set(_leaf_names([values.get("param_groups") for values in objects.values()]))
    elsewhere = set(_leaf_names(objects)) - in_groups
    leaves = {path: leaf for path, leaf in (best.leaves if best is not None else {}).items() if path in elsewhere}
    leaves |= {path: leaf for path, leaf in last.leaves.items() if path in in_groups}
    return Component({**kept, "objects": objects}, leaves)


def _leaf_names(node: Json) -> Iterator[str]:
    if isinstance(node, dict) and node.get("~") in ("tensor", "ndarray"):
        yield node["v"]
    elif isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _leaf_names(item)
