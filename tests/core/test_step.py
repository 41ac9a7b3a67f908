"""The pure steps: what goes in is not modified beyond what is said, and what comes out is complete and owned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purestate.core._loss import make_objective
from purestate.core._metrics import Metric, metric_accuracy
from purestate.core._module import fresh_copy, put_together, take_apart
from purestate.core._seeds import preserved_generators, seed_all
from purestate.core._step import make_evaluate_step, make_gradient_step, make_predict_step, same_bits
from purestate.errors import ImpurityError, MetricError, UnsupportedError
from tests.helpers import ConvNet, Linear, Mlp, assert_trees_identical, batch, build

CE = nn.CrossEntropyLoss


def test_the_gradient_step_is_backward_to_the_bit() -> None:
    module, data = build(ConvNet), batch(shape=(1, 4, 4))
    template, *trees = take_apart(module)
    output = make_gradient_step(template, make_objective(CE), [metric_accuracy])(*trees, data)
    loss = F.cross_entropy(pred := module(data[0]), data[1])
    loss.backward()
    assert same_bits(output.loss, loss.detach())
    assert_trees_identical(output.gradients, {n: p.grad for n, p in module.named_parameters()}, strides=True)
    assert_trees_identical(trees[2], dict(module.named_buffers()))
    assert output.buffers is trees[2]
    assert output.sums[0][0].item() == (pred.argmax(-1) == data[1]).sum().item()
    assert output.size == 16
    assert not output.loss.requires_grad


def test_params_and_template_are_not_modified() -> None:
    template, *trees = take_apart(build(Mlp))
    before = copy.deepcopy(trees)
    step = make_gradient_step(template, make_objective(CE))
    with preserved_generators():
        seed_all(0)
        step(*trees, batch())
    assert_trees_identical(trees, before)
    assert all(t.is_meta for t in (*template.parameters(), *step.module.parameters()))
    assert template.training
    assert all(not t.requires_grad and t.grad is None for t in trees[0].values())


def test_it_runs_in_train_mode_and_without_ambient_gradients() -> None:
    template, *trees = take_apart(build(Mlp).eval())
    step = make_gradient_step(template, make_objective(CE))
    with preserved_generators():
        with torch.no_grad():
            seed_all(0)
            one = step(*trees, batch()).loss
        seed_all(1)
        assert not torch.equal(one, step(*trees, batch()).loss), "dropout should have drawn another mask"
    assert not template.training


def test_gradients_of_unused_parameters_are_none_and_none_share_memory() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.ones(3)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.a + self.b

    template, *trees = take_apart(Sum())
    gradients = make_gradient_step(template, make_objective(lambda p, t: p.sum()))(*trees, (torch.ones(2, 3), None)).gradients
    assert gradients["c"] is None
    gradients["a"].zero_()
    assert gradients["b"].tolist() == [2.0, 2.0, 2.0]


def test_assigned_buffers_come_back_detached_and_the_others_are_the_same_objects() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.register_buffer("run", torch.zeros(2))
            self.register_buffer("still", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            out = self.fc(x)
            self.run = self.run + out.mean(0)
            return out

    template, *trees = take_apart(build(Running))
    output = make_gradient_step(template, make_objective(CE))(*trees, batch())
    assert output.buffers["still"] is trees[2]["still"]
    assert trees[2]["run"].tolist() == [0.0, 0.0]
    assert output.buffers["run"].abs().sum() > 0
    assert not output.buffers["run"].requires_grad


class Renorm(nn.Module):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 3, max_norm=0.5).requires_grad_(not frozen)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.emb(x))


def test_a_module_that_writes_parameters_writes_the_working_ones_in_training_only() -> None:
    template, *trees = take_apart(build(Renorm))
    before = copy.deepcopy(trees)
    data = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    evaluate = make_evaluate_step(template, make_objective(CE))
    first, second = evaluate(*trees, data), evaluate(*trees, data)
    assert_trees_identical(trees, before)
    assert evaluate.written == {"emb.weight"}
    assert same_bits(first.loss, second.loss)
    make_gradient_step(template, make_objective(CE))(*trees, data)
    assert not torch.equal(trees[0]["emb.weight"], before[0]["emb.weight"])


def test_a_frozen_parameter_that_forward_writes_is_known_beforehand_or_refused() -> None:
    template, *trees = take_apart(build(Renorm, frozen=True))
    step = make_gradient_step(template, make_objective(CE))
    assert step.written == {"emb.weight"}
    step(*trees, (torch.arange(4), torch.zeros(4, dtype=torch.int64)))

    class Writing(Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.fc.bias.data.add_(1)
            return super().forward(x)

    module = build(Writing)
    module.fc.bias.requires_grad_(False)
    template, *trees = take_apart(module)
    before = copy.deepcopy(trees)
    with pytest.raises(ImpurityError, match=r"wrote the frozen parameter 'fc\.bias'"):
        make_gradient_step(template, make_objective(CE))(*trees, batch())
    assert_trees_identical(trees, before)


def test_an_evaluation_that_begins_to_write_later_is_refused() -> None:
    class Late(Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 4:
                self.fc.bias.add_(1)
            return super().forward(x)

    template, *trees = take_apart(build(Late))
    step = make_evaluate_step(template, make_objective(CE))
    step(*trees, batch(2))
    with pytest.raises(ImpurityError, match=r"wrote \['fc.bias'\] now and not at its first call"):
        step(*trees, batch(8))


def test_evaluate_and_predict_are_the_module_in_eval_mode() -> None:
    module = build(ConvNet)
    template, *trees = take_apart(module)
    x, y = batch(shape=(1, 4, 4))
    before = copy.deepcopy(trees)
    output = make_evaluate_step(template, make_objective(CE), [metric_accuracy])(*trees, (x, y))
    predict = make_predict_step(template)
    plain = put_together(fresh_copy(template), *trees).eval()
    with torch.no_grad():
        reference = plain(x)
    assert same_bits(output.loss, F.cross_entropy(reference, y))
    assert output.gradients == {}
    for data in (x, (x,), [x, y], {"x": x}):
        assert same_bits(predict(*trees, data), reference)
    assert_trees_identical(trees, before)


class Hiding(Linear):
    """Uses its weight from another place than where it is registered."""

    def __init__(self, hide: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.hidden = hide(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.hidden() if callable(self.hidden) else self.hidden[0]).T


@pytest.mark.parametrize(
    "hide", [lambda w: [w], lambda w: (w,), lambda w: {0: w}, lambda w: lambda: w], ids=["list", "tuple", "dict", "closure"]
)
def test_weights_used_from_elsewhere_are_refused_instead_of_stale(hide: Any) -> None:
    template, *trees = take_apart(build(Hiding, hide=hide))
    for make in (make_gradient_step, make_evaluate_step):
        with pytest.raises(UnsupportedError, match=r"float32 of shape \((2, 3|3, 2)\) in aten.* registered"):
            make(template, make_objective(CE))(*trees, batch())
    with pytest.raises(UnsupportedError, match="registered"):
        make_predict_step(template)(*trees, batch())


def test_a_frozen_network_in_a_closure_is_fine() -> None:
    other = build(Linear, seed=1).requires_grad_(False)
    template, *trees = take_apart(build(Linear))
    objective = make_objective(loss_fn=lambda m, b: (m(b[0]) - other(b[0])).square().mean())
    assert make_gradient_step(template, objective)(*trees, batch()).gradients["fc.bias"] is not None


def test_metrics_see_detached_outputs_and_their_errors_name_them() -> None:
    template, *trees = take_apart(build(Linear))

    def graphless(y_pred: Any, y_true: Any) -> float:
        assert not y_pred.requires_grad
        assert not torch.is_grad_enabled()
        return 1.0

    assert make_gradient_step(template, make_objective(CE), [Metric("g", True, graphless)])(*trees, batch()).sums == (
        (1.0, None),
    )
    wrong = Metric("wrong", True, lambda y_pred, y_true: (y_pred + y_true).sum())
    with pytest.raises(
        MetricError, match=r"metric 'wrong' failed on output float32 of shape \(16, 2\), target int64 of shape \(16,\)"
    ):
        make_gradient_step(template, make_objective(CE), [wrong])(*trees, batch())
    with pytest.raises(MetricError, match="loss_fn returns only the loss"):
        make_evaluate_step(template, make_objective(loss_fn=lambda m, b: m(b[0]).sum()), [metric_accuracy])(*trees, batch())


def test_same_bits() -> None:
    a = torch.tensor([1.0, 0.0, float("nan")])
    assert same_bits(a, a.clone())
    assert not same_bits(a, a * torch.tensor([1.0, -1.0, 1.0]))
    assert not same_bits(torch.ones(2, 2), torch.ones(2, 2).t().contiguous().t())
    assert not same_bits(torch.ones(2), torch.ones(2).double())
    assert same_bits(torch.ones(1, 2), torch.ones(2, 1).t())
    sparse = torch.eye(2).to_sparse()
    assert same_bits(sparse, sparse.clone())
    assert not same_bits(sparse, sparse * 2)
