"""diff: every leaf and plain value that differs, by how much, and nothing else."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import SGD, Adam

import purestate as ps
from purestate.core._diff import LeafDiff, diff
from purestate.core._key import Key
from purestate.core._state import Counters, State
from purestate.core._tree import Leaves
from tests.helpers import Linear, Mlp, batch


def one(a: torch.Tensor, b: torch.Tensor) -> list[LeafDiff]:
    empty = Leaves()
    pair = [State(params=Leaves({"w": t}, "params"), frozen=empty, buffers=empty, key=Key(0, 0)) for t in (a, b)]
    return diff(*pair)


def test_equal_states_have_no_difference() -> None:
    assert diff(ps.init(Mlp), ps.init(Mlp)) == []
    last = ps.init(lambda: nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last))
    assert diff(last, ps.init(lambda: nn.Conv2d(2, 2, 3))) == []
    assert one(torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf])) == []


def test_elements_are_counted_and_measured() -> None:
    t = torch.tensor([1.0, 2.0, 4.0])
    assert one(t, t + torch.tensor([0, 0.5, -2])) == [LeafDiff("params['w']", "float32[3]", "float32[3]", 2, 2.0)]
    assert one(torch.tensor(3), torch.tensor(-1)) == [LeafDiff("params['w']", "int64[]", "int64[]", 1, 4.0)]
    assert one(torch.tensor([True, False]), torch.tensor([True, True]))[0].largest == 1.0
    assert one(torch.tensor([3 + 4j, 1]), torch.tensor([0j, 1]))[0].largest == 5.0
    assert one(torch.tensor([3 + 4j]).conj(), torch.tensor([3 + 4j]))[0].largest == 8.0
    assert one(t.to(torch.float8_e4m3fn), (t + 1).to(torch.float8_e4m3fn))[0].largest == 1.0


def test_other_bits_of_equal_values() -> None:
    assert one(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])) == [
        LeafDiff("params['w']", "float32[2]", "float32[2]", 1, 0.0)
    ]


def test_only_what_changed_is_measured() -> None:
    """An infinity or a nan that both have is no difference."""
    t = torch.tensor([math.inf, math.nan, -math.inf, 1.0])
    assert one(t, t + torch.tensor([0, 0, 0, 0.5])) == [LeafDiff("params['w']", "float32[4]", "float32[4]", 1, 0.5)]
    for a, b in [(math.inf, 1.0), (math.nan, 1.0), (math.inf, -math.inf), (1.0, math.nan)]:
        (found,) = one(torch.tensor([a]), torch.tensor([b]))
        assert (found.changed, found.largest) == (1, math.inf)


def test_other_shapes_names_and_dtypes() -> None:
    t = torch.zeros(2, 3)
    assert one(t, torch.zeros(3)) == [LeafDiff("params['w']", "float32[2, 3]", "float32[3]")]
    assert one(t, t.double()) == [LeafDiff("params['w']", "float32[2, 3]", "float64[2, 3]")]
    assert one(torch.zeros(0), torch.zeros(0, 1)) == [LeafDiff("params['w']", "float32[0]", "float32[0, 1]")]
    found = {d.path: (d.a, d.b) for d in diff(ps.init(Linear), ps.init(lambda: nn.Linear(3, 2)))}
    assert found["params['fc.bias']"] == ("float32[2]", "none")
    assert found["params['bias']"] == ("none", "float32[2]")


def test_key_counters_and_missing_parts() -> None:
    s = ps.init(Linear)
    assert diff(s, s.replace(key=Key(1, 2), counters=Counters(1, 5))) == [
        LeafDiff("key", "Key(0, 0)", "Key(1, 2)"),
        LeafDiff("counters", "Counters(epoch=0, step=0)", "Counters(epoch=1, step=5)"),
    ]
    (found,) = diff(s, s.replace(ema=dict(s.params)))
    assert (found.path, found.a) == ("ema", "none")
    (found,) = diff(ps.setup(s, optimizer_cls=SGD), ps.setup(s, optimizer_cls=Adam))
    assert found.path == "optimizer"
    assert found.a.startswith("fresh:")


def test_extra_tells_values_and_tensors() -> None:
    s = ps.init(Linear)
    a = s.replace(extra={"note": "x", "list": [1, 2], "same": 1, "t": torch.zeros(2)})
    b = s.replace(extra={"note": "y", "list": [1, 3], "same": 1, "t": torch.ones(2), "new": (1,)})
    assert diff(a, b) == [
        LeafDiff("extra['t']", "float32[2]", "float32[2]", 2, 1.0),
        LeafDiff("extra['note']", '"x"', '"y"'),
        LeafDiff("extra['list'][1]", "2", "3"),
        LeafDiff("extra['new']", "none", '{"v":[1],"~":"tuple"}'),
    ]


def test_hyperparameters_are_told_beside_moments() -> None:
    def run(lr: float) -> State:
        s = ps.setup(ps.init(Linear), loss_cls=nn.CrossEntropyLoss, optimizer_cls=Adam, optimizer_args=dict(lr=lr))
        return ps.make_step(s)(s, batch())[0]

    found = {d.path: d for d in diff(run(0.1), run(0.2))}
    assert (found["optimizer.param_groups[0]['lr']"].a, found["optimizer.param_groups[0]['lr']"].b) == ("0.1", "0.2")
    assert set(found) == {"params['fc.weight']", "params['fc.bias']", "optimizer.param_groups[0]['lr']"}
    s = run(0.1)
    again = ps.make_step(s)(s, batch(seed=1))[0]
    assert "optimizer['state/fc.bias/exp_avg']" in {d.path for d in diff(s, again)}
    s.verify()
