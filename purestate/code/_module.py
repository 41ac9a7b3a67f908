"""The description of an ``nn.Module``: what its names, shapes and code do not tell, such as the rate of a dropout.

Parameters and buffers are not in it: they are in the state. `describe_module` is what a question holds; `network_content`
is for modules met inside other things (a loss, a metric), where parameters and buffers count.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from purestate.code._content import DECLARES, tensor_attributes, tensor_content
from purestate.code._package import package_of_module
from purestate.code._walk import Walker

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["describe_module", "network_content"]

Json = Any
_MACHINERY = frozenset({*vars(nn.Module()), "_compiled_call_impl"})
_COMPILED = frozenset(
    "_torchdynamo_wrapper_id _torchdynamo_orig_callable _super_module_initialized dynamo_ctx get_compiler_config forward".split()
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def describe_module(module: nn.Module) -> dict[str, Json]:
    """Return everything of a module that can change what it computes, but for parameters and buffers.

    Args:
        module: Not modified. Its tensors may lie on the meta device.

    Returns:
        A flat dict of short values: ``module.<submodule>`` is a class, ``module.<submodule>.<attribute>`` a plain attribute,
        ``code.<name>`` a function or class of the user, ``package.<name>`` a version. ``training`` is left out.

    Raises:
        FingerprintError: An attribute has no content.

    Effects:
        Reads the source files of the user's classes, once.

    Example:
        >>> describe_module(nn.Dropout(0.2))["module.p"]
        0.2
    """
    walker = Walker("module")
    flat = _describe(walker, module, "module")
    for owner in (torch.Tensor, nn.functional):  # what every module may reach
        walker.written_over(owner)
    flat.update({f"code.{name}": value for name, value in walker.parts.items()})
    flat.update({f"package.{name}": version for name, version in walker.packages.items()})
    return flat


def network_content(walker: Walker, module: nn.Module) -> Json:
    """Return a module met inside something else, as JSON, with parameters and buffers by content."""
    known = dict(walker.known)
    flat = _describe(walker, module, "module")
    walker.known = known
    leaves = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # a module that is trained is put into its mode by whoever trains it; any other stays in the one that it was left in
    evaluating = [name for name, submodule in module.named_modules() if not submodule.training]
    return {
        "network": flat,
        "leaves": {name: tensor_content(walker, leaf) for name, leaf in sorted(leaves.items())},
        **({"evaluating": evaluating} if evaluating else {}),
    }


def _describe(walker: Walker, module: nn.Module, root: str) -> dict[str, Json]:
    flat: dict[str, Json] = {}
    tree = list(_tree(module, root))
    for path, submodule in tree:
        if id(submodule) not in walker.known:
            walker.known[id(submodule)] = {"submodule": path}
            for name, leaf in (*vars(submodule)["_parameters"].items(), *vars(submodule)["_buffers"].items()):
                if leaf is not None:
                    walker.known.setdefault(id(leaf), {"leaf": f"{path}.{name}"})
    for path, submodule in tree:
        first = walker.known[id(submodule)]["submodule"]
        if first != path:
            flat[path] = f"same as {first}"
            continue
        flat[path] = walker.class_name(type(submodule))
        _attributes(walker, submodule, path, flat)
        _members(walker, submodule, path, flat)
        for kind in _HOOKS:
            hooks = getattr(submodule, kind)
            if hooks:
                flat[f"{path}.{kind[1:]}"] = walker.inner(kind[1:], _hooks(submodule, kind, hooks))
    return flat


def _tree(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for name, child in vars(module)["_modules"].items():
        if child is not None:
            yield from _tree(child, f"{path}.{name}")


def _attributes(walker: Walker, module: nn.Module, path: str, flat: dict[str, Json]) -> None:
    if getattr(type(module), DECLARES, None) is not None:
        flat[f"{path}.{DECLARES}"] = walker.inner(DECLARES, getattr(module, DECLARES)())
        return
    hidden = _MACHINERY
    if isinstance(module, torch.fx.GraphModule):
        flat[f"{path}.graph"] = walker.inner("graph", module.code)
        hidden = {name for name in vars(module) if name.startswith("_")} | _MACHINERY
    elif "dynamo_ctx" in vars(module):
        flat[f"{path}.compiler"] = walker.inner("compiler", _compiler(vars(module)["dynamo_ctx"].callback))
        hidden = _MACHINERY | _COMPILED
    for name, value in sorted(vars(module).items()):
        if name in hidden or _is_all_of_the_leaves(module, value):
            continue
        if isinstance(module, nn.RNNBase) and name in ("_flat_weights", "_flat_weight_refs"):
            continue
        if isinstance(value, torch.Tensor) and _is_derived(module, name):
            flat[f"{path}.{name}"] = {"tensor": "derived"}
            continue
        flat[f"{path}.{name}"] = walker.inner(f"{path.partition('.')[2]}.{name}".lstrip("."), value)


def _members(walker: Walker, module: nn.Module, path: str, flat: dict[str, Json]) -> None:
    """Describe what users hung on parameters, and the order of members where the code of the class does not tell it.

    Names are a table, and a container goes through its children, and an optimizer through the parameters, in an order.
    """
    is_layer = package_of_module(type(module).__module__) is not None and not isinstance(module, nn.ParameterDict)
    for kind in ("_modules", "_parameters", "_buffers"):
        members: dict[str, Any] = vars(module)[kind]
        told = len(members) < 2 or (is_layer and kind != "_modules")  # as its version and attributes tell
        if not told and (order := list(members)) != _told_by_code(type(module), order):
            flat[f"{path}.order of{kind.replace('_', ' ')}"] = walker.inner("order", order)
        for name, member in members.items() if kind != "_modules" else ():
            if member is None:
                continue
            if (first := walker.known[id(member)]["leaf"]) != f"{path}.{name}":
                flat[f"{path}.{name}"] = f"same as {first}"
            elif hung := tensor_attributes(walker, member):
                flat[f"{path}.{name}.attributes"] = walker.inner(name, hung)


def _told_by_code(cls: type[nn.Module], names: list[str]) -> list[str]:
    """Return names in the order in which the ``__init__`` of a class and of its bases mention them; then numbers, then others."""
    mentioned: dict[str, int] = {}
    for base in reversed(cls.__mro__):
        code = getattr(vars(base).get("__init__"), "__code__", None)
        for name in (*code.co_names, *code.co_consts) if code is not None else ():
            if isinstance(name, str):
                mentioned.setdefault(name, len(mentioned))
    last = len(mentioned)
    return sorted(names, key=lambda name: (mentioned.get(name, last), int(name) if name.isdecimal() else -1, name))


def _compiler(callback: Any) -> Any:
    """Return the backend of ``torch.compile`` with its options; what is wrapped around it changes when it compiles."""
    while hasattr(callback, "_torchdynamo_orig_backend"):
        callback = callback._torchdynamo_orig_backend
    return callback


def _is_all_of_the_leaves(module: nn.Module, value: Any) -> bool:
    """Tell whether an attribute refers to all parameters of the module once more, as ``list(self.parameters())`` does."""
    if not isinstance(value, list | tuple) or not value:
        return False
    items = [item() if isinstance(item, weakref.ref) else item for item in value]
    return [id(item) for item in items] == [id(parameter) for parameter in module.parameters()]


def _is_derived(module: nn.Module, name: str) -> bool:
    """Tell whether a plain tensor is what the old weight_norm or spectral_norm computed from parameters."""
    return not {f"{name}_g", f"{name}_orig"}.isdisjoint(vars(module)["_parameters"])


def _hooks(module: nn.Module, kind: str, hooks: Mapping[int, Any]) -> list[Any]:
    """Return hooks in the order in which they run, with their options; the numbers they are kept under are a global count."""
    options = [getattr(module, f"{kind}_with_kwargs", {}), getattr(module, f"{kind}_always_called", {})]
    return [[hook, *(number in option for option in options)] for number, hook in hooks.items()]
