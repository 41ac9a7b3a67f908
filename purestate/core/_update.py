"""One step of an optimizer on the working set: the class itself, over few long tensors instead of many short ones.

Most classes of `torch.optim` treat every element alike, so they may as well be given one long tensor that holds many short
parameters (a *bundle*), or the pieces of a long one that fit into the processor's cache: the same arithmetic with the same bits,
for a fraction of the calls, and without temporaries of the size of the model. `Update` does so where the class is known to
be of that kind, nothing about it is unusual, and a probe has found the bits equal on this machine. Otherwise the class
steps as it is. Gradients are let go after a step, as ``zero_grad()`` does.
"""

from __future__ import annotations

import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from purestate.core._recipe import Clip

__all__ = ["Update"]

_ELEMENTWISE = frozenset({"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"})
"""Classes of `torch.optim` in which an element of a parameter depends on no other element."""
_COUNTS = frozenset({"step", "mu_product", "eta", "mu"})
"""Slots that hold one number a parameter, the same for all parameters that have taken the same steps."""
_PIECE = 32768
"""Elements a thread: what torch gives to one thread at least, and what stays in its cache from one operator to the next."""
_DTYPES = torch.float32, torch.float64
"""In shorter ones the last elements of a tensor are rounded in another way than those before them, and seldom show it."""
_MOST_TRIES = 4
"""How often tensors are laid out again because other parameters got a gradient."""
_ALIGNED = 64
"""Bytes: where torch begins tensors of its own. Kernels may compute in another order on memory that begins elsewhere."""
_C: Any = torch._C  # most of it has no types
_everywhere: Any = importlib.import_module("torch.optim.optimizer")  # where the hooks of all optimizers are
_below_autograd = _C._AutoDispatchBelowAutograd
_foreach_copy: Any = _C._VariableFunctions._foreach_copy_


class Update:
    """Steps an optimizer with gradients that somebody else computed.

    Args:
        optimizer: Stepped in place; its state may move to other memory.
        parameters: What it was built on, by name.
        tensors: The same tensors without gradient. Those that move to other memory are exchanged in this dict.
        clip: How gradients are clipped before.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: dict[str, Tensor], clip: Clip
    ) -> None:
        self._optimizer, self._parameters, self._tensors, self._clip = optimizer, parameters, tensors, clip
        self._list = list(parameters.values())
        self._long: _Long | None = None
        self._usual = _is_usual(optimizer)
        self._tries = _MOST_TRIES

    def __call__(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Take a step.

        Args:
            gradients: By parameter, in the order of the parameters; None where it had no part in the loss. Clipping
                changes them in place.
        """
        given = list(gradients.values())
        usual = self._usual and not _hooked(self._optimizer)
        if self._long is not None and not (usual and self._long.fits(given)):
            self._long.settle()
            self._long = None
            self._tries -= 1
        if self._clip.norm is not None or self._clip.value is not None:
            self._lend(given)
            self._clipped()
        if self._long is not None:
            self._long.step(given)
        else:
            self._lend(given)
            self._optimizer.step()
            if usual and self._tries:
                self._long = lengthened(self._optimizer, self._parameters, self._tensors)
                if self._long is None:
                    self._usual = False
        for parameter in self._list:
            parameter.grad = None

    def settle(self) -> None:
        """Make the optimizer's own state that of now, the counters of each parameter included."""
        if self._long is not None:
            self._long.settle()

    def _lend(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._list, gradients, strict=True):
            parameter.grad = gradient

    def _clipped(self) -> None:
        if self._clip.norm is not None:
            nn.utils.clip_grad_norm_(self._list, self._clip.norm)
        if self._clip.value is not None:
            nn.utils.clip_grad_value_(self._list, self._clip.value)


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


class _Long:
    """An optimizer of the same class with the same groups on long tensors. See `lengthened`, which makes it."""

    def __init__(self, optimizer: Optimizer, pattern: list[bool]) -> None:
        self._optimizer, self._pattern = optimizer, pattern
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

    def fits(self, gradients: Sequence[Tensor | None]) -> bool:
        """Whether there are gradients for the same parameters as when this was made."""
        return [g is not None and g.layout is torch.strided for g in gradients] == self._pattern and all(
            type(group["lr"]) is float or type(group["lr"]) is int for group in self._optimizer.param_groups
        )

    def step(self, gradients: Sequence[Any]) -> None:
        """Take a step."""
        for own, group in zip(self._groups, self._optimizer.param_groups, strict=True):
            own.update(group, params=own["params"])
            if self._one_by_one and not own.get("fused"):
                own["foreach"] = False
        with torch.no_grad(), _below_autograd():
            for bundle in self._bundles:
                _foreach_copy(bundle.places, [gradients[i] for i in bundle.members])
            for cut in self._cuts:
                gradient = gradients[cut.member]
                if gradient.stride() != cut.strides:
                    gradient = gradient.new_empty_strided(gradient.shape, cut.strides).copy_(gradient)
                for part, piece in zip(cut.parts, _flat(gradient, cut.elements).split(cut.piece), strict=True):
                    part.grad = piece
            self._step(self._twin)
            for cut in self._cuts:
                for part in cut.parts:
                    part.grad = None

    def settle(self) -> None:
        """Give each parameter the counters that the long ones have."""
        with torch.no_grad():
            for count, theirs in self._counts:
                for one in theirs:
                    one.copy_(count)

    def group(self) -> None:
        """Begin another group."""
        self._groups.append({"params": []})

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
) -> _Long | None:
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
    long = _Long(optimizer, [p.grad is not None for p in parameters.values()])
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


def _is_usual(optimizer: Optimizer) -> bool:
    """Whether it is an elementwise class of torch, as it is, with numbers as options."""
    cls = type(optimizer)
    if cls.__name__ not in _ELEMENTWISE or cls is not getattr(torch.optim, cls.__name__):
        return False
    step = vars(optimizer).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return False
    if hasattr(optimizer, "grad_scale") or hasattr(optimizer, "found_inf"):
        return False
    return not any(
        isinstance(value, Tensor) or (name in ("capturable", "differentiable") and value)
        for group in optimizer.param_groups
        for name, value in group.items()
    )


def _hooked(optimizer: Any) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _everywhere._global_optimizer_pre_hooks
        or _everywhere._global_optimizer_post_hooks
    )


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
    long: _Long | None = None
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
