"""From a code object to the exact piece of source that it was compiled from.

A file is read, parsed and compiled once. The source is believed only if compiling it gives the very code object that is
asked about: a file that was edited after its import, or rewritten on import, does not describe what runs, and then the
instructions themselves are taken. Notebook cells and other sources without a file come from `linecache`.
"""

from __future__ import annotations

import ast
import dis
import linecache
import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import CodeType
from typing import Any, cast

from blake3 import blake3

from purestate.code._canonical import bytecode, syntax
from purestate.code._text import note_code, note_file

__all__ = ["Reference", "code_digest", "file_digest", "file_imports", "literals", "references"]

_Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Reference = tuple[str, tuple[str, ...]]
"""A name that code reads from outside, and the attributes read from it: ``('helpers', ('scale',))``."""

_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_FREE = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_COMPILED = tuple(EXTENSION_SUFFIXES)
_BETWEEN = frozenset({"PUSH_NULL", "EXTENDED_ARG"})
"""What may stand between a name and the attribute that is read from it; the latter in functions of more than 255 names."""


class _File:
    """The functions of one source text, and what it compiles to."""

    def __init__(self, lines: list[str], filename: str) -> None:
        self.lines = lines
        self.tree = ast.parse("".join(lines))
        self.codes = set(_codes(compile(self.tree, filename, "exec", dont_inherit=True)))
        self.nodes: dict[tuple[int, str], list[_Node]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Lambda):
                self.nodes.setdefault((node.lineno, "<lambda>"), []).append(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                self.nodes.setdefault((first, node.name), []).append(node)

    def find(self, code: CodeType) -> _Node | None:
        nodes = self.nodes.get((code.co_firstlineno, code.co_name), [])
        if code not in self.codes or len(nodes) < 2:
            return nodes[0] if code in self.codes and nodes else None
        return _innermost([node for node in nodes if isinstance(node, ast.Lambda)], code)


_files: dict[str, _File | None] = {}
_digests: dict[int, tuple[weakref.ref[CodeType], str]] = {}
_references: dict[int, tuple[weakref.ref[CodeType], tuple[frozenset[Reference], frozenset[Reference], frozenset[str]]]] = {}


def code_digest(code: CodeType, namespace: dict[str, Any]) -> str:
    """Return the digest of the function, method or lambda that a code object was compiled from.

    Args:
        code: The ``__code__`` of a function. What was found is remembered as long as it lives.
        namespace: The function's ``__globals__``; loaders of zipped modules are found through it.

    Effects:
        Reads the source file, the first time that one of its functions is asked about.
    """
    known = _digests.get(id(code))
    if known is not None and known[0]() is code:
        return known[1]
    file = _file(code.co_filename, namespace)
    node = file.find(code) if file else None
    hashed = bytecode(code) if node is None else syntax(node)
    digest = blake3(hashed).hexdigest()
    note_code(digest, hashed if node is None else node)
    key = id(code)
    _digests[key] = (weakref.ref(code, lambda _: _digests.pop(key, None)), digest)
    return digest


def file_digest(filename: str) -> str | None:
    """Return the digest of a whole module: of its source, or of its bytes where it is compiled; None where neither can be read.

    Effects:
        Reads the file; source only the first time.
    """
    if filename.endswith(_COMPILED):
        return blake3(Path(filename).read_bytes()).hexdigest() if os.path.isfile(filename) else None
    file = _file(filename, {})
    if file is None:
        return None
    digest = blake3(syntax(file.tree)).hexdigest()
    note_file(digest, file.tree)
    return digest


def literals(filename: str) -> dict[str, Any]:
    """Return the names to which a source file gives a literal at its top level, with the last one given to each."""
    file = None if filename.endswith(_COMPILED) else _file(filename, {})
    found: dict[str, Any] = {}
    for node in file.tree.body if file else ():
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            if isinstance(target, ast.Name):
                found.pop(target.id, None)
                with suppress(ValueError, TypeError, AttributeError):  # an expression that is no literal, or none
                    found[target.id] = ast.literal_eval(cast("Any", node).value)
    return found


def file_imports(filename: str) -> frozenset[str]:
    """Return the modules that a source file imports anywhere, with leading dots where relative (names in them as well)."""
    file = None if filename.endswith(_COMPILED) else _file(filename, {})
    found: set[str] = set()
    for node in ast.walk(file.tree) if file else ():
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(_imported("." * node.level + (node.module or ""), (alias.name for alias in node.names)))
    return frozenset(found)


def references(code: CodeType) -> tuple[frozenset[Reference], frozenset[Reference], frozenset[str]]:
    """Return what a code object, with those nested in it, reads from outside: global names, free names, modules it imports."""
    known = _references.get(id(code))
    if known is not None and known[0]() is code:
        return known[1]
    names: set[Reference] = set()
    free: set[Reference] = set()
    imports: set[str] = set()
    for inner in _codes(code):
        _read(inner, names, free, imports)
    found = (frozenset(names), frozenset(free), frozenset(imports))
    key = id(code)
    _references[key] = (weakref.ref(code, lambda _: _references.pop(key, None)), found)
    return found


def _file(filename: str, namespace: dict[str, Any]) -> _File | None:
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, namespace)
    known = _files.get(filename)
    if known is not None and known.lines == lines:
        return known
    try:
        file = _File(lines, filename) if lines else None
    except (SyntaxError, ValueError):  # not Python, or edited into something that is not
        file = None
    _files[filename] = file
    return file


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _innermost(lambdas: list[ast.Lambda], code: CodeType) -> ast.Lambda | None:
    """Of several lambdas that begin on one line, return the one whose body spans the instructions most closely."""
    spans = [
        ((first, column), (last, end))
        for first, last, column, end in code.co_positions()
        if first and last and column is not None and end is not None and (first, column) < (last, end)
    ]
    if not spans:
        return None  # python -X no_debug_ranges
    start, stop = min(span[0] for span in spans), max(span[1] for span in spans)

    def span(node: ast.Lambda) -> tuple[tuple[int, int], tuple[int, int]]:
        body = node.body
        return (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)

    around = [node for node in lambdas if span(node)[0] <= start and stop <= span(node)[1]]
    return max(around, key=lambda node: span(node)[0], default=None)


def _read(code: CodeType, names: set[Reference], free: set[Reference], imports: set[str]) -> None:
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _BETWEEN]
    for at, instruction in enumerate(instructions):
        operation, name = instruction.opname, instruction.argval
        if operation in _GLOBAL or operation in _FREE:
            chain: list[str] = []
            for after in instructions[at + 1 :]:
                if after.opname not in _ATTRIBUTE:
                    break
                chain.append(after.argval)
            (names if operation in _GLOBAL else free).add((name, tuple(chain)))
        elif operation == "IMPORT_NAME":
            level, wanted = instructions[at - 2].argval or 0, instructions[at - 1].argval or ()
            imports.update(_imported("." * level + name, wanted))


def _imported(module: str, names: Iterable[str]) -> Iterator[str]:
    yield module
    for name in names:  # `from package import module` may name a module; what is none is not found as one later
        if name != "*":
            yield module + ("" if module.endswith(".") else ".") + name
