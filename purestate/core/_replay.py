"""A traced step written out as Python: no graph module, no lookups, no autograd.

There are two functions. ``bind`` takes parameters, frozen parameters and buffers and makes the views of them that the step
uses; it returns ``replay``, which takes the buffers' mapping and the tensors of a batch and has a line for each operator.
What is no longer needed is dropped at the line that used it last, as in the traced program. For comparisons there is a second
pair with the same lines, which gives each gradient away as soon as it is there: two sets of them are a lot of memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from purestate.core._step import StepOutput

__all__ = ["Layout", "Program", "Replay", "writes_into", "written_out"]

Replay = Callable[..., StepOutput]

_aten = torch.ops.aten
_C: Any = torch._C  # most of it has no types
_FILLED: dict[Any, int | None] = {
    _aten.ones_like.default: 1,
    _aten.zeros_like.default: 0,
    _aten.full_like.default: None,
    _aten.full.default: None,
}
"""Operators that give the same in every call, if nobody writes into it: a tensor of this number, or of their second argument."""
_LARGEST_CONSTANT = 64
"""Elements of a tensor that is made once instead of in every call."""


@dataclass(frozen=True)
class Layout:
    """What goes into the traced function, and what the flat list that it returns means.

    Args:
        bound: How many of its arguments are parameters and buffers; those of the batch follow.
        gradients: Names of the parameters; the list has the loss first, then a gradient or None for each.
        assigned: Names of the buffers that forward assigned, which come next.
        metrics: How many pairs ``sum, count`` come last.
        size: How many samples the traced batch had.
        training: Whether it was traced with gradients. Nothing requires one in a replay, but some kernels ask for the mode
            and leave out in a forward pass what they believe no backward pass will need.
    """

    bound: int
    gradients: list[str]
    assigned: list[str]
    metrics: int
    size: int
    training: bool


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """A captured step that is written out.

    Args:
        bind: ``bind(*params, *frozen, *buffers) -> replay``, and ``replay(buffers, *batch) -> StepOutput``.
        bind_taken: The same, but the replay takes a function first. It is given each gradient that is complete, and what it
            returns is in its place in the answer.
    """

    bind: Callable[..., Replay]
    bind_taken: Callable[..., Replay]


def written_out(graph_module: fx.GraphModule, layout: Layout) -> Program:
    """Compile a traced step.

    Args:
        graph_module: From `make_fx`; its graph is simplified.
        layout: What the graph's arguments and its output mean.
    """
    graph = graph_module.graph
    _drop_aliases(graph)
    _drop_double_transposes(graph)
    _drop_views_of_the_same(graph)
    scope: dict[str, Any] = {
        "StepOutput": StepOutput,
        "is_grad_enabled": torch.is_grad_enabled,
        "grad_mode": torch.enable_grad if layout.training else torch.no_grad,
        # the trace is of what autograd called: views need not be tracked for it again, nor versions be counted
        "below_autograd": _C._AutoDispatchBelowAutograd,
    }
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs:
        node.name = f"input_{node.name}"
    early = _views_of(graph, inputs[: layout.bound])
    last_use: dict[fx.Node, fx.Node] = {n: user for user in graph.nodes for n in user.all_input_nodes}
    values = list(next(node for node in graph.nodes if node.op == "output").args[0])
    complete = _complete_after(graph, values, len(layout.gradients))
    first: list[str] = []
    lines: list[str] = []
    taking: set[int] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            scope[node.name] = _constant(getattr(graph_module, str(node.target)))
        elif node.op == "output":
            lines.append(f"return {_answer(values, layout, scope)}")
        elif node.op == "placeholder":
            continue
        elif (value := _filled(node)) is not None:
            scope[node.name] = value
        elif node in early:
            first.append(f"{node.name} = {_call(node, scope)}")
        else:
            lines.append(f"{node.name} = {_call(node, scope)}")
            done = [n.name for n in dict.fromkeys(node.all_input_nodes) if last_use[n] is node and _is_local(n, early, scope)]
            if node not in last_use:
                done.append(node.name)
            if done:
                lines.append(f"del {', '.join(done)}")
            for n in complete.get(node, ()):
                if _is_local(n, early, scope):
                    taking.add(len(lines))
                    lines.append(f"{n.name} = take({n.name})")
    names = [node.name for node in inputs]

    def bind(lines: list[str], given: list[str]) -> Callable[..., Replay]:
        arguments = ", ".join(given)
        source = [
            f"def bind({', '.join(names[: layout.bound])}):",
            "    with grad_mode(), below_autograd():",
            *(f"        {line}" for line in [*first, "pass"]),
            f"    def run({arguments}):",
            "        with below_autograd():",
            *(f"            {line}" for line in lines),
            f"    def replay({arguments}):",  # not by calling itself: such a cycle would keep the tensors alive
            f"        if is_grad_enabled() is {layout.training}:",  # setting what is set would cost as much as an operator
            f"            return run({arguments})",
            f"        with grad_mode(): return run({arguments})",
            "    return replay",
        ]
        exec(compile("\n".join(source), "<captured step>", "exec"), scope)
        return scope["bind"]

    given = ["buffers", *names[layout.bound :]]
    return Program(bind([line for i, line in enumerate(lines) if i not in taking], given), bind(lines, ["take", *given]))


def _complete_after(graph: fx.Graph, values: Sequence[Any], gradients: int) -> dict[fx.Node, list[fx.Node]]:
    """After which nodes nobody reads or writes a gradient any more, nor what shares its memory, and it is returned once."""
    shares: dict[fx.Node, set[fx.Node]] = {}
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            last |= dict.fromkeys([node, *node.all_input_nodes], node)
            together = {node}.union(*(shares.get(n, {n}) for n in node.all_input_nodes)) if _may_share(node) else {node}
            shares |= dict.fromkeys(together, together)
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in dict.fromkeys(n for n in values[1 : gradients + 1] if isinstance(n, fx.Node) and n in shares):
        if node not in [values[0], *values[gradients + 1 :]]:
            found.setdefault(max((last[n] for n in shares[node] if n in last), key=order.__getitem__), []).append(node)
    return found


def _may_share(node: fx.Node) -> bool:
    """Whether the result of a node may share memory with its arguments, or it writes into them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    return _writes(node.target) or any(returned.alias_info is not None for returned in node.target._schema.returns)


def writes_into(graph_module: fx.GraphModule, first: int) -> bool:
    """Whether a traced step writes into one of its first so many arguments, or into a view of one."""
    aliases: set[fx.Node] = set()
    for i, node in enumerate(graph_module.graph.nodes):
        if node.op == "placeholder":
            aliases.update([node] if i < first else [])
        elif not aliases.isdisjoint(node.all_input_nodes):
            if node.target is operator.getitem:
                aliases.add(node)
            elif isinstance(node.target, torch._ops.OpOverload):
                for argument, value in _by_position(node):
                    if argument.alias_info is not None and not aliases.isdisjoint(_nodes_in(value)):
                        if argument.alias_info.is_write:
                            return True
                        aliases.add(node)
    return False


def _by_position(node: fx.Node) -> list[tuple[Any, Any]]:
    parameters = cast("Any", node.target)._schema.arguments
    named = {parameter.name: parameter for parameter in parameters}
    return [*zip(parameters, node.args, strict=False), *((named[name], value) for name, value in node.kwargs.items())]


def _nodes_in(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    return [n for item in value for n in _nodes_in(item)] if isinstance(value, (list, tuple)) else []


def _drop_aliases(graph: fx.Graph) -> None:
    """Take out ``detach``, which outside of autograd is the tensor itself; what is returned keeps its own."""
    for node in list(graph.nodes):
        if node.target is _aten.detach.default:
            source = node.args[0]
            if source.op == "call_function" or all(user.op != "output" for user in node.users):
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def _drop_double_transposes(graph: fx.Graph) -> None:
    """Take out pairs of ``t``: backward transposes what forward had transposed."""
    for node in list(graph.nodes):
        source = node.args[0] if node.target is _aten.t.default else None
        if isinstance(source, fx.Node) and source.target is _aten.t.default:
            origin = source.args[0]
            if isinstance(origin, fx.Node) and origin.op == "call_function" and _dimensions(origin) == 2:
                node.replace_all_uses_with(origin)
                graph.erase_node(node)
                if not source.users:
                    graph.erase_node(source)


def _drop_views_of_the_same(graph: fx.Graph) -> None:
    """Take out ``view`` where it changes no shape, or takes off the axes that a sum kept, as the gradient of a bias does."""
    for node in list(graph.nodes):
        source = node.args[0] if node.target is _aten.view.default else None
        if not isinstance(source, fx.Node) or source.op != "call_function":
            continue
        before, after = source.meta.get("val"), node.meta.get("val")
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            continue
        if before.shape != after.shape or before.stride() != after.stride():
            if source.target is not _aten.sum.dim_IntList or source.args[2:] != (True,) or source.kwargs or len(source.users) > 1:
                continue
            if not source.args[1]:  # all axes
                continue
            summed = {axis % before.dim() for axis in cast("list[int]", source.args[1])}
            if [n for axis, n in enumerate(before.shape) if axis not in summed] != list(after.shape):
                continue
            source.args, source.meta["val"] = source.args[:2], after
        node.replace_all_uses_with(source)
        graph.erase_node(node)


def _dimensions(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else None


def _views_of(graph: fx.Graph, inputs: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that are nothing but views of these inputs: they see what is written into them, and are made once."""
    bound, found = set(inputs), set[fx.Node]()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and _is_view(node.target) and node.all_input_nodes:
            if all(n in bound for n in node.all_input_nodes) and all(user.op != "output" for user in node.users):
                bound.add(node)
                found.add(node)
    return found


def _is_view(target: torch._ops.OpOverload) -> bool:
    returned = target._schema.returns
    return len(returned) == 1 and returned[0].alias_info is not None and not _writes(target)


def _writes(target: torch._ops.OpOverload) -> bool:
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in target._schema.arguments)


def _filled(node: fx.Node) -> Tensor | None:
    """What a node makes, if that is a small tensor of one number which nobody writes into, views or returns."""
    value = node.meta.get("val")
    if node.target not in _FILLED or not isinstance(value, Tensor) or value.numel() > _LARGEST_CONSTANT:
        return None
    for user in node.users:
        target = user.target
        if not isinstance(target, torch._ops.OpOverload) or _writes(target) or _is_view(target):
            return None
    number: Any = _FILLED[node.target] if _FILLED[node.target] is not None else node.args[1]
    if isinstance(number, fx.Node):
        return None
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).fill_(number)


def _is_local(node: fx.Node, early: set[fx.Node], scope: dict[str, Any]) -> bool:
    return node.op == "call_function" and node not in early and node.name not in scope


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _call(node: fx.Node, scope: dict[str, Any]) -> str:
    args = [_written(a, scope) for a in node.args]
    if node.target is operator.getitem:
        return f"{args[0]}[{args[1]}]"
    keywords = [f"{key}={_written(value, scope)}" for key, value in node.kwargs.items()]
    for function, name in _bindings(node):
        if _calls(function, node):
            if name is not None:
                return f"{args[0]}.{name}({', '.join([*args[1:], *keywords])})"
            return f"{_named(function, scope)}({', '.join([*args, *keywords])})"
    return f"{_named(node.target, scope)}({', '.join([*args, *keywords])})"


def _bindings(node: fx.Node) -> list[tuple[Any, str | None]]:
    """The functions of torch by which people call an operator, and which take half the time: methods with their name."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return []
    name = node.target._schema.name.removeprefix("aten::")
    method = getattr(_C.TensorBase, name, None)
    found: list[tuple[Any, str | None]] = []
    if callable(method) and getattr(Tensor, name) is method and node.args and isinstance(node.args[0], fx.Node):
        found.append((method, name))
    functions = (getattr(place, name, None) for place in (_C._VariableFunctions, _C._nn))
    return found + [(function, None) for function in functions if callable(function)]


class _ReachedError(Exception):
    """Carries what an operator was called with."""


class _First(TorchDispatchMode):
    """Stops at the first operator that is reached."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _ReachedError(func, args, kwargs or {})


def _calls(function: Any, node: fx.Node) -> bool:
    """Whether a function of torch, called with the arguments of a node, calls its operator with just these."""
    stand_ins: dict[fx.Node, Tensor] = {}
    for n in node.all_input_nodes:
        value = n.meta.get("val")
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return False
        stand_ins[n] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    args, kwargs = map_arg((node.args, node.kwargs), stand_ins.__getitem__)
    args, kwargs = tuple(args), dict(kwargs)
    try:
        with _C._AutoDispatchBelowAutograd(), _First():
            function(*args, **kwargs)
    except _ReachedError as reached:
        target, reached_args, reached_kwargs = reached.args
        wanted, came = (_by_name(node.target, *given) for given in ((args, kwargs), (reached_args, reached_kwargs)))
        return target is node.target and wanted.keys() == came.keys() and all(_alike(wanted[k], came[k]) for k in wanted)
    except (TypeError, RuntimeError, ValueError):  # its arguments are in another order, or it takes no such argument
        return False
    return False


def _by_name(target: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; those that have their default are left out."""
    parameters = target._schema.arguments
    given = {parameter.name: value for parameter, value in zip(parameters, args, strict=False)} | kwargs
    defaults = {p.name: p.default_value for p in parameters if p.has_default_value()}
    return {name: value for name, value in given.items() if name not in defaults or not _alike(value, defaults[name])}


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return type(a) is type(b) and a == b


def _written(value: Any, scope: dict[str, Any]) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        items = ", ".join(_written(item, scope) for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items},)"
    if value is None or type(value) in (bool, int):
        return repr(value)
    return _named(value, scope)


def _named(value: Any, scope: dict[str, Any]) -> str:
    if isinstance(value, torch._ops.OpOverload):
        value = value._op
    name = f"c_{id(value)}"
    scope[name] = value
    return name


def _answer(values: list[Any], layout: Layout, scope: dict[str, Any]) -> str:
    texts = [_written(value, scope) for value in values]
    loss, texts = texts[0], texts[1:]
    n, m = len(layout.gradients), len(layout.gradients) + len(layout.assigned)
    gradients = ", ".join(f"{name!r}: {text}" for name, text in zip(layout.gradients, texts[:n], strict=True))
    assigned = ", ".join(f"{name!r}: {text}" for name, text in zip(layout.assigned, texts[n:m], strict=True))
    sums = "".join(f"({total}, {count}), " for total, count in zip(texts[m::2], texts[m + 1 :: 2], strict=True))
    buffers = f"{{**buffers, {assigned}}}" if assigned else "buffers"
    return f"StepOutput({loss}, {{{gradients}}}, {buffers}, ({sums}), {layout.size})"
