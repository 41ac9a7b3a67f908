"""What an answer's bits may depend on besides its question: versions, device, threads, flags. Recorded with every op.

What ran the steps is noted beside it, as the plan: `purestate.core._train.Epoch.plan`. Both are compared in `_envelope`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch

from purestate.core._version import VERSION
from purestate.run._memory import keep_freed

__all__ = ["VERSION", "difference", "environment", "prepare"]


def environment(device: torch.device, *loaders: Any) -> dict[str, Any]:
    """Return the environment as plain JSON.

    Args:
        device: Where the op runs.
        loaders: Where its batches come from; of each is told how many workers load. A worker computes on one thread.
    """
    facts: dict[str, Any] = {
        **_versions(),
        "device": device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **_precision(device),
        "mkl": torch.backends.mkl.is_available(),
        "mkldnn": torch.backends.mkldnn.is_available() and _mkldnn.enabled,
    }
    if loaders:
        facts["workers"] = [None if loader is None else getattr(loader, "num_workers", 0) for loader in loaders]
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version() if torch.backends.cudnn.enabled else None
        facts["cudnn_benchmark"] = torch.backends.cudnn.benchmark
        facts["cublas_workspace"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return facts


def difference(begun_in: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an environment is another than the one in which a train was begun, as far as that says.

    Example:
        >>> difference({"threads": 1, "torch": "2.13.0"}, {"threads": 2, "torch": "2.13.0", "mkl": True})
        {'threads': 2}
    """
    return {name: value for name, value in now.items() if name in begun_in and begun_in[name] != value}


_backends: Any = torch.backends  # whose attributes are properties of the module, which a type checker does not see
_mkldnn: Any = torch.backends.mkldnn


def _precision(device: torch.device) -> dict[str, Any]:
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody set it for a backend, which torch does not tell in its older words
        matmul = None
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return {
        "matmul_precision": matmul,
        "fp32_precision": [getattr(place, "fp32_precision", None) for place in _places(device)],
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
    }


def _places(device: torch.device) -> list[Any]:
    """Return where torch keeps in what precision matrix products, convolutions and recurrent layers multiply."""
    if device.type == "cuda":
        return [_backends.cuda.matmul, getattr(_backends.cudnn, "conv", None), getattr(_backends.cudnn, "rnn", None)]
    return [getattr(_mkldnn, name, None) for name in ("matmul", "conv", "rnn")]


def prepare(device: torch.device) -> None:
    """Make deterministic algorithms possible on a device, before it is first used, and steps on the CPU fast.

    Effects:
        On the CPU, see `purestate.run._memory.keep_freed`.
        On CUDA, sets ``CUBLAS_WORKSPACE_CONFIG`` for this process where it is not set: without it cuBLAS may sum in another
        order each time, and torch refuses to go on
        (https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility).
    """
    if device.type == "cpu":
        keep_freed()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@cache
def _versions() -> dict[str, str]:
    return {
        "purestate": VERSION,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
