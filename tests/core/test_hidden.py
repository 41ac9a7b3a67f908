"""What is kept in plain attributes: found, told apart from what was just computed, and made new again."""

from __future__ import annotations

import functools
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purestate.core._hidden import Attributes, New, walk
from purestate.core._seeds import preserved_generators


class Slotted:
    __slots__ = ("empty", "n")

    def __init__(self) -> None:
        self.n = 0


class Plain:
    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> None:
        self.n += 1


def module(**attributes: Any) -> nn.Module:
    with preserved_generators():
        made = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    for name, value in attributes.items():
        setattr(made[1], name, value)
    return made


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda owner: setattr(owner, name, value)


MOVES: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "number": (1, _set("it", 2), "1.it"),
    "the same in another type": (1, _set("it", 1.0), "1.it"),
    "gone": (1, lambda m: delattr(m, "it"), "1.it"),
    "list": ([1], lambda m: m.it.append(2), "1.it"),
    "entry of a list": ([1, 2], lambda m: m.it.__setitem__(1, 3), "1.it[1]"),
    "entry of a dict": ({"a": 1}, lambda m: m.it.update(a=2), "1.it['a']"),
    "new entry of a dict": ({"a": 1}, lambda m: m.it.update(b=2), "1.it['b']"),
    "growth of a long dict": (dict.fromkeys(range(20_000)), lambda m: m.it.update({-1: 1}), "1.it"),
    "growth of a long list": ([0] * 20_000, lambda m: m.it.append(0), "1.it"),
    "deque": (deque([1, 2], maxlen=2), lambda m: m.it.append(3), "1.it[0]"),
    "set": ({1}, lambda m: m.it.add(2), "1.it"),
    "object": (Plain(), lambda m: m.it(), "1.it.n"),
    "object with slots": (Slotted(), lambda m: _set("n", 1)(m.it), "1.it.n"),
    "object of a bound method": (Plain().__call__, lambda m: m.it(), "1.it.n"),
    "argument of a partial": (functools.partial(min, [1]), lambda m: m.it.args[0].append(2), "1.it.args[0]"),
    "array": (np.zeros(3), lambda m: m.it.__iadd__(1), "1.it"),
    "torch's generator": (torch.Generator(), lambda m: torch.rand(1, generator=m.it), "1.it"),
    "numpy's generator": (np.random.default_rng(0), lambda m: m.it.random(), "1.it"),
    "numpy's old generator": (np.random.RandomState(0), lambda m: m.it.rand(), "1.it"),
    "Python's generator": (random.Random(0), lambda m: m.it.random(), "1.it"),
    "tensor": (torch.zeros(2), lambda m: m.it.add_(1), "1.it"),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_found_where_it_is(name: str) -> None:
    value, move, path = MOVES[name]
    made = module(it=value)
    before = Attributes(made)
    assert before.moved() is None
    move(made[1])
    assert before.moved() in (f"the attribute {path!r}", f"the tensor attribute {path!r}")


def test_what_was_just_computed_is_no_move_unless_it_was_used() -> None:
    old = torch.zeros(2)
    made = module(last=old)
    before = Attributes(made)
    made[1].last = torch.ones(2)
    assert before.moved() is None
    assert before.moved(used=[old]) == "the tensor attribute '1.last'"


def test_parameters_and_buffers_are_no_attributes() -> None:
    made = nn.BatchNorm1d(2)
    before = Attributes(made)
    made(torch.randn(4, 2, generator=torch.Generator()))
    with torch.no_grad():
        made.weight.add_(1)
    assert before.moved() is None


def test_what_refers_to_itself_is_walked_once() -> None:
    loop: dict[str, Any] = {"n": 1}
    loop["self"] = loop
    assert list(walk(loop, "loop", 0, set())) == [("loop['n']", "1")]


def test_attributes_are_lent_as_they_were_and_bound_again() -> None:
    made = module(seen=[1], table=torch.zeros(2), calls=0)
    new = New(made)
    made[1].seen.append(2)
    made[1].table.add_(1)
    made[1].calls, made[1].late = 7, "late"
    used = made[1].seen, made[1].table
    for _ in range(2):
        with new.lent():
            assert (made[1].seen, made[1].table.tolist(), made[1].calls) == ([1], [0.0, 0.0], 0)
            assert not hasattr(made[1], "late")
            made[1].seen.append(9)  # into a copy: the next loan is new again
            made[1].other = 1
    assert made[1].seen is used[0] == [1, 2]
    assert made[1].table is used[1]
    assert (made[1].calls, made[1].late, hasattr(made[1], "other")) == (7, "late", False)


def test_lent_attributes_refer_to_the_very_modules_and_parameters() -> None:
    made = module(of=[])
    made[1].of.extend([made[0], made[0].weight])
    new = New(made)
    with new.lent():
        assert made[1].of[0] is made[0]
        assert made[1].of[1] is made[0].weight


def test_attributes_are_put_back_after_an_error() -> None:
    made = module(calls=3)
    new = New(made)
    made[1].calls = 4
    with pytest.raises(ZeroDivisionError), new.lent():
        made[1].calls = 1 // 0
    assert made[1].calls == 4


def test_what_cannot_be_copied_is_shared() -> None:
    lock, seen = threading.Lock(), []
    made = module(lock=lock, seen=seen)
    with New(made).lent():
        assert made[1].lock is lock
        assert made[1].seen is not seen


def test_a_module_of_the_attributes_of_rnns_runs_on_loan() -> None:
    with preserved_generators():
        rnn = nn.LSTM(2, 2)
    x = torch.ones(1, 1, 2)
    expected: Tensor = rnn(x)[0].detach()
    new = New(rnn)
    with new.lent():
        assert torch.equal(rnn(x)[0], expected)
    assert torch.equal(rnn(x)[0], expected)
