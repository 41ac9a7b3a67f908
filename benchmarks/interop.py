"""A state to JAX and back: what sharing its memory costs, and that it takes none."""

from __future__ import annotations

import importlib.util

from benchmarks._measure import Row, Skipped, child, figure, skipped

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    megabytes = 50 if quick else 500
    if importlib.util.find_spec("jax") is None:
        return [skipped("interop", f"to_jax, {megabytes} MB", Skipped("jax not installed"), against="a copy")]
    found: list[Row] = []
    for leaves in (25, 300):
        got = child("_interop", megabytes, leaves, 5 if quick else 15)
        ms = {name: [second * 1e3 for second in got[name]] for name in ("to", "copy", "from", "clone")}
        note = f"{'the same memory' if got['shared'] else 'COPIED'}, {got['grown'] or 0:.1f} MB more resident after five of each"
        what = f"{megabytes} MB in {leaves} leaves"
        found.append(figure("interop", f"to_jax, {what}", ms["to"], ms["copy"], against="jnp.array(copy=True)", note=note))
        found.append(figure("interop", f"from_jax, {what}", ms["from"], ms["clone"], against="from_dlpack, clone", note=note))
    return found
