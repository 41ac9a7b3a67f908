"""A torch module taken apart: its tensors here, what is left as a template there, and put together again.

A template is a deep copy of the module whose parameters and buffers are on the meta device, so it holds no weights, and the
steps can tell one that was not lent (see `_step`). `Slots` lends tensors to a copy of a template for the length of a
call, which is what `torch.func.functional_call` does, with the names looked up once instead of at every call. Nothing
here computes anything, and no caller's module is modified, `put_together` apart, whose purpose it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from purestate.core._hash import dtype_name
from purestate.errors import TreeMismatchError, UnsupportedError

__all__ = ["Slots", "fresh_copy", "put_together", "state_dict_names", "take_apart", "written_in_forward"]

Tensors = dict[str, Tensor]
_WITHOUT_SHAPE = (UninitializedBuffer, UninitializedParameter)


def take_apart(module: nn.Module) -> tuple[nn.Module, Tensors, Tensors, Tensors]:
    """Split a module into a template and its tensors.

    Args:
        module: Any eager module; every parameter must have a shape. Never modified.

    Returns:
        ``(template, params, frozen, buffers)``: the parameters that require a gradient, the others, and all buffers,
        persistent or not, by their first name. They are detached copies on the same device with the same strides.

    Raises:
        UnsupportedError: The module is scripted, not initialised, or cannot be deep-copied.

    Example:
        >>> template, params, frozen, buffers = take_apart(nn.Linear(2, 1))
        >>> list(params), template.weight.device
        (['weight', 'bias'], device(type='meta'))
    """
    _refuse(module)
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UnsupportedError(
                f"parameter {name!r} has a hook on its gradient, which would not be called.",
                cause="A step works on tensors of its own, and hooks of a tensor stay with it.",
                fix="Do it in the optimizer or the loss, clip with setup(clip_grad_norm=...), or freeze with ps.freeze.",
            )
    tied = {id(p) for p in parameters.values()}
    own = {name: b for name, b in module.named_buffers() if id(b) not in tied}
    params = {name: _clone(p) for name, p in parameters.items() if p.requires_grad}
    frozen = {name: _clone(p) for name, p in parameters.items() if not p.requires_grad}
    buffers = {name: _clone(b) for name, b in own.items()}

    memo: dict[int, Any] = {id(t): _weightless(t) for t in (*parameters.values(), *own.values())}
    for attribute in _plain_tensors(module):
        # old-style weight_norm keeps what it computed, with its graph, where a tensor has no deep copy
        if not attribute.is_leaf and id(attribute) not in memo:
            memo[id(attribute)] = _clone(attribute)
    try:
        template = copy.deepcopy(module, memo)
    except Exception as error:  # an attribute's own __deepcopy__ or __getattr__ may raise anything
        raise UnsupportedError(
            f"{type(module).__qualname__} cannot be deep-copied: {type(error).__name__}: {error}",
            cause="An attribute of it or of a submodule holds something without a copy, such as a lock, a file or a generator.",
            fix="Give the class a __deepcopy__, or keep that object outside the module.",
        ) from error
    return template, params, frozen, buffers


def fresh_copy(template: nn.Module) -> nn.Module:
    """Return a deep copy of a template for one op's own use, so that attributes moved by forward never reach the template."""
    return copy.deepcopy(template)


def put_together(
    module: nn.Module, params: Mapping[str, Tensor], frozen: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> nn.Module:
    """Fill a module with tensors, in place.

    Values, strides and ``requires_grad`` are set; devices stay, except that a module on the meta device (a template's
    copy) moves to the device of the tensors.

    Args:
        module: A module with the names, shapes and dtypes of the tensors. Modified.
        params: Parameters that get ``requires_grad=True``.
        frozen: Parameters that get ``requires_grad=False``.
        buffers: Buffers.

    Returns:
        ``module``.

    Raises:
        TreeMismatchError: Names, shapes or dtypes differ; nothing was changed then.

    Example:
        >>> template, *tensors = take_apart(nn.Linear(2, 1))
        >>> put_together(fresh_copy(template), *tensors).weight.device
        device(type='cpu')
    """
    _refuse(module)
    targets: Tensors = dict(module.named_parameters())
    tied = {id(p) for p in targets.values()}
    has_buffers: Tensors = {name: b for name, b in module.named_buffers() if id(b) not in tied}
    _must_agree("parameters", targets, {**params, **frozen})
    _must_agree("buffers", has_buffers, buffers)
    names = _names_by_tensor(module)
    with torch.no_grad():
        for name, source in {**params, **frozen, **buffers}.items():
            target = targets[name] if name in targets else has_buffers[name]
            if target.is_meta and not source.is_meta:
                replacement: Tensor = _clone(source)
                if isinstance(target, nn.Parameter):
                    replacement = nn.Parameter(replacement, requires_grad=False)
                    vars(replacement).update(vars(target))
                for owner, attribute in names[id(target)]:
                    setattr(owner, attribute, replacement)
                target = replacement
            elif target.stride() != source.stride():
                target.data = _clone(source).to(target.device)
            else:
                target.copy_(source)
            if name not in has_buffers:
                target.requires_grad_(name in params)
    return module


def state_dict_names(template: nn.Module) -> dict[str, tuple[str, str]]:
    """Return which leaf stands under each tensor name of ``module.state_dict()``, tied names included.

    Args:
        template: A template. Not modified.

    Returns:
        ``{state_dict name: (subtree, name in it)}``, subtree being ``'params'``, ``'frozen'`` or ``'buffers'``, in the
        order of ``state_dict``. What a module adds through ``get_extra_state`` is no tensor of the state and not in it.

    Example:
        >>> state_dict_names(nn.BatchNorm1d(2, affine=False))["running_mean"]
        ('buffers', 'running_mean')
    """
    leaves: dict[int, tuple[str, str]] = {id(b): ("buffers", name) for name, b in template.named_buffers()}
    leaves |= {id(p): ("params" if p.requires_grad else "frozen", name) for name, p in template.named_parameters()}
    return {name: leaves[id(t)] for name, t in template.state_dict(keep_vars=True).items() if id(t) in leaves}


def written_in_forward(template: nn.Module) -> frozenset[str]:
    """Return the names of parameters that forward itself writes, as `torch.nn.Embedding` with ``max_norm`` does."""
    writers = {id(p) for m in template.modules() if getattr(m, "max_norm", None) is not None for p in m.parameters(recurse=False)}
    return frozenset(name for name, p in template.named_parameters() if id(p) in writers)


class Slots:
    """The places in a module where its parameters and buffers are, in order to lend it other tensors for a call.

    Args:
        module: A copy of a template that nobody else uses. Its parameters and buffers change while tensors are lent.

    Example:
        >>> template, params, frozen, buffers = take_apart(nn.Linear(2, 1))
        >>> slots = Slots(fresh_copy(template))
        >>> with slots.lent(params, frozen, buffers):
        ...     slots.module(torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor, str]] = []
        self._empty = [
            (f"{path}.{key}".lstrip("."), m, key)
            for path, m in module.named_modules()
            for key, b in m._buffers.items()
            if b is None
        ]
        self._buffers: list[tuple[str, dict[str, Tensor | None], str]] = []
        first: dict[int, str] = {id(b): name for name, b in module.named_buffers()}
        first |= {id(p): name for name, p in module.named_parameters()}
        parameters = {name for name, _ in module.named_parameters()}
        for owner in module.modules():
            tensors: Any
            for tensors in (owner._parameters, owner._buffers):
                for key, tensor in tensors.items():
                    if tensor is not None:
                        self._places.append((tensors, key, tensor, first[id(tensor)]))
        self._parameters = [(name, tensors, key) for tensors, key, _, name in self._places if name in parameters]
        for tensors, key, _, name in self._places:
            if name not in parameters and all(name != known for known, _, _ in self._buffers):
                self._buffers.append((name, tensors, key))

    @contextmanager
    def lent(self, params: Mapping[str, Tensor], frozen: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Iterator[None]:
        """Lend tensors to the module for the length of a ``with`` block; tied names share one tensor.

        Raises:
            UnsupportedError: The block gave a value to a buffer that was None, which has no place in a state.
        """
        values = {**params, **frozen, **buffers}
        for tensors, key, _, name in self._places:
            tensors[key] = values[name]
        try:
            yield
            for name, parameters, key in self._parameters:
                if parameters.get(key) is not values[name]:
                    raise UnsupportedError(
                        f"forward put another parameter in the place of {name!r}.",
                        cause="The optimizer would go on with the old one.",
                        fix="Change its value instead: `with torch.no_grad(): parameter.copy_(value)`.",
                    )
            for name, owner, key in self._empty:
                if owner._buffers.get(key) is not None:
                    raise UnsupportedError(
                        f"buffer {name!r} was None and forward gave it a value.",
                        cause="A state has the leaves that the module had when it was made, so the value would be lost.",
                        fix=f"Register {key!r} as a tensor of its final shape and dtype.",
                    )
        finally:
            for tensors, key, weightless, _ in self._places:
                tensors[key] = weightless
            for _, owner, key in self._empty:
                owner._buffers[key] = None

    def read_buffers(self) -> Tensors:
        """Return the buffers as they are inside a `lent` block, the assigned ones (``self.run = ...``) included.

        Raises:
            UnsupportedError: The block took a buffer away.
        """
        found: Tensors = {}
        for name, tensors, key in self._buffers:
            tensor = tensors.get(key)
            if tensor is None:
                raise UnsupportedError(
                    f"forward took the tensor of buffer {name!r} away.",
                    cause="A state has the leaves that the module had when it was made.",
                    fix="Fill it instead: self.buffer.zero_().",
                )
            found[name] = tensor
        return found


def _refuse(module: nn.Module) -> None:
    for path, sub in module.named_modules():
        where = f"submodule {path!r}" if path else "the module"
        if isinstance(sub, torch.jit.ScriptModule):
            raise UnsupportedError(
                f"{where} is a {type(sub).__name__}, whose parameters cannot be exchanged.",
                fix="Use the Python module that was scripted or traced.",
            )
        if isinstance(sub, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise UnsupportedError(
                f"{where} is a {type(sub).__name__}, which copies its own weights.", fix="Use the module inside it."
            )
        if any(isinstance(t, _WITHOUT_SHAPE) for t in (*sub._parameters.values(), *sub._buffers.values())):
            raise UnsupportedError(
                f"{where} ({type(sub).__name__}) has parameters without a shape yet.",
                cause="Lazy modules take their shapes from the first batch.",
                fix="Run one batch through the module first: `with torch.no_grad(): module(x)`.",
            )


def _clone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format)


def _weightless(tensor: Tensor) -> Tensor:
    bare = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        bare = nn.Parameter(bare, requires_grad=tensor.requires_grad)
    # attributes that users hang on parameters, such as no_weight_decay, are what parameter groups are made from
    vars(bare).update(vars(tensor))
    return bare


def _plain_tensors(module: nn.Module) -> Iterator[Tensor]:
    def inside(value: Any, depth: int) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif depth and isinstance(value, (list, tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                yield from inside(item, depth - 1)

    for sub in module.modules():
        for name, value in vars(sub).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from inside(value, depth=3)


def _names_by_tensor(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for key, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            places.setdefault(id(tensor), []).append((owner, key))
    return places


def _must_agree(what: str, has: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    if missing := [name for name in has if name not in given]:
        raise TreeMismatchError(
            f"the module's {what} {_few(missing)} are not in the state.", path=missing[0], expected=list(has), actual=list(given)
        )
    if unknown := [name for name in given if name not in has]:
        raise TreeMismatchError(
            f"the state's {what} {_few(unknown)} are not in the module.", path=unknown[0], expected=list(has), actual=list(given)
        )
    for name, tensor in has.items():
        expected = (dtype_name(tensor.dtype), tuple(tensor.shape))
        actual = (dtype_name(given[name].dtype), tuple(given[name].shape))
        if expected != actual:
            raise TreeMismatchError(
                f"{what} {name!r}: the module has {expected[0]} of shape {expected[1]}, "
                f"the state {actual[0]} of shape {actual[1]}.",
                cause="The module was built with other sizes or in another precision than the one the state was made from.",
                path=name,
                expected=expected,
                actual=actual,
            )


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
