"""One step of an optimizer on the working set: the bits, the state and the options are those of the class that steps alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim.optimizer import register_optimizer_step_post_hook

from purestate.core import _long
from purestate.core._recipe import Clip
from purestate.core._update import Update
from tests.helpers import assert_trees_identical

SHAPES = {"a": (3, 5), "b": (7,), "scalar": (), "long": (130, 257), "image": (4, 3, 3, 3), "one": (1,), "none": (0, 2)}
STEPS = 6
NO_CLIP = Clip()
Gradients = Callable[[int, str], bool]
CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Adam": (optim.Adam, {}),
    "Adam, decay, amsgrad, maximize": (optim.Adam, {"weight_decay": 0.1, "amsgrad": True, "maximize": True}),
    "Adam foreach": (optim.Adam, {"foreach": True}),
    "Adam fused": (optim.Adam, {"fused": True}),
    "Adam, decay": (optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-3}),
    "AdamW": (optim.AdamW, {"weight_decay": 0.1}),
    "AdamW, no decay": (optim.AdamW, {"weight_decay": 0}),
    "Adadelta": (optim.Adadelta, {}),
    "Adagrad": (optim.Adagrad, {"lr_decay": 0.1}),
    "Adamax": (optim.Adamax, {}),
    "ASGD": (optim.ASGD, {"t0": 2}),
    "NAdam": (optim.NAdam, {"decoupled_weight_decay": True}),
    "RAdam": (optim.RAdam, {}),
    "RMSprop": (optim.RMSprop, {"centered": True, "momentum": 0.9}),
    "Rprop": (optim.Rprop, {}),
    "SGD": (optim.SGD, {}),
    "SGD, decay": (optim.SGD, {"weight_decay": 0.1}),
    "SGD, momentum, dampening": (optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "SGD, maximize": (optim.SGD, {"momentum": 0.9, "maximize": True}),
    "SGD nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "Adafactor": (optim.Adafactor, {}),
}


class Side:
    """Parameters, an optimizer, and what was observed after each step."""

    def __init__(self, make: Callable[[list[nn.Parameter]], Any], clip: Clip | None, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
        self.tensors["image"] = self.tensors["image"].to(memory_format=torch.channels_last)
        self.parameters = {name: nn.Parameter(t) for name, t in self.tensors.items()}
        self.optimizer = make(list(self.parameters.values()))
        self.update = None if clip is None else Update(self.optimizer, self.parameters, self.tensors, clip)
        self.seen: list[Any] = []

    def look(self) -> None:
        if self.update is not None:
            self.update.settle()
        state = {name: self.optimizer.state[p] for name, p in self.parameters.items() if p in self.optimizer.state}
        clones = {name: {slot: _clone(value) for slot, value in slots.items()} for name, slots in state.items()}
        self.seen.append([{name: _clone(t) for name, t in self.tensors.items()}, clones])


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def compare(
    make: Callable[[list[nn.Parameter]], Any],
    *,
    clip: Clip = NO_CLIP,
    has: Gradients = lambda step, name: True,
    between: Callable[[Any, int], None] = lambda optimizer, step: None,
    dtype: torch.dtype = torch.float32,
) -> Side:
    """Step both sides with the same gradients and assert that they are equal after each."""
    alone, ours = Side(make, None, dtype), Side(make, clip, dtype)
    generator = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        gradients = {n: torch.randn(t.shape, generator=generator).to(dtype) for n, t in alone.tensors.items()}
        for name, p in alone.parameters.items():
            p.grad = gradients[name].clone() if has(step, name) else None
        if clip.norm is not None:
            nn.utils.clip_grad_norm_(alone.parameters.values(), clip.norm)
        if clip.value is not None:
            nn.utils.clip_grad_value_(alone.parameters.values(), clip.value)
        alone.optimizer.step()
        assert ours.update is not None
        ours.update({n: g.clone() if has(step, n) else None for n, g in gradients.items()})
        assert all(p.grad is None for p in ours.parameters.values()), "gradients are let go"
        for side in (alone, ours):
            between(side.optimizer, step)
            if step % 2:
                side.look()
    assert len(ours.seen) == STEPS // 2
    assert_trees_identical(ours.seen, alone.seen, strides=True)
    return ours


def is_long(side: Side) -> bool:
    assert side.update is not None
    return side.update._long is not None


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_class_gives_its_own_bits(name: str, dtype: torch.dtype) -> None:
    cls, options = CLASSES[name]
    side = compare(
        lambda p: cls(p, lr=0.01, **options), dtype=dtype, has=lambda _, n: name != "Adafactor" or n not in ("scalar", "none")
    )
    if name in ("Adam fused", "Adafactor"):
        assert not is_long(side), "its bits depend on the place of an element in its tensor"


def test_the_usual_ones_are_stepped_on_long_tensors() -> None:
    side = compare(lambda p: optim.Adam([q for q in p if q.numel()], lr=0.01))
    assert is_long(side)
    bundled = {side.tensors[name].untyped_storage().data_ptr() for name in ("a", "b", "scalar", "image", "one")}
    assert len(bundled) == 1
    assert all(t.data_ptr() % 64 == 0 for t in side.tensors.values())


def test_short_floats_are_stepped_as_they_are() -> None:
    assert not is_long(compare(lambda p: optim.AdamW(p, lr=0.01), dtype=torch.bfloat16))


@pytest.mark.parametrize("clip", [Clip(norm=0.5), Clip(value=0.1), Clip(norm=1.0, value=0.05)])
def test_clipping(clip: Clip) -> None:
    assert is_long(compare(lambda p: optim.AdamW(p[:-1], lr=0.01), clip=clip))


@pytest.mark.parametrize("when", [lambda step: step < 3, lambda step: step >= 3, lambda step: step % 2 == 0, lambda step: False])
def test_parameters_without_gradient(when: Callable[[int], bool]) -> None:
    compare(lambda p: optim.Adam(p[:-1], lr=0.01), has=lambda step, name: name not in ("b", "long") or when(step))


def test_groups_and_options_that_move() -> None:
    def make(p: list[nn.Parameter]) -> optim.Optimizer:
        return optim.AdamW([{"params": p[:2], "weight_decay": 0.1}, {"params": p[2:-1], "lr": 0.3}], lr=0.01)

    def between(optimizer: optim.Optimizer, step: int) -> None:
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] *= 0.5 + 0.1 * i
            group["betas"] = (0.9 - 0.1 * step, 0.99)

    assert is_long(compare(make, between=between))


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW, optim.SGD])
def test_the_usual_options_are_stepped_without_the_class(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    original = _long.Long._step_as_the_class
    monkeypatch.setattr(_long.Long, "_step_as_the_class", lambda self: (steps.append(1), original(self)))
    compare(lambda p: cls(p[:-1], lr=0.01, weight_decay=0.1))
    assert steps == []

    def between(optimizer: optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["maximize"] = step in (2, 3)

    assert is_long(compare(lambda p: cls(p[:-1], lr=0.01, weight_decay=0.1), between=between))
    assert len(steps) == 2, "those that ask for something else are the class's own"


def test_a_momentum_that_begins_later() -> None:
    def between(optimizer: optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["momentum"] = 0.9 if step > 2 else 0

    compare(lambda p: optim.SGD(p[:-1], lr=0.01), between=between)


def test_counters_stop_where_their_dtype_makes_them() -> None:
    def make(p: list[nn.Parameter]) -> optim.Optimizer:
        optimizer = optim.Adam(p[:-1], lr=0.01)
        for q in p[:-1]:
            zeros = {slot: torch.zeros_like(q, requires_grad=False) for slot in ("exp_avg", "exp_avg_sq")}
            optimizer.state[q] = {"step": torch.tensor(2.0**24 - 3), **zeros}
        return optimizer

    side = compare(make)
    assert is_long(side)
    assert side.seen[-1][1]["a"]["step"] == 2**24


def test_a_rate_that_becomes_a_tensor() -> None:
    def between(optimizer: optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.02) if step == 3 else 0.01

    compare(lambda p: optim.SGD(p, lr=0.01, momentum=0.9), between=between)


def test_a_rate_that_is_a_tensor() -> None:
    assert not is_long(compare(lambda p: optim.Adam(p, lr=torch.tensor(0.01))))


class Doubling(optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step()
        super().step()


def test_a_class_of_the_users_is_stepped_as_it_is() -> None:
    assert not is_long(compare(lambda p: Doubling(p, lr=0.01)))


def test_hooks_are_called_whenever_they_come() -> None:
    calls: list[str] = []

    def between(optimizer: optim.Optimizer, step: int) -> None:
        if step == 2:
            optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))

    assert not is_long(compare(lambda p: optim.Adam(p[:-1], lr=0.01), between=between))
    assert calls == ["pre"] * 2 * (STEPS - 3)
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    try:
        compare(lambda p: optim.Adam(p[:-1], lr=0.01))
    finally:
        handle.remove()
    assert calls.count("global") == 2 * STEPS


def test_other_bits_are_noticed_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _long.Long.step

    def step(self: Any, gradients: Any) -> None:
        original(self, gradients)
        self._groups[0]["params"][0][-1] += 1e-6

    monkeypatch.setattr(_long, "_probed", {})
    monkeypatch.setattr(_long.Long, "step", step)
    assert not is_long(compare(lambda p: optim.SGD(p[:-1], lr=0.01)))
