"""The source text behind the questions of a run: printed by ``purestate show --code``, compared by ``purestate diff``."""

from __future__ import annotations

import difflib
import fnmatch
import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from purestate.report._name import RunName
from purestate.report._opened import Run, open_run
from purestate.report._report import Report, fragment
from purestate.run._chain import as_recorded
from purestate.view import html_table

__all__ = ["CodeDifference", "CodeText", "RunCode", "code_differences", "show_code"]

_DIGEST = re.compile(r"[0-9a-f]{32}")
_CODE = "code."


@dataclass(frozen=True)
class CodeText:
    """A function, class or module that a question depends on.

    Args:
        name: What it is called where it is written.
        digest: By which the question knows it.
        text: Its source, as it was hashed: without comments, docstrings and white space of its own. None where there is none:
            of a class there are its functions, and of what was recorded before texts were kept there is nothing.
        kept: Whether what was hashed is kept.
    """

    name: str
    digest: str
    text: str | None
    kept: bool


@dataclass(frozen=True)
class RunCode(Report):
    """The code that a run depends on.

    Args:
        run: Its name.
        code: Every function, class and module of the user, by name.
    """

    run: str
    code: tuple[CodeText, ...]

    def __str__(self) -> str:
        lost = [one.name for one in self.code if not one.kept]
        parts = [f"# {one.name} {one.digest[:8]}\n{one.text}" for one in self.code if one.text is not None]
        parts += [f"not kept: {', '.join(lost)}"] if lost else []
        return "\n\n".join(parts) or f"{self.run}: no code of a user"

    def to_html(self) -> str:
        """Return what there is as a table, and the texts: a fragment for a page."""
        rows = [[one.name, one.digest[:8], "yes" if one.kept else "no"] for one in self.code]
        texts = [f"<pre>{html.escape(one.text)}</pre>" for one in self.code if one.text is not None]
        return "\n".join([fragment(self.run, ("", html_table(rows, ["name", "digest", "kept"]))), *texts])


@dataclass(frozen=True)
class CodeDifference:
    """A piece of code that differs between two runs.

    Args:
        name: What it is called where it is written.
        diff: Its two texts as a unified diff; nothing where one of them was not kept, or where the texts are the same and
            what they reach is not.
    """

    name: str
    diff: str

    def __str__(self) -> str:
        return self.diff or f"{self.name}: what was hashed of it is not kept, or differs in what it reaches"


def show_code(name: RunName, pattern: str | None = None) -> RunCode:
    """Return the code that a checkpoint depends on, or one of its trains.

    Args:
        name: Which one.
        pattern: Only what has this name, which may have ``*`` in it.

    Raises:
        UsageError: There is no such run.
        CorruptLogError: Its log is damaged.
        CorruptItemError: The item that keeps the text is.
    """
    run = open_run(name)
    asked = [train.start for train in run.chain.binding()] if name.op is None else [run.train()[1].start]
    if name.op is None:
        asked += run.chain.readers.values()
    found: dict[tuple[str, str], CodeText] = {}
    for record in asked:
        with as_recorded(record):
            parts = record.body["question"]["parts"]
        for one in _code(run, parts):
            found.setdefault((one.name, one.digest), one)
    return RunCode(str(run.name), tuple(one for one in found.values() if pattern is None or _is(one.name, pattern)))


def code_differences(a: Run, b: Run, op: int) -> tuple[CodeDifference, ...]:
    """Return the code that differs between two trains, by name.

    Args:
        a: A run.
        b: Another.
        op: The number of the train in both.

    Raises:
        CorruptLogError: A record does not hold what its kind does.
        CorruptItemError: An item that keeps the text is damaged.
    """
    ours, theirs = ({one.name: one for one in _code(run, run.chain.binding()[op].question["parts"])} for run in (a, b))
    nothing = CodeText("", "", "", True)
    pairs = {name: (ours.get(name, nothing), theirs.get(name, nothing)) for name in {**ours, **theirs}}
    return tuple(
        CodeDifference(name, _unified(name, x.text, y.text) if x.kept and y.kept else "")
        for name, (x, y) in pairs.items()
        if x.digest != y.digest and not (x.kept and y.kept and x.text is None and y.text is None)
    )


def _code(run: Run, parts: Mapping[str, Any]) -> Iterator[CodeText]:
    """Yield what a question depends on: functions by their names, and those that its descriptions hold by theirs."""
    named = {name: value for name, value in parts.items() if isinstance(value, str) and _DIGEST.fullmatch(value)}
    kept = _kept(run, {*named.values()})
    inside = {(inner, digest): None for value in named.values() if value in kept for inner, digest in _inside(kept[value])}
    direct = {(name.removeprefix(_CODE), value): None for name, value in named.items() if name.startswith(_CODE)}
    kept |= _kept(run, {digest for _, digest in inside})
    for name, digest in {**direct, **inside}:
        yield CodeText(name, digest, _text(kept[digest]) if digest in kept else None, digest in kept)


def _kept(run: Run, digests: set[str]) -> dict[str, bytes]:
    from purestate.run._code import texts  # with torch: of logs it is not needed

    return texts(run.records, run.backend, digests) if digests else {}


def _inside(piece: bytes) -> Iterator[tuple[str, str]]:
    content = json.loads(piece).get("content")
    if isinstance(content, list) and len(content) == 3:  # a description: itself, its parts, its packages
        yield from ((name, value) for name, value in content[1].items() if isinstance(value, str) and _DIGEST.fullmatch(value))


def _text(piece: bytes) -> str | None:
    from purestate.code._text import text_of

    return text_of(piece)


def _is(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name.endswith(f".{pattern}")


def _unified(name: str, a: str | None, b: str | None) -> str:
    lines = [(text or "").splitlines() for text in (a, b)]
    return "\n".join(difflib.unified_diff(*lines, fromfile=f"a: {name}", tofile=f"b: {name}", lineterm=""))
