"""What is edited must change a fingerprint if it can change an answer, and must not if it cannot.

Each row is a source file before and after an edit. Both are imported as a module of the same name from a folder of their
own, so that every comparison also says that the folder does not count.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import purestate
from purestate.code import fingerprint

HELPER = """
SCALE = 2.0
def helper(x):
    return x * SCALE
def target(x):
    return helper(x) + 1
"""
CLASS = """
class Base:
    width = 8
    def scale(self, x):
        return 2 * x
class Net(Base):
    def __init__(self, p=0.2):
        self.p = p
    def forward(self, x):
        return self.scale(x) * self.width
    @property
    def depth(self):
        return 3
    @staticmethod
    def free(x):
        return x
target = Net()
"""
CLOSURE = """
def make(k):
    def inner(x):
        return x * k
    return inner
target = make(3)
"""
DECORATED = """
import functools
def twice(times):
    def wrap(f):
        @functools.wraps(f)
        def inner(x):
            return times * f(x)
        return inner
    return wrap
@twice(2)
def target(x):
    return x + 1
"""
TORCH = """
import functools
import re
import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np
import torch
from torch import nn
@dataclass
class Config:
    lr: float = 0.1
    betas: tuple = (0.9, 0.999)
    names: list = field(default_factory=list)
class Mode(enum.Enum):
    FAST = 1
    SLOW = 2
def f(x, k=1, *, bias=0):
    '''Doc.'''
    return x * k + bias
target = {}
"""
SUPER = """
class A:
    def f(self): return 1
class B(A):
    def f(self): return super().f()
target = B.f
"""
PARAMETRIZED = """
import torch
from torch import nn
from torch.nn.utils import parametrize
class Shift(nn.Module):
    def forward(self, x):
        return x + 1
with torch.random.fork_rng():
    target = nn.Linear(2, 2)
with torch.no_grad():
    target.weight.zero_()
    target.bias.zero_()
parametrize.register_parametrization(target, "weight", Shift())
"""
FIELDS = """
import math
from dataclasses import dataclass, field
from typing import ClassVar
@dataclass
class target:
    k: float = field(default=1.0, metadata={'a': 1})
    p: int = 1
    act = math.sin
"""
OPERATOR = """
import torch
@torch.library.custom_op("planted::op", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    return x * 2
def target(x):
    return op(x)
"""
OUTSIDE = """
import sys
settings = sys.modules[__name__]
K = 1
settings.K = 1
def target(x):
    module = settings
    return module.K * x
"""
LAMBDAS = "target = [lambda x: x + 1, lambda x: x + 2][0]\n"


def target(*expression: str) -> str:
    return TORCH.replace("target = {}", f"target = {expression[0]}")


# name, source, what is replaced, by what
CHANGES = [
    ("dict order", target("dict(a=1, b=2)"), "a=1, b=2", "b=2, a=1"),
    ("dict order, other keys", "target = {1: 2, (3, 4): 5}\n", "1: 2, (3, 4): 5", "(3, 4): 5, 1: 2"),
    ("tensor strides", target("torch.ones(2, 3).T"), "ones(2, 3).T", "ones(3, 2)"),
    ("body", HELPER, "+ 1", "+ 2"),
    ("operator", HELPER, "helper(x) + 1", "helper(x) - 1"),
    ("helper body", HELPER, "x * SCALE", "x / SCALE"),
    ("global constant", HELPER, "SCALE = 2.0", "SCALE = 3.0"),
    ("global int for float", HELPER, "SCALE = 2.0", "SCALE = 2"),
    ("global bool for int", HELPER.replace("2.0", "1"), "SCALE = 1", "SCALE = True"),
    ("helper replaced by another", HELPER, "def target", "def helper(x): return x\ndef target"),
    ("closure value", CLOSURE, "make(3)", "make(4)"),
    ("closure type", CLOSURE, "make(3)", "make(3.0)"),
    ("closure body", CLOSURE, "x * k", "x + k"),
    ("decorator argument", DECORATED, "@twice(2)", "@twice(3)"),
    ("decorator gone", DECORATED, "@twice(2)\n", ""),
    ("decorator body", DECORATED, "times * f(x)", "times + f(x)"),
    ("decorated body", DECORATED, "return x + 1", "return x + 2"),
    ("method body", CLASS, "self.scale(x) * self.width", "self.scale(x) + self.width"),
    ("base method", CLASS, "2 * x", "3 * x"),
    ("base class gone", CLASS, "class Net(Base)", "class Net"),
    ("class attribute", CLASS, "width = 8", "width = 16"),
    ("property", CLASS, "return 3", "return 4"),
    ("static method body", CLASS, "return x\n", "return -x\n"),
    ("static method made a method", CLASS, "    @staticmethod\n", ""),
    ("default of __init__", CLASS, "Net()", "Net(0.3)"),
    ("other lambda on the line", LAMBDAS, "][0]", "][1]"),
    ("lambda body", LAMBDAS, "x + 1", "x + 3"),
    ("default", target("f"), "k=1", "k=2"),
    ("keyword default", target("f"), "bias=0", "bias=1"),
    ("partial argument", target("functools.partial(f, k=3)"), "k=3", "k=4"),
    ("partial position", target("functools.partial(f, 3)"), "f, 3", "f, 4"),
    ("bound self", target("Config(0.1).__repr__"), "Config(0.1)", "Config(0.2)"),
    ("1 for 1.0", target("[1]"), "[1]", "[1.0]"),
    ("1 for True", target("[1]"), "[1]", "[True]"),
    ("tuple for list", target("(1, 2)"), "(1, 2)", "[1, 2]"),
    ("order of a list", target("[1, 2]"), "[1, 2]", "[2, 1]"),
    ("order of an OrderedDict", target("OrderedDict(a=1, b=2)"), "a=1, b=2", "b=2, a=1"),
    ("text for bytes", target("'a'"), "'a'", "b'a'"),
    ("tensor byte", target("torch.tensor([1.0, 2.0])"), "2.0]", "2.5]"),
    ("tensor dtype", target("torch.tensor([1.0])"), "[1.0]", "[1.0], dtype=torch.float64"),
    ("tensor shape", target("torch.zeros(4)"), "zeros(4)", "zeros(2, 2)"),
    ("array byte", target("np.array([1, 2])"), "[1, 2]", "[1, 3]"),
    ("array dtype", target("np.array([1, 2])"), "[1, 2]", "[1, 2], dtype='i4'"),
    ("dtype", target("torch.float32"), "torch.float32", "torch.float64"),
    ("device", target("torch.device('cpu')"), "'cpu'", "'meta'"),
    ("generator state", target("torch.Generator().manual_seed(1)"), "seed(1)", "seed(2)"),
    ("numpy generator state", target("np.random.default_rng(1)"), "rng(1)", "rng(2)"),
    ("pattern", target("re.compile('a')"), "'a'", "'b'"),
    ("pattern flags", target("re.compile('a')"), "'a'", "'a', re.I"),
    ("path", target("Path('a/b')"), "a/b", "a/c"),
    ("enum member", target("Mode.FAST"), "target = Mode.FAST", "target = Mode.SLOW"),
    ("enum value", target("Mode.FAST"), "FAST = 1", "FAST = 3"),
    ("dataclass value", target("Config(lr=0.5)"), "lr=0.5", "lr=0.6"),
    ("dataclass default", target("Config"), "lr: float = 0.1", "lr: float = 0.2"),
    ("dataclass option", target("Config"), "@dataclass", "@dataclass(order=True)"),
    ("builtin", target("torch.relu"), "= torch.relu", "= torch.tanh"),
    ("torch function", target("nn.functional.relu"), "functional.relu", "functional.gelu"),
    ("class of torch", target("nn.ReLU"), "= nn.ReLU", "= nn.GELU"),
    ("module attribute", target("nn.Dropout(0.2)"), "0.2", "0.3"),
    ("module reduction", target("nn.MSELoss()"), "MSELoss()", "MSELoss(reduction='sum')"),
    ("loss weight", target("nn.CrossEntropyLoss(torch.ones(3))"), "torch.ones(3)", "torch.zeros(3)"),
    ("under no_grad", target("torch.no_grad()(f)"), "x * k + bias", "x * k - bias"),
    ("under vmap", target("torch.func.vmap(f)"), "x * k + bias", "x * k - bias"),
    ("cached", target("functools.lru_cache(f)"), "x * k + bias", "x * k - bias"),
    ("attribute of a function", target("f") + "f.weight = 1\n", "f.weight = 1", "f.weight = 2"),
    ("annotation", target("f"), "def f(x", "def f(x: int"),
    ("slots", "class A:\n    __slots__ = ('v',)\ntarget = A()\ntarget.v = 1\n", "v = 1", "v = 2"),
    ("subclass of dict", "class A(dict): pass\ntarget = A(a=1)\n", "a=1", "a=2"),
    ("nested function", "def target(x):\n    def g(y): return y\n    return g(x)\n", "return y", "return -y"),
    ("global of a nested function", "K = 1\ndef target(x):\n    return [y * K for y in x]\n", "K = 1", "K = 2"),
    ("recursion", "def target(x):\n    return target(x - 1) if x else 0\n", "else 0", "else 1"),
    ("nested class", "class Net:\n    class In:\n        def g(self): return 1\ntarget = Net\n", "return 1", "return 2"),
    ("metaclass", "class M(type):\n    k = 1\nclass Net(metaclass=M): pass\ntarget = Net\n", "k = 1", "k = 2"),
    ("declared", "class A:\n    def __purestate_fingerprint__(self): return 1\ntarget = A()\n", "return 1", "return 2"),
    ("f-string", "def target(x):\n    return f'{x:>{3}} a'\n", "{3}", "{4}"),
    ("set", "target = {1, 2}\n", "2}", "3}"),
    ("functions in a set", "target = {len, abs}\n", "abs", "max"),
    ("dict with int keys", "target = {1: 'a', 2: 'b'}\n", "2: 'b'", "2: 'c'"),
    ("mutual recursion", "def a(x): return b(x)\ndef b(x): return a(x) if x else 1\ntarget = a\n", "else 1", "else 2"),
]
CHANGES += [
    ("default of a NamedTuple", "import typing\nclass N(typing.NamedTuple):\n    a: int = 1\ntarget = N\n", "= 1", "= 2"),
    ("fields of a namedtuple", "import collections\ntarget = collections.namedtuple('N', 'x y')\n", "x y", "y x"),
    ("super() in a method on its own", SUPER, "return 1", "return 2"),
    ("property on its own", "target = property(lambda self: 1)\n", ": 1", ": 2"),
    ("numpy function", target("np.linspace"), "= np.linspace", "= np.logspace"),
    ("context manager", "import contextlib\n@contextlib.contextmanager\ndef target(): yield 1\n", "yield 1", "yield 2"),
    ("abstract base", "import abc\nclass A(abc.ABC):\n    def f(self): return 1\ntarget = A\n", "return 1", "return 2"),
    ("user class under a parametrization", PARAMETRIZED, "x + 1", "x + 2"),
    ("metadata of a field", FIELDS, "'a': 1", "'a': 2"),
    ("a field that is none", FIELDS, "p: int = 1", "p: ClassVar[int] = 1"),
    ("function in a dataclass without a hint", FIELDS, "act = math.sin", "act = math.cos"),
    ("method of a builtin class", "class D(dict):\n    k = 1\ntarget = D.fromkeys\n", "k = 1", "k = 2"),
    ("operator of one's own", OPERATOR, "x * 2", "x * 3"),
    ("operator of one's own by its name", OPERATOR.replace("return op(x)", "return torch.ops.planted.op(x)"), "x * 2", "x * 3"),
    ("a module's name set from outside", OUTSIDE, "settings.K = 1", "settings.K = 2"),
]
SAME = [
    ("comment", HELPER, "helper(x) + 1", "helper(x) + 1  # one more"),
    ("comment line and line shift", HELPER, "def helper", "# a helper\n\n\ndef helper"),
    ("white space", HELPER, "helper(x) + 1", "helper( x )+1"),
    ("parentheses", HELPER, "helper(x) + 1", "(helper(x) + 1)"),
    ("line break", HELPER, "helper(x) + 1", "(helper(x)\n        + 1)"),
    ("docstring", HELPER, "def helper(x):\n", "def helper(x):\n    '''Scale.'''\n"),
    ("docstring edited", target("f"), "Doc.", "Another."),
    ("docstring of a class", CLASS, "class Net(Base):\n", "class Net(Base):\n    '''A net.'''\n"),
    ("writing of a number", HELPER, "SCALE = 2.0", "SCALE = 2.00"),
    ("writing of a text", target("'a'"), "= 'a'", '= "a"'),
    ("unused function", HELPER, "def target", "def unused(x): return 0\ndef target"),
    ("unused constant", HELPER, "SCALE =", "OTHER = 3\nSCALE ="),
    ("method order", CLASS, "    width = 8\n", "    width = 8\n    width = 8\n"),
    ("set order", target("{'a', 'b', 'c'}"), "'a', 'b', 'c'", "'c', 'b', 'a'"),
    ("lambda moved on its line", LAMBDAS, "[lambda x: x + 1, lambda x: x + 2][0]", "[lambda x: x + 2, lambda x: x + 1][1]"),
    (
        "logger",
        "import logging\nlog = logging.getLogger('a')\ndef target(x):\n    return log\n",
        "\ndef",
        "\nlog.level = 10\ndef",
    ),
    ("alias of an import", "import math as m\ndef target(x):\n    return m.pi\n", "\ndef", "\n\ndef"),
]


def load(folder: Path, source: str, name: str = "edited") -> ModuleType:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def forget_modules(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in ("edited", "helpers"):
        sys.modules.pop(name, None)


@pytest.fixture
def digests(tmp_path):
    def both(source: str, old: str, new: str) -> tuple[str, str]:
        assert source.count(old) >= 1, f"{old!r} is not in the source"
        head, _, tail = source.rpartition(old)
        found = [fingerprint(load(tmp_path / str(i), text).target) for i, text in enumerate((source, head + new + tail))]
        return found[0].digest, found[1].digest

    return both


@pytest.mark.parametrize(("source", "old", "new"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_an_edit_that_counts(digests, source, old, new):
    before, after = digests(source, old, new)
    assert before != after


@pytest.mark.parametrize(("source", "old", "new"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_an_edit_that_does_not_count(digests, source, old, new):
    before, after = digests(source, old, new)
    assert before == after


@pytest.mark.parametrize("use", ["import helpers", "def load():\n    import helpers\n    return helpers\nhelpers = load()"])
@pytest.mark.parametrize(("old", "new", "same"), [("x * 2", "x * 3", False), ("K = 1", "K = 2", False), ("# no", "# yes", True)])
def test_functions_of_another_module_are_followed(tmp_path, use, old, new, same):
    text = "K = 1  # no\ndef g(x):\n    return x * 2 + K\n"
    found: list[str] = []
    for i, source in enumerate((text, text.replace(old, new))):
        load(tmp_path / str(i), source, "helpers")
        found.append(fingerprint(load(tmp_path / str(i), f"{use}\ndef target(x):\n    return helpers.g(x)\n").target).digest)
    assert (found[0] == found[1]) is same


@pytest.mark.parametrize("loaded", [True, False])
def test_an_import_inside_a_function_counts_by_source_whether_loaded_or_not(tmp_path, monkeypatch, loaded):
    found: list[str] = []
    monkeypatch.syspath_prepend(str(tmp_path))
    function = load(tmp_path / "a", "def target(x):\n    from helpers import g\n    return g(x)\n").target
    for body in ("x * 2", "x * 3"):
        (tmp_path / "helpers.py").write_text(f"def g(x):\n    return {body}\n")
        importlib.invalidate_caches()
        sys.modules.pop("helpers", None)
        unloaded = fingerprint(function)
        if loaded:
            importlib.import_module("helpers")
            assert fingerprint(function) == unloaded
        found.append(unloaded.digest)
        assert "module helpers" in unloaded.parts
    assert found[0] != found[1]


def test_a_change_is_reported_where_it_was_made(tmp_path):
    before = fingerprint(load(tmp_path / "a", CLASS).target).describe()
    after = fingerprint(load(tmp_path / "b", CLASS.replace("2 * x", "3 * x").replace("width = 8", "width = 9")).target).describe()
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == {"code.Base.scale", "code.Base.width"}
    assert (before["code.Base.width"], after["code.Base.width"]) == (8, 9)


def test_the_same_in_every_process(tmp_path):
    load(tmp_path, target("[f, {'a', 'b', f}, {len: 1, f: 2}, Config(), Mode.FAST, nn.Linear, lambda x: f(x)]"))
    command = "import sys; sys.dont_write_bytecode = True; import edited; from purestate.code import fingerprint;"
    command += "print(fingerprint(edited.target).digest)"
    root = str(Path(purestate.__path__[0]).parent)
    found = {fingerprint(sys.modules["edited"].target).digest}
    for seed in ("0", "7"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join((root, str(tmp_path)))}
        done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip())
    assert len(found) == 1
