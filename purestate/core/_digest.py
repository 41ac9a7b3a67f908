"""The hash of scalars and trees, and how every hash is written. What hashes tensors, and needs torch for that, is in `_hash`.

Whoever only reads logs needs these, and is spared the import of torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from blake3 import blake3

__all__ = ["bytes_hash", "canonical_json", "joined_hash", "leaf_header", "scalar_hash", "short", "tree_hash"]

_COPIED = 1 << 18
"""Up to how many bytes are copied into one piece: a hash that is given many small ones takes twice as long."""
_LEAF, _SCALAR, _TREE = "purestate/leaf/1", "purestate/scalar/1", "purestate/tree/1"


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a plain value: sorted keys, no spaces, ASCII. inf and nan are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def leaf_header(dtype: str, shape: Sequence[int]) -> bytes:
    r"""Return what the bytes of a leaf are hashed behind.

    Args:
        dtype: Its name in torch: ``'float32'``.
        shape: Its shape.

    Example:
        >>> leaf_header("float32", (2, 3))
        b'["purestate/leaf/1","float32",[2,3]]\x00'
    """
    return f'["{_LEAF}","{dtype}",{json.dumps(list(shape), separators=(",", ":"))}]\0'.encode("ascii")


def bytes_hash(dtype: str, shape: Sequence[int], data: bytes | memoryview) -> str:
    """Return the digest of a leaf from its elements.

    Args:
        dtype: Its name in torch.
        shape: Its shape.
        data: The elements in row-major order, little-endian.
    """
    return blake3(leaf_header(dtype, shape)).update(data).hexdigest()


def joined_hash(*pieces: bytes | memoryview) -> bytes:
    """Return 32 bytes: the BLAKE3 of what is behind one another, without a domain of its own.

    Example:
        >>> joined_hash(b"a", b"b") == joined_hash(b"ab")
        True
    """
    if sum(map(len, pieces)) <= _COPIED:
        return blake3(b"".join(pieces)).digest()
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def scalar_hash(value: Any) -> str:
    """Return the digest of a plain value in its typed encoding (see `_plain.encode`)."""
    return blake3(_SCALAR.encode() + b"\0" + canonical_json(value)).hexdigest()


def tree_hash(children: Mapping[str, str]) -> str:
    """Return the digest of a tree from the digests of its children, by key path."""
    return blake3(_TREE.encode() + b"\0" + canonical_json(dict(children))).hexdigest()


def short(digest: str) -> str:
    """Return how a digest, or the hash of a state, is shown to people: ``'b3:9f2c4e1a'``."""
    return f"b3:{digest.removeprefix('b3:')[:8]}"
