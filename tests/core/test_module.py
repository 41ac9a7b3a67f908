"""Modules taken apart and put together: nothing is lost, nothing is shared, and what does not work says so."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from purestate.core._module import Slots, fresh_copy, put_together, state_dict_names, take_apart, written_in_forward
from purestate.core._seeds import preserved_generators, seed_all
from purestate.errors import TreeMismatchError, UnsupportedError
from tests.helpers import ConvNet, Linear, Mlp, assert_trees_identical, build


class Everything(nn.Module):
    """Trainable, frozen, tied; buffers persistent, not persistent and None."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.emb = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 4, bias=False)
        self.out.weight = self.emb.weight
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)


def test_every_tensor_is_in_one_subtree_and_owned() -> None:
    module = build(Everything)
    _, params, frozen, buffers = take_apart(module)
    assert list(params) == ["conv.weight", "conv.bias", "emb.weight"]
    assert list(frozen) == ["frozen.weight", "frozen.bias"]
    assert list(buffers) == ["kept", "scratch"]
    ours = {**params, **frozen, **buffers}
    theirs = dict(module.named_parameters()) | dict(module.named_buffers())
    assert_trees_identical({n: ours[n] for n in theirs}, {n: t.detach() for n, t in theirs.items()}, strides=True)
    assert all(t.data_ptr() != theirs[n].data_ptr() and not t.requires_grad for n, t in ours.items())
    assert ours["conv.weight"].is_contiguous(memory_format=torch.channels_last)


def test_template_has_no_weights_and_the_module_keeps_its_own() -> None:
    module = build(Everything)
    module.emb.weight.no_decay = True
    template = take_apart(module)[0]
    tensors = [*template.parameters(), *template.buffers()]
    assert all(t.is_meta for t in tensors)
    assert [p.requires_grad for p in template.parameters()] == [p.requires_grad for p in module.parameters()]
    assert template.out.weight is template.emb.weight
    assert template.emb.weight.no_decay
    assert template.conv.weight.stride() == module.conv.weight.stride()
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
    assert template.nothing is None


@pytest.mark.parametrize("kind", [Linear, Mlp, ConvNet, Everything, lambda: nn.LSTM(3, 4, 2)])
def test_put_together_undoes_take_apart(kind: Any) -> None:
    module = build(kind)
    template, *trees = take_apart(module)
    for target in (fresh_copy(template), build(kind, seed=1)):
        put_together(target, *trees)
        assert_trees_identical(dict(target.state_dict()), dict(module.state_dict()), strides=True)
        again = take_apart(target)[1:]
        assert_trees_identical(list(again), trees, strides=True)
        assert all(
            t.data_ptr() != o.data_ptr()
            for tree, other in zip(trees, again, strict=True)
            for t, o in zip(tree.values(), other.values(), strict=True)
        )


def test_put_together_restores_strides_ties_and_what_is_frozen() -> None:
    template, *trees = take_apart(build(Everything))
    target = build(Everything, seed=1).requires_grad_(True)
    target.conv.weight.data = target.conv.weight.data.contiguous()
    put_together(target, *trees)
    assert target.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert target.out.weight is target.emb.weight
    assert [n for n, p in target.named_parameters() if not p.requires_grad] == ["frozen.weight", "frozen.bias"]
    assert put_together(fresh_copy(template), *trees).out.weight.device.type == "cpu"


def test_a_filled_recurrent_module_runs_with_its_new_weights() -> None:
    module = build(lambda: nn.LSTM(3, 4))
    template, *trees = take_apart(module)
    x = torch.ones(2, 1, 3)
    assert torch.equal(put_together(fresh_copy(template), *trees)(x)[0], module(x)[0])


@pytest.mark.parametrize(
    ("change", "path", "text"),
    [
        (lambda p: p.pop("fc.bias"), "fc.bias", "are not in the state"),
        (lambda p: p.update(spare=torch.zeros(1)), "spare", "are not in the module"),
        (
            lambda p: p.update({"fc.bias": torch.zeros(3)}),
            "fc.bias",
            r"float32 of shape \(2,\), the state float32 of shape \(3,\)",
        ),
        (lambda p: p.update({"fc.bias": torch.zeros(2, dtype=torch.float64)}), "fc.bias", "float64"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(change: Any, path: str, text: str) -> None:
    _, params, frozen, buffers = take_apart(build(Linear))
    change(params)
    target = build(Linear, seed=1)
    before = {n: t.clone() for n, t in target.state_dict().items()}
    with pytest.raises(TreeMismatchError, match=text) as caught:
        put_together(target, params, frozen, buffers)
    assert caught.value.path == path
    assert_trees_identical(dict(target.state_dict()), before)


@pytest.mark.parametrize("kind", [Everything, ConvNet, lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))])
def test_state_dict_names_builds_the_state_dict(kind: Any) -> None:
    module = build(kind)
    template, *trees = take_apart(module)
    subtrees = dict(zip(("params", "frozen", "buffers"), trees, strict=True))
    built = {name: subtrees[subtree][leaf] for name, (subtree, leaf) in state_dict_names(template).items()}
    assert_trees_identical(built, dict(module.state_dict()))


def test_old_weight_norm_can_be_taken_apart_after_use() -> None:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        module = build(lambda: nn.utils.weight_norm(nn.Linear(2, 2)))
    module(torch.ones(1, 2))
    assert set(take_apart(module)[1]) == {"bias", "weight_g", "weight_v"}


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), "submodule '0' .*without a shape"),
        (lambda: nn.DataParallel(nn.Linear(2, 2)), "copies its own weights"),
        (Locked, "cannot be deep-copied"),
    ],
)
def test_what_cannot_be_taken_apart_says_how_to_go_on(make: Any, text: str) -> None:
    with preserved_generators(), pytest.raises(UnsupportedError, match=text) as caught:
        take_apart(make())
    assert len(str(caught.value).splitlines()) >= 2


def test_scripted_modules_are_refused() -> None:
    with warnings.catch_warnings(action="ignore"), preserved_generators():
        scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(UnsupportedError, match="was scripted or traced"):
        take_apart(nn.Sequential(scripted))


def test_lent_tensors_are_used_and_taken_back() -> None:
    template, params, frozen, buffers = take_apart(build(ConvNet))
    slots = Slots(fresh_copy(template))
    plain = put_together(fresh_copy(template), params, frozen, buffers)
    x = torch.ones(2, 1, 4, 4)
    with slots.lent(params, frozen, buffers):
        assert torch.equal(slots.module(x), plain(x))
        assert slots.read_buffers()["norm.running_mean"] is buffers["norm.running_mean"]
    assert torch.equal(buffers["norm.running_mean"], plain.norm.running_mean)
    assert all(t.is_meta for t in (*slots.module.parameters(), *slots.module.buffers()))


def test_a_buffer_that_was_none_and_a_parameter_put_in_place_of_another_are_refused() -> None:
    template, *trees = take_apart(build(Everything))
    slots = Slots(fresh_copy(template))
    with pytest.raises(UnsupportedError, match="buffer 'nothing' was None"), slots.lent(*trees):
        slots.module.nothing = torch.ones(1)
    assert slots.module.nothing is None
    with pytest.raises(UnsupportedError, match=r"in the place of 'emb.weight'"), slots.lent(*trees):
        slots.module.out.weight = nn.Parameter(torch.ones(4, 3))


def test_modules_that_write_their_parameters_are_known() -> None:
    module = nn.Sequential(build(lambda: nn.Embedding(3, 2, max_norm=1.0)), build(lambda: nn.Embedding(3, 2)))
    assert written_in_forward(take_apart(module)[0]) == {"0.weight"}


def test_taking_apart_draws_nothing() -> None:
    with preserved_generators():
        seed_all(0)
        module = Mlp()
        before = torch.get_rng_state()
        put_together(fresh_copy(take_apart(module)[0]), *take_apart(module)[1:])
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("take", [lambda m: setattr(m, "run", None), lambda m: delattr(m, "run")], ids=["None", "deleted"])
def test_a_buffer_that_forward_takes_away_is_refused(take: Any) -> None:
    module = nn.Module()
    module.register_buffer("run", torch.zeros(2))
    template, *tensors = take_apart(module)
    slots = Slots(fresh_copy(template))
    with slots.lent(*tensors):
        take(slots.module)
        with pytest.raises(UnsupportedError, match="forward took the tensor of buffer 'run' away"):
            slots.read_buffers()


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_parameter_is_refused(register: str) -> None:
    module = nn.BatchNorm1d(2)
    getattr(module.weight, register)(lambda gradient: None)
    with pytest.raises(UnsupportedError, match="parameter 'weight' has a hook on its gradient"):
        take_apart(module)
