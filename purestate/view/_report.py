"""What all reports share: plain frozen data that prints as text, as JSON and as a fragment of HTML."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, cast

from purestate.view._table import html_table

__all__ = ["Report", "fragment", "plain", "seconds"]

_LONGEST = 200
"""Characters of a value in a table: a question may hold a whole class."""


class Report:
    """A finding, or several. Subclasses are frozen dataclasses with a ``__str__``."""

    @property
    def ok(self) -> bool:
        """Whether there is nothing to look after: what the exit status of a command says."""
        return True

    def to_json(self) -> str:
        """Return the fields as a JSON text, ``ok`` beside them. inf and nan, which JSON lacks, are texts."""
        return json.dumps({"ok": self.ok, **plain(self)}, allow_nan=False)

    def to_html(self) -> str:
        """Return the fields as tables: a fragment for a page, without scripts and without anything to load."""
        return fragment(*_tables(self, [["ok", "yes" if self.ok else "no"]]))

    def _repr_html_(self) -> str:
        return self.to_html()


def fragment(*parts: str | tuple[str, str]) -> str:
    """Return a fragment of HTML.

    Args:
        parts: A text, which is escaped; or a title with a table that `purestate.view.html_table` made.

    Example:
        >>> print(fragment("1 < 2"))
        <div>
        <p>1 &lt; 2</p>
        </div>
    """
    lines = ["<div>"]
    for part in parts:
        if isinstance(part, str):
            lines.append(f"<p>{html.escape(part)}</p>")
        else:
            lines += [f"<p><b>{html.escape(part[0])}</b></p>" if part[0] else "", part[1]]
    return "\n".join([*filter(None, lines), "</div>"])


def plain(value: Any) -> Any:
    """Return dataclasses, mappings, tuples and paths as JSON has them.

    Example:
        >>> plain({"rate": (0.1, float("nan"))})
        {'rate': [0.1, 'nan']}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(inner) for name, inner in _fields(value).items()}
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


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}


def _tables(value: Any, rows: Sequence[Sequence[Any]] = (), title: str = "") -> Iterator[tuple[str, str]]:
    """Yield titles and tables of a dataclass: what it says in one, and each field that has more to say in one of its own."""
    fields = {name: inner for name, inner in _fields(value).items() if inner not in ({}, ())}
    flat = [[name.replace("_", " "), _cell(inner)] for name, inner in fields.items() if not _has_more(inner)]
    if flat or rows:
        yield title, html_table([*rows, *flat], _PAIR)
    for name, inner in fields.items():
        if _has_more(inner):
            yield from _below(inner, f"{title}: {name}" if title else name)


def _below(value: Any, title: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        yield title, html_table([[str(name), _cell(inner)] for name, inner in entries.items()], _PAIR)
    elif not isinstance(value, tuple):
        yield from _tables(value, title=title)
    else:
        several = [_row(one) for one in cast("tuple[Any, ...]", value)]
        if any(_is_report(inner) for row in several for inner in row.values()):
            for number, one in enumerate(cast("tuple[Any, ...]", value)):
                yield from _tables(one, title=f"{title} {number}")
        else:
            columns = list(dict.fromkeys(name for row in several for name in row))
            yield title, html_table([[_cell(row.get(name)) for name in columns] for row in several], columns)


_PAIR = ("field", "value")
_MANY = 3
"""A mapping of more entries has a table of its own."""


def _row(value: Any) -> dict[str, Any]:
    return {str(name): inner for name, inner in value.items()} if isinstance(value, Mapping) else _fields(value)


def _has_more(value: Any) -> bool:
    """Whether a value has a table of its own: a long mapping, a report, or several of them."""
    if isinstance(value, Mapping):
        return len(cast("Mapping[Any, Any]", value)) > _MANY
    return _is_report(value) or _all_are(value, lambda one: isinstance(one, Mapping))


def _is_report(value: Any) -> bool:
    """Whether a value is a dataclass, or several of them."""
    return dataclasses.is_dataclass(value) or _all_are(value, dataclasses.is_dataclass)


def _all_are(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and bool(value) and all(kind(one) for one in cast("tuple[Any, ...]", value))


def _cell(value: Any) -> Any:
    """Return what a table shows: a number as it is, for it to be aligned."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    elif isinstance(value, list | tuple):
        value = ", ".join(str(_cell(inner)) for inner in value)
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
