"""What of a class was written by somebody: its attributes without what Python, decorators and metaclasses generated.

And what of an installed class was written over by the user.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, cast

from purestate.code._package import package_of_file, package_of_module

__all__ = ["class_attributes", "made_of_user_code", "slots", "written_over"]

_STORAGE = (types.GetSetDescriptorType, types.MemberDescriptorType)
_CLASS_MACHINERY = frozenset(
    "__module__ __doc__ __dict__ __weakref__ __qualname__ __annotations__ __annotate__ __annotate_func__ __annotations_cache__ "
    "__firstlineno__ __static_attributes__ __slots__ __abstractmethods__ __parameters__ __orig_bases__ "
    "__classcell__ __type_params__ __dataclass_fields__ __dataclass_params__ __jit_unused_properties__ __subclasshook__ "
    "_abc_impl _backward_cls __conditional_annotations__ __slotnames__".split()
)
_OF_GENERATED_CLASSES = frozenset("__repr__ __getstate__ __setstate__ __replace__ __getnewargs__ _make _replace _asdict".split())
"""What dataclasses and named tuples take from files of the standard library."""


def slots(cls: type[Any]) -> list[str]:
    """Return the names in the ``__slots__`` of a class itself, sorted."""
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else sorted(slots)


def made_of_user_code(cls: type[Any]) -> bool:
    """Tell whether a class that an installed package made at run time, such as a parametrized one, derives from a user's."""
    return any(package_of_module(base.__module__) is None for base in cls.__mro__)


def written_over(owner: type[Any] | types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, function)`` for each function of the user in an installed class or module: ``nn.ReLU.forward = mine``."""
    name = f"{owner.__module__}.{owner.__qualname__}" if isinstance(owner, type) else owner.__name__
    for key, value in vars(owner).items():  # thousands, for each question
        kind = type(value)
        if kind is FunctionType:
            filename = value.__code__.co_filename
        elif kind is classmethod or kind is staticmethod:
            filename = getattr(getattr(value.__func__, "__code__", None), "co_filename", "")
        else:
            continue
        if filename not in _not_users and _is_users(filename):
            yield f"{name}.{key}", value


def _is_users(filename: str) -> bool:
    # installed packages make functions as well, from texts that are called <string> and the like
    made = not filename or (filename[0] == "<" and not filename.startswith(("<ipython", "<stdin")))
    if made or package_of_file(filename) is not None:
        _not_users.add(filename)
        return False
    return True


_not_users: set[str] = set()


def class_attributes(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a class body defined. Of an enum also ``('member NAME', value)``, and their order if values do not tell it."""
    generated = "__dataclass_fields__" in vars(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    members = {member.name: member.value for member in cast("Any", cls)} if isinstance(cls, enum.EnumMeta) else None
    for key, value in sorted(vars(cls).items()):
        if key in _CLASS_MACHINERY or isinstance(value, _STORAGE) or type(value).__name__ == "_tuplegetter":
            continue
        if generated and (key == "__match_args__" or _is_generated(key, value)):
            continue
        if members is not None and (key in members or _is_of_enum(key, value)):
            continue
        yield key, _as_written(value)
    for key, value in (members or {}).items():
        yield f"member {key}", value
    if members and list(members) != _told_by_values(members):
        yield "order of members", list(members)


def _as_written(value: Any) -> Any:
    """Return a method as its class was written: torch wraps the ``step`` of an optimizer when the first of the class is built."""
    attributes: dict[str, Any] = vars(value) if isinstance(value, FunctionType) else {}
    return attributes["__wrapped__"] if attributes.get("hooked") is True and "__wrapped__" in attributes else value


def _told_by_values(members: dict[str, Any]) -> list[str]:
    numbered = all(type(value) is int for value in members.values())
    return sorted(members, key=members.__getitem__) if numbered else sorted(members)


def _is_of_enum(key: str, value: Any) -> bool:
    if isinstance(value, FunctionType):
        return package_of_file(value.__code__.co_filename) is not None
    return key.startswith("_") and key.endswith("_")


def _is_generated(key: str, value: Any) -> bool:
    code: CodeType | None = getattr(getattr(value, "__func__", value), "__code__", None)
    if code is None:
        return False
    # a class in a notebook has methods of its own from a file called <ipython-input-...>
    if code.co_filename == "<string>" and (code.co_qualname.startswith("__create_fn__.") or code.co_qualname == "<lambda>"):
        return True
    return key in _OF_GENERATED_CLASSES and package_of_file(code.co_filename) is not None
