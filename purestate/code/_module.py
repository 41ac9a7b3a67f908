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

from purestate.code._content import DECLARES, tensor_content
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
    flat.update({f"code.{name}": value for name, value in walker.parts.items()})
    flat.update({f"package.{name}": version for name, version in walker.packages.items()})
    return flat


def network_content(walker: Walker, module: nn.Module) -> Json:
    """Return a module met inside something else, as JSON, with parameters and buffers by content."""
    known = dict(walker.known)
    flat = _describe(walker, module, "module")
    walker.known = known
    leaves = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {"network": flat, "leaves": {name: tensor_content(walker, leaf) for name, leaf in sorted(leaves.items())}}


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
        if name in hidden or _is_made_of_leaves(walker, value):
            continue
        if isinstance(module, nn.RNNBase) and name in ("_flat_weights", "_flat_weight_refs"):
            continue
        if isinstance(value, torch.Tensor) and _is_derived(module, name):
            flat[f"{path}.{name}"] = {"tensor": "derived"}
            continue
        flat[f"{path}.{name}"] = walker.inner(f"{path.partition('.')[2]}.{name}".lstrip("."), value)


def _compiler(callback: Any) -> Any:
    """Return the backend of ``torch.compile`` with its options; what is wrapped around it changes when it compiles."""
    while hasattr(callback, "_torchdynamo_orig_backend"):
        callback = callback._torchdynamo_orig_backend
    return callback


def _is_made_of_leaves(walker: Walker, value: Any) -> bool:
    """Tell whether an attribute only refers to registered parameters and buffers, once more."""
    if not isinstance(value, list | tuple) or not value:
        return False
    items = [item() if isinstance(item, weakref.ref) else item for item in value]
    tensors = [item for item in items if item is not None]
    return bool(tensors) and all(isinstance(item, torch.Tensor) and id(item) in walker.known for item in tensors)


def _is_derived(module: nn.Module, name: str) -> bool:
    """Tell whether a plain tensor is what the old weight_norm or spectral_norm computed from parameters."""
    return not {f"{name}_g", f"{name}_orig"}.isdisjoint(vars(module)["_parameters"])


def _hooks(module: nn.Module, kind: str, hooks: Mapping[int, Any]) -> list[Any]:
    """Return hooks in the order in which they run, with their options; the numbers they are kept under are a global count."""
    options = [getattr(module, f"{kind}_with_kwargs", {}), getattr(module, f"{kind}_always_called", {})]
    return [[hook, *(number in option for option in options)] for number, hook in hooks.items()]
