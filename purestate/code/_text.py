"""What was hashed: the text behind a fingerprint, so that somebody who has only the fingerprint can read what it is of.

A **piece** is a short JSON of a function, class or module, or of an object that is described by a digest: what was hashed of
it, and its own source. Hashing a piece gives the digest by which questions know it, which `recomputed` does. Source is
normalized: comments, docstrings and white space are not in the fingerprint, and not in the text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from typing import Any

from blake3 import blake3

from purestate.code._canonical import documented, syntax
from purestate.core._hash import canonical_json, scalar_hash

__all__ = ["encoded", "note", "note_code", "note_file", "pieces", "recomputed", "text_of"]

Json = Any
_MOST = 1 << 14
"""How many of each kind are remembered: a notebook that makes new closures for days must not grow for ever."""

_codes: dict[str, ast.AST | bytes] = {}
"""What each digest of code is of: a syntax tree, or instructions as text where there is no source."""
_contents: dict[str, Json] = {}
"""What each digest of a description is of."""
_files: dict[str, ast.AST] = {}
_encoded: dict[str, bytes] = {}


def note_code(digest: str, of: ast.AST | bytes) -> None:
    """Remember what the digest of a code object is of."""
    _remember(_codes, digest, of)


def note_file(digest: str, tree: ast.AST) -> None:
    """Remember which tree the digest of a whole source file is of."""
    _remember(_files, digest[:32], tree)


def note(content: Json) -> str:
    """Return the digest of a description, 32 hexadecimal digits, and remember what it is of."""
    digest = scalar_hash(content)[:32]
    _remember(_contents, digest, content)
    return digest


def pieces(values: Iterable[Any]) -> set[str]:
    """Return the digests among some values of which the text is at hand, and those that are inside of these.

    A description that reaches no code of the user has none: its name and the version of its package say all.

    Args:
        values: Those of a question, for example. What is no digest is passed over.
    """
    found: set[str] = set()
    left = [value for value in values if isinstance(value, str)]
    while left:
        digest = left.pop()
        if digest in found or not (digest in _contents or digest in _files):
            continue
        content = _contents.get(digest)
        if isinstance(content, list):  # a description: itself, its parts, its packages
            left += [value for value in content[1].values() if isinstance(value, str)]
            if not content[1]:
                continue
        found.add(digest)
    return found


def encoded(digest: str) -> bytes:
    """Return a piece as canonical JSON: what is kept.

    Args:
        digest: One that `pieces` returned.
    """
    if digest not in _encoded:
        _remember(_encoded, digest, canonical_json(_piece(digest)))
    return _encoded[digest]


def recomputed(piece: bytes) -> str | None:
    """Return the digest that a piece is the text of, computed from nothing else; None where its parts do not fit together.

    Raises:
        ValueError: It is no piece.

    Example:
        >>> from purestate.code import fingerprint
        >>> half = eval("lambda x: x / 2", {"__name__": "mine"})
        >>> [recomputed(encoded(digest)) == digest for digest in fingerprint(half).parts.values()]
        [True]
    """
    fields = json.loads(piece)
    try:
        own = _hashed(fields)
        if "content" not in fields:
            return own and own[:32]
        content = fields["content"]
        return scalar_hash(content)[:32] if own is None or content["code"] == own else None
    except (TypeError, AttributeError, LookupError, ValueError, SyntaxError, RecursionError) as error:
        raise ValueError(f"this is no piece of code: {error!r}") from None


def text_of(piece: bytes) -> str | None:
    """Return the source in a piece, or what was hashed in its place; None for what has no code of its own, as a class."""
    fields = json.loads(piece)
    return next((fields[kind] for kind in ("source", "syntax", "bytecode") if kind in fields), None)


def _remember(table: dict[str, Any], key: str, value: Any) -> None:
    if key not in table:
        if len(table) >= _MOST:
            del table[next(iter(table))]
        table[key] = value


def _piece(digest: str) -> dict[str, Json]:
    if digest in _files:
        tree = _files[digest]
        return _source(tree, blake3(syntax(tree)).hexdigest(), whole=True)
    content = _contents[digest]
    code = content.get("code") if isinstance(content, dict) else None
    of = _codes.get(code) if isinstance(code, str) else None
    if of is None:
        return {"content": content}
    assert isinstance(code, str)
    own = {"bytecode": of.decode("ascii")} if isinstance(of, bytes) else _source(of, code, whole=False)
    return {"content": content, **own}


def _source(node: ast.AST, digest: str, *, whole: bool) -> dict[str, str]:
    """Return a tree as source that hashes to its digest; where Python cannot write it so, what was hashed."""
    try:
        tree = ast.parse(ast.unparse(node))
        for inner in ast.walk(tree):
            if documented(inner) and (len(inner.body) > 1 or inner is tree):
                del inner.body[0]
        text = ast.unparse(tree)
        if blake3(syntax(_node(text, whole=whole))).hexdigest() == digest:
            return {"source": text}
    except (SyntaxError, ValueError, RecursionError):
        pass
    return {"syntax": syntax(node).decode("ascii")}


def _hashed(fields: dict[str, Json]) -> str | None:
    if "source" in fields:
        return blake3(syntax(_node(fields["source"], whole="content" not in fields))).hexdigest()
    text = fields.get("syntax", fields.get("bytecode"))
    return None if text is None else blake3(text.encode("ascii")).hexdigest()


def _node(text: str, *, whole: bool) -> ast.AST:
    tree = ast.parse(text)
    if whole:
        return tree
    [node] = tree.body
    return node.value if isinstance(node, ast.Expr) else node
