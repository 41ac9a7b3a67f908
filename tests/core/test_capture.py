"""The runner: replays where that gives the same bits, says once why not where not, and never gives a wrong answer silently."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purestate.core._capture import Runner
from purestate.core._loss import make_objective
from purestate.core._metrics import Metric, metric_accuracy
from purestate.core._module import take_apart
from purestate.core._seeds import global_states, preserved_generators, seed_all
from purestate.core._step import StepOutput, make_evaluate_step, make_gradient_step
from purestate.errors import CaptureMismatchError, LossError, StateError
from tests.helpers import ConvNet, Linear, Mlp, assert_trees_identical, batch, bits, build

CE = nn.CrossEntropyLoss


class Calling(nn.Module):
    """A linear layer and a function that is called with its output."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.fc(x))


def runner_of(module: nn.Module, metrics: Any = (), **arguments: Any) -> tuple[Runner, list[Any]]:
    template, *trees = take_apart(module)
    return Runner(make_gradient_step(template, make_objective(CE), metrics), **arguments), trees


def run(runner: Runner, trees: list[Any], batches: list[Any]) -> list[StepOutput]:
    with preserved_generators():
        return [runner(*trees, data, seed) for seed, data in enumerate(batches)]


def calls_of_forward(runner: Runner) -> list[int]:
    count = [0]
    runner.step.module.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    return count


def test_replays_run_no_module_and_give_the_same_bits() -> None:
    module = build(ConvNet)
    runner, trees = runner_of(module, [metric_accuracy], guard="off")  # it would refuse the count
    step, (_, *reference) = make_gradient_step(take_apart(module)[0], make_objective(CE), [metric_accuracy]), take_apart(module)
    count = calls_of_forward(runner)
    for seed in range(6):
        data = batch(shape=(1, 4, 4), seed=seed)
        with preserved_generators():
            ours = runner(*trees, data, seed)
            after = torch.get_rng_state()
            seed_all(seed)
            theirs = step(*reference, data)
            assert torch.equal(after, torch.get_rng_state())
        assert_trees_identical(ours.gradients, theirs.gradients, strides=True)
        assert_trees_identical([ours.loss, ours.buffers, list(ours.sums)], [theirs.loss, theirs.buffers, list(theirs.sums)])
        if seed == 2:
            before = count[0]
    assert count[0] == before, "forward ran in a replay"
    assert (runner.captured, runner.notice, ours.size) == (1, None, 16)


def test_the_generators_are_those_of_an_uncaptured_call_while_capturing_and_comparing() -> None:
    module = build(Mlp)
    runner, trees = runner_of(module)
    step = make_gradient_step(take_apart(module)[0], make_objective(CE))
    for seed in range(3):
        with preserved_generators():
            runner(*trees, batch(), seed)
            ours = global_states()
            seed_all(seed)
            step(*trees, batch())
            theirs = global_states()
        assert torch.equal(ours.torch_cpu, theirs.torch_cpu)
        assert ours.python == theirs.python
        assert ours.numpy[1].tolist() == theirs.numpy[1].tolist()


def test_each_kind_of_batch_is_captured_by_itself_after_its_first_call() -> None:
    runner, trees = runner_of(build(Linear), others_after=1)
    sizes = [8, 8, 5, 8, 5, 5, 5, 8]
    outputs = run(runner, trees, [batch(n, seed=i) for i, n in enumerate(sizes)])
    assert [o.size for o in outputs] == sizes
    assert runner.captured == 2


def test_other_kinds_of_batches_than_the_first_are_captured_when_there_were_many() -> None:
    runner, trees = runner_of(build(Linear), others_after=3)
    run(runner, trees, [batch(n) for n in (8, 5, 8, 5, 8, 5)])
    assert runner.captured == 1
    run(runner, trees, [batch(5)])
    assert runner.captured == 2


def test_batches_of_too_many_kinds_are_run_as_they_are() -> None:
    runner, trees = runner_of(build(Linear), others_after=1)
    run(runner, trees, [batch(n) for n in range(1, 11) for _ in range(2)])
    assert runner.captured == 8
    assert "more than 8 kinds" in str(runner.notice)


def test_capture_after_says_how_many_calls_come_first() -> None:
    runner, trees = runner_of(build(Linear), capture_after=3)
    run(runner, trees, [batch()] * 3)
    assert runner.captured == 0
    run(runner, trees, [batch()])
    assert runner.captured == 1


def test_other_trees_of_the_same_kind_are_used_and_those_of_another_kind_captured_anew() -> None:
    runner, trees = runner_of(build(Linear))
    run(runner, trees, [batch()] * 4)
    others = take_apart(build(Linear, seed=1))[1:]
    assert not torch.equal(run(runner, list(others), [batch()])[0].loss, run(runner, trees, [batch()])[0].loss)
    assert runner.captured == 1
    replaced = [dict(trees[0]), *trees[1:]]
    run(runner, replaced, [batch()])
    replaced[0]["fc.bias"] = torch.full((2,), 9.0)
    loss = run(runner, replaced, [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))])[0].loss
    assert loss.item() == pytest.approx(0.6931472), "an entry exchanged in the same dict was not noticed"
    double = [{n: t.double() for n, t in tree.items()} for tree in trees]
    run(runner, double, [(batch()[0].double(), batch()[1])])
    assert runner.captured == 0


def test_plain_values_are_part_of_the_kind_of_a_batch() -> None:
    template, *trees = take_apart(build(Linear))
    objective = make_objective(loss_fn=lambda m, b: F.cross_entropy(m(b["x"]) * b["scale"], b["y"]))
    runner = Runner(make_gradient_step(template, objective), others_after=1)
    x, y = batch()
    scales = [1.0, 2.0] * 4
    losses = [o.loss.item() for o in run(runner, trees, [{"x": x, "y": y, "scale": s, "name": "a"} for s in scales])]
    assert losses[0::2] == losses[:1] * 4
    assert losses[1::2] == losses[1:2] * 4
    assert losses[0] != losses[1]
    assert runner.captured == 2


def test_a_batch_that_is_one_tensor_twice_does_not_bind_the_two_places() -> None:
    template, *trees = take_apart(build(lambda: nn.Linear(3, 3)))
    runner = Runner(make_gradient_step(template, make_objective(nn.MSELoss)))
    x, other = torch.ones(2, 3), torch.zeros(2, 3)
    outputs = run(runner, trees, [(x, x), (x, x), (x, x), (x, x), (x, other)])
    assert runner.captured == 1
    assert not torch.equal(outputs[-1].loss, outputs[-2].loss)


def test_other_objects_in_a_batch_run_as_they_are() -> None:
    template, *trees = take_apart(build(Linear))
    runner = Runner(make_gradient_step(template, make_objective(loss_fn=lambda m, b: m(b[0]).sum())))
    run(runner, trees, [(torch.ones(2, 3), object())] * 3)
    assert "holds something else" in str(runner.notice)


@pytest.mark.parametrize(
    "then",
    [
        lambda x: x.sum(0, keepdim=True).view(2),
        lambda x: x.sum((0, 1), keepdim=True).view(1, 1),
        lambda x: x.sum(-1, keepdim=True).view(4, 4),
        lambda x: x.sum((), keepdim=True).view(()),
        lambda x: x.t().sum(0, keepdim=True).view(16).view(16, 1).view(4, 4),
    ],
)
def test_views_of_sums_are_what_they_are(then: Callable[[Tensor], Tensor]) -> None:
    template, *trees = take_apart(build(lambda: Calling(then)))
    step = make_gradient_step(template, make_objective(loss_fn=lambda m, b: m(b[0]).square().mean()))
    runner = Runner(step)
    outputs = run(runner, trees, [(torch.ones(16, 3), torch.zeros(1))] * 4)
    assert (runner.captured, runner.notice) == (1, None)
    assert_trees_identical(outputs[3].gradients, outputs[0].gradients, strides=True)


def test_a_metric_that_leaves_torch_is_not_burnt_in() -> None:
    fishy = Metric("fishy", True, lambda y_pred, y_true: float((y_pred.argmax(1).numpy() == y_true.numpy()).sum()))
    runner, trees = runner_of(build(Linear), [fishy])
    batches = [batch(seed=i) for i in range(6)]
    outputs = run(runner, trees, batches)
    hits = [metric_accuracy(x @ trees[0]["fc.weight"].T + trees[0]["fc.bias"], y).item() for x, y in batches]
    assert [o.sums[0][0] for o in outputs] == hits
    assert ".numpy()" in str(runner.notice)


def test_numbers_as_metrics_and_counts_are_replayed() -> None:
    pairs = Metric("pairs", True, lambda y_pred, y_true: (y_pred.sum(), len(y_true)))
    runner, trees = runner_of(build(Linear), [pairs])
    outputs = run(runner, trees, [batch()] * 5)
    assert runner.captured == 1
    assert [o.sums[0][1] for o in outputs] == [16] * 5


def test_what_moves_before_the_next_call_is_caught_before_anything_was_replayed() -> None:
    scale = [1.0]
    runner, trees = runner_of(build(lambda: Calling(lambda x: x * scale[0])))
    run(runner, trees, [batch()] * 2)
    assert runner.captured == 1
    scale[0] = 2.0
    run(runner, trees, [batch()])
    assert runner.captured == 0
    assert "other bits in loss" in str(runner.notice)


def test_what_moves_later_is_an_error_in_the_next_epoch_that_compares() -> None:
    scale = [1.0]
    runner, trees = runner_of(build(lambda: Calling(lambda x: x * scale[0])))
    runner.start_epoch(1)
    run(runner, trees, [batch()] * 4)
    runner.start_epoch(2)
    run(runner, trees, [batch()] * 2)
    scale[0] = 2.0
    runner.start_epoch(3)
    run(runner, trees, [batch()] * 2)
    runner.start_epoch(4)
    with pytest.raises(CaptureMismatchError, match=r"epoch 4: .* other bits than the uncaptured one in loss") as caught:
        run(runner, trees, [batch()])
    assert (caught.value.epoch, caught.value.path) == (4, "loss")


@pytest.mark.parametrize(("epoch", "compares"), [(1, True), (2, True), (3, False), (4, True), (6, False), (8, True), (64, True)])
def test_epochs_that_are_powers_of_two_compare(epoch: int, compares: bool) -> None:
    runner, trees = runner_of(build(Linear))
    run(runner, trees, [batch()] * 4)
    count = calls_of_forward(runner)
    runner.start_epoch(epoch)
    run(runner, trees, [batch()] * 3)
    assert count[0] == compares


def test_comparing_changes_nothing_but_what_one_step_changes() -> None:
    module = build(ConvNet)
    data = batch(shape=(1, 4, 4))
    runner, trees = runner_of(module)
    step, (_, *reference) = make_gradient_step(take_apart(module)[0], make_objective(CE)), take_apart(module)
    for seed in range(4):
        runner.start_epoch(seed + 1)
        run(runner, trees, [data])
        step(*reference, data)
        assert_trees_identical(trees, reference)


def test_an_error_of_the_step_is_the_steps_own() -> None:
    runner, trees = runner_of(build(Linear))
    run(runner, trees, [batch()] * 3)
    with pytest.raises(LossError, match="CrossEntropyLoss cannot take"):
        run(runner, trees, [(torch.ones(4, 3), torch.zeros(3, dtype=torch.int64))])


def test_warnings_reach_the_user_from_the_step_and_not_from_tracing() -> None:
    def warn(x: Tensor) -> Tensor:
        warnings.warn("mine", stacklevel=1)
        return x

    runner, trees = runner_of(build(lambda: Calling(warn)))
    for _ in range(3):
        with pytest.warns(UserWarning, match="mine") as seen:
            run(runner, trees, [batch()])
        assert len(seen) == 1
    run(runner, trees, [batch()])


def test_the_working_tensors_may_not_require_a_gradient() -> None:
    runner, (params, *rest) = runner_of(build(Linear))
    with pytest.raises(StateError, match="require no gradient"):
        run(runner, [{n: t.requires_grad_() for n, t in params.items()}, *rest], [batch()])


def test_a_frozen_layer_in_a_plain_list_is_a_constant_of_the_replay() -> None:
    class Hidden(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.others = [nn.Linear(2, 2).requires_grad_(False)]

        def forward(self, x: Tensor) -> Tensor:
            return self.others[0](super().forward(x))

    runner, trees = runner_of(build(Hidden))
    outputs = run(runner, trees, [batch()] * 5)
    assert runner.captured == 1
    assert {bits(o.loss) for o in outputs} == {bits(outputs[0].loss)}


def test_an_evaluation_is_captured_and_modifies_nothing() -> None:
    class Writing(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            self.norm.num_batches_tracked += 1
            return super().forward(x) * self.norm.num_batches_tracked

    for kind in (ConvNet, Writing):
        template, *trees = take_apart(build(kind))
        before = copy.deepcopy(trees)
        runner = Runner(make_evaluate_step(template, make_objective(CE), [metric_accuracy]))
        outputs = run(runner, trees, [batch(shape=(1, 4, 4))] * 5)
        assert runner.captured == 1
        assert {bits(o.loss) for o in outputs} == {bits(outputs[0].loss)}
        assert_trees_identical(trees, before)


def test_a_step_that_writes_its_parameters_is_captured_with_copies() -> None:
    class Shrinking(Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.fc.weight.data.mul_(0.5)
            return super().forward(x)

    module = build(Shrinking)
    runner, trees = runner_of(module)
    step, (_, *reference) = make_gradient_step(take_apart(module)[0], make_objective(CE)), take_apart(module)
    for i in range(6):
        loss = run(runner, trees, [batch()])[0].loss
        assert bits(loss) == bits(step(*reference, batch()).loss)
        assert_trees_identical(trees, reference)
        assert runner.captured == (i > 1)


def test_a_write_that_shows_in_no_first_batch_is_seen_in_the_trace() -> None:
    class Clamping(Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.fc.weight.data.clamp_(-9, 9)
            return super().forward(x)

    runner, trees = runner_of(build(Clamping))
    run(runner, trees, [batch()] * 2)
    assert (runner.captured, runner._kinds.writes) == (0, True)
    run(runner, trees, [batch()] * 2)
    assert (runner.captured, runner.notice) == (1, None)


def test_parameters_are_not_copied_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, trees = runner_of(build(Linear))
    copies: list[Any] = []
    original = Runner._copies
    monkeypatch.setattr(Runner, "_copies", lambda *a: (copies.append(original(*a)), copies[-1])[1])
    for n in range(1, 4):
        runner.start_epoch(n)
        run(runner, trees, [batch()] * 3)
    assert len(copies) > 4
    assert all(params["fc.weight"] is trees[0]["fc.weight"] for (params, *_), _ in copies)
