"""What an answer's bits may depend on besides its question: versions, device, threads, flags. Recorded with every op."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any

import torch

from purestate.core._version import VERSION
from purestate.run._memory import keep_freed

__all__ = ["VERSION", "environment", "prepare"]


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
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if loaders:
        facts["workers"] = [None if loader is None else getattr(loader, "num_workers", 0) for loader in loaders]
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


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
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
