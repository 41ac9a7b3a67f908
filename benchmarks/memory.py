"""Peak resident memory of a training of 50 million parameters with Adam against the loop by hand, each in a fresh process."""

from __future__ import annotations

import statistics
import tempfile

from benchmarks._measure import Row, child, figure

__all__ = ["rows"]

LAYER_MB = (2048 * 2048 + 2048) * 4 / 1e6
INPUT, BEST, RESUME = "the state that went in", "the best", "a resume point"
PARTS = {INPUT: 1, BEST: 3, RESUME: 3}
"""In sizes of the parameters: two moments belong to the best and to a resume point."""
CASES = {
    "plain": ("nothing watched, NullStore", (INPUT,)),
    "watched": ("best watched, NullStore", (INPUT, BEST)),
    "stored": ("best watched, Store", (INPUT, BEST, RESUME)),
}


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    layers, rounds = (2, 1) if quick else (12, 2)
    peaks: dict[str, list[float]] = {how: [] for how in ("hand", *CASES)}
    for _ in range(rounds):
        for how, found in peaks.items():
            with tempfile.TemporaryDirectory() as folder:
                found.append(child("_memory", how, layers, folder)["peak"] / 1e6)
    hand = peaks["hand"]
    name = f"peak memory, {layers * LAYER_MB / 4:.0f} M parameters"
    return [
        figure(
            "memory",
            f"{name}, {text}",
            peaks[how],
            hand,
            against="by hand",
            unit="MB",
            note=_note(peaks[how], hand, layers, parts),
        )
        for how, (text, parts) in CASES.items()
    ]


def _note(ours: list[float], hand: list[float], layers: int, parts: tuple[str, ...]) -> str:
    """Say which copies are expected and what the ratio is without them."""
    copies = {part: PARTS[part] * layers * LAYER_MB for part in parts}
    rest = (statistics.median(ours) - sum(copies.values())) / statistics.median(hand)
    return f"{rest:.2f} without {', '.join(f'{part} ({size:.0f} MB)' for part, size in copies.items())}"
