"""Stores to report on: copies of the golden one, in which something was planted and the chain of digests made anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from purestate.report._name import RunName
from tests.report.planted import GOLDEN, rewrite

__all__ = ["golden", "planted"]


@pytest.fixture
def golden() -> RunName:
    """The frozen store. Read, and never written to."""
    return RunName(GOLDEN, "adam")


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., RunName]:
    """Return a copy of the golden store in which a function changed bodies of records."""
    made: list[Path] = []

    def plant(
        change: Callable[[list[tuple[str, dict[str, Any]]]], Iterable[tuple[str, dict[str, Any]]] | None] | None = None,
    ) -> RunName:
        folder = tmp_path / f"store{len(made)}"
        made.append(folder)
        shutil.copytree(GOLDEN, folder)
        if change is not None:
            rewrite(folder / "checkpoints/adam/log.jsonl", change)
        return RunName(folder, "adam")

    return plant
