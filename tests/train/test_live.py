"""The module that the user holds: filled when somebody looks, and what is done to it is noticed, adopted or dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import purestate as ps
from purestate import train
from purestate.errors import MutatedStateError, SetupError, StaleRecordError, StateError, TreeMismatchError
from tests.helpers import ConvNet, Linear, Mlp, assert_trees_identical, batch, build
from tests.run.tiny import loader
from tests.train.tiny import ASK, SETUP, block, built, model, records, train_dl, val_dl


@pytest.fixture
def store() -> ps.MemoryStore:
    return ps.MemoryStore()


@pytest.fixture
def m(store: ps.MemoryStore) -> train.Model:
    """A model that was trained in checkpoint 1, and has other parameters than before."""
    m = model(store=store)
    block(m, load_best=False)
    return m


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# ---------------------------------------------------------------- looking


def test_the_module_is_filled_when_somebody_looks(store):
    module = build(Mlp, 0)
    before = weights(module)
    m = model(module=module, store=store)
    assert m.model is module
    assert module.training  # it is as it was given
    block(m, load_best=False)
    assert_trees_identical(weights(module), before)  # nobody has looked
    assert m.model is module
    assert_trees_identical(weights(module), m.state_dict())
    assert not module.training
    block(m, 2, setup=None)
    at_1 = weights(module)
    m.load_checkpoint(1)
    assert_trees_identical(weights(m.model), at_1)


def test_a_first_model_of_another_process_holds_the_root_when_looked_at(store):
    first = model(store=store)
    module = built()
    again = model(module=module, store=store)
    assert_trees_identical(weights(again.model), first.state_dict())
    block(again)


def test_predictions_of_the_module_are_those_of_the_state(m):
    x, y = batch(8, seed=1)
    accuracy = float((m.model(x).argmax(-1) == y).float().mean())
    assert accuracy == m.evaluate(val_dl(), metrics=[train.metric_accuracy])["accuracy"]


def test_the_mode_does_not_depend_on_whether_training_found_something_better(store):
    m = model(store=store)
    frozen_out = {**SETUP, "optimizer_cls": torch.optim.SGD, "optimizer_args": dict(lr=0.0)}
    begin = m.state
    block(m, setup=frozen_out)
    assert m.state.digests["params"] == begin.digests["params"]
    assert not m.model.training
    m.model.train()
    assert m.model.training  # it stays as it is left, until the state is another one
    block(m, 2, setup=None)
    assert not m.model.training


@pytest.mark.moves_generators  # the module's dropout draws
def test_looking_and_calling_change_nothing(m):
    """What people do to a module to see how it does, and that no training depends on."""
    count = records(m)
    module = m.model
    module.train()
    module(batch(8)[0]).sum().backward()
    module.eval()
    with torch.inference_mode():
        module(batch(8)[0])
    module.zero_grad()
    module.requires_grad_(True)
    _ = next(module.parameters()).data.numpy()
    handle = module.register_forward_hook(lambda *_: None)
    handle.remove()
    block(m, load_best=False)
    block(m, 2, setup=None)
    assert records(m) > count


def test_buffers_that_a_forward_pass_moves_are_noticed(store):
    m = model(module=build(ConvNet, 0), store=store)
    images = loader(8)
    images.dataset.tensors = batch(8, (1, 4, 4))
    with m.checkpoint(1) as cp:
        cp.setup(**SETUP)
        cp.train(images, load_best=False, epochs=1)
    m.model.train()(batch(8, (1, 4, 4))[0])
    with pytest.raises(MutatedStateError, match=r"'norm\.num_batches_tracked' of the live module"):
        block(m, 2)


# ---------------------------------------------------------------- changing it


def no_grad(module: Any) -> None:
    with torch.no_grad():
        module.net[0].weight.mul_(2)


def data(module: Any) -> None:
    module.net[0].weight.data.mul_(2)


def assigned_data(module: Any) -> None:
    module.net[0].weight.data = module.net[0].weight.data * 2


def numpy_view(module: Any) -> None:
    module.net[0].weight.detach().numpy()[:] *= 2


def frozen(module: Any) -> None:
    module.net[0].weight.requires_grad_(False)


def parameter(module: Any) -> None:
    module.net[0].weight = nn.Parameter(module.net[0].weight.detach() * 2)


def submodule(module: Any) -> None:
    module.net[3] = build(nn.Linear, 7, in_features=8, out_features=2)


def wider(module: Any) -> None:
    module.net[0] = build(nn.Linear, 7, in_features=3, out_features=5)
    module.net[3] = build(nn.Linear, 7, in_features=5, out_features=2)


def attribute(module: Any) -> None:
    module.net[2].p = 0.125


def other_class(module: Any) -> None:
    module.net[1] = nn.Tanh()


def optimizer_step(module: Any) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x, y = batch(8)
    nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()


CHANGES: list[tuple[Callable[[Any], None], str, bool]] = [
    (no_grad, "'net.0.weight'", True),
    (data, "'net.0.weight'", True),
    (assigned_data, "'net.0.weight'", True),
    (numpy_view, "'net.0.weight'", True),
    (frozen, "'net.0.weight'", False),
    (parameter, "'net.0.weight'", True),
    (submodule, "'net.3.weight'", True),
    (wider, "'net.0.weight'", False),
    (attribute, "net.2", True),
    (other_class, "net.1", True),
    (optimizer_step, "'net.0.weight'", True),
]
"""What is done, what the message names, and whether names and shapes stay, so that the optimizer does."""


@pytest.fixture(params=CHANGES, ids=[change.__name__ for change, *_ in CHANGES])
def change(request: pytest.FixtureRequest) -> tuple[Callable[[Any], None], str, bool]:
    return request.param


def test_a_change_is_noticed_at_the_next_block(m, change):
    do, name, _ = change
    here = m.state
    do(m.model)
    for use in (
        lambda: block(m, 2, setup=None),
        lambda: block(m, load_best=False),
        lambda: m.load_checkpoint(1),
        lambda: m.train(train_dl(), val_dl()),
        lambda: setattr(m, "state", here),
        lambda: m.load_state_dict(m.state_dict()),
    ):
        with pytest.raises(MutatedStateError, match="of the live module was changed since the model last knew it") as noticed:
            use()
        assert name in noticed.value.problem
        assert "model.adopt()" in noticed.value.fix
        assert "model.discard()" in noticed.value.fix
    assert m.state is here


def test_a_change_is_noticed_although_nobody_looked(store, change):
    do, name, _ = change
    module = build(Mlp, 0).eval()
    m = model(module=module, store=store)
    do(module)  # as a script that initialises its weights behind `Model(...)`
    with pytest.raises(MutatedStateError) as noticed:
        block(m)
    assert name in noticed.value.problem
    m.adopt()
    block(m)
    other = model("other", module=module, store=ps.MemoryStore())
    block(other)
    assert m.state.digests["params"] == other.state.digests["params"]


def test_what_was_adopted_of_a_plain_attribute_goes_and_comes_with_the_state(m):
    module = m.model
    attribute(module)
    m.adopt()
    block(m, 2, setup=None)
    assert m.model is module
    m.load_checkpoint(1)
    assert m.model is not module
    assert m.model.net[2].p == 0.5
    block(m, 3, setup=None)
    m.load_checkpoint(2)
    assert m.model.net[2].p == 0.125
    block(m, 4, setup=None)


def test_a_change_is_discarded(m, change):
    do, _, _ = change
    undisturbed = model(store=m.store)
    block(undisturbed, load_best=False)
    block(undisturbed, 2, setup=None)
    count = records(m)
    module = m.model
    do(module)
    m.discard()
    assert (m.model is module) == (do not in (attribute, other_class, wider))
    assert_trees_identical(weights(m.model), m.state_dict())
    assert all(tensor.requires_grad for tensor in m.model.parameters())
    assert not m.model.training
    assert m.model.net[2].p == 0.5
    block(m, 2, setup=None)
    assert m.state == undisturbed.state
    assert records(m) == count


def test_a_change_is_adopted_and_answered_when_the_script_is_run_again(m, change):
    do, _, stays = change
    ends = []
    for each in (m, model(store=m.store)):
        block(each, load_best=False)
        before = each.state
        do(each.model)
        wanted = weights(each.model)
        each.adopt()
        assert_trees_identical(each.state_dict(), wanted)
        assert (each.state.optimizer is not None) == stays
        if stays:
            assert each.state.digests["optimizer"] == before.digests["optimizer"]
            assert each.state.digests["epoch_scheduler"] == before.digests["epoch_scheduler"]
        assert each.epoch == 2
        block(each, 2, setup=None)
        ends.append(each.state)
        count = records(each) if each is m else count  # noqa: F821
    assert ends[0] == ends[1]
    assert records(m) == count
    untouched = model(store=ps.MemoryStore())
    untouched.state = model(store=m.store).state
    block(untouched, load_best=False)
    block(untouched, 2, setup=None)
    assert untouched.state != ends[0]


def test_a_cell_is_run_again_behind_what_was_adopted(m):
    no_grad(m.model)
    m.adopt()
    adopted = m.state
    block(m, 2, setup=None)
    end, count = m.state, records(m)
    with m.checkpoint(2) as cp:
        assert m.state == adopted
        cp.train(train_dl(), val_dl(), **ASK)
    assert m.state == end
    assert records(m) == count


def test_a_script_that_no_longer_adopts_is_told(m):
    no_grad(m.model)
    m.adopt()
    block(m, 2, setup=None)
    again = model(store=m.store)
    block(again, load_best=False)
    with pytest.raises(StaleRecordError, match="input params"):
        block(again, 2, setup=None)


def test_what_is_adopted_is_trained(store):
    """The module's new attribute and trainable parameters are what training uses."""
    m = model(module=build(Mlp, 0), store=store)
    frozen(m.model)
    attribute(m.model)
    m.adopt()
    block(m)
    module = build(Mlp, 0)
    frozen(module)
    attribute(module)
    other = model("other", module=module, store=ps.MemoryStore())
    block(other)
    assert m.state.digests["params"] == other.state.digests["params"]
    assert torch.equal(m.state.frozen["net.0.weight"], build(Mlp, 0).net[0].weight)


def test_a_module_that_holds_an_earlier_state_is_not_adopted(store):
    module = build(Mlp, 0)
    m = model(module=module, store=store)
    block(m, load_best=False)
    no_grad(module)  # the user's own reference: it holds what it was made with
    with pytest.raises(MutatedStateError, match="holds an earlier state than the model"):
        m.adopt()
    m.discard()
    assert_trees_identical(weights(module), m.state_dict())
    block(m, 2, setup=None)


def test_a_change_inside_a_block_is_noticed_by_the_next_train(m):
    with m.checkpoint(2) as cp:
        no_grad(m.model)
        with pytest.raises(MutatedStateError):
            cp.train(train_dl(), val_dl(), **ASK)
        with pytest.raises(SetupError, match="adopt was called inside the block"):
            m.adopt()
        m.discard()
        cp.train(train_dl(), val_dl(), **ASK)


def test_adopting_what_was_not_changed_changes_nothing(m):
    before = m.state
    _ = m.model
    m.adopt()
    assert m.state == before
    block(m, 2, setup=None)
    again = model(store=m.store)
    block(again, load_best=False)
    block(again, 2, setup=None)
    assert again.state == m.state


# ---------------------------------------------------------------- state dicts and held states


def test_a_state_dict_is_what_torch_would_give_and_a_copy(m):
    held = m.state_dict()
    copy = {name: tensor.clone() for name, tensor in held.items()}
    assert_trees_identical(held, weights(m.model))
    block(m, 2, setup=None)
    assert_trees_identical(held, copy)
    for tensor in held.values():
        tensor.zero_()
    block(m, 2, setup=None)
    assert not torch.equal(m.state_dict()["net.0.weight"], torch.zeros(8, 3))


def test_load_state_dict_makes_a_new_state(m):
    end = m.state
    other = model("other", store=m.store)
    start = other.state
    other.load_state_dict(m.state_dict())
    assert other.state.digests["params"] == end.digests["params"]
    assert start.digests["params"] != end.digests["params"]
    assert_trees_identical(weights(other.model), m.state_dict())
    given = m.state_dict()
    other.load_state_dict(given)
    given["net.0.weight"].zero_()
    assert other.state.digests["params"] == end.digests["params"]
    block(other)
    count = records(other)
    again = model("other", store=m.store)
    again.load_state_dict(end.state_dict())
    block(again)
    assert again.state == other.state
    assert records(again) == count
    m.load_state_dict(build(Mlp, 3).state_dict())  # what torch gives fits; the optimizer goes on
    assert m.state.digests["optimizer"] == end.digests["optimizer"]
    block(m, 2, setup=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("net.0.bias"), r"the model has 'net\.0\.bias', and the given one has not"),
        (lambda given: given.update(more=torch.ones(1)), "the given one has 'more', and the model has not"),
        (lambda given: given.update({"net.0.bias": torch.ones(3)}), r"params\['net\.0\.bias'\]"),
        (lambda given: given.update({"net.0.bias": torch.ones(8, dtype=torch.float64)}), r"params\['net\.0\.bias'\]"),
        (lambda given: given.update({"net.0.bias": [1.0] * 8}), r"'net\.0\.bias'.* tensor, got list"),
    ],
    ids=["less", "more", "shape", "dtype", "list"],
)
def test_state_dicts_that_do_not_fit(m, change, message):
    before, given = m.state, m.state_dict()
    change(given)
    with pytest.raises(StateError, match=message):
        m.load_state_dict(given)
    assert m.state is before


def test_tied_and_non_persistent_tensors_in_a_state_dict(store):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.two = nn.Linear(3, 3)
            self.two.weight = self.one.weight
            self.register_buffer("scratch", torch.ones(2), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x)) * self.scratch[0]

    m = model(module=build(Tied, 0), store=store)
    torch_dict = build(Tied, 1).state_dict()
    m.load_state_dict(torch_dict)
    assert_trees_identical(m.state_dict(), dict(torch_dict))
    assert_trees_identical(weights(m.model), dict(torch_dict))
    torch_dict["two.weight"] = torch.zeros(3, 3)  # one tensor of two names, and two values for it
    with pytest.raises(TreeMismatchError, match=r"'two\.weight'"):
        m.load_state_dict(torch_dict)


def test_a_held_state_forks_and_is_run_again(store):
    ends = []
    for m in (model(store=store), model(store=store)):
        block(m)
        held = m.state
        block(m, 2, setup=None)
        after_2 = m.state
        m.state = held
        block(m, 3, setup=dict(optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1), clear_epoch_scheduler=True))
        ends.append((held, after_2, m.state))
        count = records(m) if len(ends) == 1 else count  # noqa: F821
    assert ends[0] == ends[1]
    assert len(set(ends[0])) == 3
    assert records(m) == count
    parents = {info.id[-4:]: info.parent["checkpoint"] for info in m.checkpoints()}
    assert parents == {"0001": "net", "0002": "net--0001", "0003": "net--0001"}


def test_a_state_of_functions_can_be_given(store, m):
    s0 = ps.setup(ps.init(build(Mlp, 0), seed=0), **SETUP)
    s1 = store.checkpoint("functions", echo=None).train(s0, train_dl(), val_dl(), epochs=1)
    m.state = s1
    block(m, 5, setup=None)
    ck = ps.MemoryStore().checkpoint("x", echo=None)
    assert m.state == ck.train(s1, train_dl(), val_dl(), **{**ASK, "load_best": True})
    m.state = store.load("functions")  # without a recipe: that of the model
    assert m.state == s1
    assert m.state.recipe is not None


@pytest.mark.parametrize("module", [Linear, lambda: Mlp(hidden=5), ConvNet], ids=["other", "shape", "buffers"])
def test_a_state_that_does_not_fit_is_refused(m, module):
    before = m.state
    with pytest.raises(TreeMismatchError, match=r"in the model and .* in the state") as refused:
        m.state = ps.init(module, seed=0)
    assert refused.value.path
    assert m.state is before
    with pytest.raises(StateError, match="expected a State, got dict"):
        m.state = m.state_dict()


def test_extra_state_is_left_out(store):
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"version": 1}

        def set_extra_state(self, state: Any) -> None:
            assert state == {"version": 1}

    m = model(module=build(Extra, 0, in_features=3, out_features=2), store=store)
    assert list(m.state_dict()) == ["weight", "bias"]
    with pytest.raises(TreeMismatchError, match="'_extra_state'") as refused:
        m.load_state_dict(m.model.state_dict())
    assert "leave it out" in str(refused.value)
    m.load_state_dict(m.state_dict())


def test_a_cell_that_is_run_again_says_that_it_leaves_out_what_was_given_by_hand(m, capsys):
    block(m)
    first = m.state
    m.load_state_dict({name: tensor + 1 for name, tensor in m.state_dict().items()})
    capsys.readouterr()
    block(m)
    assert m.state == first
    assert "Checkpoint 1 is run again, from where it began: without what net was given by hand since." in capsys.readouterr().out
    block(m)
    assert m.state == first
    assert "by hand" not in capsys.readouterr().out
