"""Live optimizers from plain data and back, for any class.

Between ops an optimizer is a `Component`: ``state`` by the name of the parameter, ``param_groups`` with names in the place
of tensors, and the other attributes of the object. `restore_optimizer` builds with the factory and writes all of it back.

Leaf paths are ``state/<parameter>/<slot>``, in which ``~`` and ``/`` of a name are written ``~0`` and ``~1``; tensors
elsewhere, such as a tensor ``lr``, are named by place: ``optimizer.param_groups[0]['lr']``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    "merge_moments",
    "replace_learning_rates",
    "restore_optimizer",
    "stored_learning_rates",
    "write_optimizer",
]

ROOT = "optimizer"
HOUSEKEEPING = frozenset(
    {
        "state",  # written on its own, by parameter name
        "param_groups",
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


class _Defaults(dict[str, Any]):
    """An optimizer's ``defaults`` that knows what the constructor put there."""

    def __init__(self, built: dict[str, Any]) -> None:
        super().__init__(built)
        self.built = built


class OptimizerSurvey(Survey):
    """A `Survey` that writes optimizers, at whatever depth, by parameter name."""

    def __init__(self, optimizer: Optimizer, params: Mapping[str, torch.Tensor]) -> None:
        self.names = {id(param): name for name, param in params.items()}
        super().__init__(self.names)
        self.object(optimizer, ROOT)

    def object(self, thing: Any, place: str, skip: Any = ()) -> None:
        """Enter an object's attributes; of an optimizer, its state and groups too."""
        if not isinstance(thing, Optimizer):
            return super().object(thing, place, skip)
        unmoved = isinstance(thing.defaults, _Defaults) and thing.defaults == thing.defaults.built
        super().object(thing, place, HOUSEKEEPING | {"defaults"} if unmoved else HOUSEKEEPING)
        groups = [self._group(group, f"{place}.param_groups[{i}]") for i, group in enumerate(thing.param_groups)]
        prefix = "state" if place == ROOT else f"{escape(place)}/state"
        by_param, by_key = {}, {}
        for key, slots in thing.state.items():
            if isinstance(key, str):  # user classes keep what belongs to no parameter under a name
                by_key[key] = self.value(slots, f"{place}.state[{key!r}]")
            else:
                name = self._name(key, place)
                by_param[name] = self._slots(slots, f"{prefix}/{escape(name)}")
        self.values[place] |= {"param_groups": groups, "state": by_param, **({"named_state": by_key} if by_key else {})}
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
        factory: Of kind ``'optimizer'``. A function is called with ``list(params.values())``.
        params: Trainable parameters by name, in the model's order. Held by the optimizer, not modified.

    Returns:
        The optimizer. It may leave out some parameters. Tensors among its options (a tensor ``lr``) are its own.

    Raises:
        SetupError: The class refused its arguments; the function returned something else, or took parameters from elsewhere.
        UnsupportedError: Its ``step`` needs a closure, or it holds something that cannot be kept.
    """
    optimizer = factory.build(list(params.values()))
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

    Args:
        optimizer: From `build_optimizer` or `restore_optimizer`. Not modified.
        params: The parameters that it was built on, by name.

    Raises:
        UnsupportedError: An attribute or slot holds something that cannot be part of a state; the message names it.
    """
    survey = OptimizerSurvey(optimizer, params)
    return Component({"objects": survey.values}, survey.leaves)


def restore_optimizer(factory: Factory, component: Component, params: Mapping[str, nn.Parameter]) -> Optimizer:
    """Build an optimizer and make it continue where another one was, to the bit.

    Args:
        factory: The one that the other optimizer was built with.
        component: From `export_optimizer`. Not modified: leaves are copied, strides included.
        params: Working parameters by name.

    Raises:
        TreeMismatchError: The component speaks of other parameters, or of objects that the factory does not make.
    """
    optimizer = build_optimizer(factory, params)
    write_optimizer(optimizer, component, params)
    return optimizer


def write_optimizer(optimizer: Optimizer, component: Component, params: Mapping[str, nn.Parameter]) -> None:
    """Write a component into a built optimizer: attributes, groups and state. See `restore_optimizer`."""
    survey = OptimizerSurvey(optimizer, params)
    sources = Sources(own(component.leaves) | survey.built)
    values = component.skeleton["objects"]
    write(survey, values, sources, HOUSEKEEPING | {"defaults"})
    for place, target in survey.objects.items():
        if isinstance(target, Optimizer):
            _check_names(place, values[place], survey.values[place], params)
            if "defaults" in values[place]:
                target.defaults.update(join(values[place]["defaults"], sources))
            write_groups(target, values[place]["param_groups"], sources)
            for group, kept in zip(target.param_groups, values[place]["param_groups"], strict=True):
                group["params"][:] = [params[name] for name in kept["params"]]
            target.state.clear()
            for name, slots in values[place]["state"].items():
                target.state[params[name]] = join(slots, sources)
            for key, node in values[place].get("named_state", {}).items():
                target.state[key] = join(node, sources)


def write_groups(optimizer: Optimizer, groups: Sequence[Json], sources: Sources) -> None:
    """Replace the options of an optimizer's groups; the lists and dicts stay the same objects, since others may hold them."""
    for target, group in zip(optimizer.param_groups, groups, strict=True):
        options = {key: join(node, sources) for key, node in group.items() if key != "params"}
        for key in target.keys() - options.keys() - {"params"}:
            del target[key]
        target.update(options)


def _check_names(place: str, kept: Mapping[str, Json], built: Mapping[str, Json], params: Mapping[str, torch.Tensor]) -> None:
    expected, actual = ([sorted(group["params"]) for group in values["param_groups"]] for values in (kept, built))
    gone = kept["state"].keys() - params.keys()
    if expected == actual and not gone:
        return
    differ = set().union(*expected) ^ set().union(*actual) | gone
    groups = [f"{sum(map(len, names))} parameters in {len(names)} groups" for names in (expected, actual)]
    raise TreeMismatchError(
        f"{place} was kept with {groups[0]} and is built on {groups[1]}; they differ in {sorted(differ) or 'their groups'}.",
        cause="Parameters were frozen, unfrozen or renamed, or the optimizer's function groups them in another way.",
        fix="Set the optimizer up again: ps.setup(state, optimizer_cls=..., optimizer_args=...).",
        path=place,
        expected=expected,
        actual=actual,
    )


def learning_rates(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of each group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def stored_learning_rates(component: Component) -> list[float]:
    """Return the learning rate of each group of a kept optimizer."""
    return [float(join(group["lr"], component.leaves)) for group in component.skeleton["objects"][ROOT]["param_groups"]]


def replace_learning_rates(component: Component, rates: Sequence[float]) -> Component:
    """Return a kept optimizer with other learning rates, one a group. A tensor ``lr`` stays a tensor of its dtype.

    The base rates that schedulers remember are theirs, not the optimizer's; a scheduler overwrites the new rates when it
    steps next, as in torch.
    """
    root = component.skeleton["objects"][ROOT]
    leaves = dict(component.leaves)
    groups: list[Json] = []
    for i, (group, rate) in enumerate(zip(root["param_groups"], rates, strict=True)):
        lr: Json = float(rate)
        if isinstance(group["lr"], dict):
            path = f"{ROOT}.param_groups[{i}]['lr']"
            leaves[path] = torch.full_like(component.leaves[group["lr"]["v"]], rate)
            lr = {"~": "tensor", "v": path}
        groups.append({**group, "lr": lr})
    objects = {**component.skeleton["objects"], ROOT: {**root, "param_groups": groups}}
    return Component({**component.skeleton, "objects": objects}, leaves)


def merge_moments(moments: Component, options: Component) -> Component:
    """Return one optimizer with the state and attributes of ``moments`` and the groups (rates, betas) of ``options``.

    This is what `train` returns under ``load_best``: moments of the best epoch, learning rates of the last.
    """
    objects = dict(moments.skeleton["objects"])
    for place, values in options.skeleton["objects"].items():
        if "param_groups" in values:
            objects[place] = {**objects[place], "param_groups": values["param_groups"]}
    used = set(_leaf_names(objects))
    in_groups = set(_leaf_names([values.get("param_groups") for values in objects.values()]))
    leaves = {path: leaf for path, leaf in {**moments.leaves, **options.leaves}.items() if path in used}
    leaves |= {path: leaf for path, leaf in moments.leaves.items() if path in used - in_groups}
    return Component({**moments.skeleton, "objects": objects}, leaves)


def _leaf_names(node: Json) -> Iterator[str]:
    if isinstance(node, dict) and node.get("~") in ("tensor", "ndarray"):
        yield node["v"]
    elif isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _leaf_names(item)
