"""A project with sequences: an own package below, an installed one, a teacher, groups of parameters, and Python's rarer corners.

`FILES` is what is recorded; a row of `CHANGES` is ``(file, old, new)`` or ``(file, old, new, what the error has to say)``, or
a function of the folder.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHANGES", "FILES", "NEUTRAL", "data"]

TRICKS = '''\
"""What Python can do."""

import collections
import contextlib
import enum
import functools
import operator
import re
import types
from decimal import Decimal

import numpy as np
import torch

RATES = collections.defaultdict(lambda: 0.5, {"a": 1.0})
WINDOW = collections.deque([1.0, 2.0, 3.0], maxlen=3)
COUNTS = collections.Counter("aab")
NAMES = {"x", "y", "z"}
NOTE = types.SimpleNamespace(scale=1.25, name="note")
PICK = operator.itemgetter(0)
WORD = re.compile("a+b")
EXACT = Decimal("0.10")
PHASE = 1 + 2j
GRID = np.linspace(0.0, 1.0, 5)
PAIRS = np.array([(1, 2.0)], dtype=[("i", "i4"), ("w", "f4")])
KEYED = {1: "one", 2.0: "two", True and 3: "three"}
RESULTS = []
LONG = (
    "a text that is longer than what is shown of one, which is a hundred and twenty letters, so that it has to be told "
    "apart by all of it and not by its beginning"
)
NAN = float("nan")
PARTIAL = functools.partial(max, 1)
PARTIAL.weight = 2
STATES = {"idle": {"next": ["busy", {"deep": (1, [2.5])}]}}


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2

    @classmethod
    def _default(cls):
        return cls.FAST

    @property
    def _factor(self):
        return 1.0 if self is Mode.FAST else 2.0


class Flags(enum.Flag):
    A = enum.auto()
    B = enum.auto()


class Registered:
    kinds = []
    bonus = 0.5

    def __init_subclass__(cls, weight=1.0):
        cls.weight = weight
        Registered.kinds.append(cls.__name__)


class First(Registered, weight=2.0):
    pass


class Meta(type):
    depth = 2

    def __call__(cls, *args):
        return super().__call__(*args)


class Point(metaclass=Meta):
    __slots__ = ("x", "y")
    __match_args__ = ("x", "y")

    def __init__(self, x, y):
        self.x = x
        self.y = y


ORIGIN = Point(0.0, 1.0)


@contextlib.contextmanager
def doubled(k=2.0):
    yield k


@functools.lru_cache(maxsize=None)
def table(n):
    return [i / 2 for i in range(n)]


@functools.singledispatch
def size(value):
    return 1.0


@size.register
def _(value: list):
    return float(len(value))


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def generator(n):
    for i in range(n):
        yield i * 0.5


def everything(x):
    """Use all of it a little."""
    match ORIGIN:
        case Point(a, b):
            x = x + a * b
        case _:
            x = x - 1
    with doubled() as k:
        x = x * k / 2.0
    if (n := len(NAMES)) > 2 and not RESULTS:
        x = x + 0.0 * n
    try:
        x = x / RATES["b"]
    except ZeroDivisionError:
        x = x * 0
    total = sum(WINDOW) + COUNTS["a"] + NOTE.scale + PICK([1.0]) + float(EXACT) + PHASE.real + PARTIAL(0) * PARTIAL.weight
    total += float(GRID.sum()) + float(PAIRS["w"].sum()) + sum(table(3)) + size([1]) + factorial(3) + sum(generator(3))
    total += Mode._default()._factor + len(Flags) + First.weight + Registered.bonus + len(LONG) + len(KEYED) + len(STATES)
    total += 1.0 if WORD.match("ab") else 0.0
    total += 0.0 if NAN == NAN else 1.0
    return x + 1e-3 * total * f"{len(NAMES):>{4}}".count(" ")
'''

PARTS_INIT = """\
from parts.cells import *

SCALE = 0.5
"""

CELLS = '''\
"""Cells of a package."""

import torch
from torch import nn

from parts import scales

__all__ = ["Cell", "later"]


class Cell(nn.Module):
    def __init__(self, size, bidirectional=False):
        super().__init__()
        self.rnn = nn.GRU(size, size, num_layers=1, batch_first=True, bidirectional=bidirectional)

    def forward(self, x):
        return self.rnn(x)[0] * scales.factor()


def later(x):
    from parts.late import shift

    return shift(x)
'''

SCALES = """\
BASE = 2.0


def factor():
    return BASE / 4


def whole(scales, x):
    return x * scales.BASE
"""

LATE = """\
BY = 0.1


def shift(x):
    return x + BY
"""

MODEL = '''\
"""Read a sequence."""

import numpy as np
import tinylib
import torch
from torch import nn

import parts
import tricks
from parts import scales


class Reader(nn.Module):
    def __init__(self, words=8, size=4):
        super().__init__()
        self.embed = nn.Embedding(words, size, padding_idx=0)
        self.cell = parts.Cell(size)
        self.attend = nn.MultiheadAttention(size, 2, dropout=0.1, batch_first=True)
        self.out = nn.Linear(size, words, bias=False)
        self.out.weight = self.embed.weight
        self.pair = [self.out.weight, self.attend.out_proj.bias]
        self.aside = [nn.Dropout(0.5).eval()]
        self.position = np.arange(6, dtype=np.float32).reshape(6, 1)

    def forward(self, x):
        x = self.embed(x) + 0.01 * torch.from_numpy(self.position)
        x = self.cell(x)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        x = tricks.everything(scales.whole(scales, parts.later(x))) * parts.SCALE
        return self.out(tinylib.squash(x)).mean(1)
'''

TRAIN = '''\
"""Train a reader against a teacher."""

import json
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

import model
import parts
import purestate as ps
import tricks


def teacher():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Embedding(8, 8), nn.Dropout(0.1))
    net.eval()
    return net.requires_grad_(False)


TEACHER = teacher()
TEMPERATURE = torch.tensor(2.0)
TEMPERATURE.unit = "K"


class Stream(IterableDataset):
    def __init__(self, n, vocabulary):
        self.n = n
        self.vocabulary = vocabulary

    def __iter__(self):
        order = list(self.vocabulary.values())
        for i in range(self.n):
            yield torch.tensor([order[(i + j) % len(order)] for j in range(6)]), i % 8

    def __len__(self):
        return self.n


class Declared(Dataset):
    """It says itself what it is."""

    def __init__(self, version):
        self.version = version

    def __purestate_fingerprint__(self):
        return {"version": self.version, "name": "declared"}

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return torch.zeros(6, dtype=torch.long), i


def objective(module, batch):
    x, y = batch
    output = module(x)
    soft = F.kl_div(F.log_softmax(output / TEMPERATURE, 1), F.softmax(TEACHER(x).mean(1), 1), reduction="batchmean")
    return F.cross_entropy(output, y) + 0.5 * soft, output


def groups(params):
    return torch.optim.SGD([{"params": params[:1], "lr": 0.2}, {"params": params[1:]}], lr=0.1, momentum=0.5)


def main(store):
    train_dl = DataLoader(Stream(8, {"b": 1, "a": 2, "c": 3}), batch_size=4)
    s0 = ps.init(model.Reader, seed=0)
    s0 = ps.setup(s0, loss_fn=objective, optimizer_fn=groups)
    ck = store.checkpoint("reader", echo=None)
    ck.train(s0, train_dl, DataLoader(Declared(1)), epochs=1)
    return [ck.last.cached]


if __name__ == "__main__":
    print(json.dumps(main(ps.Store(sys.argv[1]))))
'''

TINYLIB = """\
__version__ = "0.0"


def squash(x):
    return x.tanh()
"""

FILES = {
    "tricks.py": TRICKS,
    "parts/__init__.py": PARTS_INIT,
    "parts/cells.py": CELLS,
    "parts/scales.py": SCALES,
    "parts/late.py": LATE,
    "model.py": MODEL,
    "train.py": TRAIN,
    "site-packages/tinylib.py": TINYLIB,
}


def data(folder: Path) -> None:
    """Install what the project uses."""
    installed = folder / "site-packages"
    (installed / "tinylib-1.0.dist-info").mkdir()


_TRICKS = [
    ("lambda: 0.5, ", "lambda: 0.25, "),
    ("lambda: 0.5, ", "float, "),
    ('{"a": 1.0})', '{"b": 1.0})', "RATES"),
    ('{"a": 1.0})', '{"a": 1.0, "b": 2.0})'),
    ("[1.0, 2.0, 3.0], maxlen=3", "[1.0, 2.0, 3.0], maxlen=4", "code of WINDOW"),
    ("[1.0, 2.0, 3.0], maxlen=3", "[0.0, 1.0, 2.0, 3.0], maxlen=4"),
    ("[1.0, 2.0, 3.0], maxlen=3", "[3.0, 2.0, 1.0], maxlen=3"),
    ('Counter("aab")', 'Counter("aaab")'),
    ('Counter("aab")', 'Counter("baa")'),
    ('NAMES = {"x", "y", "z"}', 'NAMES = {"x", "y"}'),
    ('NAMES = {"x", "y", "z"}', 'NAMES = frozenset({"x", "y", "z"})'),
    ('NAMES = {"x", "y", "z"}', 'NAMES = {"x", "y", b"z"}'),
    ("scale=1.25", "scale=1.5", "code of NOTE"),
    ('name="note")', 'name="note", more=None)'),
    ("itemgetter(0)", "itemgetter(-1)"),
    ("itemgetter(0)", "itemgetter(False)"),
    ("itemgetter(0)", "attrgetter('real')"),
    ('re.compile("a+b")', 're.compile("a*b")'),
    ('re.compile("a+b")', 're.compile("a+b", re.IGNORECASE)'),
    ('Decimal("0.10")', 'Decimal("0.1")'),
    ('Decimal("0.10")', 'Decimal("0.11")'),
    ("PHASE = 1 + 2j", "PHASE = 1 - 2j"),
    ("PHASE = 1 + 2j", "PHASE = complex(1, -0.0)"),
    ("0.0, 1.0, 5)", "0.0, 1.0, 6)"),
    ("0.0, 1.0, 5)", "0.0, 1.0, 5)[::-1]"),
    ("0.0, 1.0, 5)", '0.0, 1.0, 5).astype("f4")'),
    ("0.0, 1.0, 5)", "0.0, 1.0, 5).reshape(5, 1)"),
    ("0.0, 1.0, 5)", "0.0, 1.0, 5).view(np.matrix)"),
    ("[(1, 2.0)]", "[(1, 3.0)]"),
    ('("i", "i4")', '("j", "i4")'),
    ('1: "one", 2.0: "two"', '1.0: "one", 2.0: "two"'),
    ('1: "one", 2.0: "two"', 'True: "one", 2.0: "two"'),
    ('1: "one", 2.0: "two"', '\'1\': "one", 2.0: "two"'),
    ('1: "one", 2.0: "two"', '2.0: "two", 1: "one"'),
    ("RESULTS = []", "RESULTS = [0]"),
    ("RESULTS = []", "RESULTS = ()"),
    ("RESULTS = []", "RESULTS = None"),
    ("and not by its beginning", "and not by its begin"),
    ("a text that is longer", "A text that is longer"),
    ('NAN = float("nan")', 'NAN = -float("nan")'),
    ('NAN = float("nan")', 'NAN = float("inf")'),
    ("functools.partial(max, 1)", "functools.partial(max, 1.0)"),
    ("functools.partial(max, 1)", "functools.partial(min, 1)"),
    ("functools.partial(max, 1)", "functools.partial(max, 1, 2)"),
    ("PARTIAL.weight = 2", "PARTIAL.weight = 3"),
    ("PARTIAL.weight = 2", "PARTIAL.weight = 2.0"),
    ("(1, [2.5])", "(1, [2.25])", "code of STATES"),
    ("(1, [2.5])", "(1, (2.5,))"),
    ("(1, [2.5])", "[1, [2.5]]"),
    ('"next": [', '"then": ['),
    ("FAST = 1\n", "FAST = 1.0\n"),
    ("FAST = 1\n", "FAST = 3\n"),
    ("    FAST = 1\n    SLOW = 2\n", "    SLOW = 2\n    FAST = 1\n"),
    ("    SLOW = 2\n", "    SLOW = 2\n    OTHER = 2\n"),
    ("return cls.FAST", "return cls.SLOW", "code of Mode._default"),
    ("return 1.0 if self is Mode.FAST else 2.0", "return 1.5 if self is Mode.FAST else 2.0"),
    ("    B = enum.auto()\n", "    B = 4\n"),
    ("    B = enum.auto()\n", "    B = enum.auto()\n    C = enum.auto()\n"),
    ("class Flags(enum.Flag)", "class Flags(enum.IntFlag)"),
    ("bonus = 0.5", "bonus = 0.75", "Registered.bonus was 0.5 when this was recorded, now 0.75"),
    ("weight=1.0):", "weight=1.5):"),
    ("cls.weight = weight", "cls.weight = 2 * weight"),
    ("class First(Registered, weight=2.0)", "class First(Registered, weight=3.0)", "First.weight was 2.0"),
    ("class First(Registered, weight=2.0)", "class First(Registered)"),
    ("    depth = 2\n", "    depth = 3\n"),
    ("return super().__call__(*args)", "return super().__call__(*reversed(args))"),
    ('__slots__ = ("x", "y")', '__slots__ = ("x", "y", "z")'),
    ('__match_args__ = ("x", "y")', '__match_args__ = ("y", "x")'),
    ("        self.y = y\n", "        self.y = -y\n"),
    ("Point(0.0, 1.0)", "Point(1.0, 0.0)"),
    ("Point(0.0, 1.0)", "Point(-0.0, 1.0)"),
    ("Point(0.0, 1.0)", "Point(0, 1.0)"),
    ("def doubled(k=2.0)", "def doubled(k=3.0)"),
    ("    yield k\n", "    yield -k\n"),
    ("[i / 2 for i in range(n)]", "[i / 3 for i in range(n)]", "code of table"),
    ("[i / 2 for i in range(n)]", "[i / 2 for i in range(n) if i]"),
    ("[i / 2 for i in range(n)]", "[i // 2 for i in range(n)]"),
    ("def size(value):\n    return 1.0", "def size(value):\n    return 2.0"),
    ("return float(len(value))", "return float(len(value)) + 1"),
    ("def _(value: list)", "def _(value: tuple)"),
    ("1 if n < 2 else", "1 if n < 3 else"),
    ("n * factorial(n - 1)", "factorial(n - 1) * n"),
    ("yield i * 0.5", "yield i * 0.25"),
    ("for i in range(n):\n        yield", "for i in range(n + 1):\n        yield"),
    ("case Point(a, b):", "case Point(b, a):"),
    ("x = x + a * b\n", "x = x - a * b\n"),
    ("            x = x - 1\n", "            x = x - 2\n"),
    ("x = x * k / 2.0", "x = x / 2.0 * k"),
    ("with doubled() as k", "with doubled(4.0) as k"),
    ("> 2 and not RESULTS", ">= 2 and not RESULTS"),
    ("> 2 and not RESULTS", "> 2 or not RESULTS"),
    ('RATES["b"]', 'RATES["c"]'),
    ("except ZeroDivisionError", "except ArithmeticError"),
    ("total = sum(WINDOW) + COUNTS", "total = COUNTS"),
    ("total += 1.0 if WORD", "total -= 1.0 if WORD"),
    ('WORD.match("ab")', 'WORD.search("ab")'),
    ("0.0 if NAN == NAN else 1.0", "0.0 if NAN is NAN else 1.0"),
    ("1e-3 * total", "1e-4 * total", "code of everything"),
    (":>{4}}", ":>{5}}"),
    (":>{4}}", ":<{4}}"),
]

_PARTS = [
    ("parts/__init__.py", "SCALE = 0.5", "SCALE = 0.25", "SCALE was 0.5 when this was recorded, now 0.25"),
    ("parts/cells.py", "bidirectional=False", "bidirectional=True"),
    ("parts/cells.py", "num_layers=1", "num_layers=2"),
    ("parts/cells.py", "num_layers=1", "num_layers=1, bias=False"),
    ("parts/cells.py", "num_layers=1", "num_layers=1, dropout=0.0"),
    ("parts/cells.py", "nn.GRU(size", "nn.RNN(size"),
    ("parts/cells.py", "batch_first=True", "batch_first=False", "batch_first was True when this was recorded, now False"),
    ("parts/cells.py", "* scales.factor()", "/ scales.factor()"),
    (
        "parts/cells.py",
        "from parts.late import shift\n\n    return shift(x)",
        "from parts.late import shift\n\n    return shift(shift(x))",
    ),
    ("parts/cells.py", "from parts.late import shift", "from parts.late import BY\n    from parts.late import shift"),
    ("parts/scales.py", "BASE = 2.0", "BASE = 3.0", "BASE"),
    ("parts/scales.py", "BASE = 2.0", "BASE = 2"),
    ("parts/scales.py", "return BASE / 4", "return BASE / 5"),
    ("parts/scales.py", "return x * scales.BASE", "return x / scales.BASE"),
    ("parts/late.py", "BY = 0.1", "BY = 0.2", "module parts.late"),
    ("parts/late.py", "BY = 0.1", "BY = 1e-1 * 2"),
    ("parts/late.py", "return x + BY", "return x - BY"),
    ("parts/late.py", "return x + BY", "return BY + x"),
]

_MODEL = [
    ("words=8, size=4", "words=9, size=4"),
    ("words=8, size=4", "words=8, size=6"),
    ("padding_idx=0", "padding_idx=1", "module.embed.padding_idx was 0 when this was recorded, now 1"),
    ("padding_idx=0", "padding_idx=0, max_norm=1.0"),
    ("padding_idx=0", "padding_idx=0, scale_grad_by_freq=True"),
    ("size, 2, dropout=0.1", "size, 1, dropout=0.1"),
    ("dropout=0.1, batch_first", "dropout=0.2, batch_first", "module.attend.dropout was 0.1 when this was recorded, now 0.2"),
    ("dropout=0.1, batch_first", "dropout=0.1, add_zero_attn=True, batch_first"),
    ("dropout=0.1, batch_first", "dropout=0.1, add_bias_kv=True, batch_first"),
    ("        self.out.weight = self.embed.weight\n", ""),
    (
        "        self.out.weight = self.embed.weight\n",
        "        self.out.weight = nn.Parameter(self.embed.weight.detach().clone())\n",
    ),
    ("[self.out.weight, self.attend.out_proj.bias]", "[self.attend.out_proj.bias, self.out.weight]"),
    ("[self.out.weight, self.attend.out_proj.bias]", "[self.out.weight, self.attend.out_proj.bias.detach()]"),
    ("[self.out.weight, self.attend.out_proj.bias]", "(self.out.weight, self.attend.out_proj.bias)"),
    ("nn.Dropout(0.5).eval()", "nn.Dropout(0.5)", "module.aside"),
    ("nn.Dropout(0.5).eval()", "nn.Dropout(0.4).eval()"),
    ("dtype=np.float32).reshape(6, 1)", "dtype=np.float64).reshape(6, 1)"),
    ("dtype=np.float32).reshape(6, 1)", "dtype=np.float32)[::-1].copy().reshape(6, 1)"),
    ("0.01 * torch.from_numpy", "0.02 * torch.from_numpy"),
    ("need_weights=False", "need_weights=True"),
    ("tricks.everything(scales.whole(scales, parts.later(x)))", "tricks.everything(parts.later(x))"),
    ("tinylib.squash(x)", "torch.tanh(x)"),
    (".mean(1)", ".amax(1)", "code of Reader.forward"),
    (".mean(1)", "[:, -1]"),
]

_TRAIN = [
    ("torch.manual_seed(1)", "torch.manual_seed(2)"),
    ("nn.Dropout(0.1))", "nn.Dropout(0.3))"),
    ("    net.eval()\n", ""),
    ("    net.eval()\n", "    net[1].eval()\n"),
    ("nn.Embedding(8, 8), nn.Dropout(0.1)", "nn.Dropout(0.1), nn.Embedding(8, 8)"),
    ("TEACHER = teacher()", "TEACHER = teacher().double()"),
    ("TEACHER = teacher()", "TEACHER = teacher()\nTEACHER[0].weight[3, 3] += 1e-6"),
    ("torch.tensor(2.0)", "torch.tensor(3.0)"),
    ("torch.tensor(2.0)", "torch.tensor(2.0, dtype=torch.float64)"),
    ("torch.tensor(2.0)", "torch.tensor([2.0])"),
    ("torch.tensor(2.0)", "torch.tensor(2.0, requires_grad=True) * 1.5"),
    ("torch.tensor(2.0)", "torch.tensor(2.0, requires_grad=True) * 1.25"),
    ('TEMPERATURE.unit = "K"', 'TEMPERATURE.unit = "C"'),
    ("Stream(8, {", "Stream(9, {", "train"),
    ('{"b": 1, "a": 2, "c": 3}', '{"a": 2, "b": 1, "c": 3}', "dataset.vocabulary"),
    ('{"b": 1, "a": 2, "c": 3}', '{"b": 1, "a": 2, "c": 4}'),
    ('{"b": 1, "a": 2, "c": 3}', '{"b": True, "a": 2, "c": 3}'),
    ('{"b": 1, "a": 2, "c": 3}', '__import__("collections").OrderedDict(b=1, a=2, c=3)'),
    ('{"b": 1, "a": 2, "c": 3}', '__import__("collections").defaultdict(int, b=1, a=2, c=3)'),
    ('{"b": 1, "a": 2, "c": 3}', '__import__("collections").defaultdict(lambda: 7, b=1, a=2, c=3)'),
    ("(i + j) % len(order)", "(i - j) % len(order)"),
    ("batch_size=4)", "batch_size=2)"),
    ("batch_size=4)", "batch_size=4, num_workers=1)", "num_workers was 0 when this was recorded, now 1"),
    ("batch_size=4)", "batch_size=4, num_workers=2)"),
    ("Declared(1)", "Declared(2)", "validation data"),
    ("Declared(1)", 'Declared("1")'),
    ("Declared(1)", "Declared(True)"),
    ("Declared(1)", "Declared(1.0)"),
    ('"name": "declared"', '"name": "Declared"'),
    ("TEMPERATURE, 1), F.softmax", "TEMPERATURE, 1), F.softmin"),
    ('reduction="batchmean"', 'reduction="sum"'),
    ("+ 0.5 * soft", "+ 0.6 * soft", "code of loss"),
    ("+ 0.5 * soft, output", "+ 0.5 * soft"),
    ('params[:1], "lr": 0.2}, {"params": params[1:]', 'params[:2], "lr": 0.2}, {"params": params[2:]', "code of optimizer"),
    ('"lr": 0.2', '"lr": 0.3'),
    ("momentum=0.5", "momentum=0.6"),
    ("torch.optim.SGD([", "torch.optim.RMSprop(["),
    ("def main(store):\n", "def main(store):\n    tricks.RATES['b']\n"),
    ("def main(store):\n", "def main(store):\n    tricks.PARTIAL.weight += 1\n"),
    ("def main(store):\n", "def main(store):\n    tricks.ORIGIN.x = 0.5\n"),
    ("def main(store):\n", "def main(store):\n    tricks.WINDOW.append(0.0)\n"),
    ("def main(store):\n", "def main(store):\n    tricks.GRID[0] = 1e-9\n"),
    ("def main(store):\n", "def main(store):\n    tricks.table.scale = 3\n"),
    ("def main(store):\n", "def main(store):\n    tricks.size.register(str, len)\n"),
    ("def main(store):\n", "def main(store):\n    parts.scales.BASE = 5.0\n"),
    ("def main(store):\n", "def main(store):\n    parts.SCALE = 5.0\n"),
    ("def main(store):\n", "def main(store):\n    parts.cells.nn.GRU.forward = lambda self, x: (x, None)\n", "GRU.forward"),
    ("def main(store):\n", "def main(store):\n    torch.optim.SGD.step = lambda self, closure=None: None\n"),
    ("def main(store):\n", "def main(store):\n    F.softmax = lambda x, dim: x\n"),
    ("def main(store):\n", "def main(store):\n    torch.set_flush_denormal(True)\n", "flush_denormal"),
    ("def main(store):\n", "def main(store):\n    model.Reader.forward = lambda self, x: self.out(self.embed(x)).mean(1)\n"),
]


CHANGES = [
    *(("tricks.py", *row) for row in _TRICKS),
    *_PARTS,
    *(("model.py", *row) for row in _MODEL),
    *(("train.py", *row) for row in _TRAIN),
]

NEUTRAL = [
    ("tricks.py", 'NAMES = {"x", "y", "z"}', 'NAMES = {"z", "x", "y"}'),
    ("tricks.py", '"""Use all of it a little."""', '"""Use it."""'),
    ("tricks.py", "def factorial(n):\n", "def factorial(n):\n    # of n\n"),
    ("tricks.py", "    for i in range(n):\n        yield i * 0.5", "    for i in range(n):\n        yield (i * 0.5)"),
    ("tricks.py", "class Flags(enum.Flag):\n", "class Flags(enum.Flag):\n    '''Of it.'''\n\n"),
    ("tricks.py", "import types\n", "import types\nimport uuid\n"),
    ("tricks.py", "PAIRS = np", "UNUSED = 1\nPAIRS = np"),
    ("parts/__init__.py", "SCALE = 0.5", "OTHER = 2\nSCALE = 0.5"),
    ("parts/cells.py", '"""Cells of a package."""', '"""Cells."""'),
    ("parts/late.py", "BY = 0.1", "BY = 0.1  # a little"),
    ("parts/late.py", "def shift(x):\n", "def shift(x):\n    '''Shift.'''\n"),
    ("model.py", '"""Read a sequence."""', '"""Read a sequence of words."""'),
    ("model.py", "    def forward(self, x):\n", "    def forward(self, x):\n\n        # words\n"),
    ("train.py", "class Declared(", "class Spare:\n    pass\n\n\nclass Declared("),
    ("train.py", 'return {"version": self.version, "name": "declared"}', 'return {"name": "declared", "version": self.version}'),
    ("train.py", "    x, y = batch\n", "    (x, y) = batch  # of two\n"),
    (
        "train.py",
        "    return net.requires_grad_(False)",
        "    return net.requires_grad_(False).requires_grad_(True).requires_grad_(False)",
    ),
    ("site-packages/tinylib.py", "return x.tanh()", "return x.tanh()  # installed code counts by its version"),
]
