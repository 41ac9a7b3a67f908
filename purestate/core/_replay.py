"""A traced step written out as one Python function: no graph module, no lookups, no autograd.

The function has a line for each operator. It takes the buffers' mapping and then every tensor in the order of the trace,
and returns a `StepOutput`. What is no longer needed is dropped at the line that used it last, as in the traced program.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from purestate.core._step import StepOutput

__all__ = ["Layout", "Replay", "written_out"]

Replay = Callable[..., StepOutput]


@dataclass(frozen=True)
class Layout:
    """What the flat list that the traced function returns means.

    Args:
        gradients: Names of the parameters; the list has the loss first, then a gradient or None for each.
        assigned: Names of the buffers that forward assigned, which come next.
        metrics: How many pairs ``sum, count`` come last.
        size: How many samples the traced batch had.
        training: Whether it was traced with gradients. Nothing requires one in a replay, but some kernels ask for the mode
            and leave out in a forward pass what they believe no backward pass will need.
    """

    gradients: list[str]
    assigned: list[str]
    metrics: int
    size: int
    training: bool


def written_out(graph_module: fx.GraphModule, layout: Layout) -> Replay:
    """Compile a traced step.

    Args:
        graph_module: From `make_fx`; its graph is simplified.
        layout: What the graph's output means.

    Returns:
        ``replay(buffers, *tensors) -> StepOutput``.
    """
    graph = graph_module.graph
    _drop_aliases(graph)
    scope: dict[str, Any] = {"StepOutput": StepOutput, "grad_mode": torch.enable_grad if layout.training else torch.no_grad}
    inputs: list[str] = []
    lines: list[str] = []
    last_use: dict[fx.Node, fx.Node] = {n: user for user in graph.nodes for n in user.all_input_nodes}
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs.append(node.name)
        elif node.op == "get_attr":
            scope[node.name] = _constant(getattr(graph_module, str(node.target)))
        elif node.op == "output":
            lines.append(f"return {_answer(list(node.args[0]), layout, scope)}")
        else:
            lines.append(f"{node.name} = {_call(node, scope)}")
            done = [n.name for n in dict.fromkeys(node.all_input_nodes) if last_use[n] is node and n.op == "call_function"]
            if node not in last_use:
                done.append(node.name)
            if done:
                lines.append(f"del {', '.join(done)}")
    body = "\n        ".join(lines)
    source = f"def replay(buffers, {', '.join(inputs)}):\n    with grad_mode():\n        {body}\n"
    exec(compile(source, "<captured step>", "exec"), scope)
    return scope["replay"]


def _drop_aliases(graph: fx.Graph) -> None:
    """Take out ``detach``, which outside of autograd is the tensor itself; what is returned keeps its own."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            source = node.args[0]
            if source.op == "call_function" or all(user.op != "output" for user in node.users):
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _call(node: fx.Node, scope: dict[str, Any]) -> str:
    args = [_written(a, scope) for a in node.args]
    if node.target is operator.getitem:
        return f"{args[0]}[{args[1]}]"
    args += [f"{key}={_written(value, scope)}" for key, value in node.kwargs.items()]
    return f"{_named(node.target, scope)}({', '.join(args)})"


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
