"""How many parameters a state has: one line, or a table a layer. Knows states, no model; prints nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from purestate.core._state import State
from purestate.view import text_table

__all__ = ["count_line", "params_table"]

_MARKS = {"params": "trainable", "frozen": "frozen", "buffers": "buffer"}
_HEADER = ("layer", "name", "mark", "count", "shape")
_UNITS = ("", " k", " M", " G", " T")


def count_line(state: State) -> str:
    """Return how many elements a state has to train, to keep as they are, and in buffers, in one line.

    Args:
        state: Not modified. Where it was not read yet, its tensors are.

    Example:
        >>> count_line(ps.init(lambda: nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100)), seed=0))
        'Trainable params: 10.3 k. Untrainable params: 0. Buffers: 201.'
    """
    trainable, frozen, buffers = (sum(t.numel() for t in getattr(state, subtree).values()) for subtree in _MARKS)
    return f"Trainable params: {_human(trainable)}. Untrainable params: {_human(frozen)}. Buffers: {_human(buffers)}."


def params_table(state: State) -> str:
    """Return a line a tensor, layer by layer as the module has them, and `count_line` below.

    Args:
        state: Not modified. Where it was not read yet, its tensors are.

    Example:
        >>> print(params_table(ps.freeze(ps.init(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), seed=0), "0.*")))
        layer            name                 mark       count  shape
        ---------------  -------------------  ---------  -----  ------
        0 (Linear)       weight               frozen     12     [4, 3]
                         bias                 frozen     4      [4]
        1 (BatchNorm1d)  weight               trainable  4      [4]
                         bias                 trainable  4      [4]
                         running_mean         buffer     4      [4]
                         running_var          buffer     4      [4]
                         num_batches_tracked  buffer     1      []
        Trainable params: 8. Untrainable params: 16. Buffers: 9.
    """
    return f"{text_table(list(_rows(state)), _HEADER)}\n{count_line(state)}"


class _Leaf(NamedTuple):
    name: str
    mark: str
    tensor: torch.Tensor


def _rows(state: State) -> Iterator[tuple[str, ...]]:
    for layer, leaves in _layers(state).items():
        for i, leaf in enumerate(leaves):
            count, shape = _human(leaf.tensor.numel()), str(list(leaf.tensor.shape))
            yield "" if i else layer, leaf.name, leaf.mark, count, shape


def _layers(state: State) -> dict[str, list[_Leaf]]:
    """Return the tensors of each layer that has any, in the order of the module where the state knows one."""
    modules = dict(state.recipe.template.named_modules()) if state.recipe is not None else {}
    found: dict[str, list[_Leaf]] = {name: [] for name in modules}
    for subtree, mark in _MARKS.items():
        for path, tensor in getattr(state, subtree).items():
            layer, _, name = path.rpartition(".")
            found.setdefault(layer, []).append(_Leaf(name, mark, tensor))
    titles = {name: f"{name} ({type(module).__name__})".strip() for name, module in modules.items()}
    return {titles.get(layer, layer or "(root)"): leaves for layer, leaves in found.items() if leaves}


def _human(count: int) -> str:
    """Return a count with one decimal above a thousand: 950, 10.2 k, 3.4 M."""
    value, unit = float(count), 0
    while round(value, 1) >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f}{_UNITS[unit]}" if unit else str(count)
