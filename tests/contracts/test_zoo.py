"""Every module of the zoo: plain ``backward()``, the uncaptured step and the runner give the same bits, step by step."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purestate.core._capture import Runner
from purestate.core._loss import make_objective
from purestate.core._module import fresh_copy, put_together, take_apart
from purestate.core._seeds import preserved_generators, seed_all
from purestate.core._step import make_evaluate_step, make_gradient_step
from purestate.errors import ImpurityError
from tests.contracts.zoo import ZOO, Animal
from tests.helpers import assert_trees_identical, bits

STEPS = 5
"""The first call runs as it is, the second captures, the third compares, two are replayed."""


@pytest.mark.parametrize("animal", ZOO, ids=lambda a: a.name)
def test_plain_uncaptured_and_captured_agree_to_the_bit(animal: Animal) -> None:
    with preserved_generators():
        seed_all(0)
        module, batches = animal.build(), [animal.batch() for _ in range(STEPS)]
        plain = _plain(module, animal, batches)
        step = make_gradient_step(take_apart(module)[0], _objective(animal))
        uncaptured = _pure(module, batches, lambda *trees, batch, seed: (seed_all(seed), step(*trees, batch))[1])
        guard = "off" if animal.impure else "first"
        runner = Runner(make_gradient_step(take_apart(module)[0], _objective(animal)), guard=guard)
        replayed = _pure(module, batches, lambda *trees, batch, seed: runner(*trees, batch, seed))

    for i in range(STEPS):
        assert_trees_identical(uncaptured[i], plain[i], f"step {i}, uncaptured", strides=True)
        assert_trees_identical(replayed[i], plain[i], f"step {i}, runner", strides=True)
    assert (runner.captured, runner.notice is None) == ((1, True) if animal.why_not is None else (0, False)), runner.notice
    assert (animal.why_not or "") in (runner.notice or "")


@pytest.mark.parametrize("guard", ["first", "always"])
@pytest.mark.parametrize("animal", ZOO, ids=lambda a: a.name)
def test_the_guard_refuses_what_keeps_a_state_of_its_own_and_nothing_else(animal: Animal, guard: Any) -> None:
    with preserved_generators():
        seed_all(0)
        module, batches = animal.build(), [animal.batch() for _ in range(STEPS)]
        runner = Runner(make_gradient_step(take_apart(module)[0], _objective(animal)), guard=guard)
        with pytest.raises(ImpurityError, match=animal.impure) if animal.impure else nullcontext():
            guarded = _pure(module, batches, lambda *trees, batch, seed: runner(*trees, batch, seed))
        if not animal.impure:
            off = Runner(make_gradient_step(take_apart(module)[0], _objective(animal)), guard="off")
            assert_trees_identical(guarded, _pure(module, batches, lambda *trees, batch, seed: off(*trees, batch, seed)))


# a penalty on gradients has none to take
NOT_EVALUATED = {animal.name for animal in ZOO if animal.impure} | {"gradient penalty"}

FAST_PATH = {"multi-head attention, dropout", "transformer encoder, dropout"}


@pytest.mark.parametrize("animal", [a for a in ZOO if a.name not in NOT_EVALUATED], ids=lambda a: a.name)
def test_evaluation_is_plain_eval_and_modifies_nothing(animal: Animal) -> None:
    with preserved_generators():
        seed_all(0)
        module, batches = animal.build(), [animal.batch() for _ in range(STEPS)]
        template, *trees = take_apart(module)
        plain = [put_together(fresh_copy(template), *trees).eval() for _ in batches]
        before = copy.deepcopy(trees)
        runner = Runner(make_evaluate_step(template, _objective(animal)))
        for i, batch in enumerate(batches):
            seed_all(i)
            with torch.no_grad():
                loss = _loss(plain[i], animal, copy.deepcopy(batch))
            assert bits(runner(*trees, copy.deepcopy(batch), i).loss) == bits(loss), f"batch {i}"
            assert_trees_identical(trees, before)
    if animal.name in FAST_PATH:
        assert "takes a kernel that no trace takes" in str(runner.notice)
    elif animal.why_not is None:
        assert (runner.captured, runner.notice) == (1, None)


def _objective(animal: Animal) -> Any:
    return make_objective(loss_fn=animal.loss_fn) if animal.loss_fn else make_objective(animal.loss())


def _loss(module: nn.Module, animal: Animal, batch: Any) -> Tensor:
    if animal.loss_fn:
        answer = animal.loss_fn(module, batch)
        return answer[0] if isinstance(answer, tuple) else answer
    return animal.loss()(module(*batch[:-1]), batch[-1])


def _plain(module: nn.Module, animal: Animal, batches: list[Any]) -> list[Any]:
    template, *trees = take_apart(module)
    module = put_together(fresh_copy(template), *trees).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, foreach=False)
    seen = []
    for seed, batch in enumerate(batches):
        seed_all(seed)
        optimizer.zero_grad()
        loss = _loss(module, animal, copy.deepcopy(batch))
        loss.backward()
        gradients = {name: _dense(p.grad) for name, p in module.named_parameters()}
        optimizer.step()
        seen.append(_look(loss, gradients, dict(module.named_parameters()), dict(module.named_buffers())))
    return seen


def _pure(module: nn.Module, batches: list[Any], call: Any) -> list[Any]:
    _, params, frozen, buffers = take_apart(module)
    seen = []
    for seed, batch in enumerate(batches):
        output = call(params, frozen, buffers, batch=copy.deepcopy(batch), seed=seed)
        gradients = {name: _dense(g) for name, g in output.gradients.items()}
        for name, gradient in output.gradients.items():
            if gradient is not None:
                params[name].add_(gradient, alpha=-0.1)
        buffers = output.buffers
        seen.append(_look(output.loss, gradients, params, buffers))
    return seen


def _look(loss: Tensor, gradients: Any, params: Any, buffers: Any) -> Any:
    tensors = {"loss": loss.detach(), "params": params, "buffers": buffers, "generator": torch.get_rng_state()}
    detached = {
        key: {n: t.detach().clone() for n, t in v.items()} if isinstance(v, dict) else v.clone() for key, v in tensors.items()
    }
    return detached | {"gradients": gradients}


def _dense(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.detach().to_dense().clone()
