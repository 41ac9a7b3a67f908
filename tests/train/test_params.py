from __future__ import annotations

import pytest
import torch
from torch import nn

import purestate as ps
from purestate.train._params import count_line, params_table
from tests.helpers import ConvNet
from tests.run.tiny import loader, start


class Nested(nn.Module):
    """Tensors of its own, a layer that is frozen before one that is not, and a layer without any."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.body = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        self.body[0].weight.requires_grad_(False)

    def forward(self, x):
        return self.body(x) * self.scale


def test_the_line_counts_elements():
    assert count_line(ps.init(ConvNet, seed=0)) == "Trainable params: 58. Untrainable params: 0. Buffers: 9."
    assert count_line(ps.init(Nested, seed=0)) == "Trainable params: 18. Untrainable params: 15. Buffers: 0."


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999, "999"),
        (1000, "1.0 k"),
        (10_240, "10.2 k"),
        (999_949, "999.9 k"),
        (999_950, "1.0 M"),
        (3_400_000, "3.4 M"),
        (999_999_999, "1.0 G"),
        (7_000_000_000, "7.0 G"),
        (12_345_000_000_000_000, "12345.0 T"),
    ],
)
def test_counts_for_people(count, text):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(count, device="meta"))

    assert count_line(ps.init(Wide, seed=0)) == f"Trainable params: {text}. Untrainable params: 0. Buffers: 0."


def test_tied_parameters_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    assert count_line(ps.init(Tied, seed=0)) == "Trainable params: 15. Untrainable params: 0. Buffers: 0."


def test_layers_come_as_the_module_has_them_each_named_once():
    assert params_table(ps.init(Nested, seed=0)).splitlines() == [
        "layer            name    mark       count  shape",
        "---------------  ------  ---------  -----  ------",
        "(Nested)         scale   trainable  1      []",
        "body.0 (Linear)  bias    trainable  5      [5]",
        "                 weight  frozen     15     [5, 3]",
        "body.2 (Linear)  weight  trainable  10     [2, 5]",
        "                 bias    trainable  2      [2]",
        "Trainable params: 18. Untrainable params: 15. Buffers: 0.",
    ]


def test_buffers_are_with_their_layer():
    rows = params_table(ps.init(ConvNet, seed=0)).splitlines()
    norm = next(i for i, row in enumerate(rows) if row.startswith("norm (BatchNorm2d)"))
    marks = [row.split()[-3] for row in rows[norm : norm + 5]]
    assert marks == ["trainable", "trainable", "buffer", "buffer", "buffer"]
    assert rows[norm + 5].startswith("head (Linear)")


def test_a_state_that_knows_no_module_goes_by_its_names():
    state = ps.init(Nested, seed=0).replace(recipe=None)
    assert [row.split("  ")[0] for row in params_table(state).splitlines()[2:-1]] == ["(root)", "body.0", "", "body.2", ""]


def test_a_state_from_a_store_that_was_not_read(tmp_store_path):
    fresh = start()
    ps.Store(tmp_store_path).checkpoint("a", echo=None).train(fresh, loader(), epochs=1)
    state = ps.Store(tmp_store_path).checkpoint("a", echo=None).train(start(), loader(), epochs=1)
    assert not state.params.loaded
    assert params_table(state) == params_table(fresh)
