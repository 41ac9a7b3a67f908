"""What the C library's allocator does with memory that was freed: keep it for the next step, and give it back after an op.

glibc gives the top of its heap back to the kernel as soon as more than some megabytes of it are free, so that each step may free
its activations and get them back page by page, zeroed: a small CNN then takes 1.3 to 1.7 times as long, in one train and not in
the next, as it happens to lie. On the other hand it takes
large tensors from one heap, in which what stays (a moment, an object of a trace) lies between what was freed, so that the next
large tensor does not fit. When an op has captured and compared its step, that may be as much as all gradients.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from functools import cache

from torch import Tensor

__all__ = ["give_back", "keep_freed"]

_WORTH_IT = 64 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of ``malloc.h``."""
_KEPT = 1 << 30
_MOST_IN_HEAP = 32 << 20
"""The most that glibc allows. It goes there by itself as large blocks are freed, but no longer once the other one is set."""


@cache
def keep_freed() -> None:
    """Let the heap keep up to a gigabyte of what was freed, where the user did not say anything about it.

    Effects:
        On this process, once; on no value. Where the C library is another one, none at all.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, _MOST_IN_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def give_back(tensors: Iterable[Tensor]) -> None:
    """Give pages that nobody uses back to the kernel, where these tensors are so large that it is worth the milliseconds.

    Effects:
        None on any value. Where the C library has no ``malloc_trim``, nothing at all.
    """
    if sys.platform == "linux" and sum(tensor.nbytes for tensor in tensors) >= _WORTH_IT:
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)
