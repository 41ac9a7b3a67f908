"""`Leaves`: an immutable mapping of names to tensors that knows its hash, and may not have been read yet.

A `purestate.State` is made of these. Besides the tensors a `Leaves` remembers each tensor's digest, once asked for, and its
version counter at the time when it was made, so that a change in place is noticed where the state next enters an op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from purestate.core._hash import dtype_name, leaf_hashes, tree_hash
from purestate.errors import FrozenStateError, MutatedStateError, TreeMismatchError

__all__ = ["LeafSpec", "Leaves", "check_same_names", "in_order", "layout_text", "spec_of", "stride_order"]


class LeafSpec(NamedTuple):
    """What a leaf looks like without its elements.

    ``order`` lists the dimensions from the largest stride to the smallest, and is None for row-major tensors. It is part
    of a state because kernels choose their algorithm by it: channels_last weights give other bits than contiguous ones.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...] | None = None

    def __str__(self) -> str:
        order = f" order {self.order}" if self.order else ""
        return f"{dtype_name(self.dtype)}{list(self.shape)}{order}"


def stride_order(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the dimensions of a dense tensor from the largest stride to the smallest; None if row-major.

    Strides of axes of length 1 count: a convolution with one input channel is computed in another way, with other bits,
    where its weight is channels_last, though ``is_contiguous()`` holds for both layouts.
    """
    if not tensor.numel() or tensor.stride() == _row_major(tensor.shape):
        return None
    return tuple(sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), tensor.size(d) == 1, d)))


def array_order(array: np.ndarray) -> str:
    """Return ``' order 1,0'`` for an array that is not row-major, which is what torch makes of it as well; else ``''``."""
    order = sorted(range(array.ndim), key=lambda d: (-abs(array.strides[d]), array.shape[d] == 1, d))
    return "" if array.flags.c_contiguous or order == [*range(array.ndim)] else f" order {','.join(map(str, order))}"


def in_order(tensor: torch.Tensor, order: tuple[int, ...] | None) -> torch.Tensor:
    """Return the same elements laid out in ``order``; the tensor itself where it already is."""
    if order == stride_order(tensor):
        return tensor
    if order is None:
        return tensor.clone(memory_format=torch.contiguous_format)
    inverse = [order.index(d) for d in range(tensor.dim())]
    return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * max(shape[d + 1], 1)
    return tuple(strides)


def layout_text(tensor: torch.Tensor) -> str:
    """Return dtype, shape and, where it is not row-major, stride order, as questions hold them: ``'float32[2,3]'``.

    A batch that is channels_last is computed in another way, with other bits, than the same elements in rows.
    """
    text = f"{dtype_name(tensor.dtype)}[{','.join(map(str, tensor.shape))}]"
    strided = tensor.layout is torch.strided and not tensor.is_nested and not is_lazy(tensor)
    order = stride_order(tensor) if strided else None
    return text if order is None else f"{text} order {','.join(map(str, order))}"


def spec_of(tensor: torch.Tensor) -> LeafSpec:
    """Return the spec of a tensor."""
    return LeafSpec(tuple(tensor.shape), tensor.dtype, stride_order(tensor))


class Leaves(Mapping[str, torch.Tensor]):
    """Named tensors that do not change.

    Args:
        tensors: Tensors by name. They are held, not copied: whoever makes a `Leaves` gives up changing them.
        where: The subtree's name, for errors: ``params``.

    Example:
        >>> leaves = Leaves({"weight": torch.zeros(2)}, "params")
        >>> leaves["weight"], len(leaves)
        (tensor([0., 0.]), 1)
        >>> _ = leaves["weight"].add_(1)
        >>> leaves.check()
        Traceback (most recent call last):
        purestate.errors.MutatedStateError: params['weight'] was changed in place after the state was made.
        A state is a value: who holds it relies on its bits. What a train in progress lends is kept by epoch.state.own().
        Work on a copy, state.params['weight'].clone(), and put it back with state.replace(params={...}).
    """

    __slots__ = ("_device", "_digest", "_hashes", "_load", "_orders", "_tensors", "_versions", "_where")

    def __init__(self, tensors: Mapping[str, torch.Tensor] | None = None, where: str = "") -> None:
        self._where = where
        self._digest: str | None = None
        self._hashes: dict[str, str] | None = None
        self._load: Callable[[], Mapping[str, torch.Tensor]] | None = None
        self._device: torch.device | None = None
        self._tensors: dict[str, torch.Tensor] = {}
        self._versions: list[int | None] = []
        self._orders: Mapping[str, tuple[int, ...]] | None = None
        self._hold(tensors or {})

    @classmethod
    def lazy(
        cls,
        digest: str,
        load: Callable[[], Mapping[str, torch.Tensor]],
        device: torch.device,
        orders: Mapping[str, tuple[int, ...]],
        where: str = "",
    ) -> Leaves:
        """Return leaves whose digest is known and whose tensors are read when somebody looks.

        Args:
            digest: What the tensors hash to. ``load`` vouches for it.
            load: Returns the tensors. Called at most once.
            device: Where they will be.
            orders: The stride orders of those that are not row-major.
            where: As for the class.
        """
        leaves = cls(where=where)
        leaves._digest, leaves._load, leaves._device, leaves._orders = digest, load, device, orders
        return leaves

    def _hold(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)
        self._versions = [_version(tensor) for tensor in self._tensors.values()]
        self._orders = None

    def _read(self) -> dict[str, torch.Tensor]:
        if self._load is not None:
            self._hold(self._load())
            self._load = None
        return self._tensors

    @property
    def where(self) -> str:
        """The subtree's name."""
        return self._where

    @property
    def device(self) -> torch.device | None:
        """The device of the first tensor; None if there is none. Reads nothing."""
        return next((tensor.device for tensor in self._tensors.values()), None) if self._load is None else self._device

    @property
    def orders(self) -> Mapping[str, tuple[int, ...]]:
        """The stride orders of the tensors that are not row-major. They decide bits and are in no hash. Reads nothing."""
        if self._orders is None:
            found = {name: stride_order(tensor) for name, tensor in self._tensors.items()}
            self._orders = {name: order for name, order in found.items() if order is not None}
        return self._orders

    @property
    def loaded(self) -> bool:
        """Whether the tensors are in memory."""
        return self._load is None

    @property
    def hashes(self) -> Mapping[str, str]:
        """The digest of each leaf."""
        if self._hashes is None:
            self._hashes = leaf_hashes(self._read())
        return MappingProxyType(self._hashes)

    @property
    def digest(self) -> str:
        """The digest of the tree. Computed once."""
        if self._digest is None:
            self._digest = tree_hash(self.hashes)
        return self._digest

    @property
    def spec(self) -> dict[str, LeafSpec]:
        """Shape, dtype and stride order of each leaf."""
        return {name: spec_of(tensor) for name, tensor in self._read().items()}

    def check(self) -> None:
        """Raise `MutatedStateError` if torch counted a change in place since these leaves were made."""
        for (name, tensor), version in zip(self._tensors.items(), self._versions, strict=True):
            if _version(tensor) != version:
                raise _mutated(self.where, name)

    def verify(self) -> None:
        """Hash every leaf again and raise `MutatedStateError` at the first that differs from its remembered hash."""
        self.check()
        known, digest = self._hashes, self._digest
        actual = leaf_hashes(self._read())
        for name, value in actual.items():
            if known is not None and known[name] != value:
                raise _mutated(self.where, name)
        if digest is not None and tree_hash(actual) != digest:
            raise _mutated(self.where, None)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor], *, same_bits: bool = False) -> Leaves:
        """Return leaves with ``function`` applied to each tensor.

        Args:
            function: Gives a new tensor, or the same one.
            same_bits: The function only moves or copies, so what is known of the hash stays true.

        Raises:
            MutatedStateError: With ``same_bits``, and the bits are not those that were hashed.
        """
        if same_bits:
            self.check()
        new = Leaves({name: function(tensor) for name, tensor in self._read().items()}, self.where)
        if same_bits:
            new._digest, new._hashes = self._digest, self._hashes
        return new

    def own(self) -> Leaves:
        """Return a copy that shares no memory with this one."""
        return self.map(torch.clone, same_bits=True)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Leaves) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __setitem__(self, name: str, value: Any) -> None:
        where = self.where or "params"
        raise FrozenStateError(
            f"{where}[{name!r}] cannot be assigned: a state does not change.",
            fix=f"Make a new one: state.replace({where}={{**state.{where}, {name!r}: tensor}}).",
        )

    def __delitem__(self, name: str) -> None:
        raise FrozenStateError(f"{self.where}[{name!r}] cannot be deleted: a state does not change.")

    def __repr__(self) -> str:
        if not self.loaded:
            return f"Leaves({self.where}, not read yet)"
        return f"Leaves({self.where}, {{{', '.join(f'{name!r}: {spec}' for name, spec in self.spec.items())}}})"


def check_same_names(where: str, expected: Mapping[str, LeafSpec], actual: Mapping[str, LeafSpec], whose: str) -> None:
    """Raise `TreeMismatchError` at the first leaf whose name, shape or dtype differs.

    Args:
        where: The subtree: ``params``.
        expected: What it must look like.
        actual: What came.
        whose: What ``actual`` belongs to, for the message.
    """
    for name in [*expected, *(name for name in actual if name not in expected)]:
        want, got = expected.get(name), actual.get(name)
        if want is None or got is None or want[:2] != got[:2]:
            raise TreeMismatchError(
                f"{where}[{name!r}]: expected {want or 'no such leaf'}, got {got or 'no such leaf'} in {whose}.",
                cause="It probably belongs to a model of another structure.",
                fix="Print state.spec to see all names, shapes and dtypes.",
                path=f"{where}[{name!r}]",
                expected=want,
                actual=got,
            )


def _version(tensor: Any) -> int | None:
    return None if not isinstance(tensor, torch.Tensor) or tensor.is_inference() else tensor._version


def _mutated(where: str, name: str | None) -> MutatedStateError:
    path = f"{where}[{name!r}]" if name is not None else where
    return MutatedStateError(
        f"{path} was changed in place after the state was made.",
        cause="A state is a value: who holds it relies on its bits. What a train in progress lends is kept by epoch.state.own().",
        fix=f"Work on a copy, state.{path}.clone(), and put it back with state.replace({where}={{...}})." if name else None,
        path=path,
    )
