"""What of JAX decides bits beside the functions that it is given."""

from __future__ import annotations

from typing import Any

__all__ = ["jax_config"]

_SWITCHES = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)


def jax_config(jax: Any) -> dict[str, Any]:
    """Return the versions of JAX and of its compiler, its backend, and its switches of now, as plain values.

    Args:
        jax: The module.
    """
    switches = {name: getattr(jax.config, name, None) for name in _SWITCHES}
    return {"jax": jax.__version__, "jaxlib": jax.lib.__version__, "backend": jax.default_backend(), **switches}
