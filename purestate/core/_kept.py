"""Captures that outlive the op they were made in, for the next op on the same module, loss and metrics.

Kept is what a captured step is made of: operators in order, and constants that the module holds itself. No parameter, buffer
or batch is. Each op has a step of its own and compares what it finds here with it before it replays (see `_capture`), so
a wrong entry costs time and no bits. What is kept goes with the template of the recipe, and the oldest of many goes first.
`signature_of` tells the kinds of batches apart that need a capture each.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor, nn

from purestate.core._metrics import Metric
from purestate.core._recipe import Recipe
from purestate.core._replay import Program

__all__ = ["Kept", "Kinds", "Known", "kept_for", "signature_of", "tensor_key"]

_T = TypeVar("_T")
_MOST_TEMPLATES = 8
_PLAIN = (int, float, str, bool, bytes, type(None))
_MOST = 8
"""Of objectives on a template, of specs of an objective, and of kinds of batches of a spec."""


def signature_of(batch: Any) -> tuple[Any, Sequence[Tensor]]:
    """Return what kind of batch this is, None if it has no kind, and its tensors."""
    if type(batch) in (tuple, list) and all(map(_is_plain, batch)):
        return (type(batch), *map(tensor_key, batch)), batch
    leaves, structure = optree.tree_flatten(batch, none_is_leaf=True)
    key: list[Any] = [structure]
    tensors: list[Tensor] = []
    for leaf in leaves:
        if _is_plain(leaf):
            key.append(tensor_key(leaf))
            tensors.append(leaf)
        elif type(leaf) in _PLAIN:
            key.append((type(leaf), leaf))
        else:
            return None, ()
    return tuple(key), tensors


def _is_plain(leaf: Any) -> bool:
    return type(leaf) is Tensor and leaf.layout is torch.strided and not leaf.requires_grad


def tensor_key(t: Tensor) -> Any:
    """Return what two tensors share that one capture can serve."""
    return t.shape, t.dtype, t.stride() if t.layout is torch.strided else t.layout, t.device


@dataclass(slots=True)
class Known:
    """What is known of one kind of batch, over all ops.

    Args:
        calls: How many batches of the kind there were.
        program: Its captured step, once there is one.
        attributes: The plain attributes of module and loss, under which it was captured.
        compiled: What `_inductor` made of the same trace, where somebody asked for that.
    """

    calls: int = 0
    program: Program | None = None
    attributes: Mapping[str, Any] | None = None
    compiled: object = None

    def keep(self, program: Program | None, attributes: Mapping[str, Any] | None = None) -> None:
        """Keep this program in the place of another; None for none."""
        self.program, self.attributes = program, attributes


@dataclass(slots=True)
class Kinds:
    """What is known under one spec of parameters and buffers.

    Args:
        why_not: Why the step cannot be captured, once that was found.
        writes: Whether it was seen to write into parameters.
    """

    why_not: str | None = None
    writes: bool = False
    _known: OrderedDict[Hashable, Known] = field(default_factory=OrderedDict[Hashable, Known])

    def of(self, kind: Hashable) -> Known:
        """Return what is known of a kind of batch."""
        return _latest(self._known, kind, Known)


class Kept:
    """The captures of one step. Threads may share it: what they race for is a capture that one of them makes in vain."""

    def __init__(self) -> None:
        self._specs: OrderedDict[Hashable, Kinds] = OrderedDict()

    def kinds(self, spec: Hashable) -> Kinds:
        """Return what is known of tensors with the names, shapes and strides of ``spec``."""
        return _latest(self._specs, spec, Kinds)


@dataclass(frozen=True, eq=False, slots=True)
class _Same:
    """A key that is equal only where it is about the very same object, which it keeps."""

    thing: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


_templates: OrderedDict[int, tuple[weakref.ref[nn.Module], OrderedDict[Hashable, Kept]]] = OrderedDict()


def kept_for(recipe: Recipe, metrics: Sequence[Metric], *, training: bool) -> Kept:
    """Return what earlier ops of this process captured for a recipe, empty at first.

    Args:
        recipe: Recipes share captures if they share template, loss, its arguments, precision and compiler.
        metrics: As for the step.
        training: Whether it is the step of `make_gradient_step` or that of `make_evaluate_step`.
    """
    number = id(recipe.template)
    found = _templates.get(number)
    if found is None or found[0]() is not recipe.template:
        found = weakref.ref(recipe.template, lambda _: _templates.pop(number, None)), OrderedDict[Hashable, Kept]()
        _templates[number] = found
        while len(_templates) > _MOST_TEMPLATES:
            _templates.popitem(last=False)
    else:
        _templates.move_to_end(number)
    parts = recipe.loss, recipe.loss_args, recipe.loss_fn, *(metric.fn for metric in metrics)
    return _latest(found[1], (training, recipe.precision, recipe.compile, *map(_Same, parts)), Kept)


def _latest(entries: OrderedDict[Hashable, _T], key: Hashable, make: Callable[[], _T]) -> _T:
    found = entries.get(key)
    if found is None:
        found = entries[key] = make()
        while len(entries) > _MOST:
            entries.popitem(last=False)
    else:
        entries.move_to_end(key)
    return found
