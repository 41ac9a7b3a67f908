"""What all reports share: plain frozen data that prints as text, as JSON and as a fragment of HTML."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

__all__ = ["Report", "plain", "seconds"]


class Report:
    """A finding, or several. Subclasses are frozen dataclasses with a ``__str__``."""

    @property
    def ok(self) -> bool:
        """Whether there is nothing to look after: what the exit status of a command says."""
        return True

    def to_json(self) -> str:
        """Return the fields as a JSON text, ``ok`` beside them. inf and nan, which JSON lacks, are texts."""
        return json.dumps({"ok": self.ok, **plain(self)}, allow_nan=False)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def plain(value: Any) -> Any:
    """Return dataclasses, mappings, tuples and paths as JSON has them.

    Example:
        >>> plain({"rate": (0.1, float("nan"))})
        {'rate': [0.1, 'nan']}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return str(value) if isinstance(value, PurePath) else value


def seconds(value: float | None) -> str:
    """Return a duration for people.

    Example:
        >>> seconds(0.0123), seconds(75), seconds(7320), seconds(None)
        ('0.012 s', '1 min 15 s', '2 h 2 min', '')
    """
    if value is None:
        return ""
    if value < 60:
        return f"{value:.3f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
