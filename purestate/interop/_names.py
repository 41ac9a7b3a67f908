"""Between `{"encoder.0.weight": leaf}` and `{"encoder": {"0": {"weight": leaf}}}`. Leaves are handed on as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purestate.errors import TreeMismatchError, UnsupportedError

__all__ = ["flatten", "nest"]


def nest(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return leaves by dotted name as nested dicts, as Flax, Haiku and Orbax have them.

    Nothing is renamed and no axis moves: ``'0'`` stays a text, a ``weight`` is not transposed (see `to_flax`).

    Args:
        tree: Leaves of any kind by name, such as ``state.params``. Not modified.

    Returns:
        New dicts, in the order in which their names come first. The leaves are the same objects.

    Raises:
        TreeMismatchError: A name is both a leaf and the beginning of another one.
        UnsupportedError: A name is no text.

    Example:
        >>> nest({"encoder.0.weight": 1, "encoder.0.bias": 2, "scale": 3})
        {'encoder': {'0': {'weight': 1, 'bias': 2}}, 'scale': 3}
    """
    root: dict[str, Any] = {}
    made = {id(root)}  # a leaf may be a dict of somebody else
    for name, leaf in _named(tree, "nest").items():
        *above, last = name.split(".")
        node = root
        for i, part in enumerate(above):
            if part not in node:
                node[part] = {}
                made.add(id(node[part]))
            elif id(node[part]) not in made:
                raise _both(".".join(above[: i + 1]), name)
            node = node[part]
        if last in node:
            raise _both(name, next(other for other in tree if other.startswith(f"{name}.")))
        node[last] = leaf
    return root


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Return nested dicts as leaves by dotted name: what `nest` took.

    Args:
        tree: Nested mappings, such as the parameters of a Flax module. Keys are texts or integers. Not modified.

    Returns:
        A new dict; the leaves are the same objects. A mapping without entries has no name in it.

    Raises:
        TreeMismatchError: Two leaves would have one name.
        UnsupportedError: There is a list or tuple, or a key that is neither a text nor an integer.

    Example:
        >>> flatten({"encoder": {"0": {"weight": 1, "bias": 2}}, "scale": 3})
        {'encoder.0.weight': 1, 'encoder.0.bias': 2, 'scale': 3}
    """
    found: dict[str, Any] = {}
    _enter(_mapping(tree, "flatten"), None, found)
    return found


def _enter(tree: Mapping[Any, Any], prefix: str | None, found: dict[str, Any]) -> None:
    for key, value in tree.items():
        if type(key) not in (str, int):
            raise UnsupportedError(f"flatten: expected texts or integers as keys, got {key!r} below {prefix or 'the root'!r}.")
        name = str(key) if prefix is None else f"{prefix}.{key}"
        if isinstance(value, Mapping):
            _enter(value, name, found)
        elif isinstance(value, list | tuple):
            raise UnsupportedError(
                f"flatten: expected dicts and leaves, got a {type(value).__name__} at {name!r}.",
                fix="Make it a dict: dict(enumerate(entries)).",
            )
        elif name in found:
            raise TreeMismatchError(f"flatten: two leaves would be called {name!r}.", path=name)
        else:
            found[name] = value


def _named(tree: Any, who: str) -> Mapping[str, Any]:
    for name in _mapping(tree, who):
        if type(name) is not str:
            raise UnsupportedError(f"{who}: expected texts as names, got {name!r}.")
    return tree


def _mapping(tree: Any, who: str) -> Mapping[Any, Any]:
    if not isinstance(tree, Mapping):
        raise UnsupportedError(
            f"{who}: expected a mapping of names, got a {type(tree).__name__}.",
            fix="Of a state, give a subtree: state.params.",
        )
    return tree


def _both(leaf: str, below: str) -> TreeMismatchError:
    return TreeMismatchError(f"nest: {leaf!r} is a leaf, and there is {below!r} below it.", path=leaf)
