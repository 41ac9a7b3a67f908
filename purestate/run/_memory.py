"""Memory that the allocator keeps although nobody uses it.

glibc takes large tensors from one heap, in which what stays (a moment, an object of a trace) lies between what was freed, so
that the next large tensor does not fit. When an op has captured and compared its step, that may be as much as all gradients.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

from torch import Tensor

__all__ = ["give_back"]

_WORTH_IT = 64 << 20


def give_back(tensors: Iterable[Tensor]) -> None:
    """Give pages that nobody uses back to the kernel, where these tensors are so large that it is worth the milliseconds.

    Effects:
        None on any value. Where the C library has no ``malloc_trim``, nothing at all.
    """
    if sys.platform == "linux" and sum(tensor.nbytes for tensor in tensors) >= _WORTH_IT:
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)
