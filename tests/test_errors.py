"""Every exception: its bases, its place in the documented tree, its attributes, its message."""

from __future__ import annotations

import builtins
import re
from pathlib import Path

import pytest

from purestate import errors
from purestate.errors import PureStateError

ROOT = Path(errors.__file__).parent
CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, PureStateError)]
BASES = {
    "PureStateError": "Exception",
    "StateError": "ValueError",
    "FrozenStateError": "AttributeError",
    "SetupError": "TypeError",
    "UnsupportedError": "TypeError",
    "BatchError": "ValueError",
    "MetricError": "ValueError",
    "LossError": "ValueError",
    "NonFiniteLossError": "ArithmeticError",
    "ImpurityError": "RuntimeError",
    "CaptureMismatchError": "RuntimeError",
    "FingerprintError": "TypeError",
    "StaleRecordError": "RuntimeError",
    "ReplayError": "RuntimeError",
    "AuditError": "RuntimeError",
    "OfflineError": "RuntimeError",
    "ScriptError": "RuntimeError",
    "UsageError": "ValueError",
    "MissingExtraError": "ImportError",
    "StoreError": "OSError",
    "InvalidIdError": "ValueError",
    "CheckpointNotFoundError": "FileNotFoundError",
    "CheckpointExistsError": "FileExistsError",
    "MissingSnapshotError": "FileNotFoundError",
    "StoreLockedError": "BlockingIOError",
}


def standard_bases(cls: type) -> list[type]:
    return [base for base in cls.__bases__ if base.__module__ == "builtins"]


def attributes(cls: type) -> list[str]:
    """Return the attributes that purestate's classes declare, not what OSError and AttributeError bring."""
    return [name for base in cls.__mro__ if base in CLASSES for name in vars(base).get("__annotations__", {})]


def documented_tree() -> dict[str, tuple[str, str | None]]:
    """Return ``{class: (parent, standard base)}`` from the picture in the module's docstring."""
    tree: dict[str, tuple[str, str | None]] = {}
    stack = ["PureStateError"]
    for indent, name, base in re.findall(r"^    ([│ ]*)[├└]── (\w+)(?:\((\w+)\))?", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4
        stack[depth + 1 :] = [name]
        tree[name] = (stack[depth], base or None)
    return tree


@pytest.mark.parametrize("cls", CLASSES)
def test_a_stranger_can_catch_it(cls):
    assert issubclass(cls, PureStateError)
    if cls.__name__ in BASES:
        assert standard_bases(cls) == [getattr(builtins, BASES[cls.__name__])]
    else:
        assert standard_bases(cls) == []
        assert any(parent in CLASSES and parent is not PureStateError for parent in cls.__bases__)


def test_the_documented_tree_is_the_tree():
    actual = {
        cls.__name__: (cls.__bases__[0].__name__, next((base.__name__ for base in standard_bases(cls)), None))
        for cls in CLASSES
        if cls is not PureStateError
    }
    assert documented_tree() == actual


def test_all_names_every_class_and_nothing_else():
    assert sorted(errors.__all__) == sorted(["PureStateWarning", *(cls.__name__ for cls in CLASSES)])


@pytest.mark.parametrize("cls", CLASSES)
def test_attributes_are_set(cls):
    value = object()
    for name in attributes(cls):
        assert getattr(cls("problem", **{name: value}), name) is value
        assert getattr(cls("problem"), name) in (None, ())


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_attribute_is_refused(cls):
    with pytest.raises(TypeError, match=f"{cls.__name__} has no attribute 'nonsense'"):
        cls("problem", nonsense=1)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_message_is_problem_cause_fix(cls):
    assert str(cls("problem", cause="cause", fix="fix")) == "problem\ncause\nfix"
    assert str(cls("problem", fix="fix")) == "problem\nfix"
    assert str(cls("problem")) == "problem"


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not PureStateError])
def test_somebody_raises_it(cls):
    sources = (path.read_text() for path in ROOT.rglob("*.py") if path.name != "errors.py")
    assert any(re.search(rf"\b{cls.__name__}\(", source) for source in sources)
