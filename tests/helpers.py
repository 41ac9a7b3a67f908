"""What several tests need: tiny modules, their data, and the comparison of trees bit for bit.

Nothing here reads or moves a global generator: weights and data come from a generator of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["ConvNet", "Linear", "Mlp", "assert_trees_identical", "batch", "bits", "build"]


class Linear(nn.Module):
    """The smallest thing that trains: 3 features in, 2 out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class Mlp(nn.Module):
    """Two layers with dropout between: draws random numbers in training. 3 features in, 2 out."""

    def __init__(self, hidden: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class ConvNet(nn.Module):
    """Convolution with BatchNorm: has buffers that training writes. Images ``(B, 1, 4, 4)`` in, 2 out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def build(cls: type[nn.Module], seed: int = 0, **arguments: Any) -> nn.Module:
    """Return ``cls(**arguments)`` built under ``seed``; the global generator is where it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(**arguments)


def batch(size: int = 16, shape: Sequence[int] = (3,), classes: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(x, y)``: float32 ``(size, *shape)`` from a normal distribution, int64 ``(size,)`` below ``classes``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *shape, generator=generator)
    return x, torch.randint(classes, (size,), generator=generator)


def bits(tensor: torch.Tensor) -> bytes:
    """Return the elements as bytes, in row-major order: nan equals nan with the same payload, 0.0 is not -0.0."""
    flat = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_trees_identical(actual: Any, expected: Any, where: str = "tree", *, strides: bool = False) -> None:
    """Assert that two trees have the same keys in the same order, the same types and the same bits in every leaf.

    Args:
        actual: Nested mappings, lists and tuples with tensors and plain values.
        expected: Likewise.
        where: What the tree is called in the message.
        strides: Also compare strides, which decide bits later on.
    """
    if isinstance(expected, Mapping):
        assert isinstance(actual, Mapping), f"{where}: {type(actual).__name__} is no mapping"
        assert list(actual) == list(expected), f"{where}: other keys or another order"
        for key in expected:
            assert_trees_identical(actual[key], expected[key], f"{where}[{key!r}]", strides=strides)
        return
    assert type(actual) is type(expected), f"{where}: {type(actual).__name__} instead of {type(expected).__name__}"
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype, f"{where}: {actual.dtype} instead of {expected.dtype}"
        assert actual.shape == expected.shape, f"{where}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
        assert not strides or actual.stride() == expected.stride(), f"{where}: {actual.stride()} != {expected.stride()}"
        assert bits(actual) == bits(expected), f"{where}: other bits\n{actual}\n{expected}"
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), f"{where}: {len(actual)} instead of {len(expected)} entries"
        for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_trees_identical(a, b, f"{where}[{i}]", strides=strides)
    elif isinstance(expected, float):
        assert actual.hex() == expected.hex(), f"{where}: {actual!r} instead of {expected!r}"
    else:
        assert actual == expected, f"{where}: {actual!r} instead of {expected!r}"
