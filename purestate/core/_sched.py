"""Live schedulers from plain data and back, for any class, nested ones and objects that merely have ``step`` included.

A scheduler is a function of its optimizer at the moment when it is built: constructors change the optimizer's groups, and
a user's function may read rates from there. So a kept scheduler carries the groups as they were then (``origin``), is
built on them again, gets its attributes back, and only then the optimizer gets its groups back (`start`). Functions
come from the factory. With all counters restored torch finds nothing to warn about, and no warning is silenced here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from purestate.core._component import Component, Json, Sources, Survey, own, write
from purestate.core._factory import Factory, needs_metric
from purestate.core._optim import build_optimizer, write_groups, write_optimizer
from purestate.errors import SetupError

__all__ = [
    "LiveScheduler",
    "build_scheduler",
    "export_scheduler",
    "rebuild_scheduler",
    "start",
    "step_scheduler",
]

ROOT = "scheduler"


@dataclass(slots=True)
class LiveScheduler:
    """A real scheduler on a real optimizer, while an op runs.

    Attributes:
        scheduler: The object that the factory made.
        optimizer: What it drives.
        needs_metric: Whether ``step`` takes a metric.
        count: How often it was stepped.
        origin: The optimizer's groups just before the scheduler was built.
    """

    scheduler: Any
    optimizer: Optimizer
    needs_metric: bool
    count: int
    origin: Component


def build_scheduler(factory: Factory, optimizer: Optimizer) -> LiveScheduler:
    """Build a fresh scheduler. As always in torch, that changes the optimizer's groups.

    Raises:
        SetupError: The class refused its arguments, or the function returned something without ``step``.
        UnsupportedError: The scheduler holds something that cannot be kept.
    """
    survey, groups = _survey_groups(optimizer)
    live = _build(factory, optimizer, 0, Component(groups, own(survey.leaves)))
    _survey(live)
    return live


def export_scheduler(live: LiveScheduler) -> Component:
    """Return what a live scheduler knows: its attributes and those of the objects in it, without the optimizer.

    Nothing is copied: leaves are the scheduler's own tensors.
    """
    survey = _survey(live)
    skeleton = {"objects": survey.values, "origin": live.origin.skeleton, "count": live.count}
    return Component(skeleton, {**survey.leaves, **live.origin.leaves})


def step_scheduler(live: LiveScheduler, metric: float | None = None) -> None:
    """Step a scheduler once.

    Args:
        live: Stepped in place, with its optimizer.
        metric: Given to schedulers that need one, and to no other.

    Raises:
        SetupError: The scheduler needs a metric and there is none.
    """
    if not live.needs_metric:
        try:
            live.scheduler.step()
        except ValueError as error:
            raise SetupError(
                f"{type(live.scheduler).__qualname__} cannot be stepped a further time: {error}",
                cause="Its schedule has an end, and training goes on behind it.",
                fix="Give it more total_steps in its arguments, or clear it: ps.setup(state, clear_step_scheduler=True).",
            ) from error
    elif metric is not None:
        live.scheduler.step(metric)
    else:
        raise SetupError(
            f"{type(live.scheduler).__qualname__} steps on a metric, and there is none here.",
            cause="A metric is known after validation: once an epoch, and with validation data only.",
            fix="Give it as epoch_scheduler, with a val_dl.",
        )
    live.count += 1


def rebuild_scheduler(factory: Factory, component: Component, optimizer: Optimizer) -> LiveScheduler:
    """Build a kept scheduler on a new optimizer and step it as often as it was stepped before.

    So it is at the same point of its schedule, with rates that follow from the new optimizer's. Exchanging base rates in
    the kept attributes instead is wrong for most classes.

    A scheduler that steps on a metric has no replay, since the metrics are gone. It keeps its attributes (``best``,
    ``num_bad_epochs``, ``cooldown_counter``) except those that have an entry for each group of the optimizer
    (``min_lrs``, ``_last_lr``), and the new optimizer keeps its rate.

    Args:
        factory: The one that the scheduler was built with.
        component: From `export_scheduler`. Not modified.
        optimizer: The new one. Its groups are changed, as by building and stepping in torch.

    Raises:
        SetupError: The schedule ends before that point (``OneCycleLR``), or cannot be on this optimizer.
    """
    live = build_scheduler(factory, optimizer)
    count = component.skeleton["count"]
    if live.needs_metric:
        _write(live, component, {"min_lrs", "_last_lr", "base_lrs"})
        live.count = count
        return live
    called = vars(optimizer).get("_opt_called", False)
    vars(optimizer)["_opt_called"] = True  # what the wrapper around optimizer.step does; the steps were taken by the old one
    try:
        for _ in range(count):
            step_scheduler(live)
    except Exception as error:  # a user's step may raise anything; torch's at the end of a schedule
        raise SetupError(
            f"{factory.kind} {factory.name} cannot be stepped {count} times on the new optimizer: {error.__cause__ or error}",
            cause="A scheduler that is not named in setup is kept, and follows the new optimizer from the point where it is.",
            fix=f"Name it in the same setup to start it afresh, or clear it with clear_{factory.kind}=True.",
            argument=f"{factory.kind}_cls",
        ) from error
    finally:
        vars(optimizer)["_opt_called"] = called
    return live


def start(
    factory: Factory,
    optimizer: Component | None,
    factories: Mapping[str, Factory | None],
    schedulers: Mapping[str, Component | None],
    params: Mapping[str, nn.Parameter],
) -> tuple[Optimizer, dict[str, LiveScheduler]]:
    """Build an optimizer and its schedulers, each fresh or continuing where it was.

    * optimizer kept: kept schedulers get their attributes, the optimizer its groups and state, to the bit; then fresh
      schedulers are built on it.
    * optimizer fresh: in the order given, fresh schedulers are built and kept ones rebuilt (`rebuild_scheduler`).

    Args:
        factory: How the optimizer is made.
        optimizer: From `export_optimizer`, or None for a fresh one. Not modified.
        factories: How each scheduler is made, by name, in the order in which they are built; None where there is none.
        schedulers: From `export_scheduler`, by name; None or absent: fresh. Not modified.
        params: Working parameters by name.

    Returns:
        The optimizer, and the schedulers by name.
    """
    live = build_optimizer(factory, params)
    pairs = {name: (made, schedulers.get(name)) for name, made in factories.items() if made is not None}
    if optimizer is None:
        return live, {
            name: build_scheduler(made, live) if kept is None else rebuild_scheduler(made, kept, live)
            for name, (made, kept) in pairs.items()
        }
    again = {name: _restore(made, kept, live) for name, (made, kept) in pairs.items() if kept is not None}
    write_optimizer(live, optimizer, params)
    return live, {name: again[name] if name in again else build_scheduler(made, live) for name, (made, _) in pairs.items()}


def _build(factory: Factory, optimizer: Optimizer, count: int, origin: Component) -> LiveScheduler:
    scheduler = factory.build(optimizer)
    if isinstance(scheduler, type) or not callable(getattr(scheduler, "step", None)):
        raise SetupError(
            f"{factory.kind}_fn {factory.name} returned {scheduler!r}, which has no method step.", argument=f"{factory.kind}_fn"
        )
    return LiveScheduler(scheduler, optimizer, needs_metric(scheduler), count, origin)


def _restore(factory: Factory, component: Component, optimizer: Optimizer) -> LiveScheduler:
    """Build a scheduler on the groups that it was built on, and write its attributes. Leaves the optimizer's groups changed."""
    survey, _ = _survey_groups(optimizer)
    origin = Component(component.skeleton["origin"], own({k: v for k, v in component.leaves.items() if k.startswith("origin[")}))
    write_groups(optimizer, origin.skeleton, Sources({**component.cloned().leaves, **survey.built}))
    live = _build(factory, optimizer, component.skeleton["count"], origin)
    _write(live, component)
    return live


def _write(live: LiveScheduler, component: Component, skip: Collection[str] = ()) -> None:
    survey = _survey(live)
    write(survey, component.skeleton["objects"], Sources({**own(component.leaves), **survey.built}), skip)


def _survey(live: LiveScheduler) -> Survey:
    """Survey a scheduler; the optimizer and what belongs to it stay references, wherever the scheduler holds them."""
    optimizer = live.optimizer
    theirs: list[Any] = [optimizer, optimizer.param_groups, optimizer.state, optimizer.defaults]
    for group in optimizer.param_groups:
        theirs += [group, group["params"], *group["params"]]
    survey = Survey({id(thing) for thing in theirs})
    survey.object(live.scheduler, ROOT)
    return survey


def _survey_groups(optimizer: Optimizer) -> tuple[Survey, list[Json]]:
    survey = Survey()
    return survey, [
        {key: survey.value(group[key], f"origin[{i}][{key!r}]") for key in sorted(group.keys() - {"params"})}
        for i, group in enumerate(optimizer.param_groups)
    ]
