"""Functions that JAX traces may not draw from torch's, numpy's or Python's generators: what they drew would be a constant.

Such a number is drawn once a process, at the step that is traced, so a run that goes on from the middle would have another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from purestate.core._seeds import GlobalStates, global_states
from purestate.errors import ImpurityError

__all__ = ["traced"]


def traced(who: str, fn: Callable[..., Any], *args: Any) -> Any:
    """Return ``fn(*args)``, of a function that JAX traces.

    Args:
        who: Whose function it is, for the message: ``'ps.jax_step'``.
        fn: The function.
        *args: Not modified.

    Raises:
        ImpurityError: It drew from a global generator.

    Example:
        >>> traced("ps.jax_step", abs, -1)
        1
    """
    before = global_states()
    returned = fn(*args)
    if _moved(before, global_states()):
        before = global_states()
        returned = fn(*args)  # what is imported may draw, and is imported once
        if name := _moved(before, global_states()):
            raise ImpurityError(
                f"{who}: the function drew from {name}'s generator while JAX traced it.",
                cause="JAX keeps that as a constant, the same for all steps, and a run that goes on from here has another.",
                fix="Draw from JAX: jax.random.normal(key, shape), with the key that jax_step gives.",
                path=name,
            )
    return returned


def _moved(before: GlobalStates, after: GlobalStates) -> str | None:
    """Return the name of what has a generator that moved."""
    if not before.torch_cpu.equal(after.torch_cpu):
        return "torch"
    if before.numpy[2] != after.numpy[2] or not np.array_equal(before.numpy[1], after.numpy[1]):
        return "numpy"
    return "Python" if before.python != after.python else None
