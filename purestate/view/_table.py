"""Rows of plain values as an aligned text for terminals and as an HTML table. Knows no file and no matplotlib."""

from __future__ import annotations

import html
from collections.abc import Sequence
from numbers import Real
from typing import Any

from purestate.errors import MetricError

__all__ = ["html_table", "text_table"]


def text_table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Return rows as aligned columns under a header, numbers to the right, without trailing spaces.

    Args:
        rows: An entry a column each. None is shown as ``-``, a float with six digits, a line break as a space.
        header: The name of each column.

    Raises:
        MetricError: A row has more or fewer entries than the header.

    Example:
        >>> print(text_table([["fc.weight", 1280], ["fc.bias", None]], ["name", "numbers"]))
        name       numbers
        ---------  -------
        fc.weight     1280
        fc.bias          -
    """
    _check(rows, header)
    cells = [[" ".join(_show(value).splitlines()) for value in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    right = _right(rows, header)

    def line(row: Sequence[str]) -> str:
        aligned = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join(line(row) for row in cells)


def html_table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Return rows as an HTML ``<table>``, every entry escaped, numbers to the right.

    Args:
        rows: An entry a column each, shown as in `text_table`.
        header: The name of each column.

    Raises:
        MetricError: A row has more or fewer entries than the header.

    Example:
        >>> print(html_table([["a<b", 1]], ["name", "n"]))
        <table>
        <thead><tr><th style="text-align:left">name</th><th style="text-align:right">n</th></tr></thead>
        <tbody>
        <tr><td style="text-align:left">a&lt;b</td><td style="text-align:right">1</td></tr>
        </tbody>
        </table>
    """
    _check(rows, header)
    styles = [f'style="text-align:{"right" if right else "left"}"' for right in _right(rows, header)]

    def line(row: Sequence[Any], tag: str) -> str:
        cells = (f"<{tag} {style}>{html.escape(_show(v))}</{tag}>" for v, style in zip(row, styles, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line(row, "td") + "\n" for row in rows)
    return f"<table>\n<thead>{line(header, 'th')}</thead>\n<tbody>\n{body}</tbody>\n</table>"


def _check(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> None:
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise MetricError(f"row {i} of a table has {len(row)} entries, its header {len(header)}: {list(header)!r}.")


def _show(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _right(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> list[bool]:
    """Return for each column whether it holds numbers, and nothing else."""
    kinds = [{type(row[i]) for row in rows if row[i] is not None} for i in range(len(header))]
    return [bool(kind) and bool not in kind and all(issubclass(k, Real) for k in kind) for kind in kinds]
