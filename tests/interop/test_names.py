"""`nest` and `flatten`: names with dots and nested dicts, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import purestate as ps
from purestate.errors import TreeMismatchError, UnsupportedError
from tests.helpers import Mlp

PARTS = st.sampled_from(["a", "b", "0", "10", ""])
TREES = st.recursive(st.integers(), lambda below: st.dictionaries(PARTS, below, min_size=1, max_size=3), max_leaves=8)


def test_the_parameters_of_a_state_and_back():
    params = ps.init(Mlp, seed=0).params
    nested = ps.nest(params)
    assert list(nested) == ["net"]
    assert list(nested["net"]) == ["0", "3"]  # digits stay texts
    assert nested["net"]["0"]["weight"] is params["net.0.weight"]  # nothing is copied, nothing transposed
    assert list(ps.flatten(nested)) == list(params)
    assert ps.tree_hash(ps.flatten(nested)) == ps.tree_hash(params)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(PARTS, TREES, max_size=3))
def test_flatten_is_undone_by_nest(tree):
    assert ps.nest(ps.flatten(tree)) == tree


def test_order_is_that_in_which_names_come_first():
    assert list(ps.flatten(ps.nest({"b.x": 1, "a": 2, "b.a": 3}))) == ["b.x", "b.a", "a"]


def test_integers_are_taken_for_names():
    assert ps.flatten({"layers": {0: {"kernel": 1}, 1: {"kernel": 2}}}) == {"layers.0.kernel": 1, "layers.1.kernel": 2}


def test_a_mapping_that_is_a_leaf_is_handed_on():
    leaf = {"b": 1}
    assert ps.nest({"a.x": leaf}) == {"a": {"x": leaf}}


@pytest.mark.parametrize("tree", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a": {}, "a.b": 1}, {"a.b": 1, "a.b.c.d": 2}])
def test_a_leaf_with_leaves_below_it_is_refused(tree):
    with pytest.raises(TreeMismatchError, match=r"nest: 'a(\.b)?' is a leaf, and there is 'a\.b.*' below it") as caught:
        ps.nest(tree)
    assert caught.value.path in {"a", "a.b"}


@pytest.mark.parametrize("tree", [{"a.b": 1, "a": {"b": 2}}, {"a": {"b": 2}, "a.b": 1}, {"a": {0: 1, "0": 2}}])
def test_two_leaves_of_one_name_are_refused(tree):
    with pytest.raises(TreeMismatchError, match="two leaves would be called"):
        ps.flatten(tree)


@pytest.mark.parametrize(
    ("call", "tree", "says"),
    [
        (ps.nest, {1: 1}, "expected texts as names, got 1"),
        (ps.nest, [1], "expected a mapping of names, got a list"),
        (ps.flatten, {"a": [1]}, "got a list at 'a'"),
        (ps.flatten, {"a": {(1,): 1}}, r"got \(1,\) below 'a'"),
        (ps.flatten, torch.ones(2), "expected a mapping of names, got a Tensor"),
    ],
)
def test_what_has_no_names_is_refused(call, tree, says):
    with pytest.raises(UnsupportedError, match=says):
        call(tree)


def test_of_a_state_a_subtree_has_to_be_given():
    with pytest.raises(UnsupportedError, match=r"state\.params"):
        ps.nest(ps.init(Mlp, seed=0))
