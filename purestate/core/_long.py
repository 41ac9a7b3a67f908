"""An optimizer of `torch.optim` on few long tensors in the place of many short ones, with the same bits.

`lengthened` moves parameters, their state and their gradients to common memory (a *bundle*), or takes pieces of what is long,
and gives a `Long` that steps them: as a form of `_forms`, or by the class itself. A probe compares both with the class first.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from purestate.core._forms import FORMS, Part

__all__ = ["Long", "lengthened"]

_COUNTS = frozenset({"step", "mu_product", "eta", "mu"})
"""Slots that hold one number a parameter, the same for all parameters that have taken the same steps."""
_PIECE = 32768
"""Elements a thread: what torch gives to one thread at least, and what stays in its cache from one operator to the next."""
_DTYPES = torch.float32, torch.float64
"""In shorter ones the last elements of a tensor are rounded in another way than those before them, and seldom show it."""
_ALIGNED = 64
"""Bytes: where torch begins tensors of its own. Kernels may compute in another order on memory that begins elsewhere."""
_C: Any = torch._C  # most of it has no types
_below_autograd = _C._AutoDispatchBelowAutograd
_foreach_copy: Any = _C._VariableFunctions._foreach_copy_


@dataclass(slots=True)
class _Bundle:
    """Short parameters one after the other in one tensor, whose state and gradient are such tensors, too."""

    members: list[int]
    """Where their gradients are in the list of all."""
    places: list[Tensor]
    """Their places in the gradient."""


@dataclass(slots=True)
class _Cut:
    """A parameter in pieces that are views of it, and so is its state."""

    member: int
    elements: int
    piece: int
    strides: tuple[int, ...]
    parts: list[Tensor]


@dataclass(slots=True)
class _Run:
    """Long tensors of a group that have taken the same number of steps, for a form, which counts once for all of them."""

    parts: list[Part]
    count: float
    most: float
    """What a counter of this dtype stays at when one is added."""
    behind: bool = False
    """Whether the counters in the state are."""

    def next(self) -> float:
        self.behind, self.count = True, min(self.count + 1, self.most)
        return self.count


class Long:
    """An optimizer of the same class with the same groups on long tensors. See `lengthened`, which makes it."""

    def __init__(self, optimizer: Optimizer, pattern: list[bool]) -> None:
        self._optimizer, self._pattern = optimizer, pattern
        self._momentum = [bool(group.get("momentum")) for group in optimizer.param_groups]
        self._twin: Any = object.__new__(type(optimizer))
        vars(self._twin).update({name: value for name, value in vars(optimizer).items() if name != "step"})
        self._twin.state = self.state = defaultdict[Tensor, dict[str, Any]](dict)
        self._twin.param_groups = self._groups = list[dict[str, Any]]()
        self._step = inspect.unwrap(type(optimizer).step)
        self._bundles: list[_Bundle] = []
        self._cuts: list[_Cut] = []
        self._counts: list[tuple[Tensor, list[Tensor]]] = []
        # several tensors at once (foreach) would need temporaries for all of them, with the same bits on a processor
        self._one_by_one = all(p.device.type == "cpu" for group in optimizer.param_groups for p in group["params"])
        self._form = FORMS.get(type(optimizer).__name__) if self._one_by_one else None
        self._runs: list[dict[tuple[float, float], _Run]] = []

    def fits(self, gradients: Sequence[Tensor | None]) -> bool:
        """Whether there are gradients for the same parameters as when this was made, and options that ask for no other state."""
        return [g is not None and g.layout is torch.strided for g in gradients] == self._pattern and all(
            (type(group["lr"]) is float or type(group["lr"]) is int) and bool(group.get("momentum")) is momentum
            for group, momentum in zip(self._optimizer.param_groups, self._momentum, strict=True)
        )

    def step(self, gradients: Sequence[Any]) -> None:
        """Take a step."""
        with _below_autograd():
            for bundle in self._bundles:
                _foreach_copy(bundle.places, [gradients[i] for i in bundle.members])
            for cut in self._cuts:
                gradient = gradients[cut.member]
                if gradient.stride() != cut.strides:
                    gradient = gradient.new_empty_strided(gradient.shape, cut.strides).copy_(gradient)
                for part, piece in zip(cut.parts, _flat(gradient, cut.elements).split(cut.piece), strict=True):
                    part.grad = piece
            if not self._step_written_out():
                self._step_as_the_class()
            for cut in self._cuts:
                for part in cut.parts:
                    part.grad = None

    def _step_written_out(self) -> bool:
        groups, form = self._optimizer.param_groups, self._form
        if form is None:
            return False
        for group in groups:
            if group["fused"] or not form.takes(group):
                return False
        for group, runs in zip(groups, self._runs, strict=True):
            for run in runs.values():
                form.step(group, run.parts, run.next())
        return True

    def _step_as_the_class(self) -> None:
        self._count()
        for own, group in zip(self._groups, self._optimizer.param_groups, strict=True):
            own.update(group, params=own["params"])
            if self._one_by_one and not own.get("fused"):
                own["foreach"] = False
        with torch.no_grad():
            self._step(self._twin)
        for runs in self._runs:
            for run in runs.values():
                run.next()
                run.behind = False

    def _count(self) -> None:
        """Write into the state what was counted beside it."""
        for runs in self._runs:
            for run in runs.values():
                if run.behind:
                    run.behind = False
                    for _, state in run.parts:
                        if "step" in state:
                            state["step"].fill_(run.count)

    def settle(self) -> None:
        """Give each parameter the counters that the long ones have."""
        with torch.no_grad():
            self._count()
            for count, theirs in self._counts:
                for one in theirs:
                    one.copy_(count)

    def group(self) -> None:
        """Begin another group."""
        self._groups.append({"params": []})
        self._runs.append({})

    def bundle(self, members: Sequence[_Member], tensors: dict[str, Tensor]) -> None:
        """Move short parameters and their state to common memory."""
        whole, places = _moved([m.tensor for m in members])
        for m, place in zip(members, places, strict=True):
            m.parameter.data = tensors[m.name] = place
        state: dict[str, Any] = {}
        for slot in members[0].slots:
            state[slot], places = _moved([m.slots[slot] for m in members])
            for m, place in zip(members, places, strict=True):
                m.state[slot] = place
        whole.grad, places = _moved([m.tensor for m in members])
        self._bundles.append(_Bundle([m.index for m in members], places))
        self._add(whole, state, members)

    def cut(self, member: _Member, piece: int) -> None:
        """Take a long parameter and its state in pieces."""
        elements = member.tensor.numel()
        parts = _flat(member.tensor, elements).split(piece)
        slots = {slot: _flat(tensor, elements).split(piece) for slot, tensor in member.slots.items()}
        for i, part in enumerate(parts):
            self._add(part, {slot: pieces[i] for slot, pieces in slots.items()}, [member] if i == 0 else [], member)
        self._cuts.append(_Cut(member.index, elements, piece, member.tensor.stride(), list(parts)))

    def _add(self, tensor: Tensor, state: dict[str, Any], members: Sequence[_Member], like: _Member | None = None) -> None:
        for name, count in (like or members[0]).counts.items():
            state[name] = count.clone()
            self._counts.append((state[name], [m.state[name] for m in members]))
        self._groups[-1]["params"].append(tensor)
        self.state[tensor] = state
        if self._form is not None:
            step = state.get("step")
            count, most = (0.0, math.inf) if step is None else (step.item(), 2 / torch.finfo(step.dtype).eps)
            self._runs[-1].setdefault((count, most), _Run([], count, most)).parts.append((tensor, state))


@dataclass(slots=True)
class _Member:
    """A parameter that becomes part of a long tensor."""

    index: int
    name: str
    parameter: nn.Parameter
    tensor: Tensor
    state: dict[str, Any]
    slots: dict[str, Tensor]
    counts: dict[str, Tensor]

    @property
    def alike(self) -> Any:
        """What has to be equal in all members of a bundle."""
        kinds = [(slot, tensor.dtype) for slot, tensor in self.slots.items()]
        counts = [(name, count.item(), count.dtype, count.device) for name, count in self.counts.items()]
        return self.tensor.device, self.tensor.dtype, kinds, counts


def lengthened(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: dict[str, Tensor], *, probe: bool = True
) -> Long | None:
    """Put an optimizer that has just taken a step on long tensors.

    Args:
        optimizer: Its state may move to other memory.
        parameters: What it was built on, by name, with the gradients of the step.
        tensors: See `Update`.
        probe: Whether the bits have to be compared first.

    Returns:
        None where something about the parameters or the state is unusual, or the bits are others.
    """
    order = {id(p): (i, name) for i, (name, p) in enumerate(parameters.items())}
    groups: list[list[_Member]] = []
    for group in optimizer.param_groups:
        groups.append([])
        for p in group["params"]:
            if p.grad is not None:
                member = _member(*order[id(p)], p, tensors[order[id(p)][1]], optimizer.state.get(p))
                if member is None or (probe and not _same_bits(optimizer, group, p)):
                    return None
                groups[-1].append(member)
    long = Long(optimizer, [p.grad is not None for p in parameters.values()])
    piece = _PIECE * torch.get_num_threads()
    with torch.no_grad():
        for members in groups:
            long.group()
            short: dict[str, list[_Member]] = {}
            for member in members:
                if 2 * member.tensor.numel() > piece and member.tensor.device.type == "cpu":
                    long.cut(member, piece)
                else:
                    short.setdefault(repr(member.alike), []).append(member)
            for alike in short.values():
                for some in _portions(alike, piece):
                    long.bundle(some, tensors)
    return long


def _portions(members: Iterable[_Member], elements: int) -> Iterable[list[_Member]]:
    some: list[_Member] = []
    for member in members:
        if some and sum(m.tensor.numel() for m in some) + member.tensor.numel() > elements:
            yield some
            some = []
        some.append(member)
    yield some


def _member(index: int, name: str, parameter: nn.Parameter, tensor: Tensor, state: Any) -> _Member | None:
    slots: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    gradient = parameter.grad
    if not _is_dense(tensor) or gradient is None or gradient.layout is not torch.strided or gradient.dtype != tensor.dtype:
        return None
    for slot, value in (state or {}).items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return None
        if slot in _COUNTS and value.dim() == 0:
            counts[slot] = value
        elif value.shape == tensor.shape and value.stride() == tensor.stride() and value.device == tensor.device:
            slots[slot] = value
        else:
            return None
    return _Member(index, name, parameter, tensor, state, slots, counts)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements of a tensor fill its memory without gap or overlap, and are of a dtype that can be probed."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.dtype not in _DTYPES:
        return False
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return tensor.numel() > 0


def _moved(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copy tensors into one. Returns it, and the copies: no views, so that torch counts their versions one by one."""
    first = tensors[0]
    unit = _ALIGNED // first.element_size()
    lengths = [-(-t.numel() // unit) * unit for t in tensors]
    whole = torch.zeros(sum(lengths), dtype=first.dtype, device=first.device)
    places: list[Tensor] = []
    offset = 0
    for tensor, length in zip(tensors, lengths, strict=True):
        place = torch.empty(0, dtype=first.dtype, device=first.device)
        place.set_(whole.untyped_storage(), offset, tensor.shape, tensor.stride())
        places.append(place.copy_(tensor))
        offset += length
    return whole, places


def _flat(tensor: Tensor, elements: int) -> Tensor:
    """A dense tensor as one row, in the order of its memory."""
    return tensor.as_strided((elements,), (1,))


_probed: dict[Any, bool] = {}


def _same_bits(optimizer: Optimizer, group: Mapping[str, Any], like: Tensor) -> bool:
    """Whether the class gives the same bits on long tensors as on short ones, with these options, on this machine."""
    takes = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in group.items() if name in takes and name != "params"} | {"lr": 0.01}
    key = type(optimizer), repr(options), like.dtype, like.device.type, torch.get_num_threads()
    if key not in _probed:
        _probed[key] = _probe(type(optimizer), options, like.dtype, like.device)
    return _probed[key]


def _probe(cls: Any, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    longest = _PIECE * torch.get_num_threads() + 77
    shapes = [(n,) for n in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65, longest)]

    def numbers() -> list[Tensor]:
        found = [torch.randn(shape, generator=generator) * 10 ** torch.randn(shape, generator=generator) for shape in shapes]
        return [t.to(device, dtype) for t in found]

    start = numbers()
    sides: list[tuple[dict[str, nn.Parameter], dict[str, Tensor], Any]] = []
    for _ in range(2):
        tensors = {str(i): t.clone() for i, t in enumerate(start)}
        parameters = {name: nn.Parameter(t) for name, t in tensors.items()}
        sides.append((parameters, tensors, cls(list(parameters.values()), **options)))
    long: Long | None = None
    for i in range(3):
        gradients = numbers()
        for parameters, _, _ in sides:
            for p, g in zip(parameters.values(), gradients, strict=True):
                p.grad = g.clone()
        sides[0][2].step()
        if i == 0:
            sides[1][2].step()
            long = lengthened(sides[1][2], sides[1][0], sides[1][1], probe=False)
            if long is None:
                return False
        elif long is not None:
            long.step([p.grad for p in sides[1][0].values()])
    assert long is not None
    long.settle()
    (a, _, first), (b, tensors, second) = sides
    pairs = [(p, tensors[name]) for name, p in a.items()]
    pairs += [(first.state[a[name]][slot], t) for name, p in b.items() for slot, t in second.state[p].items()]
    return all(torch.equal(x.detach().view(torch.uint8), y.view(torch.uint8)) for x, y in pairs if x.dim()) and all(
        torch.equal(x, y) for x, y in pairs if not x.dim()
    )
