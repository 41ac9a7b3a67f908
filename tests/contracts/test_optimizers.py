"""Every optimizer of torch, and what users write beside them: taken to plain data and back in the middle of training.

The run that is cut must equal the run that is not, bit for bit, in parameters, state, groups and attributes. It is cut at
every step within this process, and once for the whole table into another process, through JSON and raw bytes.

Run as a program, this file is that other process.
"""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from purestate.core import _optim
from purestate.core._component import Component
from purestate.core._factory import Factory
from purestate.core._hash import dtype_name, leaf_bytes
from purestate.errors import TreeMismatchError, UnsupportedError

STEPS, CUT = 6, 3
UNSUPPORTED = {"LBFGS": "needs a closure", "SparseAdam": "needs sparse gradients, which a dense parameter never gets here"}


class FloatMoments(torch.optim.Optimizer):
    """fp32 moments over bf16 parameters, with attributes that move: what load_state_dict would break."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.calls = 0
        self.norms = []
        self.average = torch.zeros(2, dtype=torch.float64)

    @torch.no_grad()
    def step(self, closure=None):
        self.calls += 1
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state.setdefault("moment", torch.zeros_like(param, dtype=torch.float32)).mul_(0.9).add_(param.grad.float())
                state.setdefault("history", []).append(self.calls)
                param.sub_((group["lr"] * state["moment"]).to(param.dtype))
        self.norms = [*self.norms[-2:], float(self.state[self.param_groups[0]["params"][0]]["moment"].norm())]
        self.average[0] += self.norms[-1]
        self.state["run"] = {"total": sum(self.norms)}


class Lookahead(torch.optim.Optimizer):
    """An optimizer inside an optimizer that share groups, a held list of parameters, and slots of its own."""

    def __init__(self, params, lr=0.1):
        self.fast = torch.optim.Adam(params, lr=lr)
        super().__init__(self.fast.param_groups, {})
        self.param_groups = self.fast.param_groups
        self.all = [param for group in self.param_groups for param in group["params"]]
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.fast.step()
        self.count += 1
        for param in self.all:
            slow = self.state[param].setdefault("slow", param.clone())
            if self.count % 2 == 0:
                slow.lerp_(param, 0.5)
                param.copy_(slow)


class MovingDefaults(torch.optim.SGD):
    def step(self, closure=None):
        self.defaults["lr"] *= 0.5
        self.param_groups[0]["lr"] = self.defaults["lr"]
        super().step(closure)


def groups(params):
    weights, biases = [p for p in params if p.ndim > 1], [p for p in params if p.ndim == 1]
    return torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.3, "note": (1, 2)}], lr=0.01)


def partial_training(params):
    return torch.optim.SGD(params[1:3], lr=0.1, momentum=0.9)


def shared_rate(params):
    lr = torch.tensor(0.1)
    return torch.optim.SGD([{"params": params[:2], "lr": lr}, {"params": params[2:], "lr": lr}])


optim = torch.optim
NEED_ALL_GRADIENTS = (FloatMoments, optim.SGD)  # fused SGD with momentum fails in torch where a gradient appears late
TABLE: dict[str, tuple[type | Callable[..., Any], dict[str, Any]]] = {
    "Adadelta": (optim.Adadelta, {}),
    "Adafactor": (optim.Adafactor, {}),
    "Adagrad": (optim.Adagrad, {"lr_decay": 0.1}),
    "Adam": (optim.Adam, {}),
    "Adam amsgrad": (optim.Adam, {"amsgrad": True, "maximize": True}),
    "Adam foreach": (optim.Adam, {"foreach": True}),
    "Adam fused": (optim.Adam, {"fused": True}),
    "Adam tensor lr": (optim.Adam, {"lr": torch.tensor(0.01), "foreach": False}),
    "Adamax": (optim.Adamax, {}),
    "AdamW": (optim.AdamW, {"weight_decay": 0.1}),
    "AdamW fused": (optim.AdamW, {"fused": True}),
    "ASGD": (optim.ASGD, {"t0": 2}),
    "Muon": (optim.Muon, {}),
    "NAdam": (optim.NAdam, {"decoupled_weight_decay": True}),
    "RAdam": (optim.RAdam, {}),
    "RMSprop": (optim.RMSprop, {}),
    "RMSprop centered": (optim.RMSprop, {"centered": True, "momentum": 0.9}),
    "Rprop": (optim.Rprop, {}),
    "SGD": (optim.SGD, {}),
    "SGD dampening": (optim.SGD, {"momentum": 0.9, "dampening": 0.1}),
    "SGD fused": (optim.SGD, {"momentum": 0.9, "fused": True}),
    "SGD nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "user FloatMoments": (FloatMoments, {}),
    "user Lookahead": (Lookahead, {}),
    "user MovingDefaults": (MovingDefaults, {"lr": 0.5}),
    "fn groups": (groups, {}),
    "fn partial training": (partial_training, {}),
    "fn shared tensor lr": (shared_rate, {}),
}


def factory(name: str) -> Factory:
    made_by, args = TABLE[name]
    if isinstance(made_by, type):
        return Factory.make("optimizer", made_by, args, describe=lambda code: code.__qualname__)
    return Factory.make("optimizer", fn=made_by, describe=lambda code: code.__qualname__)


def parameters(name: str) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = (
        {"a.weight": (4, 3), "a/b~c.weight": (2, 4)}
        if name == "Muon"
        else {"fc.weight": (4, 3), "fc.bias": (4,), "a/b~.weight": (2, 4)}
    )
    dtype = torch.bfloat16 if name == "user FloatMoments" else torch.float32
    return {key: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for key, shape in shapes.items()}


def advance(optimizer: optim.Optimizer, params: dict[str, nn.Parameter], start: int, stop: int) -> None:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        for i, param in enumerate(params.values()):
            gradient = torch.randn(param.shape, generator=generator).to(param.dtype)
            late = i == 1 and step < 2 and not isinstance(optimizer, NEED_ALL_GRADIENTS)
            param.grad = None if late else gradient  # state appears when the first gradient does
        optimizer.step()


def plain(component: Component) -> Any:
    """Return a component as comparable data: its JSON, and each leaf as dtype, shape and bytes."""
    leaves = {
        path: (dtype_name(t.dtype), list(t.shape), bytes(leaf_bytes(t)).hex()) for path, t in sorted(component.leaves.items())
    }
    return json.loads(json.dumps([component.skeleton, leaves], sort_keys=True))


def from_plain(data: Any) -> Component:
    skeleton, leaves = data
    return Component(skeleton, {path: tensor(*written) for path, written in leaves.items()})


def tensor(dtype: str, shape: list[int], data: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(data), dtype=getattr(torch, dtype)).reshape(shape)


def run_again(program: str, *arguments: Path) -> None:
    """Run a test file as a program in a new process, with warnings as errors."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-W", "error", program, *map(str, arguments)], check=True, env=environment)


def copies(params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {key: nn.Parameter(param.detach().clone()) for key, param in params.items()}


def observed(optimizer: optim.Optimizer, params: dict[str, nn.Parameter]) -> Any:
    return [plain(Component(None, params)), plain(_optim.export_optimizer(optimizer, params))]


@functools.cache
def uninterrupted(name: str) -> list[Any]:
    """Return what is observed after each step, 0 included, of the run that is not cut."""
    params = parameters(name)
    optimizer = _optim.build_optimizer(factory(name), params)
    seen = [observed(optimizer, params)]
    for step in range(STEPS):
        advance(optimizer, params, step, step + 1)
        seen.append(observed(optimizer, params))
    return seen


def test_every_class_of_torch_is_in_the_table():
    classes = {name for name, cls in vars(optim).items() if isinstance(cls, type) and issubclass(cls, optim.Optimizer)}
    tried = {made_by.__name__ for made_by, _ in TABLE.values() if isinstance(made_by, type)}
    assert classes - {"Optimizer"} - UNSUPPORTED.keys() <= tried
    assert not tried & UNSUPPORTED.keys()
    assert len(TABLE) >= 24


@pytest.mark.parametrize("name", TABLE)
def test_a_cut_at_any_step_changes_nothing(name):
    whole = uninterrupted(name)
    assert whole[0] != whole[-1]
    params = parameters(name)
    optimizer = _optim.build_optimizer(factory(name), params)
    for step in range(STEPS):
        component = _optim.export_optimizer(optimizer, params)
        before = plain(component)
        params = copies(params)
        optimizer = _optim.restore_optimizer(factory(name), component, params)
        assert observed(optimizer, params) == whole[step]
        advance(optimizer, params, step, step + 1)
        assert observed(optimizer, params) == whole[step + 1]
        assert plain(component) == before


def test_another_process_goes_on(tmp_path):
    half = {name: uninterrupted(name)[CUT] for name in TABLE}
    (tmp_path / "half.json").write_text(json.dumps(half))
    run_again(__file__, tmp_path / "half.json", tmp_path / "whole.json")
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert whole.keys() == TABLE.keys()
    for name in TABLE:
        assert whole[name] == uninterrupted(name)[STEPS], name


def test_lbfgs_is_refused_with_its_reason():
    with pytest.raises(UnsupportedError, match=r"optimizer LBFGS cannot be used: its step needs 'closure'"):
        Factory.make("optimizer", optim.LBFGS, describe=str)
    lbfgs = Factory.make("optimizer", fn=lambda params: optim.LBFGS(params), describe=str)
    with pytest.raises(UnsupportedError, match="closure"):
        _optim.build_optimizer(lbfgs, parameters("SGD"))


def test_sparse_adam_says_itself_what_it_needs():
    params = parameters("SGD")
    optimizer = _optim.build_optimizer(Factory.make("optimizer", optim.SparseAdam, describe=str), params)
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        advance(optimizer, params, 2, 3)


@pytest.mark.parametrize(("options", "where"), [({}, "cpu"), ({"fused": True}, "cuda"), ({"capturable": True}, "cuda")])
def test_counters_are_where_the_class_looks_at_them(options, where):
    with FakeTensorMode():
        params = [nn.Parameter(torch.zeros(2, device="cuda"))]
        optimizer = optim.Adam(params, **options)
        optimizer.state[params[0]] = {"step": torch.zeros((), device="cuda"), "exp_avg": torch.zeros(2, device="cuda")}
        _optim._counters_on_cpu(optimizer)
    slots = optimizer.state[params[0]]
    assert (slots["step"].device.type, slots["exp_avg"].device.type) == (where, "cuda")


def test_strides_of_moments_are_kept():
    params = {"w": nn.Parameter(torch.randn(2, 3, 4, 4, generator=torch.Generator()).to(memory_format=torch.channels_last))}
    optimizer = _optim.build_optimizer(factory("Adam"), params)
    advance(optimizer, params, 2, 3)
    again = _optim.restore_optimizer(factory("Adam"), _optim.export_optimizer(optimizer, params), copies(params))
    (slots,) = again.state.values()
    assert slots["exp_avg"].stride() == params["w"].stride() == (48, 1, 12, 3)


def test_a_shared_tensor_stays_shared_and_is_no_longer_the_users():
    theirs = torch.tensor(0.1)
    made = Factory.make(
        "optimizer", fn=lambda p: optim.SGD([{"params": p[:1], "lr": theirs}, {"params": p[1:], "lr": theirs}]), describe=str
    )
    params = parameters("SGD")
    for optimizer in (
        first := _optim.build_optimizer(made, params),
        _optim.restore_optimizer(made, _optim.export_optimizer(first, params), params),
    ):
        a, b = (group["lr"] for group in optimizer.param_groups)
        assert a is b
        a.fill_(0.5)
        assert theirs == torch.tensor(0.1)


def test_parameters_may_be_frozen_and_unfrozen():
    params = parameters("Adam")
    optimizer = _optim.build_optimizer(factory("Adam"), params)
    advance(optimizer, params, 2, 4)
    optimizer.param_groups[0]["lr"] = 0.125
    component = _optim.export_optimizer(optimizer, params)
    fewer = {"fc.weight": params["fc.weight"]}
    optimizer = _optim.restore_optimizer(factory("Adam"), component, fewer)
    assert _optim.learning_rates(optimizer) == [0.125]
    assert list(optimizer.state) == [params["fc.weight"]]
    more = _optim.restore_optimizer(factory("Adam"), _optim.export_optimizer(optimizer, fewer), params)
    assert _optim.learning_rates(more) == [0.125]
    assert more.param_groups[0]["params"] == list(params.values())
    assert list(more.state) == [params["fc.weight"]]
    adagrad = _optim.build_optimizer(factory("Adagrad"), fewer)
    more = _optim.restore_optimizer(factory("Adagrad"), _optim.export_optimizer(adagrad, fewer), params)
    assert list(more.state) == list(params.values())


def test_other_groups_are_an_error():
    params = parameters("fn groups")
    component = _optim.export_optimizer(_optim.build_optimizer(factory("fn groups"), params), params)
    with pytest.raises(TreeMismatchError, match="kept with 2 parameter groups and is built with 1") as caught:
        _optim.restore_optimizer(factory("Adam"), component, params)
    assert caught.value.path == "optimizer"


@pytest.mark.parametrize("name", ["Adam", "Adagrad", "Adam tensor lr", "fn shared tensor lr", "user Lookahead"])
def test_load_best_takes_moments_of_the_best_and_groups_of_the_last(name):
    params = parameters(name)
    optimizer = _optim.build_optimizer(factory(name), params)
    seen = []
    for step in range(3):
        seen.append(_optim.export_optimizer(optimizer, params).cloned())
        advance(optimizer, params, step + 2, step + 3)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.5
    last = _optim.export_optimizer(optimizer, params)
    for best, chosen in ((seen[0], seen[0]), (seen[0], None), (seen[2], seen[2])):
        mixed = _optim.with_moments_of(last, chosen)
        again = _optim.restore_optimizer(factory(name), mixed, params)
        as_best = _optim.restore_optimizer(factory(name), best, params)
        assert _optim.learning_rates(again) == _optim.learning_rates(optimizer) == _optim.stored_learning_rates(mixed)
        for group, of_best in zip(again.param_groups, as_best.param_groups, strict=True):
            group["lr"] = of_best["lr"]
        mine, theirs = (_optim.export_optimizer(each, params) for each in (again, as_best))
        moments = {path for path in theirs.leaves if "state/" in path}
        assert {path: plain(Component(None, {path: mine.leaves[path]})) for path in moments} == {
            path: plain(Component(None, {path: theirs.leaves[path]})) for path in moments
        }
        assert {path for path in mine.leaves if "state/" in path} == moments


@pytest.mark.parametrize("name", ["Adam", "Adam tensor lr", "fn shared tensor lr"])
def test_rates_are_replaced(name):
    params = parameters(name)
    component = _optim.export_optimizer(_optim.build_optimizer(factory(name), params), params)
    before = plain(component)
    rates = [0.5, 0.25][: len(_optim.stored_learning_rates(component))]
    new = _optim.replace_learning_rates(component, rates)
    assert _optim.stored_learning_rates(new) == rates
    assert plain(component) == before
    optimizer = _optim.restore_optimizer(factory(name), new, params)
    assert _optim.learning_rates(optimizer) == rates
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == ("tensor" in name)


class Holds(torch.optim.SGD):
    def __init__(self, params, thing):
        super().__init__(params)
        self.thing = thing


@pytest.mark.parametrize("thing", [torch.Generator(), iter([1]), random.Random(0), threading.Lock(), object])
def test_what_has_no_plain_form_is_named(thing):
    made = Factory.make("optimizer", fn=lambda params: Holds(params, thing), describe=str)
    if isinstance(thing, type):  # a class is code: the factory gives it again
        _optim.build_optimizer(made, parameters("SGD"))
        return
    with pytest.raises(UnsupportedError, match=r"optimizer\.thing is a .*, which cannot be part of a state"):
        _optim.build_optimizer(made, parameters("SGD"))


def main(source: str, target: str) -> None:
    """Finish the runs that are in ``source``, and write what is observed to ``target``."""
    warnings.simplefilter("error")
    done = {}
    for name, (params_now, component) in json.loads(Path(source).read_text()).items():
        stored = from_plain(params_now).leaves
        params = {key: nn.Parameter(stored[key]) for key in parameters(name)}
        optimizer = _optim.restore_optimizer(factory(name), from_plain(component), params)
        advance(optimizer, params, CUT, STEPS)
        done[name] = observed(optimizer, params)
    Path(target).write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
