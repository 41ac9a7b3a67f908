"""The codec of a log: bytes to `Record` and back. Pure; `_log` does the reading and writing.

A record is one line of JSON, in ASCII, always in this order and without spaces::

    {"digest":"<64 hex>","prev":"<64 hex>","seq":<number>,"kind":"<word>","body":{…}}

``digest`` is the BLAKE3 of the bytes from ``"prev"`` up to and with the closing brace; ``prev`` is the digest of the line
before, or 64 zeros in the first. So a line that was edited, moved, dropped or doubled does not verify.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any, cast

from blake3 import blake3

from purestate.errors import CorruptLogError, UnsupportedError

__all__ = ["EMPTY_HEAD", "BadLineError", "Record", "decode", "encode", "seal", "to_json", "torn_tail", "unseal"]

EMPTY_HEAD = "0" * 64
"""The head of a log without a record."""

_OPEN = b'{"digest":"'
_DIGEST = slice(11, 75)
_CLOSE = b'",'
_REST = 77
_PREV = slice(85, 149)
_SEQ = 157
_KIND = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


class Record:
    """One line of a log.

    The envelope (`seq`, `digest`, `prev`, `kind`) costs no parsing; `body` is parsed when it is first asked for, and must
    not be modified.

    Example:
        >>> record = encode(0, EMPTY_HEAD, "train", {"epochs": 20})
        >>> record.kind, record.seq, record.body
        ('train', 0, {'epochs': 20})
    """

    __slots__ = ("_body", "home", "line", "seq")

    def __init__(self, seq: int, line: bytes, home: str = "") -> None:
        self.seq = seq
        self.line = line
        """The bytes, without the newline."""
        self.home = home
        """The id of the checkpoint in whose log it was found, for messages."""
        self._body: dict[str, Any] | None = None

    @property
    def digest(self) -> str:
        """What the next record names as ``prev``."""
        return self.line[_DIGEST].decode("ascii")

    @property
    def prev(self) -> str:
        """The digest of the record before, or `EMPTY_HEAD`."""
        return self.line[_PREV].decode("ascii")

    @property
    def kind(self) -> str:
        """The word that `encode` was given."""
        start = self.line.index(b'"kind":"', _SEQ) + 8
        return self.line[start : self.line.index(b'"', start)].decode("ascii", "replace")

    @property
    def body(self) -> dict[str, Any]:
        """The content. Shared between callers: not to be modified."""
        body = self._body
        if body is None:
            body = self._body = _body(self.line, self.home)
        return body

    def leading(self, *names: str) -> tuple[int, ...]:
        """Return integers that the body begins with, without parsing the rest of it.

        Args:
            names: Their names, in the order in which they were appended.

        Example:
            >>> encode(0, EMPTY_HEAD, "epoch", {"of": 1, "n": 5, "metrics": {}}).leading("of", "n")
            (1, 5)
        """
        if self._body is None and (found := _leading(names).search(self.line, _SEQ, _SEQ + 256)) is not None:
            return tuple(map(int, found.groups()))
        return tuple(self.body[name] for name in names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.line == other.line

    def __hash__(self) -> int:
        return hash(self.line)

    def __repr__(self) -> str:
        return f"Record(seq={self.seq}, kind={self.kind!r}, digest={self.digest[:8]!r})"


@functools.cache
def _leading(names: tuple[str, ...]) -> re.Pattern[bytes]:
    fields = ",".join(rf'"{re.escape(name)}":(\d{{1,18}})' for name in names)
    return re.compile(rf'"kind":"[a-z0-9_]*","body":{{{fields}[,}}]'.encode("ascii"))


def _body(line: bytes, home: str) -> dict[str, Any]:
    """Return the content of a line whose digest is right, which says nothing of who computed it."""
    try:
        body = json.loads(line)["body"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(line, home, f"{type(error).__name__}: {error}") from None
    if type(body) is not dict:
        raise _unreadable(line, home, f"its body is a {type(body).__name__}")
    return cast(dict[str, Any], body)


def _unreadable(line: bytes, home: str, reason: str) -> CorruptLogError:
    log = f"checkpoint {home!r}" if home else "a log"
    return CorruptLogError(
        f"Expected a record of {log}, got a line that verifies and is none: {reason[:200]}.",
        cause=f"Another program wrote it. It begins with {line[:100]!r}.",
        fix="Put back a copy of the log.",
    )


class BadLineError(ValueError):
    """A line does not verify; ``number`` counts from 1 within the bytes that were given."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def encode(seq: int, prev: str, kind: str, body: dict[str, Any], home: str = "") -> Record:
    """Return the record that follows the one with digest ``prev``.

    Args:
        seq: Its number, from 0.
        prev: Digest of the record before, or `EMPTY_HEAD`.
        kind: A word of lower case letters, digits and underscores.
        body: What JSON holds without loss: texts as keys; no tuple, inf or nan (see `purestate.core._plain`).
        home: The id of the checkpoint, for messages.

    Raises:
        UnsupportedError: ``body`` would come back from JSON as something else, or ``kind`` is not such a word.
    """
    if not _KIND.fullmatch(kind):
        raise UnsupportedError(f"{kind!r} cannot be the kind of a record: expected lower case letters, digits, underscores.")
    text = to_json(body, "the body of a record")
    return Record(seq, seal(f'"prev":"{prev}","seq":{seq},"kind":"{kind}","body":{text}}}'.encode("ascii")), home)


def decode(data: bytes, seq: int = 0, prev: str = EMPTY_HEAD, home: str = "") -> Iterator[Record]:
    """Verify the lines in ``data`` and yield their records.

    Args:
        data: Whole lines, each with its newline (see `torn_tail`).
        seq: Number that the first of them must have.
        prev: Digest of the record before it.
        home: The id of the checkpoint, for messages.

    Raises:
        BadLineError: A line is damaged, or not the one that follows.
    """
    before = prev.encode("ascii")
    lines = data.split(b"\n")
    tail = lines.pop()
    for number, line in enumerate(lines):
        rest = line[_REST:]
        if not rest.startswith(b'"prev":"%b","seq":%d,"kind":"' % (before, seq + number)) or not line.startswith(_OPEN):
            raise BadLineError(number + 1, f"it does not follow record {before[:8].decode()} as number {seq + number}")
        before = line[_DIGEST]
        if blake3(rest).hexdigest().encode("ascii") != before or line[75:_REST] != _CLOSE:
            raise BadLineError(number + 1, "its bytes differ from its digest")
        yield Record(seq + number, line, home)
    if tail:
        raise BadLineError(len(lines) + 1, "the newline after it is another byte")


def torn_tail(data: bytes) -> int:
    """Return how many bytes at the end of a log belong to a record that was never finished.

    That is a last line without its newline, or one that holds a NUL byte: the size of the file reached the disk and the
    bytes did not. JSON in ASCII never holds one.
    """
    end = data.rfind(b"\n") + 1
    if end < len(data):
        tail = data[end:]
        # A whole line whose newline became something else was not torn: the record was durable once.
        return 0 if unseal(tail[:-1]) is not None else len(tail)
    start = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
    return end - start if b"\0" in data[start:end] else 0


def seal(rest: bytes) -> bytes:
    """Return the object whose fields are ``rest`` (``"a":1,"b":2}``) with the digest of those bytes before them."""
    return _OPEN + blake3(rest).hexdigest().encode("ascii") + _CLOSE + rest


def unseal(line: bytes) -> dict[str, Any] | None:
    """Return the fields of a sealed object, or None if its bytes differ from its digest or are no object."""
    rest = line[_REST:]
    if not line.startswith(_OPEN) or line[75:_REST] != _CLOSE or blake3(rest).hexdigest().encode("ascii") != line[_DIGEST]:
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):  # sealed by somebody who wrote something else
        return None
    if type(fields) is not dict:
        return None
    fields.pop("digest", None)
    return cast(dict[str, Any], fields)


def to_json(value: dict[str, Any], what: str) -> str:
    """Return the JSON of a dict that comes back from it as it was.

    Args:
        value: What to write.
        what: The same for people.

    Raises:
        UnsupportedError: It would come back as something else.
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        same = json.loads(text) == value
    except (TypeError, ValueError) as error:
        raise UnsupportedError(f"Expected JSON as {what}: {error}.", fix=_ENCODE_FIRST) from None
    if not same:
        raise UnsupportedError(f"Expected JSON as {what}, got a value that JSON changes.", cause=_CHANGED, fix=_ENCODE_FIRST)
    return text


_CHANGED = "It holds a tuple, or a key that is not a text."
_ENCODE_FIRST = "Encode its values with purestate.core._plain.encode."
