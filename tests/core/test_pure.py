"""make_step against the hand-written loop, make_loss against make_step and under torch's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import purestate as ps
from purestate.core._key import Tag
from purestate.core._seeds import preserved_generators, seed_all
from purestate.core._state import State
from purestate.errors import MutatedStateError, SetupError
from tests.helpers import ConvNet, Mlp, assert_trees_identical, batch, bits, build

SCHEDULERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any], Any, dict[str, Any]]] = [
    (Adam, dict(lr=0.05), StepLR, dict(step_size=2, gamma=0.5)),
    (Adam, dict(lr=0.05, amsgrad=True, weight_decay=0.1), None, {}),
    (AdamW, dict(lr=0.05, fused=True), StepLR, dict(step_size=3)),
    (SGD, dict(lr=0.05, momentum=0.9, nesterov=True), OneCycleLR, dict(max_lr=0.3, total_steps=8)),
    (Adam, dict(lr=0.05), OneCycleLR, dict(max_lr=0.3, total_steps=8)),
]
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dropout": (Mlp, (3,)),
    "batch norm": (ConvNet, (1, 4, 4)),
    "frozen": (lambda: frozen(ConvNet()), (1, 4, 4)),
}


def frozen(net: ConvNet) -> nn.Module:
    net.conv.requires_grad_(False)
    return net


def by_hand(state: State, build: Callable[[], nn.Module], row: Any, batches: list[Any]) -> tuple[nn.Module, list[float]]:
    """The loop that everybody writes, under the seeds of the steps."""
    cls, args, scheduler_cls, scheduler_args = row
    with preserved_generators():
        net = ps.to_module(state, build()).train()
        optimizer = cls([p for p in net.parameters() if p.requires_grad], **args)
        scheduler = scheduler_cls and scheduler_cls(optimizer, **scheduler_args)
        losses = []
        for i, (x, y) in enumerate(batches):
            seed_all(state.key.derive(Tag.STEP, i).seed)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(float(loss.detach()))
    return net, losses


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("row", SCHEDULERS, ids=lambda r: f"{r[0].__name__}-{r[2] and r[2].__name__}")
def test_steps_are_those_of_the_hand_written_loop(model: str, row: Any) -> None:
    make, shape = MODELS[model]
    cls, args, scheduler_cls, scheduler_args = row
    s0 = ps.setup(ps.init(make, seed=1), loss_cls=nn.CrossEntropyLoss, optimizer_cls=cls, optimizer_args=args)
    if scheduler_cls is not None:
        s0 = ps.setup(s0, step_scheduler_cls=scheduler_cls, step_scheduler_args=scheduler_args)
    batches = [batch(7, shape, seed=i) for i in range(5)]
    net, losses = by_hand(s0, make, row, batches)

    before, step, state, ours = s0.own(), ps.make_step(s0), s0, []
    for pair in batches:
        state, metrics = step(state, pair)
        ours.append(metrics["loss"])
    assert_trees_identical(state.state_dict(), dict(net.state_dict()))
    assert ours == losses
    assert state.counters.step == 5
    s0.verify()
    assert s0 == before


def test_same_state_and_batch_same_bits_and_nothing_moves() -> None:
    s0 = ps.setup(ps.init(Mlp), loss_cls=nn.CrossEntropyLoss, optimizer_cls=Adam)
    step, pair = ps.make_step(s0, metrics=[ps.metric_accuracy]), batch()
    copies = [t.clone() for t in pair]
    (s1, m1), (s2, m2) = step(s0, pair), step(s0, pair)
    assert s1 == s2 != s0
    assert m1 == m2
    assert set(m1) == {"loss", "accuracy"}
    assert_trees_identical(list(pair), copies)
    s3, _ = step(s1, pair)
    assert s3 != s1
    s1.verify()
    held = {t.data_ptr() for leaves in (s0.params, s0.buffers) for t in leaves.values()}
    assert held.isdisjoint(t.data_ptr() for t in s1.params.values())
    assert ps.make_step(s1)(s1, pair)[0] == s3
    assert step(s0.replace(key=ps.Key(9, 9)), pair)[0].params.digest != s1.params.digest


def test_a_step_takes_any_state_of_the_recipe_but_no_changed_one() -> None:
    s0 = ps.setup(ps.init(Mlp, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=Adam)
    other = ps.setup(ps.init(Mlp, seed=1), loss_cls=nn.CrossEntropyLoss, optimizer_cls=Adam)
    assert ps.make_step(s0)(other, batch())[0] == ps.make_step(other)(other, batch())[0]
    other.params["net.0.bias"].add_(1)
    with pytest.raises(MutatedStateError):
        ps.make_step(s0)(other, batch())


def test_a_failing_step_moves_nothing() -> None:
    s0 = ps.setup(ps.init(Mlp), loss_cls=nn.CrossEntropyLoss, optimizer_cls=Adam)
    with pytest.raises(RuntimeError):
        ps.make_step(s0)(s0, batch(shape=(5,)))
    s0.verify()


def test_what_they_need() -> None:
    s0 = ps.init(Mlp)
    with pytest.raises(SetupError, match=r"^make_step: the state has no loss\.\nGive it one"):
        ps.make_step(s0)
    with pytest.raises(SetupError, match=r"^make_loss: the state has no loss"):
        ps.make_loss(s0)
    with pytest.raises(SetupError, match=r"^make_step: the state has no optimizer"):
        ps.make_step(ps.setup(s0, loss_cls=nn.CrossEntropyLoss))
    with pytest.raises(SetupError, match=r"^make_step: the state does not know its module: it was loaded without one"):
        ps.make_step(s0.replace(recipe=None))


# -------------------------------------------------------------------- make_loss


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def plain(make: Callable[[], nn.Module] = smooth) -> State:
    return ps.setup(ps.init(make), loss_cls=nn.CrossEntropyLoss, optimizer_cls=SGD, optimizer_args=dict(lr=1.0))


@pytest.mark.parametrize("model", [*MODELS, "smooth"])
def test_gradients_are_those_of_the_step(model: str) -> None:
    """With a rate of 1 a step of SGD is the gradient. Dropout draws what the step draws."""
    make, shape = (smooth, (3,)) if model == "smooth" else MODELS[model]
    s0, pair = plain(make), batch(shape=shape)
    gradients, value = torch.func.grad_and_value(ps.make_loss(s0))(dict(s0.params), pair)
    s1, metrics = ps.make_step(s0)(s0, pair)
    assert float(value) == metrics["loss"]
    assert_trees_identical({n: s0.params[n] - gradients[n] for n in s0.params}, dict(s1.params))
    s0.verify()


def test_loss_is_a_function_of_its_arguments() -> None:
    s0, pair = plain(Mlp), batch()
    loss = ps.make_loss(s0)
    values = {bits(loss(s0.params, pair)) for _ in range(3)}
    assert len(values) == 1
    assert bits(ps.make_loss(s0.replace(key=ps.Key(3, 4)))(s0.params, pair)) not in values
    evaluated = ps.make_loss(s0, train=False)(s0.params, pair)
    with preserved_generators():
        net = ps.to_module(s0, Mlp()).eval()
    assert bits(evaluated) == bits(nn.functional.cross_entropy(net(pair[0]), pair[1]))
    assert bits(evaluated) not in values


def test_buffers_stay() -> None:
    s0, pair = plain(ConvNet), batch(shape=(1, 4, 4))
    loss = ps.make_loss(s0)
    first = loss(s0.params, pair)
    assert bits(loss(s0.params, pair)) == bits(first)
    s0.verify()
    assert s0.buffers["norm.num_batches_tracked"] == 0


def test_vmap_over_samples_and_over_models() -> None:
    s0, (x, y) = plain(), batch(5)
    loss = ps.make_loss(s0)
    params = dict(s0.params)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, (x[:, None], y[:, None]))
    for i in range(5):
        alone = torch.func.grad(loss)(params, (x[i : i + 1], y[i : i + 1]))
        for name in params:
            # batched matrix products add up in another order
            torch.testing.assert_close(each[name][i], alone[name], rtol=1e-5, atol=1e-6)
    stacked = {name: torch.stack([t, t * 2]) for name, t in params.items()}
    losses = torch.func.vmap(loss, in_dims=(0, None))(stacked, (x, y))
    torch.testing.assert_close(losses[1], loss({n: t * 2 for n, t in params.items()}, (x, y)), rtol=1e-5, atol=1e-6)


def test_dropout_under_vmap_draws_as_torch_is_told() -> None:
    s0, (x, y) = plain(Mlp), batch(4)
    loss = ps.make_loss(s0)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(loss, in_dims=(None, 0))(dict(s0.params), (x[:, None], y[:, None]))
    same = torch.func.vmap(loss, in_dims=(None, 0), randomness="same")(
        dict(s0.params), (x[:1].expand(4, 1, 3), y[:1].expand(4, 1))
    )
    assert len(set(same.tolist())) == 1


def test_jacrev_and_hessian() -> None:
    s0, pair = plain(), batch(5)
    loss = ps.make_loss(s0)
    params = dict(s0.params)
    gradient, jacobian = torch.func.grad(loss)(params, pair), torch.func.jacrev(loss)(params, pair)
    for name in params:
        torch.testing.assert_close(jacobian[name], gradient[name], rtol=1e-6, atol=1e-7)  # another product of the same factors
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(params, pair)["0.bias"]["0.bias"]
    assert hessian.shape == (4, 4)
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-4, atol=1e-6)  # symmetric up to rounding
    assert float(hessian.abs().max()) > 1e-3


def test_loss_has_a_graph_for_backward() -> None:
    s0, pair = plain(), batch(5)
    leaves = {name: t.clone().requires_grad_() for name, t in s0.params.items()}
    ps.make_loss(s0)(leaves, pair).backward()
    expected = torch.func.grad(ps.make_loss(s0))(dict(s0.params), pair)
    assert_trees_identical({n: t.grad for n, t in leaves.items()}, expected)


def test_loss_of_a_changed_state_is_refused() -> None:
    s0 = plain(ConvNet)
    s0.buffers["norm.running_mean"].add_(1)
    with pytest.raises(MutatedStateError):
        ps.make_loss(s0)


def test_loss_functions_and_instances() -> None:
    pair = batch(5)
    by_class = ps.make_loss(plain())(plain().params, pair)
    weighted = ps.setup(ps.init(smooth), loss=nn.CrossEntropyLoss(weight=torch.ones(2)))
    custom = ps.setup(ps.init(smooth), loss_fn=lambda module, b: nn.functional.cross_entropy(module(b[0]), b[1]))
    for state in (weighted, custom):
        assert float(ps.make_loss(state)(state.params, pair)) == pytest.approx(float(by_class), rel=1e-6)  # weights sum apart


def test_tied_weights_get_one_gradient() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).tanh())

    s0, pair = plain(Tied), batch(5)
    gradients = torch.func.grad(ps.make_loss(s0))(dict(s0.params), pair)
    net = ps.to_module(s0, build(Tied))
    nn.functional.cross_entropy(net(pair[0]), pair[1]).backward()
    assert list(gradients) == ["a.weight", "a.bias", "b.bias"]
    assert_trees_identical(gradients, {n: p.grad for n, p in net.named_parameters()})
