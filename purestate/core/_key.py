"""The random key: where every random number of training comes from.

A `Key` is two 32-bit words. New keys derive by `Key.fold_in` only, which is the Threefry-2x32 block cipher with 20
rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) and gives the same words as
``jax.random.fold_in``. It is computed in Python integers, so that it depends on no library version and costs no import.
Nothing here draws a number: a key gives seeds, and torch's, numpy's and Python's own generators draw from those.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from purestate.errors import StateError

__all__ = ["Key", "Tag"]

_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


class Tag(IntEnum):
    """What a key is folded with first, so that no two uses share a stream. Values are part of the format."""

    INIT = 1
    """The builder of a module runs under it."""
    ADVANCE = 2
    """The key that a finished `train` returns, by number of epochs."""
    ORDER = 3
    """The order of an epoch's samples, by epoch of the op."""
    STEP = 4
    """The generators of a step, by step of the op."""
    SAMPLE = 5
    """The generators while a sample is loaded, by position in the epoch."""
    VALIDATE = 6
    """The validation after an epoch, by epoch of the op."""
    EVALUATE = 7
    FIND_LR = 8
    PREDICT = 9
    WORKER = 10
    """The generators of a loader worker, by its number."""


@dataclass(frozen=True, slots=True)
class Key:
    """Two 32-bit words from which all randomness of an op derives.

    Args:
        hi: First word, ``0 <= hi < 2**32``.
        lo: Second word, likewise.

    Example:
        >>> Key.from_seed(0).fold_in(1)
        Key(928981903, 3453687069)
    """

    hi: int
    lo: int

    def __post_init__(self) -> None:
        """Refuse what is no 32-bit word."""
        if not (0 <= self.hi <= _MASK and 0 <= self.lo <= _MASK):
            raise StateError(
                f"a key is two integers from 0 to 2**32 - 1, got {self.hi!r} and {self.lo!r}.",
                fix="Use Key.from_seed(seed).",
                path="key",
            )

    @classmethod
    def from_seed(cls, seed: int) -> Key:
        """Return the key of a seed: its two 32-bit halves, as ``jax.random.key`` under 64-bit integers does.

        Args:
            seed: Any integer; it is taken modulo ``2**64``.
        """
        return cls((seed >> 32) & _MASK, seed & _MASK)

    def fold_in(self, data: int) -> Key:
        """Return the key for ``data`` under this one. Equal to ``jax.random.fold_in(key, data)``.

        Args:
            data: A tag or a counter; it is taken modulo ``2**32``.
        """
        return Key(*_threefry(self.hi, self.lo, 0, data & _MASK))

    def derive(self, tag: Tag, i: int = 0) -> Key:
        """Return ``fold_in(fold_in(self, tag), i)``, the only way in which the library derives keys."""
        return self.fold_in(tag).fold_in(i)

    @property
    def seed(self) -> int:
        """The words as one 64-bit integer, to seed a generator with."""
        return self.hi << 32 | self.lo

    @property
    def words(self) -> np.ndarray:
        """The words as a uint32 array: ``jax.random.wrap_key_data(key.words)`` is the same key in JAX."""
        return np.array([self.hi, self.lo], np.uint32)

    def seeds(self, start: int, stop: int) -> np.ndarray:
        """Return ``[self.fold_in(i).seed for i in range(start, stop)]`` as a uint64 array, 300 times faster."""
        lo = np.arange(start, stop, dtype=np.uint64).astype(np.uint32)  # modulo 2**32, as `fold_in` takes it
        hi, lo = _threefry_array(self.hi, self.lo, np.zeros_like(lo), lo)
        return hi.astype(np.uint64) << np.uint64(32) | lo.astype(np.uint64)

    def __repr__(self) -> str:
        return f"Key({self.hi}, {self.lo})"


def _threefry(k0: int, k1: int, x0: int, x1: int) -> tuple[int, int]:
    keys = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = (x0 + k0) & _MASK, (x1 + k1) & _MASK
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x0 = (x0 + x1) & _MASK
            x1 = ((x1 << r | x1 >> (32 - r)) & _MASK) ^ x0
        x0 = (x0 + keys[(i + 1) % 3]) & _MASK
        x1 = (x1 + keys[(i + 2) % 3] + i + 1) & _MASK
    return x0, x1


def _threefry_array(k0: int, k1: int, x0: np.ndarray, x1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys = [np.uint32(k) for k in (k0, k1, k0 ^ k1 ^ _PARITY)]
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(r) | x1 >> np.uint32(32 - r)) ^ x0
        x0 = x0 + keys[(i + 1) % 3]
        x1 = x1 + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x0, x1
