"""A state to JAX and back: what sharing its memory costs, and that it takes none. Optax in the place of an optimizer of torch."""

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
    return [*found, *_optax(quick)]


def _optax(quick: bool) -> list[Row]:
    """Adam on the CNN of the steps."""
    names = {
        "update": "optax.adam, update of the CNN alone",
        "step": "optax.adam, step of the CNN with BatchNorm, 28x28, batch 64",
    }
    against = {"update": "torch.optim.Adam", "step": "backward(), torch.optim.Adam"}
    if importlib.util.find_spec("optax") is None:
        return [
            skipped("interop", names[what], Skipped("optax not installed"), against=against[what], unit="us") for what in names
        ]
    times = 5 if quick else 10
    got = child("_optax", 3 if quick else 25, times)

    def row(what: str, peer: str, who: str) -> Row:
        scale = 1e6 / (10 * times if what == "update" else times)
        ours, theirs = ([second * scale for second in got[name]] for name in (f"{what}, optax", f"{what}, {peer}"))
        return figure("interop", names[what], ours, theirs, against=who, unit="us")

    return [
        row("update", "torch", against["update"]),
        row("update", "ours", "torch.optim.Adam in train"),
        row("step", "torch", against["step"]),
    ]
