"""Brings JAX when somebody asks for it. What has to happen once JAX is there happens here as well."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from purestate.errors import MissingExtraError

__all__ = ["load_jax"]


def load_jax(who: str) -> Any:
    """Return the module ``jax``, of which a `purestate.State` is a pytree from then on.

    Importing JAX draws from numpy's global generator, which is put back.

    Args:
        who: The call that needs it, for the message: ``'to_jax'``.

    Raises:
        MissingExtraError: JAX is not installed.
    """
    if not sys.modules.get("jax"):
        before = np.random.get_state()
        try:
            import jax
        except ModuleNotFoundError as error:
            if error.name not in ("jax", "jaxlib"):
                raise
            raise MissingExtraError(
                f"{who}: JAX is not installed.", fix="Install it: pip install 'purestate[jax]'.", extra="jax"
            ) from None
        finally:
            np.random.set_state(before)
    else:
        import jax
    from purestate.interop._pytree import register

    register(jax)
    return jax
