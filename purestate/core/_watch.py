"""What watches a step while it is traced, and why a step cannot be captured.

A trace sees operators. What a module does with a tensor outside of them (``.numpy()``, ``.data = ...``), or a shape that
one batch happens to have, would be in the trace as a constant, so it is refused while tracing. `stand_in` lets go of what a
trace has seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "CannotCaptureError",
    "NoEscape",
    "OtherBitsError",
    "StaticShapes",
    "WritesParametersError",
    "refuse_fast_path",
    "stand_in",
    "why",
]


class CannotCaptureError(Exception):
    """The step cannot be captured; the text says why. Never reaches a user: the step runs uncaptured instead."""


class OtherBitsError(CannotCaptureError):
    """A replay gave other bits than the uncaptured step."""


class WritesParametersError(CannotCaptureError):
    """Forward writes into parameters, so that whatever runs it beside the step itself needs copies of them."""


_DATA: Any = Tensor.data  # on the class it is a descriptor, which the types of torch do not say


class NoEscape(TorchFunctionMode):
    """Refuses, while tracing, what reads or writes a tensor without an operator, so that no trace could see it."""

    _refused = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, _DATA.__set__, Tensor.set_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._refused:
            name = ".data =" if func == _DATA.__set__ else f".{func.__name__}()"
            raise CannotCaptureError(f"forward, loss or a metric uses `{name}`, which no trace sees")
        return func(*args, **(kwargs or {}))


class StaticShapes(TorchDispatchMode):
    """Refuses, while tracing, operators whose result has a shape that depends on data: the trace would hold one shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            depends = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        else:
            depends = torch.Tag.dynamic_output_shape in func.tags
        if depends:
            raise CannotCaptureError(f"forward, loss or a metric has a shape that depends on data ({func})")
        return func(*args, **(kwargs or {}))


def refuse_fast_path(module: nn.Module, *, training: bool) -> None:
    """Raise `CannotCaptureError` if torch's attention layers take a kernel here that they never take while they are traced.

    The other one gives the same bits for most batches, so that comparing a few proves nothing.
    """
    if training or not torch.backends.mha.get_fastpath_enabled():
        return
    for path, sub in module.named_modules():
        if isinstance(sub, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            raise CannotCaptureError(
                f"in eval mode {type(sub).__name__} {path!r} takes a kernel that no trace takes "
                "(torch.backends.mha.set_fastpath_enabled(False) before the first call forbids it)"
            )


def stand_in(gradient: Tensor) -> Tensor:
    """Return a tensor without elements that is this gradient to the trace which is being made, so that it can be let go."""
    from torch.fx.experimental.proxy_tensor import get_innermost_proxy_mode, get_proxy_slot, set_proxy_slot

    mode: Any = get_innermost_proxy_mode()
    proxy: Any = get_proxy_slot(gradient, mode.tracer, None)
    if proxy is None:
        return gradient
    with torch._C._DisableTorchDispatch():
        empty = torch.empty(0)
    set_proxy_slot(empty, mode.tracer, proxy)
    return empty


def why(error: BaseException) -> str:
    """Return in words why what raised ``error`` cannot be captured."""
    if isinstance(error, CannotCaptureError):
        return str(error)
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for link in chain:
        if isinstance(link, CannotCaptureError):
            return str(link)
    text = " ".join(map(str, chain))
    if "trying to get value out of" in text:
        return (
            "forward, loss or a metric takes a value out of a tensor: .item(), float(), a branch or a shape that depends on data"
        )
    first = str(chain[-1]).strip().splitlines()
    return f"tracing it raised {type(chain[-1]).__name__}: {first[0] if first else ''}".rstrip(": ")
