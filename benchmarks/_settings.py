"""What all peers of a row share, whatever framework they are written in. Imports nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["ADAM", "BATCH", "DECAY", "STEP_WIDTHS", "TRAINED"]

ADAM: dict[str, Any] = dict(lr=5e-3, weight_decay=5e-4)
DECAY: dict[str, Any] = dict(step_size=10, gamma=0.2)

BATCH = 32
"""Of the training on digits."""

TRAINED = 1438
"""How many of the digits are trained on; the others validate."""

STEP_WIDTHS = (64, 128, 10)
"""The MLP of the step."""
