"""A syntax tree, and a code object without source, as bytes that stay the same where the meaning does.

Not in the bytes: line numbers, comments, white space, docstrings, load and store contexts, and fields that are ``None`` or
empty, so that Python 3.10 to 3.13 write the same. Where no source can be had, `bytecode` takes its place, tagged with the
Python version because instructions differ between versions. Finding the tree of a function is the task of `_source`.
"""

from __future__ import annotations

import ast
import sys
from types import CodeType
from typing import Any, TypeGuard, cast

__all__ = ["bytecode", "documented", "syntax"]

_NOT_MEANING = frozenset({"ctx", "kind", "type_comment"})
_WITH_DOCSTRING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)


def syntax(node: ast.AST) -> bytes:
    """Return the canonical text of a syntax tree.

    Example:
        >>> syntax(ast.parse("x = 1  # one")) == syntax(ast.parse("x   =  1"))
        True
        >>> syntax(ast.parse("x = 1")) == syntax(ast.parse("x = 1.0"))
        False
    """
    out: list[str] = []
    _write(node, out)
    return "".join(out).encode("ascii")


def bytecode(code: CodeType) -> bytes:
    """Return the instructions, constants and names of a code object and of those nested in it; lines do not count."""
    return f"python {sys.version_info[0]}.{sys.version_info[1]} {_constant(code)}".encode("ascii")


def _write(node: ast.AST, out: list[str]) -> None:
    out.append(type(node).__name__)
    out.append("(")
    if isinstance(node, ast.Constant):
        out.append(_constant(node.value))
    else:
        for field in node._fields:
            value = getattr(node, field, None)
            if value is None or value == [] or field in _NOT_MEANING:
                continue
            if field == "body" and documented(node):
                value = value[1:]
            out.append(f"{field}=")
            if isinstance(value, list):
                _write_list(cast("list[Any]", value), out)
            elif isinstance(value, ast.AST):
                _write(value, out)
            else:
                out.append(_constant(value))
    out.append(")")


def _write_list(items: list[Any], out: list[str]) -> None:
    out.append("[")
    for item in items:
        if isinstance(item, ast.AST):
            _write(item, out)
        else:
            out.append(_constant(item))  # a name of `global`, or the missing key of {**mapping}
        out.append(",")
    out.append("]")


def documented(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module]:
    """Return whether a node is a definition or module whose first statement is a docstring."""
    first = node.body[0] if isinstance(node, _WITH_DOCSTRING) and node.body else None
    value = first.value if isinstance(first, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _constant(value: Any) -> str:
    # ascii(), since repr() of a text follows the Unicode tables of the running Python
    if isinstance(value, tuple):
        return f"tuple({','.join(map(_constant, cast('tuple[Any, ...]', value)))})"
    if isinstance(value, frozenset):
        return f"frozenset({','.join(sorted(map(_constant, cast('frozenset[Any]', value))))})"
    if isinstance(value, CodeType):
        shape = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        table = getattr(value, "co_exceptiontable", b"")
        return f"code({value.co_name!a},{shape},{names!a},{value.co_code.hex()},{table.hex()},{_constant(value.co_consts)})"
    return f"{type(value).__name__}:{value!a}"
