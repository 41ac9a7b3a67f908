"""A project with a table of numbers: configs, constants, decorators, inheritance, closures, losses with weights, metrics.

`FILES` is what is recorded; a row of `CHANGES` is ``(file, old, new)`` or ``(file, old, new, what the error has to say)``.
"""

from __future__ import annotations

__all__ = ["CHANGES", "FILES", "NEUTRAL"]

CONFIG = '''\
"""What is tried."""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

HIDDEN = 6
DROPOUT = 0.25
SLOPE = 0.1
SEED = 3
SMOOTH = 0
CLIP = 1.0
TEMPERATURE = 2.0
BIAS = True
CLASSES = ("no", "yes")
LEVELS = frozenset({1, 2, 3})
PENALTY = {"l1": 0.0, "l2": 1e-3}
SCHEDULE = OrderedDict(first=1, second=2)


class Reduce(Enum):
    MEAN = "mean"
    SUM = "sum"


class Range(NamedTuple):
    low: float = -3.0
    high: float = 3.0


@dataclass(frozen=True)
class Config:
    lr: float = 0.05
    momentum: float = 0.9
    gamma: float = 0.5
    step: int = 2
    names: list = field(default_factory=lambda: ["alpha", "beta"])
    reduce: Reduce = Reduce.MEAN
    bound: Range = Range()
    extra: dict = field(default_factory=lambda: {"alpha": 1.0, "beta": 2})
    label: str = "table"
    warm: bool = False
    bits: bytes = b"\\x01\\x02"
    nothing: object = None


def load():
    return Config()
'''

LAYERS = '''\
"""Layers of our own."""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

import config

GAIN = 1.5


def scaled(factor, shift=0.0):
    def decorate(forward):
        @functools.wraps(forward)
        def inner(self, x):
            return factor * forward(self, x) + shift

        return inner

    return decorate


def squash(x, power=2, *, floor=0.0):
    return torch.clamp(x, min=floor).pow(power) + x


class Scale(nn.Module):
    gain = GAIN

    def __init__(self, by=1.0):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x * self.by * self.gain


class Block(nn.Module):
    order = ["norm", "act"]

    def __init__(self, width, dropout):
        super().__init__()
        self.linear = nn.Linear(width, width, bias=config.BIAS)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.act = nn.LeakyReLU(config.SLOPE)
        self.drop = nn.Dropout(dropout)

    @property
    def root(self):
        return math.sqrt(2.0)

    @staticmethod
    def limit(x):
        return x.clamp(-5, 5)

    @classmethod
    def named(cls):
        return cls.__name__.lower()

    def mix(self, x):
        return squash(x) / self.root

    @scaled(0.5)
    def forward(self, x):
        y = self.linear(x)
        for name in self.order:
            y = getattr(self, name)(y)
        if self.named() == "nothing":
            return y
        return self.limit(x + self.drop(self.mix(y)))


class Residual(Block):
    def mix(self, x):
        return super().mix(x) + 0.1 * x


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


swish = Swish.apply


class Gate(nn.Module):
    """Mixes by a nested function, a comprehension and a table of functions."""

    table = {"tanh": torch.tanh, "swish": swish}

    def __init__(self, kind="swish"):
        super().__init__()
        self.kind = kind
        self.powers = [1, 2]
        self.register_buffer("offset", torch.zeros(1))

    def forward(self, x):
        def one(y, k=1.0):
            return self.table[self.kind](y) * k

        parts = [one(x**p) / (p + 1) for p in self.powers]
        return F.softplus(sum(parts), beta=2) + self.offset
'''

MODELS = '''\
"""The network."""

from collections import OrderedDict
from functools import partial

import torch
from torch import nn

import config
from layers import Block, Gate, Residual, Scale, squash


def head(width, classes):
    return nn.Sequential(
        OrderedDict(
            pre=nn.Tanh(),
            post=nn.Softsign(),
            out=nn.Linear(width, classes),
        )
    )


def temper(temperature):
    def inner(x):
        return x / temperature

    return inner


def renormed(x, p=2):
    return x / (1 + x.norm(p=p, dim=1, keepdim=True))


class Net(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.stem = nn.Linear(4, config.HIDDEN)
        self.blocks = nn.ModuleList(
            [
                Block(config.HIDDEN, config.DROPOUT),
                Residual(config.HIDDEN, 0.1),
            ]
        )
        self.gate = Gate()
        self.scale = Scale(0.7)
        self.head = head(config.HIDDEN, 2)
        self.temper = temper(config.TEMPERATURE)
        self.squash = partial(squash, power=2)
        self.last = lambda x: x.clamp(*config.Range())
        self.mask = torch.tensor([1.0, 1.0, 0.0, 1.0])
        self.stem.weight.no_decay = True
        self.hooked = 0.25
        self.stem.register_forward_pre_hook(widen)

    def forward(self, x):
        x = self.squash(self.stem(x * self.mask))
        for block in self.blocks:
            x = block(x)
        x = renormed(self.scale(self.gate(x)))
        return self.last(self.temper(self.head(x)))


def widen(module, args):
    return tuple(arg * 1.01 for arg in args)


def build():
    torch.nn.init.normal_
    net = Net(config.load())
    with torch.no_grad():
        net.head.out.bias.fill_(0.01)
    return net
'''

LOSSES = '''\
"""What is minimized."""

import torch
from torch import nn
from torch.nn import functional as F

import config

WEIGHT = torch.tensor([1.0, 2.0])


class Focal(nn.Module):
    def __init__(self, gamma=2.0, weight=None):
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", WEIGHT if weight is None else weight)

    def forward(self, output, target):
        loss = F.cross_entropy(output, target, weight=self.weight, reduction="none", label_smoothing=config.SMOOTH)
        return ((1 - torch.exp(-loss)) ** self.gamma * loss).mean() + penalty(output)


def penalty(output):
    return config.PENALTY["l2"] * output.pow(2).mean() + config.PENALTY["l1"] * output.abs().mean()
'''

METRICS = '''\
"""What is looked at."""

import numpy as np

import purestate as ps

THRESHOLD = 0.5
COSTS = np.array([[0.0, 1.0], [2.0, 0.0]])


@ps.metric("hits")
def hits(output, target):
    return (output.argmax(1) == target).sum()


@ps.metric("cost", higher_is_better=False)
def cost(output, target):
    return COSTS[target.numpy(), output.argmax(1).numpy()].sum()


def above(threshold):
    return ps.Metric("above", True, lambda output, target: (output.softmax(1)[:, 1] > threshold).sum())
'''

DATA = '''\
"""The table, made up."""

import torch
from torch.utils.data import DataLoader, TensorDataset


def table(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator)
    y = (x.sum(1) > 0).long()
    return x, y


def loaders(batch_size=4):
    x, y = table(12, 0)
    train = TensorDataset(x[:8], y[:8])
    val = TensorDataset(x[8:], y[8:])
    return (
        DataLoader(train, batch_size=batch_size, shuffle=True, drop_last=False),
        DataLoader(val, batch_size=4),
    )
'''

TRAIN = '''\
"""Train it."""

import json
import sys

import torch
from torch.optim.lr_scheduler import LambdaLR, StepLR

import config
import data
import losses
import metrics
import models
import purestate as ps

cfg = config.load()


def ramp(step):
    return min(1.0, (step + 1) / 4)


def main(store):
    train_dl, val_dl = data.loaders()
    s0 = ps.init(models.build, seed=config.SEED)
    s0 = ps.setup(
        s0,
        loss_cls=losses.Focal,
        loss_args=dict(gamma=1.5),
        optimizer_cls=torch.optim.SGD,
        optimizer_args=dict(lr=cfg.lr, momentum=cfg.momentum),
        epoch_scheduler_cls=StepLR,
        epoch_scheduler_args=dict(step_size=cfg.step, gamma=cfg.gamma),
        step_scheduler_cls=LambdaLR,
        step_scheduler_args=dict(lr_lambda=ramp),
        clip_grad_norm=config.CLIP,
        ema_decay=0.9,
    )
    ck = store.checkpoint("table", echo=None)
    s1 = ck.train(
        s0,
        train_dl,
        val_dl,
        epochs=1,
        warmup=0,
        metrics=[metrics.hits, metrics.cost, metrics.above(metrics.THRESHOLD)],
        watch="hits",
    )
    cached = [ck.last.cached]
    ck.evaluate(s1, val_dl, metrics=[metrics.above(0.25)])
    return [*cached, ck.last.cached]


if __name__ == "__main__":
    print(json.dumps(main(ps.Store(sys.argv[1]))))
'''

FILES = {
    "config.py": CONFIG,
    "layers.py": LAYERS,
    "models.py": MODELS,
    "losses.py": LOSSES,
    "metrics.py": METRICS,
    "data.py": DATA,
    "train.py": TRAIN,
}

_CONFIG = [
    ("HIDDEN = 6", "HIDDEN = 7"),
    ("DROPOUT = 0.25", "DROPOUT = 0.2", "module.blocks.0.drop.p"),
    ("DROPOUT = 0.25", "DROPOUT = 0.250000000000001"),
    ("DROPOUT = 0.25", "DROPOUT = 0"),
    ("SLOPE = 0.1", "SLOPE = 0.01", "negative_slope"),
    ("SEED = 3", "SEED = 4", "seed"),
    ("SEED = 3", "SEED = -3"),
    ("SMOOTH = 0\n", "SMOOTH = 0.0\n"),
    ("SMOOTH = 0\n", "SMOOTH = False\n"),
    ("SMOOTH = 0\n", "SMOOTH = 0.1\n"),
    ("CLIP = 1.0", "CLIP = 1", "clipping"),
    ("CLIP = 1.0", "CLIP = True"),
    ("CLIP = 1.0", "CLIP = 0.5", "gradient clipping norm was 1.0 when this was recorded, now 0.5"),
    ("CLIP = 1.0", "CLIP = 0"),
    ("TEMPERATURE = 2.0", "TEMPERATURE = 2"),
    ("TEMPERATURE = 2.0", "TEMPERATURE = 4.0"),
    ("BIAS = True", "BIAS = False"),
    ('"l1": 0.0', '"l1": -0.0'),
    ('"l1": 0.0', '"l1": 0'),
    ('"l1": 0.0', '"l1": 1e-4'),
    ('"l2": 1e-3', '"l2": 1e-2', "code of loss class"),
    ('{"l1": 0.0, "l2": 1e-3}', '{"l2": 1e-3, "l1": 0.0}'),
    ('{"l1": 0.0, "l2": 1e-3}', '{"l1": 0.0, "l2": 1e-3, "l3": 0.0}'),
    ('{"l1": 0.0, "l2": 1e-3}', "OrderedDict(l1=0.0, l2=1e-3)"),
    ('MEAN = "mean"', 'MEAN = "avg"'),
    ("reduce: Reduce = Reduce.MEAN", "reduce: Reduce = Reduce.SUM"),
    ("low: float = -3.0", "low: float = -2.0"),
    ("low: float = -3.0", "low: float = -3"),
    ("high: float = 3.0", "high: float = 30.0"),
    ("lr: float = 0.05", "lr: float = 0.1", "optimizer lr was 0.05 when this was recorded, now 0.1"),
    ("lr: float = 0.05", "lr: float = 5e-4"),
    ("momentum: float = 0.9", "momentum: float = 0.95", "optimizer momentum was 0.9"),
    ("momentum: float = 0.9", "momentum: float = 0"),
    ("gamma: float = 0.5", "gamma: float = 0.1", "epoch_scheduler gamma"),
    ("gamma: float = 0.5", "gamma: float = 1"),
    ("step: int = 2", "step: int = 3", "epoch_scheduler step_size was 2 when this was recorded, now 3"),
    ("step: int = 2", "step: int = 2.0"),
    ('["alpha", "beta"]', '["beta", "alpha"]'),
    ('["alpha", "beta"]', '["alpha"]'),
    ('["alpha", "beta"]', '("alpha", "beta")'),
    ('["alpha", "beta"]', '["alpha", b"beta"]'),
    ("bound: Range = Range()", "bound: Range = Range(-2.0)"),
    ('"alpha": 1.0, "beta": 2', '"alpha": 1.0, "beta": 2.0'),
    ('"alpha": 1.0, "beta": 2', '"alpha": 1, "beta": 2'),
    ('"alpha": 1.0, "beta": 2', '"alpha": True, "beta": 2'),
    ('"alpha": 1.0, "beta": 2', '"beta": 2, "alpha": 1.0'),
    ('label: str = "table"', 'label: str = "Table"'),
    ("warm: bool = False", "warm: bool = 0"),
    ("warm: bool = False", "warm: bool = None"),
    ("warm: bool = False", "warm: bool = True"),
    ('b"\\x01\\x02"', 'b"\\x01\\x03"'),
    ('b"\\x01\\x02"', '"\\x01\\x02"'),
    ("nothing: object = None", "nothing: object = ()"),
    ("nothing: object = None", 'nothing: object = float("nan")'),
    ("nothing: object = None", 'nothing: object = float("inf")'),
    ("nothing: object = None", "nothing: object = 1j"),
    ("nothing: object = None", "nothing: object = len"),
    ("nothing: object = None", "nothing: object = ..."),
    ("nothing: object = None", "nothing: object = LEVELS"),
    ("nothing: object = None", "nothing: object = range(3)"),
    ("nothing: object = None", "nothing: object = (slice(3).stop, 0)"),
    ("return Config()", "return Config(lr=0.01)"),
    ("return Config()", "return Config(momentum=0.8)"),
    ("@dataclass(frozen=True)", "@dataclass(frozen=True, order=True)"),
    ("class Reduce(Enum)", "class Reduce(str, Enum)"),
]

_LAYERS = [
    ("GAIN = 1.5", "GAIN = 1.25", "Scale.gain was 1.5 when this was recorded, now 1.25"),
    ("GAIN = 1.5", "GAIN = 3 / 4"),
    ("return factor * forward(self, x) + shift", "return forward(self, x) * factor + shift"),
    ("return factor * forward(self, x) + shift", "return factor * (forward(self, x) + shift)"),
    ("def scaled(factor, shift=0.0)", "def scaled(factor, shift=0.01)"),
    ("@scaled(0.5)", "@scaled(0.25)"),
    ("@scaled(0.5)", "@scaled(0.5, 1e-3)"),
    ("    @scaled(0.5)\n", ""),
    ("@functools.wraps(forward)\n", "@functools.wraps(nn.Module.forward)\n"),
    ("power=2, *, floor=0.0", "power=3, *, floor=0.0"),
    ("power=2, *, floor=0.0", "power=2, *, floor=-0.0"),
    ("power=2, *, floor=0.0", "power=2, *, floor=0.1"),
    ("power=2, *, floor=0.0", "power=2.0, *, floor=0.0"),
    ("torch.clamp(x, min=floor).pow(power) + x", "torch.clamp(x, min=floor).pow(power) - x", "code of squash"),
    ("torch.clamp(x, min=floor).pow(power) + x", "x.clamp(min=floor).pow(power) + x"),
    ("torch.clamp(x, min=floor).pow(power) + x", "x + torch.clamp(x, min=floor).pow(power)"),
    ("torch.clamp(x, min=floor)", "torch.clamp(x, max=floor)"),
    ("gain = GAIN", "gain = 2 * GAIN"),
    ("def __init__(self, by=1.0)", "def __init__(self, by=2.0)"),
    ("return x * self.by * self.gain", "return x * (self.by * self.gain)", "code of Scale.forward"),
    ("return x * self.by * self.gain", "return x * self.by / self.gain"),
    ("return x * self.by * self.gain", "return x * self.by"),
    ('order = ["norm", "act"]', 'order = ["act", "norm"]', "Block.order"),
    ('order = ["norm", "act"]', 'order = ["norm"]'),
    ('order = ["norm", "act"]', 'order = ["norm", "act", "act"]'),
    ('order = ["norm", "act"]', 'order = ("norm", "act")'),
    ("nn.LayerNorm(width, eps=1e-5)", "nn.LayerNorm(width, eps=1e-6)", "module.blocks.0.norm.eps was 1e-05"),
    ("nn.LayerNorm(width, eps=1e-5)", "nn.LayerNorm(width, eps=1e-5, elementwise_affine=False)"),
    ("nn.LayerNorm(width, eps=1e-5)", "nn.LayerNorm(width, eps=1e-5, bias=False)"),
    ("nn.LayerNorm(width, eps=1e-5)", "nn.RMSNorm(width, eps=1e-5)"),
    ("nn.LayerNorm(width, eps=1e-5)", "nn.GroupNorm(1, width)"),
    ("nn.LeakyReLU(config.SLOPE)", "nn.LeakyReLU(2 * config.SLOPE)"),
    ("nn.LeakyReLU(config.SLOPE)", "nn.ELU(config.SLOPE)"),
    ("nn.LeakyReLU(config.SLOPE)", "nn.PReLU(1)"),
    ("nn.LeakyReLU(config.SLOPE)", "nn.LeakyReLU(config.SLOPE, inplace=True)"),
    ("nn.Dropout(dropout)", "nn.AlphaDropout(dropout)"),
    ("nn.Dropout(dropout)", "nn.Dropout(dropout / 2)"),
    ("nn.Dropout(dropout)", "nn.Identity()"),
    ("return math.sqrt(2.0)", "return math.sqrt(3.0)", "code of Block.root"),
    ("return math.sqrt(2.0)", "return 2.0**0.5"),
    ("return math.sqrt(2.0)", "return math.log(2.0)"),
    ("x.clamp(-5, 5)", "x.clamp(-5, 6)", "code of Block.limit"),
    ("x.clamp(-5, 5)", "x.clamp(-5.0, 5.0)"),
    ("    @staticmethod\n    def limit(x):", "    def limit(self, x):"),
    ("return cls.__name__.lower()", "return cls.__name__.upper()"),
    ("return squash(x) / self.root", "return squash(x)"),
    ("return squash(x) / self.root", "return squash(x, 3) / self.root"),
    ("return squash(x) / self.root", "return squash(x) * self.root"),
    ("y = self.linear(x)\n", "y = self.linear(x.float())\n"),
    ("y = self.linear(x)\n", "y = 2 * self.linear(x)\n"),
    ("self.drop(self.mix(y))", "self.mix(self.drop(y))", "code of Block.forward"),
    ("self.limit(x + self", "self.limit(0.5 * x + self"),
    ("class Residual(Block)", "class Residual(Block, nn.Module)"),
    ("super().mix(x) + 0.1 * x", "super().mix(x) + 0.2 * x", "code of Residual.mix"),
    ("super().mix(x) + 0.1 * x", "0.1 * x + super().mix(x)"),
    ("super().mix(x) + 0.1 * x", "Block.mix(self, x) + 0.1 * x"),
    ("return x * torch.sigmoid(x)", "return x * torch.sigmoid(1.702 * x)"),
    ("return x * torch.sigmoid(x)", "return torch.nn.functional.silu(x)"),
    ("gradient * (s + x * s * (1 - s))", "gradient * s"),
    ("gradient * (s + x * s * (1 - s))", "gradient * (s + x * (1 - s) * s)"),
    ('"swish": swish}', '"swish": torch.relu}'),
    ('"swish": swish}', '"swish": lambda x: x}'),
    ('{"tanh": torch.tanh, ', "{"),
    ('kind="swish"', 'kind="tanh"', "module.gate.kind was 'swish' when this was recorded, now 'tanh'"),
    ("self.powers = [1, 2]", "self.powers = [1, 3]"),
    ("self.powers = [1, 2]", "self.powers = [2, 1]"),
    ("self.powers = [1, 2]", "self.powers = [1, 2.0]"),
    ("self.powers = [1, 2]", "self.powers = [True, 2]"),
    ("self.powers = [1, 2]", "self.powers = [1]"),
    ('"offset", torch.zeros(1)', '"offset", torch.ones(1)', "code of Gate.__init__"),
    ('"offset", torch.zeros(1)', '"offset", -torch.zeros(1)'),
    ('"offset", torch.zeros(1)', '"offset", torch.zeros(1, dtype=torch.float64)'),
    ('"offset", torch.zeros(1)', '"offset", torch.zeros(())'),
    ('"offset", torch.zeros(1)', '"offset", torch.full((1,), float("nan"))'),
    ("def one(y, k=1.0)", "def one(y, k=1)"),
    ("def one(y, k=1.0)", "def one(y, k=0.5)"),
    ("one(x**p) / (p + 1)", "one(x**p) / p"),
    ("one(x**p) / (p + 1)", "one(x**p) // (p + 1)"),
    ("for p in self.powers]", "for p in self.powers if p]"),
    ("for p in self.powers]", "for p in reversed(self.powers)]"),
    ("F.softplus(sum(parts), beta=2)", "F.softplus(sum(parts), beta=1)"),
    ("F.softplus(sum(parts), beta=2)", "F.softplus(sum(parts), 2)"),
    ("F.softplus(sum(parts), beta=2)", "F.elu(sum(parts))"),
    (") + self.offset", ") - self.offset"),
    ("import config\n\nGAIN", "import config\n\nconfig.SLOPE = 0.3\nGAIN"),
    ("swish = Swish.apply", "swish = torch.nn.functional.silu"),
]

_MODELS = [
    ("pre=nn.Tanh(),\n            post=nn.Softsign(),", "post=nn.Softsign(),\n            pre=nn.Tanh(),", "order of modules"),
    ("pre=nn.Tanh()", "pre=nn.Sigmoid()", "module.head.pre was 'torch.nn.modules.activation.Tanh'"),
    ("post=nn.Softsign()", "post=nn.Tanhshrink()"),
    ("            post=nn.Softsign(),\n", ""),
    ("pre=nn.Tanh()", "first=nn.Tanh()"),
    ("out=nn.Linear(width, classes)", "out=nn.Linear(width, classes, bias=True).requires_grad_(False)"),
    ("return x / temperature", "return x * temperature"),
    ("return x / temperature", "return x / temperature**2"),
    ("def renormed(x, p=2)", "def renormed(x, p=1)"),
    ("def renormed(x, p=2)", "def renormed(x, p=2.0)"),
    ("x / (1 + x.norm", "x / (1e-6 + x.norm", "code of renormed"),
    ("dim=1, keepdim=True", "dim=-1, keepdim=True"),
    ("self.cfg = cfg", "self.cfg = None"),
    ("self.cfg = cfg", "self.cfg = vars(cfg)"),
    ("nn.Linear(4, config.HIDDEN)", "nn.Linear(4, config.HIDDEN, bias=False)"),
    ("Residual(config.HIDDEN, 0.1),", "Residual(config.HIDDEN, 0.2),", "module.blocks.1.drop.p was 0.1"),
    ("Residual(config.HIDDEN, 0.1),", "Block(config.HIDDEN, 0.1),", "module.blocks.1 was 'Residual'"),
    ("Residual(config.HIDDEN, 0.1),", ""),
    ("Residual(config.HIDDEN, 0.1),", "Residual(config.HIDDEN, 0.1),\n                nn.Identity(),"),
    ("Residual(config.HIDDEN, 0.1),", "nn.Sequential(Residual(config.HIDDEN, 0.1)),"),
    ("self.gate = Gate()", 'self.gate = Gate("tanh")'),
    ("self.gate = Gate()", "self.gate = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))"),
    ("Scale(0.7)", "Scale(0.75)", "module.scale.by was 0.7 when this was recorded, now 0.75"),
    ("Scale(0.7)", "Scale()"),
    ("head(config.HIDDEN, 2)", "head(config.HIDDEN, 3)"),
    ("temper(config.TEMPERATURE)", "temper(config.TEMPERATURE + 1)"),
    ("partial(squash, power=2)", "partial(squash, power=4)"),
    ("partial(squash, power=2)", "partial(squash)"),
    ("partial(squash, power=2)", "partial(squash, power=2, floor=1.0)"),
    ("partial(squash, power=2)", "partial(renormed)"),
    ("partial(squash, power=2)", "squash"),
    ("lambda x: x.clamp(*config.Range())", "lambda x: x.clip(*config.Range())"),
    ("lambda x: x.clamp(*config.Range())", "lambda x: x"),
    ("lambda x: x.clamp(*config.Range())", "lambda x, s=1: x.clamp(*config.Range()) * s"),
    ("lambda x: x.clamp(*config.Range())", "lambda x: x.clamp(*config.Range(-1))"),
    ("[1.0, 1.0, 0.0, 1.0]", "[1.0, 0.0, 1.0, 1.0]", "module.mask"),
    ("[1.0, 1.0, 0.0, 1.0]", "[1.0, 1.0, -0.0, 1.0]"),
    ("[1.0, 1.0, 0.0, 1.0]", "[1, 1, 0, 1]"),
    ("[1.0, 1.0, 0.0, 1.0]", "[1.0, 1.0, 0.0, 1.0], dtype=torch.float64"),
    ("[1.0, 1.0, 0.0, 1.0]", "[1.0, 1.0, 0.0, 1.0000001]"),
    ("[1.0, 1.0, 0.0, 1.0]", "[True, True, False, True]"),
    ("[1.0, 1.0, 0.0, 1.0]", "[[1.0, 1.0, 0.0, 1.0]]"),
    ("no_decay = True", "no_decay = False", "module.stem.weight.attributes"),
    ("no_decay = True", "no_decay = 1"),
    ("self.stem.weight.no_decay", "self.stem.bias.no_decay"),
    ("self.hooked = 0.25", "self.hooked = 0.5"),
    (
        "self.stem.register_forward_pre_hook(widen)",
        "self.stem.register_forward_pre_hook(widen, prepend=True)\n        self.eval_only = 1",
    ),
    ("self.stem.register_forward_pre_hook(widen)", "self.scale.register_forward_pre_hook(widen)", "forward_pre_hooks"),
    ("self.stem.register_forward_pre_hook(widen)", "self.stem.register_forward_hook(lambda m, a, o: 2 * o)"),
    ("self.stem.register_forward_pre_hook(widen)", "self.stem.register_full_backward_hook(lambda m, i, o: None)"),
    ("        self.stem.register_forward_pre_hook(widen)\n", ""),
    ("arg * 1.01 for arg", "arg * 1.02 for arg", "code of widen"),
    ("x = self.squash(self.stem(x * self.mask))", "x = self.stem(x * self.mask)", "code of Net.forward"),
    ("x = self.squash(self.stem(x * self.mask))", "x = self.squash(self.stem(self.mask * x))"),
    ("            x = block(x)\n", "            x = x + block(x)\n"),
    ("            x = block(x)\n", "            x = block(x)\n            x = block(x)\n"),
    ("renormed(self.scale(self.gate(x)))", "renormed(self.gate(self.scale(x)))"),
    ("self.last(self.temper(self.head(x)))", "self.temper(self.last(self.head(x)))"),
    ("self.last(self.temper(self.head(x)))", "self.last(self.temper(self.head(x.detach())))"),
    ("bias.fill_(0.01)", "bias.fill_(0.02)", "input params"),
    ("bias.fill_(0.01)", "bias.fill_(-0.0)"),
    ("bias.fill_(0.01)", "bias.uniform_()"),
    ("net = Net(config.load())\n", "net = Net(config.load())\n    net.head.requires_grad_(False)\n"),
    ("net = Net(config.load())\n", "net = Net(config.load()).double()\n"),
    (
        "net = Net(config.load())\n",
        "net = Net(config.load())\n    net.forward = lambda x: net.stem(x)[:, :2]\n",
        "module.forward",
    ),
    ("net = Net(config.load())\n", "net = Net(config.load())\n    net.gate.forward = torch.tanh\n"),
    ("net = Net(config.load())\n", "net = Net(config.load())\n    net.scale.gain = 3.0\n", "module.scale.gain"),
    ("net = Net(config.load())\n", "net = Net(config.load())\n    Net.renorm = renormed\n"),
    ("net = Net(config.load())\n", "net = Net(config.load())\n    net.blocks = nn.ModuleList(reversed(net.blocks))\n"),
    ("net = Net(config.load())\n", "net = Net(config.load())\n    torch.nn.utils.parametrizations.spectral_norm(net.stem)\n"),
    ("net = Net(config.load())\n", "net = Net(config.load())\n    nn.init.xavier_uniform_(net.stem.weight)\n"),
    ("net = Net(config.load())\n", "net = Net(config.load())\n    nn.init.zeros_(net.stem.weight)\n"),
    ("net = Net(config.load())\n", "torch.rand(())\n    net = Net(config.load())\n"),
    (
        "net = Net(config.load())\n",
        "net = Net(config.load())\n    net.stem.weight.data = net.stem.weight.data.t().contiguous().t()\n",
    ),
    (
        "net = Net(config.load())\n",
        "net = Net(config.load())\n    net.head.out.weight = net.head.out.weight\n    net.head.out.tied = net.stem.weight\n",
    ),
]

_LOSSES = [
    ("WEIGHT = torch.tensor([1.0, 2.0])", "WEIGHT = torch.tensor([1.0, 3.0])"),
    ("WEIGHT = torch.tensor([1.0, 2.0])", "WEIGHT = torch.tensor([2.0, 1.0])"),
    ("WEIGHT = torch.tensor([1.0, 2.0])", "WEIGHT = torch.tensor([1.0, 2.0]) * 1.5"),
    ("WEIGHT = torch.tensor([1.0, 2.0])", "WEIGHT = torch.tensor([1.0, 2.0])\nWEIGHT[0] += 1e-7"),
    ("gamma=2.0, weight=None", "gamma=2.0, weight=torch.ones(2)"),
    ('reduction="none"', 'reduction="sum"'),
    ("label_smoothing=config.SMOOTH", "label_smoothing=config.SMOOTH + 0.05"),
    ("(1 - torch.exp(-loss))", "(1.0 - torch.exp(-loss))"),
    ("(1 - torch.exp(-loss))", "-torch.expm1(-loss)"),
    ("** self.gamma * loss", "** (self.gamma + 1) * loss"),
    (".mean() + penalty(output)", ".sum() + penalty(output)", "code of"),
    (".mean() + penalty(output)", ".mean() + 2 * penalty(output)"),
    (".mean() + penalty(output)", ".mean()"),
    ("output.pow(2).mean()", "output.pow(2).sum()"),
    ("output.pow(2).mean()", "output.square().mean()"),
    ("output.abs().mean()", "output.abs().max()"),
    ('config.PENALTY["l2"] *', 'config.PENALTY.get("l2", 0) *'),
    ("def penalty(output)", "def penalty(output, k=1)"),
    ("class Focal(nn.Module)", "class Focal(nn.CrossEntropyLoss)"),
]

_METRICS = [
    ("THRESHOLD = 0.5", "THRESHOLD = 0.6", "metric above"),
    ("[2.0, 0.0]", "[3.0, 0.0]", "metric cost"),
    ("[2.0, 0.0]", "[2, 0.5]"),
    ("COSTS = np.array([[0.0, 1.0], [2.0, 0.0]])", 'COSTS = np.array([[0.0, 1.0], [2.0, 0.0]], dtype="f4")'),
    ("COSTS = np.array([[0.0, 1.0], [2.0, 0.0]])", 'COSTS = np.array([[0.0, 1.0], [2.0, 0.0]], order="F")'),
    ("COSTS = np.array([[0.0, 1.0], [2.0, 0.0]])", "COSTS = np.array([[0, 1], [2, 0]])"),
    ("COSTS = np.array([[0.0, 1.0], [2.0, 0.0]])", 'COSTS = np.array([[0.0, 1.0], [2.0, 0.0]], dtype=">f8")'),
    ("COSTS = np.array([[0.0, 1.0], [2.0, 0.0]])", "COSTS = np.ma.masked_array([[0.0, 1.0], [2.0, 0.0]], mask=[[0, 1], [0, 0]])"),
    ('@ps.metric("hits")', '@ps.metric("hits", higher_is_better=False)', "hits.higher_is_better was True"),
    ("(output.argmax(1) == target).sum()", "(output.argmax(1) != target).sum()", "code of metric hits"),
    ("(output.argmax(1) == target).sum()", "(output.argmin(1) == target).sum()"),
    ("(output.argmax(1) == target).sum()", "(target == output.argmax(1)).sum()"),
    (
        "return COSTS[target.numpy(), output.argmax(1).numpy()].sum()",
        "return COSTS[output.argmax(1).numpy(), target.numpy()].sum()",
    ),
    (
        "return COSTS[target.numpy(), output.argmax(1).numpy()].sum()",
        "return COSTS[target.numpy(), output.argmax(1).numpy()].sum(), 2",
    ),
    ('"cost", higher_is_better=False', '"cost", higher_is_better=True'),
    ("softmax(1)[:, 1] > threshold", "softmax(1)[:, 1] >= threshold"),
    ("softmax(1)[:, 1] > threshold", "softmax(1)[:, 0] > threshold"),
    ('ps.Metric("above", True', 'ps.Metric("above", False'),
    ('ps.Metric("above", True', 'ps.Metric("below", True', "metric below"),
]

_DATA = [
    ("torch.randn(rows, 4, generator=generator)", "torch.rand(rows, 4, generator=generator)", "training data"),
    ("torch.randn(rows, 4, generator=generator)", "torch.randn(rows, 4, generator=generator).to(torch.bfloat16)"),
    ("torch.randn(rows, 4, generator=generator)", "torch.randn(rows, 4, generator=generator, dtype=torch.float64)"),
    ("torch.randn(rows, 4, generator=generator)", "torch.randn(4, rows, generator=generator).t()"),
    ("(x.sum(1) > 0).long()", "(x.sum(1) > 0).int()"),
    ("(x.sum(1) > 0).long()", "(x.sum(1) < 0).long()", "dataset.tensors.1"),
    ("    return x, y\n", "    x[0, 0] = 0.0\n    return x, y\n", "dataset.tensors.0"),
    ("    return x, y\n", "    x[7, 3] += 1e-7\n    return x, y\n"),
    ("    return x, y\n", "    x[11, 3] *= -1\n    return x, y\n", "validation data"),
    ("    return x, y\n", "    x.view(torch.uint8)[5, 3] ^= 1\n    return x, y\n"),
    ("    return x, y\n", "    y[2] = 1 - y[2]\n    return x, y\n"),
    ("    return x, y\n", "    return x.flip(0), y\n"),
    ("    return x, y\n", "    return x[torch.randperm(rows, generator=generator)], y\n"),
    ("    return x, y\n", "    return x.contiguous().as_strided((rows, 4), (1, rows)), y\n"),
    ("    return x, y\n", "    return -(-x), y.clone().fill_(0)\n"),
    ("    return x, y\n", "    x[x == 0] = -0.0\n    x[0, 0] = -0.0\n    return x, y\n"),
    ("table(12, 0)", "table(12, 1)"),
    ("table(12, 0)", "table(13, 0)"),
    ("TensorDataset(x[:8], y[:8])", "TensorDataset(x[:7], y[:7])", "samples was 8 when this was recorded, now 7"),
    ("TensorDataset(x[:8], y[:8])", "TensorDataset(x[1:9], y[1:9])"),
    ("TensorDataset(x[:8], y[:8])", "TensorDataset(x[:8].contiguous().flip(0), y[:8])"),
    ("TensorDataset(x[:8], y[:8])", "torch.utils.data.Subset(TensorDataset(x[:8], y[:8]), [0, 1, 2, 3, 4, 5, 7, 6])"),
    ("TensorDataset(x[:8], y[:8])", "torch.utils.data.ConcatDataset([TensorDataset(x[:8], y[:8])])"),
    ("TensorDataset(x[8:], y[8:])", "TensorDataset(x[8:11], y[8:11])"),
    ("batch_size=4):", "batch_size=2):", "training data: batch_size was 4 when this was recorded, now 2"),
    ("batch_size=batch_size, shuffle=True", "batch_size=batch_size + 1, shuffle=True"),
    ("shuffle=True", "shuffle=False", "sampler was"),
    ("drop_last=False", "drop_last=True", "drop_last was False when this was recorded, now True"),
    ("drop_last=False", "drop_last=False, collate_fn=lambda rows: torch.utils.data.default_collate(rows)", "collate"),
    ("drop_last=False", "drop_last=False, worker_init_fn=print"),
    ("shuffle=True", "sampler=torch.utils.data.RandomSampler(train, replacement=True)"),
    ("shuffle=True", "sampler=torch.utils.data.RandomSampler(train, num_samples=4)"),
    ("shuffle=True", "sampler=torch.utils.data.SubsetRandomSampler(range(6))"),
    ("shuffle=True", "sampler=torch.utils.data.WeightedRandomSampler([1.0] * 8, 8)"),
    ("shuffle=True", "sampler=torch.utils.data.WeightedRandomSampler([1.0] * 7 + [2.0], 8)"),
    ("shuffle=True", "sampler=[0, 2, 1, 3, 4, 5, 6, 7]"),
    ("shuffle=True", "sampler=torch.tensor([0, 2, 1, 3, 4, 5, 7, 6])"),
    ("DataLoader(val, batch_size=4)", "DataLoader(val, batch_size=3)"),
    ("DataLoader(val, batch_size=4)", "DataLoader(val, batch_size=4, shuffle=True)"),
    ("DataLoader(val, batch_size=4)", "DataLoader(val, batch_size=None)"),
    ("DataLoader(val, batch_size=4)", "[(x[8:], y[8:])]"),
    ("DataLoader(val, batch_size=4)", "None"),
]

_SGD = "optimizer_cls=torch.optim.SGD,\n        optimizer_args=dict(lr=cfg.lr, momentum=cfg.momentum),"
_STEP = "epoch_scheduler_cls=StepLR,\n        epoch_scheduler_args=dict(step_size=cfg.step, gamma=cfg.gamma),"
_EPOCH = "torch.optim.lr_scheduler."
_TRAIN = [
    *(
        (
            _SGD,
            f"optimizer_cls=torch.optim.{name},\n        optimizer_args=dict(lr=cfg.lr),",
            "optimizer class was 'torch.optim.sgd.SGD'",
        )
        for name in "Adam AdamW NAdam RAdam Adamax Adagrad Adadelta RMSprop Rprop ASGD Adafactor".split()
    ),
    *(
        ("momentum=cfg.momentum)", f"momentum=cfg.momentum, {more})")
        for more in (
            "nesterov=True",
            "dampening=0.1",
            "weight_decay=1e-4",
            "weight_decay=True",
            "weight_decay=1",
            "maximize=True",
            "foreach=False",
            "fused=True",
        )
    ),
    (_SGD, "optimizer_fn=lambda params: torch.optim.SGD(params, lr=cfg.lr, momentum=cfg.momentum),"),
    (
        _SGD,
        "optimizer_fn=lambda params: torch.optim.SGD([{'params': params[:2], 'lr': 0.1}, {'params': params[2:]}], lr=cfg.lr),",
    ),
    (
        _SGD,
        "optimizer_fn=lambda params: torch.optim.SGD([{'params': params[:3], 'lr': 0.1}, {'params': params[3:]}], lr=cfg.lr),",
    ),
    *(
        (_STEP, f"epoch_scheduler_cls={_EPOCH}{name},\n        epoch_scheduler_args=dict({args}),", "epoch_scheduler class was")
        for name, args in (
            ("ExponentialLR", "gamma=cfg.gamma"),
            ("MultiStepLR", "milestones=[2, 4]"),
            ("MultiStepLR", "milestones=[2, 5]"),
            ("CosineAnnealingLR", "T_max=5"),
            ("CosineAnnealingLR", "T_max=5.0"),
            ("LinearLR", ""),
            ("PolynomialLR", "power=2"),
            ("ConstantLR", "factor=0.5"),
            ("ReduceLROnPlateau", "patience=2"),
            ("ReduceLROnPlateau", "patience=3"),
            ("CosineAnnealingWarmRestarts", "T_0=3"),
        )
    ),
    (_STEP, "", "epoch_scheduler was 'torch.optim.lr_scheduler.StepLR' when this was recorded, now there is none"),
    ("step_scheduler_cls=LambdaLR,\n        step_scheduler_args=dict(lr_lambda=ramp),\n", "", "step_scheduler"),
    ("lr_lambda=ramp", "lr_lambda=lambda step: min(1.0, (step + 1) / 4)"),
    ("lr_lambda=ramp", "lr_lambda=[ramp]"),
    ("(step + 1) / 4", "(step + 1) / 5"),
    ("min(1.0, ", "min(0.9, "),
    ("def ramp(step)", "def ramp(step, k=2)"),
    ("seed=config.SEED", "seed=config.SEED + 1", "seed was 3 when this was recorded, now 4"),
    ("loss_cls=losses.Focal,\n        loss_args=dict(gamma=1.5),", "loss_cls=torch.nn.CrossEntropyLoss,", "loss class"),
    ("loss_cls=losses.Focal,\n        loss_args=dict(gamma=1.5),", "loss=losses.Focal(gamma=1.5),"),
    ("loss_cls=losses.Focal,\n        loss_args=dict(gamma=1.5),", "loss=losses.Focal(gamma=1.25),"),
    ("loss_cls=losses.Focal,\n        loss_args=dict(gamma=1.5),", "loss=torch.nn.functional.cross_entropy,"),
    (
        "loss_cls=losses.Focal,\n        loss_args=dict(gamma=1.5),",
        "loss_fn=lambda module, batch: losses.Focal(1.5)(module(batch[0]), batch[1]),",
    ),
    ("loss_args=dict(gamma=1.5)", "loss_args=dict(gamma=1.25)", "loss gamma was 1.5 when this was recorded, now 1.25"),
    ("loss_args=dict(gamma=1.5)", "loss_args=dict(gamma=1)"),
    ("loss_args=dict(gamma=1.5)", "loss_args=dict()"),
    ("loss_args=dict(gamma=1.5)", "loss_args=dict(gamma=1.5, weight=torch.ones(2))"),
    ("loss_args=dict(gamma=1.5)", "loss_args=dict(gamma=1.5, weight=torch.tensor([1.0, 0.5]))"),
    ("clip_grad_norm=config.CLIP,", "clip_grad_value=config.CLIP,"),
    ("clip_grad_norm=config.CLIP,", "clip_grad_norm=config.CLIP,\n        clip_grad_value=0.1,"),
    ("clip_grad_norm=config.CLIP,", 'precision="bfloat16",\n        clip_grad_norm=config.CLIP,', "precision was not there"),
    ("clip_grad_norm=config.CLIP,", 'compile="inductor",\n        clip_grad_norm=config.CLIP,', "compile"),
    ("clip_grad_norm=config.CLIP,", "deterministic=False,\n        clip_grad_norm=config.CLIP,"),
    ("ema_decay=0.9", "ema_decay=0.99", "ema_decay was 0.9 when this was recorded, now 0.99"),
    ("ema_decay=0.9", "ema_decay=0"),
    ("        ema_decay=0.9,\n", ""),
    ("    )\n    ck = ", '    )\n    s0 = ps.freeze(s0, "stem.*")\n    ck = '),
    ("    )\n    ck = ", '    )\n    s0 = ps.freeze(s0, "stem.weight")\n    ck = '),
    ("    )\n    ck = ", '    )\n    s0 = s0.replace(extra={"a": 1})\n    ck = '),
    ("    )\n    ck = ", '    )\n    s0 = s0.replace(extra={"a": 1.0})\n    ck = '),
    ("    )\n    ck = ", '    )\n    s0 = s0.replace(extra={"a": True})\n    ck = '),
    ("warmup=0", "warmup=1", "warmup was not there when this was recorded, now 1"),
    ("warmup=0", "warmup=2"),
    ("metrics=[metrics.hits, metrics.cost, ", "metrics=[metrics.hits, "),
    ("metrics=[metrics.hits, metrics.cost, ", "metrics=[metrics.hits, ps.metric_accuracy, metrics.cost, ", "metric accuracy"),
    ("metrics.above(metrics.THRESHOLD)", "metrics.above(0.75)"),
    ("metrics.above(metrics.THRESHOLD)", "metrics.above(True)"),
    ("metrics=[metrics.above(0.25)]", "metrics=[metrics.above(0.3)]"),
    ("metrics=[metrics.above(0.25)]", "metrics=[metrics.hits]"),
    ("ck.evaluate(s1, val_dl", "ck.evaluate(s1, train_dl"),
    ("ck.evaluate(s1, val_dl", "ck.evaluate(s0, val_dl"),
    ("cfg = config.load()", "cfg = config.Config(lr=0.06)"),
    ("cfg = config.load()", "cfg = config.load()\nconfig.TEMPERATURE = 3.0"),
    ("cfg = config.load()", "cfg = config.load()\nlosses.WEIGHT = torch.ones(2)"),
    ("cfg = config.load()", "cfg = config.load()\nlosses.penalty = lambda output: 0 * output.sum()"),
    ("cfg = config.load()", "cfg = config.load()\nmodels.Net.forward = lambda self, x: self.stem(x)[:, :2]"),
    ("cfg = config.load()", "cfg = config.load()\nmodels.squash = torch.relu"),
    ("cfg = config.load()", "cfg = config.load()\nconfig.PENALTY['l2'] = 1.0"),
    ("cfg = config.load()", "cfg = config.load()\nmodels.Scale.gain = 0.9"),
]

CHANGES = [
    (file, *row)
    for file, rows in (
        ("config.py", _CONFIG),
        ("layers.py", _LAYERS),
        ("models.py", _MODELS),
        ("losses.py", _LOSSES),
        ("metrics.py", _METRICS),
        ("data.py", _DATA),
        ("train.py", _TRAIN),
    )
    for row in rows
]
NEUTRAL = [
    ("config.py", "HIDDEN = 6", "HIDDEN = 6  # how wide"),
    ("config.py", "HIDDEN = 6", "HIDDEN = 0x6"),
    ("config.py", "HIDDEN = 6", "HIDDEN=6"),
    ("config.py", "HIDDEN = 6", "HIDDEN: int = 6"),
    ("config.py", "HIDDEN = 6\nDROPOUT = 0.25", "DROPOUT = 0.25\nHIDDEN = 6"),
    ("config.py", "DROPOUT = 0.25", "DROPOUT = 1 / 4"),
    ("config.py", '"""What is tried."""', '"""What was tried at night."""'),
    ("config.py", 'CLASSES = ("no", "yes")', 'CLASSES = ("no", "maybe")'),
    ("config.py", "LEVELS = frozenset({1, 2, 3})\n", ""),
    ("config.py", "first=1, second=2", "second=2, first=1"),
    ("config.py", "class Config:\n", 'class Config:\n    """What one run is made with."""\n\n'),
    ("config.py", "lr: float = 0.05", "lr: float = 5e-2"),
    ("config.py", "names: list = field", "names: list[str] = field"),
    ("config.py", "def load():", "def unused():\n    return SEED\n\n\ndef load():"),
    ("config.py", "    return Config()", "    cfg = Config()\n    return cfg"),
    ("layers.py", "GAIN = 1.5", "GAIN = 15e-1 + 0"),
    ("layers.py", "import functools\nimport math", "import math\nimport functools"),
    ("layers.py", "import torch\nfrom torch import nn\n", "import os\nimport torch\nfrom torch import nn\n"),
    ("layers.py", "    return torch.clamp(x, min=floor).pow(power) + x", "    return (torch.clamp(x, min=floor).pow(power) + x)"),
    ("layers.py", "    return torch.clamp(x, min=floor)", "    return torch.clamp(\n        x,\n        min=floor,\n    )"),
    ("layers.py", "power=2, *, floor=0.0):", "power=2, *, floor=0.0):  # a parabola"),
    ("layers.py", "power=2, *, floor=0.0):", "power=2, *, floor=0.0):\n    'A parabola.'"),
    ("layers.py", "def squash(", "def spare(x):\n    return x\n\n\ndef squash("),
    ("layers.py", 'order = ["norm", "act"]', "order = ['norm', 'act']"),
    ("layers.py", "class Scale(nn.Module):", "class Spare(nn.Module):\n    k = 3\n\n\nclass Scale(nn.Module):"),
    ("layers.py", "        y = self.linear(x)\n", "        # first of all\n        y = self.linear(x)\n"),
    ("layers.py", "        y = self.linear(x)\n", "        y = self.linear(x)\n\n"),
    ("layers.py", "        y = self.linear(x)\n", "        y = (self.linear)((x))\n"),
    ("layers.py", '"""Layers of our own."""\n', '"""Layers of our own."""\n\n\n\n'),
    ("layers.py", "Mixes by a nested function", "Mixes x by a nested function"),
    ("layers.py", "class Residual(Block):\n", "class Residual(Block):\n    '''With a way around.'''\n\n"),
    ("models.py", "def build():\n", "def build():\n    # made anew each time\n"),
    ("models.py", "    torch.nn.init.normal_\n", ""),
    ("models.py", "    net = Net(config.load())\n", "    net = Net(cfg=config.load())\n"),
    ("models.py", "from functools import partial\n", "import random\nfrom functools import partial\n"),
    (
        "models.py",
        "import Block, Gate, Residual, Scale, squash",
        "import (\n    Block,\n    Gate,\n    Residual,\n    Scale,\n    squash,\n)",
    ),
    ("models.py", "lambda x: x.clamp(*config.Range())", "lambda x: (x.clamp(*config.Range()))"),
    ("models.py", "def widen(module, args):\n", "def widen(module, args):\n    '''Widen.'''\n"),
    ("losses.py", "WEIGHT = torch.tensor([1.0, 2.0])", "WEIGHT = torch.arange(1.0, 3.0)"),
    ("losses.py", "WEIGHT = torch.tensor([1.0, 2.0])", "WEIGHT = torch.tensor([1, 2]).float()"),
    ("losses.py", "        loss = F.cross", "        # per sample\n        loss = F.cross"),
    ("losses.py", '"""What is minimized."""', '"""What is minimized, and why."""'),
    ("metrics.py", "THRESHOLD = 0.5", "THRESHOLD = 0.50"),
    ("metrics.py", "COSTS = np.array([[0.0, 1.0], [2.0, 0.0]])", "COSTS = np.array([[0, 1], [2, 0]], dtype=float)"),
    ("metrics.py", "def hits(output, target):\n", "def hits(output, target):\n    '''How many are right.'''\n"),
    ("metrics.py", "def above(threshold):", "SPARE = 3\n\n\ndef above(threshold):"),
    ("data.py", "    x = torch.randn(rows, 4, generator=generator)\n", "    x = torch.randn((rows, 4), generator=generator)\n"),
    ("data.py", "y = (x.sum(1) > 0).long()", "y = (0 < x.sum(1)).to(torch.int64)"),
    ("data.py", "drop_last=False", "drop_last=False, pin_memory=False"),
    ("data.py", "drop_last=False", "drop_last=False, num_workers=2"),
    ("data.py", "drop_last=False", "drop_last=False, num_workers=2, prefetch_factor=4, persistent_workers=True"),
    ("data.py", "drop_last=False", "drop_last=False, num_workers=1, timeout=60"),
    ("data.py", "drop_last=False", "drop_last=False, num_workers=1, multiprocessing_context='spawn'"),
    ("data.py", "drop_last=False", "drop_last=False, generator=torch.Generator().manual_seed(7)"),
    ("data.py", "shuffle=True", "sampler=torch.utils.data.RandomSampler(train)"),
    ("data.py", "DataLoader(val, batch_size=4)", "DataLoader(val, batch_size=4, num_workers=1)"),
    ("data.py", "DataLoader(val, batch_size=4)", "DataLoader(dataset=val, shuffle=False, batch_size=4)"),
    ("train.py", "lr=cfg.lr, momentum=cfg.momentum)", "momentum=cfg.momentum, lr=cfg.lr)"),
    ("train.py", "momentum=cfg.momentum)", "momentum=cfg.momentum, nesterov=False)"),
    ("train.py", "momentum=cfg.momentum)", "momentum=cfg.momentum, foreach=None)"),
    ("train.py", "gamma=cfg.gamma)", "gamma=cfg.gamma, last_epoch=-1)"),
    ("train.py", "loss_args=dict(gamma=1.5)", "loss_args=dict(gamma=1.5, weight=None)"),
    ("train.py", "def ramp(step):\n", "def ramp(step):\n    '''Slowly at first.'''\n"),
    ("train.py", '"""Train it."""', "#!/usr/bin/env python\n# at night\n"),
    ("train.py", "import json\nimport sys\n", "import sys\nimport json\n"),
    ("train.py", "if __name__ ==", "def helper():\n    return 1\n\n\nif __name__ =="),
    ("train.py", "print(json.dumps(main(ps.Store(sys.argv[1]))))", "print(json.dumps(main(ps.Store(sys.argv[-1]))))"),
    ("train.py", "        warmup=0,\n", ""),
    ("train.py", "warmup=0", "warmup=0,\n        progress=False"),
    ("train.py", "warmup=0", "warmup=0,\n        guard='off'"),
    ("train.py", "warmup=0", "warmup=0,\n        profile=False"),
    ("train.py", "warmup=0", "warmup=0,\n        resume_every='60s'"),
    ("train.py", "warmup=0", "warmup=0,\n        on_epoch=lambda epoch: None"),
    ("train.py", "warmup=0", "warmup=0,\n        keep=ps.keep.last(2)"),
    ("train.py", 'watch="hits"', 'watch="loss"'),
    ("train.py", 'watch="hits"', 'watch="cost"'),
    ("train.py", "echo=None", "echo=None, description='the table'"),
    ("train.py", "    train_dl, val_dl = data.loaders()\n", "    torch.manual_seed(5)\n    train_dl, val_dl = data.loaders()\n"),
    ("train.py", "    train_dl, val_dl = data.loaders()\n", "    train_dl, val_dl = data.loaders()\n    next(iter(train_dl))\n"),
    ("train.py", "    s0 = ps.setup(\n", "    models.build()(torch.ones(2, 4))\n    s0 = ps.setup(\n"),
    ("train.py", "ps.init(models.build, seed=config.SEED)", "ps.init(lambda: models.build(), seed=config.SEED)"),
    ("train.py", "    cached = [ck.last.cached]\n", "    cached = [ck.last.cached]\n    ps.state_hash(s1)\n"),
]
