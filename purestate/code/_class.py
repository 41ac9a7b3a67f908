"""What of a class was written by somebody: its attributes without what Python, decorators and metaclasses generated."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, cast

from purestate.code._package import package_of_file, package_of_module

__all__ = ["class_attributes", "made_of_user_code", "slots"]

_STORAGE = (types.GetSetDescriptorType, types.MemberDescriptorType)
_CLASS_MACHINERY = frozenset(
    "__module__ __doc__ __dict__ __weakref__ __qualname__ __annotations__ __annotate__ __annotate_func__ __annotations_cache__ "
    "__firstlineno__ __static_attributes__ __slots__ __match_args__ __abstractmethods__ __parameters__ __orig_bases__ "
    "__classcell__ __type_params__ __dataclass_fields__ __dataclass_params__ __jit_unused_properties__ __subclasshook__ "
    "_abc_impl _backward_cls __conditional_annotations__ __slotnames__".split()
)


def slots(cls: type[Any]) -> list[str]:
    """Return the names in the ``__slots__`` of a class itself, sorted."""
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else sorted(slots)


def made_of_user_code(cls: type[Any]) -> bool:
    """Tell whether a class that an installed package made at run time, such as a parametrized one, derives from a user's."""
    return any(package_of_module(base.__module__) is None for base in cls.__mro__)


def class_attributes(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a class body defined. Of an enum also ``('member NAME', value)``, in their order."""
    generated = "__dataclass_fields__" in vars(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    members = {member.name: member.value for member in cast("Any", cls)} if isinstance(cls, enum.EnumMeta) else None
    for key, value in sorted(vars(cls).items()):
        if key in _CLASS_MACHINERY or isinstance(value, _STORAGE) or type(value).__name__ == "_tuplegetter":
            continue
        if generated and _is_generated(value):
            continue
        if members is not None and (key in members or _is_of_enum(key, value)):
            continue
        yield key, value
    for key, value in (members or {}).items():
        yield f"member {key}", value


def _is_of_enum(key: str, value: Any) -> bool:
    if isinstance(value, FunctionType):
        return package_of_file(value.__code__.co_filename) is not None
    return key.startswith("_")


def _is_generated(value: Any) -> bool:
    value = getattr(value, "__func__", value)
    code: CodeType | None = getattr(value, "__code__", None)
    return code is not None and (code.co_filename[:1] == "<" or package_of_file(code.co_filename) is not None)
