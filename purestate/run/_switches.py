"""Torch's switches that a script sets and that change bits: a part of the question where they are not as torch has them.

Switches that follow from the machine, such as the number of threads, are not here: an answer can be read elsewhere. They
are recorded beside it, see `_environment`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules import module as _module

from purestate.code import describe

__all__ = ["switches"]

Json = Any
_backends: Any = torch.backends  # whose attributes are properties of the module, which a type checker does not see
_TINY = 5e-324
_USUAL: dict[str, tuple[Callable[[], Any], Any]] = {
    "default_dtype": (lambda: str(torch.get_default_dtype()), "torch.float32"),
    "default_device": (lambda: str(torch.get_default_device()), "cpu"),
    "flush_denormal": (lambda: _TINY * 1.0 == 0.0, False),
    "matmul_precision": (lambda: _matmul_precision(), "highest"),
    "mkldnn": (lambda: _backends.mkldnn.enabled, True),
    "attention_fastpath": (_backends.mha.get_fastpath_enabled, True),
    "flash_attention": (_backends.cuda.flash_sdp_enabled, True),
    "efficient_attention": (_backends.cuda.mem_efficient_sdp_enabled, True),
    "math_attention": (_backends.cuda.math_sdp_enabled, True),
}
"""How each is read, and what it is in a process in which nobody set it."""
_OF_CUDA: dict[str, tuple[Callable[[], Any], Any]] = {
    "cudnn_conv_precision": (lambda: _backends.cudnn.conv.fp32_precision, "tf32"),
    "cudnn_rnn_precision": (lambda: _backends.cudnn.rnn.fp32_precision, "tf32"),
}
_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)


def switches(device: torch.device) -> dict[str, Json]:
    """Return the switches that are not as torch begins with them, by name.

    Args:
        device: Where the op runs.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     switches(torch.device("cpu"))
        {'autocast': 'torch.bfloat16'}
    """
    known = {**_USUAL, **_OF_CUDA} if device.type == "cuda" else _USUAL
    found = {name: value for name, (read, usual) in known.items() if (value := read()) != usual}
    if torch.is_autocast_enabled(device.type):
        found["autocast"] = str(torch.get_autocast_dtype(device.type))
    for name in _HOOKS:
        hooks = getattr(_module, name, None)
        if hooks:
            found[name.strip("_")] = describe(list(hooks.values()), name)
    return found


def _matmul_precision() -> Any:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody set it for a backend, which torch does not tell in its older words
        return [_backends.cuda.matmul.fp32_precision, _backends.mkldnn.matmul.fp32_precision]
