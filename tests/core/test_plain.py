"""Plain values: what goes apart comes together again, equal in value, type and bits, whatever its keys are."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purestate.core._hash import canonical_json, leaf_hash, scalar_hash
from purestate.core._plain import decode, encode, join, split
from purestate.errors import UnsupportedError


def same(a: Any, b: Any) -> bool:
    """Equal in type, order of keys, and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float | np.floating):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, torch.Tensor):
        return leaf_hash(a) == leaf_hash(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, Mapping):
        return len(a) == len(b) and all(map(same, a.items(), b.items()))
    if isinstance(a, deque):
        return a.maxlen == b.maxlen and same(list(a), list(b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, set | frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    return a == b


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=4),
    st.sampled_from(["~", "v", "a", "a.b", "", "1", "[1]", "é", "\ud800"]),
    st.binary(max_size=4),
    st.sampled_from([torch.float32, torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3])]),
    st.sampled_from([range(1, 9, 2), slice(None, 3), np.float32(0.1), np.int64(-1), np.bool_(True), np.str_("x")]),
)
keys = st.one_of(
    st.sampled_from(["a", "b", "a.b", "~", "", "1", "[1]", '["1"]', "é"]),
    st.sampled_from([1, 0, -1, 1.5, math.nan, None, (1, "a"), b"x", np.float64(0.5)]),
)
tensors = st.sampled_from([0.0, -0.0, math.nan, 1.0]).map(torch.tensor)
arrays = st.sampled_from([np.array(2.0), np.zeros((0, 3)), np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2], np.array([True])])


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    mappings = st.dictionaries(keys, inner, max_size=4)
    lists = st.lists(inner, max_size=3)
    return st.one_of(
        lists,
        lists.map(tuple),
        mappings,
        mappings.map(OrderedDict),
        st.dictionaries(st.sampled_from(["a", "a.b"]), inner, max_size=2),
        st.builds(deque, lists, st.sampled_from([None, 2])),
        st.dictionaries(st.integers(0, 9) | st.sampled_from(["a", "1"]), st.integers(), max_size=3).map(Counter),
        st.sets(st.integers() | st.text(max_size=2) | st.none(), max_size=3),
        st.frozensets(st.floats(allow_nan=False), max_size=3),
    )


plain = st.recursive(scalars, containers, max_leaves=12)
trees = st.recursive(scalars | tensors | arrays, containers, max_leaves=16)


@given(trees)
def test_what_is_split_joins(tree: Any) -> None:
    skeleton, leaves = split(tree)
    assert same(join(skeleton, leaves), tree)
    assert same(
        join(json.loads(canonical_json(skeleton)), leaves), join(json.loads(json.dumps(skeleton, sort_keys=True)), leaves)
    )


@given(plain)
def test_what_is_encoded_decodes_from_text(value: Any) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    assert same(decode(json.loads(text)), value)
    assert encode(value) == split(value)[0]


def count(tree: Any) -> int:
    if isinstance(tree, torch.Tensor | np.ndarray):
        return 1
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return sum(map(count, tree)) if isinstance(tree, list | tuple | deque) else 0


@given(trees)
def test_each_tensor_has_a_path_of_its_own(tree: Any) -> None:
    assert len(split(tree)[1]) == count(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"a.b": 1, "a": {"b": 2}},
        {1: 1, "1": 2},
        {"a": {1: 1}, "a.1": 2},
        {1.5: 1, 1: {5: 2}},
        {"": 1, "x": {"": 2}},
        {"[1.5]": 1, 1.5: 2},
        {'["a.b"]': 1, "a.b": 2},
        {None: 1, "None": 2},
        {(1, 2): 1, "(1, 2)": 2, 1: {2: 3}},
        {float("nan"): 1, float("nan"): 2},
        {"a": [1], "a.0": 2, "a'": 3},
    ],
)
def test_paths_that_look_alike(tree: Any) -> None:
    def with_tensors(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: with_tensors(value) for key, value in node.items()}
        return [with_tensors(value) for value in node] if isinstance(node, list) else torch.tensor(node)

    skeleton, leaves = split(with_tensors(tree))
    assert len(leaves) == count(with_tensors(tree))
    assert same(join(skeleton, leaves), with_tensors(tree))


def test_paths_are_readable() -> None:
    t = torch.tensor(0)
    tree = {"groups": [{"lr": t}, {"lr": t}], "a.b": t, 3: t, "3": t, None: t, "_x1": (t,)}
    assert list(split(tree)[1]) == ["groups.0.lr", "groups.1.lr", '["a.b"]', "3", '["3"]', "[null]", "_x1.0"]


def test_one_tensor_at_two_places_is_two_leaves_and_none_is_copied() -> None:
    t = torch.zeros(2)
    _, leaves = split([t, {"a": t}])
    assert list(leaves) == ["0", "1.a"]
    assert all(leaf is t for leaf in leaves.values())


def test_arrays_are_copied_both_ways() -> None:
    array = np.zeros(2)
    skeleton, leaves = split({"x": array})
    array[0] = 1
    joined = join(skeleton, leaves)
    joined["x"][1] = 1
    assert join(skeleton, leaves)["x"].tolist() == [0, 0]
    array.flags.writeable = False
    assert split([array])[1]["0"].tolist() == [1, 0]


def test_numpy_scalars_keep_their_bits() -> None:
    for value in (np.float64("nan"), np.float16(-0.0), np.datetime64("2020-01-01"), np.str_(""), np.complex64(1j), np.uint8(255)):
        back = decode(json.loads(json.dumps(encode(value))))
        assert type(back) is type(value)
        assert back.dtype == value.dtype
        assert back.tobytes() == value.tobytes()


def test_types_that_compare_equal_stay_apart() -> None:
    values = [1, 1.0, True, np.int64(1), np.float64(1), (1,), [1], {1}, frozenset({1}), Counter({1: 1}), {1: 1}, {"1": 1}]
    values += [OrderedDict({1: 1}), deque([1]), deque([1], 1), range(1), slice(1), torch.Size([1]), 1 + 0j, "1", b"1", 0.0, -0.0]
    assert len({scalar_hash(encode(value)) for value in values}) == len(values)
    assert all(same(decode(encode(value)), value) for value in values)


def test_a_key_called_like_the_mark() -> None:
    for tree in ({"~": "tuple", "v": [1]}, {"x": {"~": 1}}, {"~": {"~": torch.tensor(1)}}):
        assert same(join(*split(tree)), tree)


def test_sets_do_not_depend_on_the_hash_seed() -> None:
    assert encode({"b", "a", 1}) == encode({1, "a", "b"}) == {"~": "set", "v": ["a", "b", 1]}


def test_a_default_dict_comes_back_as_a_dict() -> None:
    tree = defaultdict(list, {1: [2]})
    assert same(decode(encode(tree)), {1: [2]})


class Point(NamedTuple):
    x: int


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("tree", "place", "kind"),
    [
        ({"a": [object()]}, "extra.a.0", "builtins.object"),
        ({"a": Point(1)}, "extra.a", "Point"),
        ({"a": Text("x")}, "extra.a", "Text"),
        ({"a": {"b.c": lambda: 0}}, 'extra.a.["b.c"]', "builtins.function"),
        ({"a": np.array(["x"])}, "extra.a", "numpy.ndarray"),
        ({"a": np.array([None])}, "extra.a", "numpy.ndarray"),
        ({"a": np.arange(2).astype(">i4")}, "extra.a", "numpy.ndarray"),
        ({"a": {object(): 1}}, "a key of extra.a", "builtins.object"),
    ],
)
def test_what_has_no_plain_form_is_refused_by_its_place(tree: Any, place: str, kind: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        split(tree, "extra")
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{place} is a ")
    assert kind in first
    assert first.endswith("which cannot be part of a state.")


@pytest.mark.parametrize("tree", [{"a": {torch.tensor(1)}}, {"a": {torch.tensor(1): 2}}, {"a": {(1, torch.tensor(1)): 2}}])
def test_tensors_are_no_keys(tree: Any) -> None:
    """Tensors compare by identity in sets and as keys, so their order would differ from run to run."""
    with pytest.raises(UnsupportedError, match=r"extra\.a.* is a tensor of shape \(\) where a plain value is expected"):
        split(tree, "extra")


def test_encode_refuses_tensors_by_their_place() -> None:
    with pytest.raises(UnsupportedError, match=r"^args\.betas\.1 is a tensor of shape \(2,\) where a plain value is expected"):
        encode({"betas": [0.9, torch.zeros(2)]}, "args")
    with pytest.raises(UnsupportedError, match=r"^the value is an ndarray of shape \(3,\)"):
        encode(np.zeros(3))
