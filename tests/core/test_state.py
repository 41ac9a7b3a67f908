"""States: immutable, made of copies, the same by their bits, at home in pytrees and in notebooks."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR
from torch.utils import _pytree as torch_pytree

import purestate as ps
from purestate.core._key import Key
from purestate.core._state import Counters, Origin, State
from purestate.errors import (
    FrozenStateError,
    MutatedStateError,
    SetupError,
    StateError,
    TreeMismatchError,
    UnsupportedError,
)
from tests.helpers import ConvNet, Linear, Mlp, assert_trees_identical, batch, bits, build

ROOT = Path(__file__).parents[2]


def fresh(module: Any = Mlp, **setup: Any) -> State:
    setup = {"loss_cls": nn.CrossEntropyLoss, "optimizer_cls": Adam, "epoch_scheduler_cls": StepLR} | setup
    return ps.setup(ps.init(module, seed=0), epoch_scheduler_args=dict(step_size=2), **setup)


def trained(module: Any = Mlp, steps: int = 2, shape: tuple[int, ...] = (3,)) -> State:
    state = fresh(module, step_scheduler_cls=StepLR, step_scheduler_args=dict(step_size=1))
    step = ps.make_step(state)
    for i in range(steps):
        state, _ = step(state, batch(8, shape, seed=i))
    return state


def full() -> State:
    """A state that has every part."""
    state = trained(ConvNet, shape=(1, 4, 4))
    state = ps.setup(ps.freeze(state, "conv.*"), loss_cls=nn.CrossEntropyLoss)
    state, _ = ps.make_step(state)(state, batch(8, (1, 4, 4)))
    return state.replace(ema=dict(state.params.own()), extra={"a.b": torch.zeros(2), "a": {"b": torch.ones(2), 3: (1, "x")}})


# -------------------------------------------------------------------- immutable

PARTS = [
    "params",
    "frozen",
    "buffers",
    "optimizer",
    "epoch_scheduler",
    "step_scheduler",
    "key",
    "counters",
    "ema",
    "extra",
    "recipe",
    "origin",
]


@pytest.mark.parametrize("name", [*PARTS, "hash", "digests", "spec", "device", "_hash", "_digests", "new"])
def test_no_attribute_can_be_assigned_or_deleted(name: str) -> None:
    state = full()
    before = state.hash
    with pytest.raises(FrozenStateError, match=rf"^state\.{name} cannot be assigned: a state does not change\.\nMake a new one"):
        setattr(state, name, None)
    with pytest.raises(FrozenStateError, match=rf"^state\.{name} cannot be deleted"):
        delattr(state, name)
    assert state.hash == before
    assert not hasattr(state, "__dict__")


def test_the_parts_are_all_the_parts() -> None:
    state = full()
    assert [name for name in State.__slots__ if not name.startswith("_")] == sorted(PARTS)
    assert all(getattr(state, name) is not None for name in PARTS)


@pytest.mark.parametrize("name", ["params", "frozen", "buffers", "ema"])
def test_no_mapping_of_it_can_be_assigned(name: str) -> None:
    state = full()
    leaves = getattr(state, name)
    first = next(iter(leaves))
    with pytest.raises(FrozenStateError):
        leaves[first] = torch.zeros(1)
    with pytest.raises(FrozenStateError):
        del leaves[first]
    with pytest.raises(TypeError):
        state.digests[name] = ""  # type: ignore[index]
    with pytest.raises(TypeError):
        leaves.hashes[first] = ""


@pytest.mark.parametrize("name", ["optimizer", "epoch_scheduler", "step_scheduler", "extra"])
def test_no_component_can_be_assigned(name: str) -> None:
    state = full()
    part = getattr(state, name)
    with pytest.raises(AttributeError):
        part.skeleton = {}
    with pytest.raises(AttributeError):
        part.leaves = {}
    with pytest.raises((FrozenStateError, TypeError)):
        part.leaves["x"] = torch.zeros(1)


def test_values_in_it_are_frozen() -> None:
    state = full()
    for owner, name in ((state.key, "hi"), (state.counters, "step"), (state.origin, "base"), (state.recipe, "precision")):
        with pytest.raises(AttributeError):
            setattr(owner, name, 1)


@pytest.mark.parametrize("name", ["params", "frozen", "buffers", "ema"])
def test_ops_notice_what_was_changed_in_place(name: str) -> None:
    state = full()
    leaf = next(iter(getattr(state, name)))
    getattr(state, name)[leaf].add_(1)
    for act in (state.check, state.verify, state.own, lambda: ps.make_step(state)(state, batch(8, (1, 4, 4)))):
        with pytest.raises(MutatedStateError) as caught:
            act()
        assert caught.value.path == f"{name}['{leaf}']"


def test_components_are_checked_too() -> None:
    state = trained()
    assert state.optimizer is not None
    state.verify()
    state.optimizer.leaves["state/net.0.bias/exp_avg"].zero_()
    with pytest.raises(MutatedStateError, match="optimizer"):
        state.check()


def test_verify_finds_changed_plain_values() -> None:
    state = trained()
    assert state.hash
    state.verify()
    assert state.optimizer is not None
    state.optimizer.skeleton["objects"]["optimizer"]["param_groups"][0]["lr"] = 7.0
    with pytest.raises(MutatedStateError, match=r"^optimizer was changed in place"):
        state.verify()


def test_copies() -> None:
    state = full()
    assert copy.copy(state) is state
    deep = copy.deepcopy(state)
    assert deep == state
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(tensors(deep), tensors(state), strict=True))
    with pytest.raises(UnsupportedError, match=r"^a state cannot be pickled.*\n.*\n.*state_dict"):
        pickle.dumps(state)


def tensors(state: State) -> list[torch.Tensor]:
    return optree.tree_leaves(state)


# -------------------------------------------------------------------- init


class Greedy(nn.Module):
    """Draws from everything that a builder can draw from."""

    def __init__(self) -> None:
        super().__init__()
        import random

        self.fc = nn.Linear(2, 2)
        self.register_buffer("drawn", torch.tensor([random.random(), np.random.rand()]))


def test_a_builder_runs_under_the_seed_and_moves_no_generator() -> None:
    """That no generator moved is seen by the guard of all tests."""
    a, b = ps.init(Greedy, seed=3), ps.init(Greedy, seed=3)
    assert a == b
    assert ps.init(Greedy, seed=4).params.digest != a.params.digest
    assert ps.init(Greedy, seed=4).buffers.digest != a.buffers.digest
    assert a.key == Key.from_seed(3)
    assert (a.counters, a.origin) == (Counters(0, 0), Origin(None, ({"init": {"seed": 3}},)))


def test_a_failing_builder_moves_no_generator_either() -> None:
    def fail() -> nn.Module:
        Greedy()
        raise KeyError("no")

    with pytest.raises(KeyError):
        ps.init(fail)


def test_a_module_is_taken_as_it_is_and_neither_modified_nor_aliased() -> None:
    module = build(ConvNet).eval()
    module.conv.weight.requires_grad_(False)
    before = {name: t.detach().clone() for name, t in module.state_dict().items()}
    state = ps.init(module, seed=9)
    assert_trees_identical(state.state_dict(), before)
    assert list(state.frozen) == ["conv.weight"]
    held = {t.data_ptr() for t in tensors(state)}
    assert held.isdisjoint(t.data_ptr() for t in module.state_dict().values())
    with torch.no_grad():
        for t in module.state_dict().values():
            t.add_(1)
    state.verify()
    assert_trees_identical(state.state_dict(), before)
    assert not module.training
    assert all(p.grad is None for p in module.parameters())
    assert state.recipe is not None
    assert state.recipe.template is not module


def test_the_hash_is_the_same_in_another_process() -> None:
    """Another hash seed of Python, other threads: only bits count."""
    script = (
        "import torch, purestate as ps\n"
        "from tests.helpers import Mlp\n"
        "torch.set_num_threads(1)\n"
        "print(ps.state_hash(ps.init(Mlp, seed=5).replace(extra={'a': {3, 'x', 1.5}, 'b': {1: torch.ones(2)}})))\n"
    )
    state = ps.init(Mlp, seed=5).replace(extra={"a": {3, "x", 1.5}, "b": {1: torch.ones(2)}})
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == state.hash


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_seeds(seed: int) -> None:
    assert ps.init(Linear, seed=seed).key.seed == seed % 2**64


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "0", None])
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(SetupError, match=r"^init: expected a seed from -2\*\*63 to 2\*\*64 - 1, got ") as caught:
        ps.init(Linear, seed=seed)
    assert caught.value.argument == "seed"


def test_what_is_no_module_is_refused() -> None:
    for thing in (3, None, lambda: 3, lambda: nn.Linear):
        with pytest.raises(UnsupportedError, match=r"^init: expected a torch\.nn\.Module or a function that builds one, got "):
            ps.init(thing)  # type: ignore[arg-type]


def test_lazy_modules_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"submodule '1' \(LazyLinear\) has parameters without a shape yet"):
        ps.init(lambda: nn.Sequential(nn.ReLU(), nn.LazyLinear(2)))


# -------------------------------------------------------------------- replace and identity


def test_replace_shares_what_is_not_named() -> None:
    state = full()
    new = state.replace(key=Key(1, 2))
    assert (new.key, state.key) == (Key(1, 2), Key.from_seed(0))
    assert all(getattr(new, name) is getattr(state, name) for name in PARTS if name not in ("key", "origin"))
    assert new != state
    assert new.replace(key=state.key) == state
    assert {state, state.own()} == {state}
    assert state != "state"
    assert state.hash == ps.state_hash(state)


def test_replace_holds_tensors_without_a_graph() -> None:
    state = ps.init(Linear)
    mine = {name: nn.Parameter(t + 1) for name, t in state.params.items()}
    new = state.replace(params=mine)
    assert new.params["fc.weight"].data_ptr() == mine["fc.weight"].data_ptr()
    assert not new.params["fc.weight"].requires_grad
    assert list(new.params) == list(state.params)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"weights": {}}, StateError, r"^a state has no part 'weights'; it has buffers, counters, ema,"),
        (
            {"params": {}},
            TreeMismatchError,
            r"^params\['net\.0\.weight'\]: expected float32\[8, 3\], got no such leaf in the repl",
        ),
        ({"params": 3}, StateError, r"^replace: expected params to be Mapping, got int"),
        ({"params": None}, StateError, r"^replace: expected params to be Mapping, got NoneType"),
        ({"buffers": {"x": torch.zeros(1)}}, TreeMismatchError, r"^buffers\['x'\]: expected no such leaf, got float32\[1\]"),
        ({"ema": {"x": torch.zeros(1)}}, TreeMismatchError, r"^ema\['net\.0\.weight'\]: expected float32"),
        ({"key": 3}, StateError, r"^replace: expected key to be Key, got int"),
        ({"counters": (1, 2)}, StateError, r"^replace: expected counters to be Counters, got tuple"),
        ({"optimizer": Adam}, StateError, r"^replace: expected optimizer to be Component or None, got type"),
        ({"extra": [1]}, StateError, r"^replace: expected extra to be Component or None, got list"),
        ({"extra": {"a": object()}}, UnsupportedError, r"^extra\.a is a builtins\.object, which cannot be part of a state"),
        ({"recipe": None, "origin": 3}, StateError, r"^replace: expected origin to be Origin, got int"),
    ],
)
def test_what_replace_refuses(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ps.init(Mlp).replace(**changes)


def test_replace_refuses_leaves_that_do_not_fit() -> None:
    state, other = ps.init(Mlp), ps.init(Linear)
    with pytest.raises(TreeMismatchError, match=r"^params\["):
        state.replace(params=other.params)
    with pytest.raises(StateError, match=r"^replace: expected params\['net\.0\.bias'\] to be a tensor, got int"):
        state.replace(params={**state.params, "net.0.bias": 3})
    wide = {name: t.double() for name, t in state.params.items()}
    with pytest.raises(TreeMismatchError, match=r"expected float32\[8, 3\], got float64\[8, 3\]") as caught:
        state.replace(params=wide)
    assert caught.value.path == "params['net.0.weight']"


def test_extra_comes_back_in_value_and_type() -> None:
    from purestate.core._plain import join

    extra = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2), 1: Counter({5: 2})}, "n": np.float32(2)}
    kept = ps.init(Linear).replace(extra=extra).extra
    assert kept is not None
    back = join(kept.skeleton, kept.leaves)
    assert_trees_identical(back, extra)


def test_origin_remembers_what_a_state_was_made_from() -> None:
    s0 = ps.init(Linear, seed=1)
    s1 = s0.replace(key=Key(0, 0))
    s2 = ps.setup(s1, loss_cls=nn.CrossEntropyLoss)
    acts = ({"init": {"seed": 1}}, {"replace": ["key"]})
    assert s1.origin == Origin(s0.hash, acts)
    assert s2.origin == Origin(s0.hash, (*acts, {"setup": s2.origin.acts[-1]["setup"]}))
    answer = s2.answered({"checkpoint": "a"})
    assert (answer.hash, answer.origin) == (s2.hash, Origin(parent={"checkpoint": "a"}))
    assert answer.replace(key=Key(5, 5)).origin == Origin(answer.hash, ({"replace": ["key"]},), {"checkpoint": "a"})


def test_a_fresh_component_is_known_by_its_marker_and_builds_nothing() -> None:
    s0 = ps.init(Mlp)
    s1 = ps.setup(s0, optimizer_cls=Adam, optimizer_args=dict(lr=0.1))
    assert s1.optimizer is None
    assert s1.recipe is not None
    assert s1.recipe.optimizer is not None
    assert s1.digests["optimizer"] == f"fresh:{s1.recipe.optimizer.digest}"
    assert len({s0, s1, ps.setup(s0, optimizer_cls=Adam, optimizer_args=dict(lr=0.2)), ps.setup(s0, optimizer_cls=SGD)}) == 4
    assert ps.setup(s0, optimizer_cls=Adam, optimizer_args=dict(lr=0.1)) == s1


def test_to_keeps_hash_strides_and_everything_else() -> None:
    state = full()
    state = state.replace(
        frozen={n: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in state.frozen.items()}
    )
    moved = state.to("cpu")
    assert moved == state
    assert moved.device == torch.device("cpu")
    assert (moved.spec, moved.origin, moved.recipe) == (state.spec, state.origin, state.recipe)
    state.params["head.bias"].add_(1)
    with pytest.raises(MutatedStateError):
        state.to("cpu")


def test_channels_last_is_in_the_spec_and_not_in_the_hash() -> None:
    plain = ps.init(ConvNet)
    last = ps.init(lambda: ConvNet().to(memory_format=torch.channels_last))
    assert last == plain
    assert (plain.spec["params"]["conv.weight"].order, last.spec["params"]["conv.weight"].order) == (None, (0, 2, 3, 1))
    assert last.own().spec == last.to("cpu").spec == last.spec
    filled = ps.to_module(last, build(ConvNet))
    assert filled.conv.weight.stride() == last.params["conv.weight"].stride()


# -------------------------------------------------------------------- back to torch


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("kept", torch.zeros(2))


def test_state_dict_is_that_of_the_module() -> None:
    module = build(Tied)
    state = ps.init(module)
    assert list(state.params) == ["embed.weight"]
    assert list(state.buffers) == ["scratch", "kept"]
    assert_trees_identical(state.state_dict(), dict(module.state_dict()))
    build(Tied, seed=1).load_state_dict(state.state_dict())
    copies = state.state_dict()
    copies["kept"].add_(1)
    state.verify()
    assert list(state.replace(recipe=None).state_dict()) == ["embed.weight", "scratch", "kept"]


def test_to_module_fills_copies_tied_weights_and_buffers() -> None:
    state = ps.init(Tied, seed=1)
    state = state.replace(buffers={"scratch": torch.tensor([3.0, 4.0]), "kept": torch.ones(2)})
    net = build(Tied)
    assert ps.to_module(state, net) is net
    assert net.out.weight is net.embed.weight
    assert_trees_identical(dict(net.state_dict()), state.state_dict())
    assert bits(net.scratch) == bits(state.buffers["scratch"])
    with torch.no_grad():
        net.embed.weight.add_(1)
    state.verify()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: nn.Linear(3, 2), "'weight', 'bias' are not in the state"),
        (lambda: Mlp(hidden=4), r"'net.0.weight': the module has float32 of shape \(4, 3\), the state float32 of shape \(8, 3\)"),
        (lambda: Mlp().double(), "'net.0.weight': the module has float64 of shape"),
        (lambda: nn.Module(), "'net.0.weight'.* are not in the module"),
    ],
)
@pytest.mark.moves_generators
def test_to_module_says_what_does_not_fit(module: Callable[[], nn.Module], message: str) -> None:
    net = module()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(TreeMismatchError, match=message):
        ps.to_module(ps.init(Mlp), net)
    assert_trees_identical(dict(net.state_dict()), before)


def test_to_module_takes_modules() -> None:
    with pytest.raises(UnsupportedError, match=r"^to_module: expected a torch\.nn\.Module to fill, got type"):
        ps.to_module(ps.init(Mlp), Mlp)  # type: ignore[arg-type]


# -------------------------------------------------------------------- how it looks


def test_repr_is_for_reading() -> None:
    assert repr(fresh()).splitlines() == [
        f"State({fresh().hash[:11]}, epoch 0, step 0)",
        "  params           4 leaves, 50 elements float32",
        "  frozen           0 leaves, 0 elements",
        "  buffers          0 leaves, 0 elements",
        f"  optimizer        {Adam.__module__}.Adam, not built yet",
        f"  epoch_scheduler  {StepLR.__module__}.StepLR, not built yet",
        "  key              Key(0, 0)",
    ]
    lines = repr(full()).splitlines()
    assert lines[0].endswith("epoch 0, step 3)")
    assert [line.split()[0] for line in lines[1:]] == [
        "params",
        "frozen",
        "buffers",
        "ema",
        "optimizer",
        "epoch_scheduler",
        "step_scheduler",
        "key",
        "extra",
    ]
    assert max(map(len, lines)) < 80


def test_html_is_escaped() -> None:
    state = ps.setup(ps.init(Linear), optimizer_fn=lambda params: SGD(params, lr=0.1))
    html = state._repr_html_()
    assert html.startswith("<table><caption>State <code>b3:")
    assert "&lt;lambda&gt;, not built yet" in html
    assert "<lambda>" not in html
    assert html.count("<tr>") == html.count("</tr>") == len(repr(state).splitlines()) - 1


# -------------------------------------------------------------------- pytrees

TREES = {
    "optree": (optree.tree_map, optree.tree_flatten, lambda spec, leaves: optree.tree_unflatten(spec, leaves)),
    "torch": (torch_pytree.tree_map, torch_pytree.tree_flatten, lambda spec, leaves: torch_pytree.tree_unflatten(leaves, spec)),
}


@pytest.mark.parametrize("library", TREES)
def test_a_round_trip_keeps_the_state(library: str) -> None:
    tree_map, flatten, unflatten = TREES[library]
    state = full()
    for back in (tree_map(lambda t: t, state), unflatten(flatten(state)[1], flatten(state)[0])):
        assert back == state
        assert [list(getattr(back, name)) for name in ("params", "buffers")] == [list(state.params), list(state.buffers)]
        assert (back.recipe, back.key, back.counters) == (state.recipe, state.key, state.counters)
    assert len(flatten(state)[0]) == sum(len(leaves) for leaves in state.spec.values())


@pytest.mark.parametrize("library", TREES)
def test_states_of_other_counters_and_keys_fit_together(library: str) -> None:
    tree_map = TREES[library][0]
    a, b = trained(steps=1), trained(steps=2).replace(key=Key(8, 8))
    mean = tree_map(lambda x, y: (x + y) / 2, a, b)
    assert bits(mean.params["net.0.bias"]) == bits((a.params["net.0.bias"] + b.params["net.0.bias"]) / 2)
    assert (mean.counters, mean.key) == (a.counters, a.key)
    assert a == trained(steps=1)
    with pytest.raises(ValueError, match=r"(?s)."):
        tree_map(lambda x, y: x, a, fresh())


@pytest.mark.parametrize("library", TREES)
def test_leaves_may_become_anything(library: str) -> None:
    tree_map = TREES[library][0]
    shapes = tree_map(lambda t: tuple(t.shape), ps.init(Linear))
    assert shapes.params["fc.weight"] == (2, 3)


def test_states_go_through_transforms() -> None:
    state = ps.init(Linear)

    def total(state: State) -> torch.Tensor:
        return sum(t.sum() for t in state.params.values())  # type: ignore[return-value]

    gradient = torch.func.grad(total)(state)
    assert isinstance(gradient, State)
    assert gradient.params["fc.weight"].tolist() == torch.ones(2, 3).tolist()
    stacked = optree.tree_map(lambda t: torch.stack([t, t + 1]), state)
    sums = torch.func.vmap(total)(stacked)
    assert optree.tree_map(lambda t: t, state.replace(key=Key(1, 1))).origin.base == state.hash
    assert sums.shape == (2,)
    assert float(sums[1] - sums[0]) == pytest.approx(8)  # eight elements, each one more; sums of floats round
