"""The version of purestate, where everybody can read it without importing anything else."""

from __future__ import annotations

__all__ = ["VERSION"]

VERSION = "0.1.0"
"""The version of purestate."""
