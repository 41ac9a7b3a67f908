"""A project with images on disk: folders, transforms, samplers, collating, convolutions, and a row of layers with arguments.

`FILES` is what is recorded; a row of `CHANGES` is ``(file, old, new)`` or ``(file, old, new, what the error has to say)``, or
a function of the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

__all__ = ["CHANGES", "FILES", "NEUTRAL", "data"]

LAYERS = '''\
"""Layers that are tried in turn."""

from torch import nn


def layers():
    return nn.ModuleList(
        [
            nn.AdaptiveAvgPool2d((2, None)),
            nn.AvgPool2d(2, ceil_mode=False, count_include_pad=True),
            nn.BatchNorm2d(2, eps=1e-5, momentum=0.1, affine=False),
            nn.CELU(1.0),
            nn.Conv2d(1, 1, 2, stride=1, padding=0, dilation=1),
            nn.ConstantPad2d(1, 0.5),
            nn.Dropout2d(0.3, inplace=False),
            nn.ELU(alpha=1.5),
            nn.FeatureAlphaDropout(0.4),
            nn.Flatten(1, -1),
            nn.Fold((2, 2), kernel_size=2),
            nn.GELU(approximate="none"),
            nn.GLU(dim=1),
            nn.GroupNorm(1, 2, eps=1e-4, affine=False),
            nn.Hardshrink(0.6),
            nn.Hardtanh(-1.0, 2.0),
            nn.InstanceNorm2d(2, momentum=0.2),
            nn.LPPool2d(2, 3),
            nn.LocalResponseNorm(2, alpha=1e-3, beta=0.7, k=1.0),
            nn.MaxPool2d(3, dilation=1, return_indices=False),
            nn.PixelShuffle(2),
            nn.RReLU(0.1, 0.3),
            nn.ReflectionPad2d(2),
            nn.Softplus(beta=2, threshold=20),
            nn.Softshrink(0.7),
            nn.Softmax(dim=1),
            nn.Threshold(0.1, 0.2),
            nn.Unflatten(1, (1, 2)),
            nn.Unfold(2, dilation=1, padding=0),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.ZeroPad2d((1, 1, 0, 0)),
        ]
    )
'''

MODEL = '''\
"""A small network of convolutions."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from layers import layers


class Positive(nn.Module):
    floor = 0.0

    def forward(self, weight):
        return weight.abs() + self.floor

    def right_inverse(self, weight):
        return weight


def count(module, args, output):
    return output * 1.5


class Net(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, padding_mode="zeros")
        self.norm = nn.BatchNorm2d(4, eps=1e-3, momentum=0.1)
        self.blocks = nn.ModuleDict()
        for name, block in blocks:
            self.blocks[name] = block
        self.extras = layers()
        self.head = nn.Linear(4, 2)
        self.norm.register_forward_hook(count)
        parametrize.register_parametrization(self.head, "weight", Positive())

    def forward(self, x):
        x = self.norm(self.stem(x))
        for block in self.blocks.values():
            x = block(x)
        return self.head(x.mean((2, 3)))


def build(channels_last=False):
    net = Net([("relu", nn.ReLU()), ("tanh", nn.Tanh()), ("drop", nn.Dropout2d(0.2))])
    net.norm.requires_grad_(True)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    return net
'''

DATA = '''\
"""Images in a folder, a label to each."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

HERE = Path(__file__).parent


class Noise:
    def __init__(self, file, amount=0.1):
        self.file = file
        self.amount = amount

    def __call__(self, x):
        return x + self.amount * torch.from_numpy(np.load(self.file))


def flip(x, axes=(1,), *, scale=1.0):
    return x.flip(axes) * scale


class Images(Dataset):
    """All images of a folder."""

    classes = {"cat": 0, "dog": 1}
    crop = 4

    def __init__(self, root, transforms, mean=0.5):
        self.root = root
        self.names = sorted(path.name for path in Path(root).glob("*.npy"))
        self.labels = json.loads((Path(root) / "labels.json").read_text())
        self.transforms = transforms
        self.mean = mean
        self.std = np.float32(0.25)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        x = torch.from_numpy(np.load(Path(self.root) / self.names[i]))
        for transform in self.transforms:
            x = transform(x)
        return (x - self.mean) / self.std, self.classes[self.labels[self.names[i]]]


class Listed(Dataset):
    """What was read beforehand."""

    __slots__ = ("rows",)

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class EveryOther(Sampler):
    def __init__(self, size, start=0, weights=None):
        self.size = size
        self.start = start
        self.weights = weights

    def __iter__(self):
        return iter([*range(self.start, self.size, 2), *range(1 - self.start, self.size, 2)])

    def __len__(self):
        return self.size


def collate(rows, dtype=torch.float32):
    x, y = zip(*rows)
    return torch.stack(x).to(dtype), torch.tensor(y)


def loaders():
    transforms = [partial(flip, axes=(1, 2)), Noise(str(HERE / "files" / "noise.npy")), lambda x: x[:, :4, :4]]
    train = Images(HERE / "files" / "images", transforms)
    val = Listed([(torch.full((1, 4, 4), 0.1 * i), i % 2) for i in range(4)])
    sampler = EveryOther(len(train))
    return (
        DataLoader(train, batch_sampler=BatchSampler(sampler, 2, False), collate_fn=collate),
        DataLoader(val, batch_size=2, collate_fn=collate),
    )
'''

TRAIN = """\
import json
import sys

import torch
from torch import nn

import data
import model
import purestate as ps


def main(store):
    train_dl, val_dl = data.loaders()
    s0 = ps.init(model.build, seed=0)
    s0 = ps.setup(
        s0,
        loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5]), label_smoothing=0.1),
        optimizer_cls=torch.optim.AdamW,
        optimizer_args=dict(lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01),
        epoch_scheduler_fn=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
    )
    ck = store.checkpoint("images", echo=None)
    ck.train(s0, train_dl, val_dl, epochs=1, metrics=[ps.metric_accuracy])
    return [ck.last.cached]


if __name__ == "__main__":
    print(json.dumps(main(ps.Store(sys.argv[1]))))
"""

FILES = {"layers.py": LAYERS, "model.py": MODEL, "data.py": DATA, "train.py": TRAIN}


def data(folder: Path) -> None:
    """Write the images: ``files/images/*.npy``, their labels, and a noise of one size."""
    images = folder / "files" / "images"
    (images / "more").mkdir(parents=True, exist_ok=True)
    for i in range(4):
        np.save(images / f"{i}.npy", np.full((1, 4, 4), i / 4, np.float32))
    (images / "labels.json").write_text('{"0.npy": "cat", "1.npy": "dog", "2.npy": "cat", "3.npy": "dog"}')
    (images / "more" / "notes.txt").write_text("none yet")
    np.save(folder / "files" / "noise.npy", np.zeros((1, 4, 4), np.float32))


def _of_layers() -> list[tuple[str, ...]]:
    arguments = [
        ("AdaptiveAvgPool2d((2, None))", "AdaptiveAvgPool2d((2, 2))", "extras.0.output_size"),
        ("ceil_mode=False", "ceil_mode=True", "extras.1.ceil_mode was False when this was recorded, now True"),
        ("count_include_pad=True", "count_include_pad=False"),
        ("BatchNorm2d(2, eps=1e-5, momentum=0.1", "BatchNorm2d(2, eps=1e-4, momentum=0.1"),
        ("BatchNorm2d(2, eps=1e-5, momentum=0.1", "BatchNorm2d(2, eps=1e-5, momentum=None"),
        ("BatchNorm2d(2, eps=1e-5, momentum=0.1", "BatchNorm2d(2, eps=1e-5, track_running_stats=False, momentum=0.1"),
        ("nn.CELU(1.0)", "nn.CELU(1)"),
        ("nn.CELU(1.0)", "nn.CELU(1.1)"),
        ("nn.CELU(1.0)", "nn.SELU()"),
        ("stride=1, padding=0, dilation=1)", "stride=2, padding=0, dilation=1)", "extras.4.stride"),
        ("stride=1, padding=0, dilation=1)", "stride=1, padding=1, dilation=1)"),
        ("stride=1, padding=0, dilation=1)", 'stride=1, padding="same", dilation=1)'),
        ("stride=1, padding=0, dilation=1)", "stride=1, padding=0, dilation=2)"),
        ("stride=1, padding=0, dilation=1)", "stride=1, padding=0, dilation=1, bias=False)"),
        ("stride=1, padding=0, dilation=1)", 'stride=1, padding=0, dilation=1, padding_mode="circular")'),
        ("ConstantPad2d(1, 0.5)", "ConstantPad2d(1, 0.25)", "module.extras.5.value was 0.5"),
        ("ConstantPad2d(1, 0.5)", "ConstantPad2d(2, 0.5)"),
        ("Dropout2d(0.3, inplace=False)", "Dropout2d(0.3, inplace=True)"),
        ("Dropout2d(0.3, inplace=False)", "Dropout3d(0.3, inplace=False)"),
        ("ELU(alpha=1.5)", "ELU(alpha=1.25)"),
        ("FeatureAlphaDropout(0.4)", "FeatureAlphaDropout(0.5)"),
        ("Flatten(1, -1)", "Flatten(0, -1)"),
        ("Flatten(1, -1)", "Flatten(1, 2)"),
        ("Fold((2, 2), kernel_size=2)", "Fold((2, 2), kernel_size=2, padding=1)"),
        ("Fold((2, 2), kernel_size=2)", "Fold((2, 2), kernel_size=(2, 2))"),
        ('approximate="none"', 'approximate="tanh"', "extras.11.approximate was 'none' when this was recorded, now 'tanh'"),
        ("GLU(dim=1)", "GLU(dim=-1)"),
        ("GroupNorm(1, 2", "GroupNorm(2, 2"),
        ("eps=1e-4, affine=False", "eps=1e-3, affine=False"),
        ("Hardshrink(0.6)", "Hardshrink(0.5)"),
        ("Hardtanh(-1.0, 2.0)", "Hardtanh(-2.0, 2.0)"),
        ("Hardtanh(-1.0, 2.0)", "Hardtanh(-1.0, 2)"),
        ("InstanceNorm2d(2, momentum=0.2)", "InstanceNorm2d(2, momentum=0.1)"),
        ("LPPool2d(2, 3)", "LPPool2d(1, 3)"),
        ("LPPool2d(2, 3)", "LPPool2d(2.0, 3)"),
        ("alpha=1e-3, beta=0.7", "alpha=1e-4, beta=0.7"),
        ("beta=0.7, k=1.0", "beta=0.75, k=1.0"),
        ("beta=0.7, k=1.0", "beta=0.7, k=2.0"),
        ("MaxPool2d(3, dilation=1", "MaxPool2d(2, dilation=1"),
        ("MaxPool2d(3, dilation=1", "MaxPool2d(3, stride=1, dilation=1"),
        ("return_indices=False", "return_indices=0"),
        ("nn.PixelShuffle(2)", "nn.PixelUnshuffle(2)", "extras.20 was 'torch.nn.modules.pixelshuffle.PixelShuffle'"),
        ("RReLU(0.1, 0.3)", "RReLU(0.1, 0.4)"),
        ("RReLU(0.1, 0.3)", "RReLU(0.3, 0.3)"),
        ("ReflectionPad2d(2)", "ReplicationPad2d(2)"),
        ("Softplus(beta=2, threshold=20)", "Softplus(beta=3, threshold=20)"),
        ("Softplus(beta=2, threshold=20)", "Softplus(beta=2, threshold=10)"),
        ("nn.Softshrink(0.7)", "nn.Softshrink(0.71)"),
        ("Softmax(dim=1)", "Softmax(dim=0)"),
        ("Softmax(dim=1)", "LogSoftmax(dim=1)"),
        ("Threshold(0.1, 0.2)", "Threshold(0.1, 0.25)"),
        ("Threshold(0.1, 0.2)", "Threshold(0.2, 0.1)"),
        ("Unflatten(1, (1, 2))", "Unflatten(1, (2, 1))"),
        ("Unfold(2, dilation=1, padding=0)", "Unfold(2, dilation=1, padding=1)"),
        ("Upsample(scale_factor=2, mode", "Upsample(scale_factor=3, mode"),
        ('mode="nearest"', 'mode="bilinear"'),
        ('mode="nearest"', 'mode="bilinear", align_corners=True'),
        ("ZeroPad2d((1, 1, 0, 0))", "ZeroPad2d((0, 0, 1, 1))"),
        (
            "            nn.PixelShuffle(2),\n            nn.RReLU(0.1, 0.3),\n",
            "            nn.RReLU(0.1, 0.3),\n            nn.PixelShuffle(2),\n",
        ),
        ("            nn.Softmax(dim=1),\n", ""),
    ]
    return [("layers.py", *row) for row in arguments]


_MODEL = [
    ("floor = 0.0", "floor = 0.1", "Positive.floor was 0.0 when this was recorded, now 0.1"),
    ("return weight.abs() + self.floor", "return weight.pow(2) + self.floor", "code of Positive.forward"),
    ("        return weight\n", "        return -weight\n"),
    ("return output * 1.5", "return output * 1.25", "code of count"),
    ('"weight", Positive())', '"bias", Positive())'),
    ('        parametrize.register_parametrization(self.head, "weight", Positive())\n', ""),
    (
        '"weight", Positive())',
        '"weight", Positive())\n        parametrize.register_parametrization(self.stem, "weight", Positive())',
    ),
    ("self.norm.register_forward_hook(count)", "self.stem.register_forward_hook(count)"),
    ("self.norm.register_forward_hook(count)", "self.norm.register_forward_hook(count, always_call=True)"),
    (
        "self.norm.register_forward_hook(count)",
        "self.norm.register_forward_hook(count)\n        self.norm.register_forward_hook(count)",
    ),
    ('padding=1, padding_mode="zeros"', 'padding=1, padding_mode="reflect"', "padding_mode was 'zeros' when this was recorded"),
    ('padding=1, padding_mode="zeros"', 'padding="same", padding_mode="zeros"'),
    ('padding=1, padding_mode="zeros"', 'padding=1, groups=1, bias=False, padding_mode="zeros"'),
    ("nn.Conv2d(1, 4, 3", "nn.Conv2d(1, 4, 1"),
    ("eps=1e-3, momentum=0.1", "eps=1e-4, momentum=0.1", "module.norm.eps"),
    ("eps=1e-3, momentum=0.1", "eps=1e-3, momentum=0.01", "module.norm.momentum was 0.1 when this was recorded, now 0.01"),
    ("eps=1e-3, momentum=0.1", "eps=1e-3, momentum=None"),
    ("eps=1e-3, momentum=0.1", "eps=1e-3, affine=False, momentum=0.1"),
    ('("relu", nn.ReLU()), ("tanh", nn.Tanh())', '("tanh", nn.Tanh()), ("relu", nn.ReLU())', "module.blocks.order of modules"),
    ('("relu", nn.ReLU()), ("tanh", nn.Tanh())', '("relu", nn.Tanh()), ("tanh", nn.ReLU())'),
    ('("relu", nn.ReLU())', '("relu", nn.ReLU6())'),
    ('("relu", nn.ReLU())', '("relu", nn.ReLU(inplace=True))'),
    ('("drop", nn.Dropout2d(0.2))', '("drop", nn.Dropout2d(0.1))'),
    ('("drop", nn.Dropout2d(0.2))', '("drop", nn.Dropout(0.2))'),
    ('("drop", nn.Dropout2d(0.2))', '("drop", nn.Identity())'),
    ("def build(channels_last=False)", "def build(channels_last=True)", "stride order of params"),
    ("net.norm.requires_grad_(True)", "net.norm.requires_grad_(False)"),
    ("net.norm.requires_grad_(True)", "net.stem.requires_grad_(False)"),
    ("net.norm.requires_grad_(True)", "net.norm.running_mean.fill_(0.5)"),
    ("net.norm.requires_grad_(True)", "net.norm.num_batches_tracked.fill_(1)"),
    ("net.norm.requires_grad_(True)", 'net.norm.register_buffer("seen", torch.zeros(()))'),
    ("net.norm.requires_grad_(True)", 'net.norm.register_buffer("seen", torch.zeros(()), persistent=False)'),
    ("net.norm.requires_grad_(True)", "net.half().float()"),
    ("net.norm.requires_grad_(True)", "nn.init.kaiming_normal_(net.stem.weight)"),
    ("net.norm.requires_grad_(True)", "nn.init.constant_(net.stem.bias, -0.0)"),
    ("net.norm.requires_grad_(True)", "net.shared = net.stem"),
    ("net.norm.requires_grad_(True)", "net.head.tied = net.stem.bias"),
    ("net.norm.requires_grad_(True)", "net.norm.tied = net.stem.bias"),
    ("net.norm.requires_grad_(True)", "net.norm.tied = net.norm.bias"),
    ("net.norm.requires_grad_(True)", "from torch.nn.utils import prune\n\n    prune.l1_unstructured(net.stem, 'weight', 0.5)"),
    ("x.mean((2, 3))", "x.amax((2, 3))"),
    ("x.mean((2, 3))", "x.mean((3, 2))"),
    ("self.blocks.values()", "reversed(self.blocks.values())"),
    (
        "import torch\nfrom torch import nn\n",
        "import torch\nfrom torch import nn\n\nnn.ReLU.forward = lambda self, x: x.sigmoid()\n",
        "torch.nn.modules.activation.ReLU.forward",
    ),
    (
        "import torch\nfrom torch import nn\n",
        "import torch\nfrom torch import nn\n\ntorch.Tensor.doubled = lambda self: 2 * self\n",
        "torch.Tensor.doubled",
    ),
    (
        "import torch\nfrom torch import nn\n",
        "import torch\nfrom torch import nn\n\nnn.functional.relu = lambda x, inplace=False: x.sigmoid()\n",
        "torch.nn.functional.relu",
    ),
    (
        "import torch\nfrom torch import nn\n",
        "import torch\nfrom torch import nn\n\nnn.modules.module.register_module_forward_hook(lambda m, a, o: o)\n",
        "global_forward_hooks",
    ),
]

_DATA = [
    ("amount=0.1", "amount=0.2"),
    ("amount=0.1", "amount=1e-1 + 1e-9"),
    ("x + self.amount * torch", "x - self.amount * torch"),
    ("axes=(1,), *, scale=1.0", "axes=(1,), *, scale=2.0"),
    ("x.flip(axes) * scale", "x.flip(axes) / scale"),
    ("partial(flip, axes=(1, 2))", "partial(flip, axes=(2, 1))"),
    ("partial(flip, axes=(1, 2))", "partial(flip, axes=[1, 2])"),
    ("partial(flip, axes=(1, 2))", "partial(flip)"),
    ("[partial(flip, axes=(1, 2)), Noise", "[torch.abs, partial(flip, axes=(1, 2)), Noise"),
    ("lambda x: x[:, :4, :4]", "lambda x: x[:, -4:, -4:]"),
    ("lambda x: x[:, :4, :4]", "torch.clone"),
    ("lambda x: x[:, :4, :4]]", "lambda x: x[:, :4, :4], torch.clone]"),
    ('{"cat": 0, "dog": 1}', '{"cat": 1, "dog": 0}'),
    ('{"cat": 0, "dog": 1}', '{"dog": 1, "cat": 0}'),
    ('{"cat": 0, "dog": 1}', '{"cat": 0, "dog": 1, "cow": 2}'),
    ('{"cat": 0, "dog": 1}', '{"cat": False, "dog": True}'),
    ("crop = 4", "crop = 5"),
    ("mean=0.5", "mean=0.4", "dataset.mean was 0.5 when this was recorded, now 0.4"),
    ("mean=0.5", "mean=np.float32(0.5)"),
    ("np.float32(0.25)", "np.float64(0.25)"),
    ("np.float32(0.25)", "0.25"),
    ("np.float32(0.25)", "np.array(0.25, np.float16)"),
    ("(x - self.mean) / self.std", "(x - self.mean) * self.std", "code of dataset"),
    ("self.labels[self.names[i]]]", "self.labels[self.names[-i]]]"),
    ("return len(self.names)\n", "return len(self.names) - 1\n"),
    ('glob("*.npy"))', 'glob("[0-2].npy"))'),
    ('glob("*.npy"))', 'glob("*.npy"))[::-1]'),
    ("0.1 * i), i % 2)", "0.2 * i), i % 2)", "validation data"),
    ("0.1 * i), i % 2)", "0.1 * i), (i + 1) % 2)"),
    ("0.1 * i), i % 2) for i in range(4)", "0.1 * i), i % 2) for i in range(5)"),
    ("0.1 * i), i % 2) for i in range(4)", "0.1 * i), i % 2) for i in (1, 0, 2, 3)"),
    ("torch.full((1, 4, 4), 0.1 * i)", "torch.full((1, 4, 4), 0.1 * i, dtype=torch.float64)"),
    ("torch.full((1, 4, 4), 0.1 * i)", "torch.full((1, 5, 4), 0.1 * i)"),
    ("for i in range(4)]", "for i in range(4)] * 2"),
    ("return self.rows[i]", "return self.rows[-i]"),
    ("size, start=0, weights=None", "size, start=1, weights=None", "sampler.start was 0 when this was recorded, now 1"),
    ("EveryOther(len(train))", "EveryOther(len(train), weights=[1.0, 2.0])"),
    ("EveryOther(len(train))", "EveryOther(len(train) - 2)"),
    ("EveryOther(len(train))", "range(len(train))"),
    ("EveryOther(len(train))", "np.arange(len(train))"),
    ("EveryOther(len(train))", "torch.utils.data.SequentialSampler(train)"),
    ("EveryOther(len(train))", "torch.utils.data.DistributedSampler(train, num_replicas=2, rank=0)"),
    ("EveryOther(len(train))", "torch.utils.data.DistributedSampler(train, num_replicas=2, rank=1)"),
    ("EveryOther(len(train))", "torch.utils.data.DistributedSampler(train, num_replicas=2, rank=0, shuffle=False)"),
    ("range(self.start, self.size, 2), *range(1", "range(self.start, self.size, 3), *range(1"),
    ("BatchSampler(sampler, 2, False)", "BatchSampler(sampler, 1, False)", "batch_size was 2 when this was recorded, now 1"),
    ("BatchSampler(sampler, 2, False)", "BatchSampler(sampler, 2, True)", "drop_last"),
    ("BatchSampler(sampler, 2, False)", "[[0, 1], [2, 3]]"),
    ("BatchSampler(sampler, 2, False)", "[[0, 1], [3, 2]]"),
    ("BatchSampler(sampler, 2, False)", "np.arange(4).reshape(2, 2)"),
    ("BatchSampler(sampler, 2, False)", "np.arange(4)[::-1].reshape(2, 2)"),
    ("dtype=torch.float32):", "dtype=torch.float64):", "collate"),
    ("torch.stack(x).to(dtype)", "torch.stack(x).flip(0).to(dtype)"),
    ("torch.tensor(y)", "torch.tensor(y).flip(0)"),
    ("DataLoader(val, batch_size=2, collate_fn=collate)", "DataLoader(val, batch_size=2)"),
    (
        "DataLoader(val, batch_size=2, collate_fn=collate)",
        "DataLoader(val, batch_size=2, collate_fn=partial(collate, dtype=torch.float16))",
    ),
    ("DataLoader(val, batch_size=2, collate_fn=collate)", "DataLoader(val, batch_size=2, collate_fn=collate, in_order=False)"),
]

_TRAIN = [
    ("torch.tensor([1.0, 0.5])", "torch.tensor([1.0, 0.25])", "code of loss"),
    ("torch.tensor([1.0, 0.5])", "torch.tensor([0.5, 1.0])"),
    ("label_smoothing=0.1", "label_smoothing=0.2"),
    ("label_smoothing=0.1", 'reduction="sum", label_smoothing=0.1'),
    ("label_smoothing=0.1", "ignore_index=1, label_smoothing=0.1"),
    ("label_smoothing=0.1)", "label_smoothing=0.1).eval()"),
    ("AdamW", "Adam", "optimizer class was 'torch.optim.adamw.AdamW' when this was recorded, now 'torch.optim.adam.Adam'"),
    ("lr=1e-3", "lr=3e-4", "optimizer lr was the default when this was recorded, now 0.0003"),
    ("lr=1e-3", "lr=torch.tensor(1e-3)"),
    ("betas=(0.9, 0.99)", "betas=(0.9, 0.98)", "optimizer betas"),
    ("betas=(0.9, 0.99)", "betas=[0.9, 0.99]"),
    ("eps=1e-8", "eps=1e-7", "optimizer eps was the default when this was recorded, now 1e-07"),
    ("weight_decay=0.01", "weight_decay=0.1"),
    ("weight_decay=0.01", "weight_decay=0.01, amsgrad=True"),
    ("weight_decay=0.01", "weight_decay=0.01, amsgrad=1"),
    ("weight_decay=0.01", "weight_decay=0.01, capturable=True"),
    ("T_max=10", "T_max=11"),
    ("T_max=10", "T_max=10, eta_min=1e-5"),
    ("seed=0", "seed=-1"),
    ("seed=0", "seed=2**40"),
    ("metrics=[ps.metric_accuracy]", "metrics=[]"),
    ("metrics=[ps.metric_accuracy]", "metrics=[ps.metric_accuracy], warmup=1"),
    (
        "def main(store):\n",
        'def main(store):\n    torch.set_float32_matmul_precision("medium")\n',
        "matmul_precision was not there when this was recorded, now 'medium'",
    ),
    ("def main(store):\n", 'def main(store):\n    torch.set_float32_matmul_precision("high")\n'),
    ("def main(store):\n", "def main(store):\n    torch.set_default_dtype(torch.float64)\n"),
    ("def main(store):\n", "def main(store):\n    torch.backends.cuda.enable_flash_sdp(False)\n", "flash_attention"),
    ("def main(store):\n", "def main(store):\n    torch.backends.cuda.enable_math_sdp(False)\n"),
    ("def main(store):\n", "def main(store):\n    torch.backends.mha.set_fastpath_enabled(False)\n"),
    ("def main(store):\n", "def main(store):\n    torch.backends.mkldnn.set_flags(False)\n"),
    (
        "    ck.train(s0",
        '    with torch.autocast("cpu", dtype=torch.bfloat16):\n        ck.train(s0',
        "autocast was not there when this was recorded, now 'torch.bfloat16'",
    ),
    ("    ck.train(s0", '    with torch.autocast("cpu", dtype=torch.float16):\n        ck.train(s0'),
    ("def main(store):\n", "def main(store):\n    data.Images.crop = 3\n"),
]


def _image(folder: Path) -> Path:
    return folder / "files" / "images" / "2.npy"


def a_byte_of_an_image_with_another_time(folder: Path) -> None:
    content = bytearray(_image(folder).read_bytes())
    content[-1] ^= 1
    _image(folder).write_bytes(bytes(content))


def an_image_of_another_size(folder: Path) -> None:
    stat = _image(folder).stat()
    np.save(_image(folder), np.ones((1, 5, 4), np.float32))
    os.utime(_image(folder), ns=(stat.st_atime_ns, stat.st_mtime_ns))


def an_image_that_was_touched(folder: Path) -> None:
    _image(folder).touch()


def an_image_renamed(folder: Path) -> None:
    _image(folder).rename(_image(folder).with_name("9.npy"))
    labels = folder / "files" / "images" / "labels.json"
    labels.write_text(labels.read_text().replace("2.npy", "9.npy"))


def an_image_more(folder: Path) -> None:
    np.save(folder / "files" / "images" / "extra.npy", np.ones((1, 4, 4), np.float32))
    labels = folder / "files" / "images" / "labels.json"
    labels.write_text(labels.read_text().replace("{", '{"extra.npy": "cat", '))


def an_image_less(folder: Path) -> None:
    _image(folder).unlink()


def a_label(folder: Path) -> None:
    labels = folder / "files" / "images" / "labels.json"
    labels.write_text(labels.read_text().replace('"0.npy": "cat"', '"0.npy": "dog"'))


def a_file_below(folder: Path) -> None:
    (folder / "files" / "images" / "more" / "notes.txt").write_text("one now")


def a_file_behind_a_link(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "more.npy").write_bytes(b"0")
    (folder / "files" / "images" / "link").symlink_to(elsewhere)


def the_noise_of_a_transform(folder: Path) -> None:
    np.save(folder / "files" / "noise.npy", np.ones((1, 4, 4), np.float32))


def another_dtype_of_the_noise(folder: Path) -> None:
    np.save(folder / "files" / "noise.npy", np.zeros((1, 4, 4), np.float64))


_FILES = [
    a_byte_of_an_image_with_another_time,
    an_image_of_another_size,
    an_image_that_was_touched,
    an_image_renamed,
    an_image_more,
    an_image_less,
    a_label,
    a_file_below,
    a_file_behind_a_link,
    the_noise_of_a_transform,
    another_dtype_of_the_noise,
]

CHANGES = [
    *_of_layers(),
    *(("model.py", *row) for row in _MODEL),
    *(("data.py", *row) for row in _DATA),
    *(("train.py", *row) for row in _TRAIN),
    *_FILES,
]


def files_elsewhere(folder: Path) -> None:
    """The folder beside it is another's; what is not of the data set does not count."""
    (folder / "files" / "others.txt").write_text("not ours")


NEUTRAL = [
    ("layers.py", "def layers():\n", "def layers():\n    # all that there is\n"),
    ("layers.py", "nn.ELU(alpha=1.5)", "nn.ELU(alpha=15e-1)"),
    ("layers.py", "nn.Threshold(0.1, 0.2),\n", "nn.Threshold(\n                0.1,\n                0.2,\n            ),\n"),
    ("layers.py", "return nn.ModuleList(", "return nn.ModuleList(  # in turn"),
    ("model.py", "def count(module, args, output):\n", "def count(module, args, output):\n    '''Count.'''\n"),
    ("model.py", "    def forward(self, weight):\n", "    # a parametrization\n    def forward(self, weight):\n"),
    ("model.py", "class Net(nn.Module):\n", "class Net(nn.Module):\n    '''Of convolutions.'''\n\n"),
    ("model.py", "net.norm.requires_grad_(True)", "net.eval()"),
    ("data.py", '    """All images of a folder."""\n\n', ""),
    ("data.py", "def flip(x", "def unused(x):\n    return x\n\n\ndef flip(x"),
    ("data.py", "import json\nfrom functools", "import json\nimport os\nfrom functools"),
    ("data.py", "collate_fn=collate),\n        DataLoader(val", "collate_fn=collate, num_workers=1),\n        DataLoader(val"),
    ("train.py", "lr=1e-3", "lr=0.001"),
    ("train.py", "eps=1e-8, ", ""),
    ("train.py", "weight_decay=0.01", "weight_decay=1e-2, amsgrad=False, maximize=False"),
    ("train.py", "epochs=1, metrics", "epochs=1, progress=False, metrics"),
    ("train.py", "    train_dl, val_dl = data.loaders()\n", "    torch.rand(3)\n    train_dl, val_dl = data.loaders()\n"),
    files_elsewhere,
]
