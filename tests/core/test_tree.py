"""Leaves: immutable, read when somebody looks, and aware of changes in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purestate.core._hash import leaf_hash, tree_hash
from purestate.core._tree import LeafSpec, Leaves, check_same_names, in_order, spec_of, stride_order
from purestate.errors import FrozenStateError, MutatedStateError, TreeMismatchError
from tests.helpers import bits


def leaves() -> Leaves:
    return Leaves({"a": torch.zeros(2), "b": torch.ones(3)}, "params")


def test_a_mapping_of_the_very_tensors() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.ones(3)}
    held = Leaves(tensors, "params")
    tensors["c"] = tensors.pop("a")
    assert list(held) == ["a", "b"]
    assert held["a"] is tensors["c"]
    assert (len(held), "b" in held, "c" in held, held.get("c")) == (2, True, False, None)
    assert held.where == "params"


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.__setitem__("a", torch.zeros(2)),
        lambda x: x.__delitem__("a"),
        lambda x: setattr(x, "where", "frozen"),
        lambda x: setattr(x, "new", 1),
        lambda x: x.hashes.__setitem__("a", ""),
        lambda x: x.update({"a": 1}),
        lambda x: x.pop("a"),
    ],
)
def test_nothing_can_be_assigned(change: Callable[[Leaves], object]) -> None:
    held = leaves()
    before = held.digest
    with pytest.raises((AttributeError, TypeError)):
        change(held)
    assert list(held) == ["a", "b"]
    assert held.where == "params"
    held.verify()
    assert held.digest == before == leaves().digest


def test_assignment_says_what_to_do() -> None:
    held = leaves()
    with pytest.raises(FrozenStateError, match=r"^params\['a'\] cannot be assigned: a state does not change\.\nMake a new one: "):
        held["a"] = torch.zeros(2)
    with pytest.raises(FrozenStateError, match=r"^params\['a'\] cannot be deleted"):
        del held["a"]


def test_digest_is_the_hash_of_the_tree_in_any_order() -> None:
    held = leaves()
    assert held.hashes == {"a": leaf_hash(torch.zeros(2)), "b": leaf_hash(torch.ones(3))}
    assert held.digest == tree_hash(held.hashes)
    assert Leaves({name: held[name] for name in reversed(list(held))}).digest == held.digest
    assert Leaves().digest == tree_hash({})


# -------------------------------------------------------------------- lazy


def lazy(tensors: Mapping[str, torch.Tensor], digest: str) -> tuple[Leaves, list[int]]:
    calls: list[int] = []

    def load() -> Mapping[str, torch.Tensor]:
        calls.append(1)
        return tensors

    return Leaves.lazy(digest, load, torch.device("cpu"), {}, "params"), calls


def test_lazy_leaves_are_read_once_and_late() -> None:
    held, calls = lazy(dict(leaves()), leaves().digest)
    assert held.digest == leaves().digest
    assert repr(held) == "Leaves(params, not read yet)"
    held.check()
    assert (held.device, held.loaded, calls) == (torch.device("cpu"), False, [])
    assert list(held) == ["a", "b"]
    assert (held.loaded, len(held), held["b"].sum(), calls) == (True, 2, 3, [1])
    assert held.hashes == leaves().hashes
    assert repr(held) == "Leaves(params, {'a': float32[2], 'b': float32[3]})"
    assert calls == [1]


def test_a_failed_read_is_tried_again() -> None:
    attempts = iter([OSError("disk"), None])

    def load() -> Mapping[str, torch.Tensor]:
        if (error := next(attempts)) is not None:
            raise error
        return dict(leaves())

    held = Leaves.lazy(leaves().digest, load, torch.device("cpu"), {}, "params")
    with pytest.raises(OSError, match="disk"):
        held["a"]
    assert held["a"].tolist() == [0, 0]


def test_verify_holds_lazy_leaves_against_their_digest() -> None:
    good, _ = lazy(dict(leaves()), leaves().digest)
    good.verify()
    bad, _ = lazy({"a": torch.ones(2), "b": torch.ones(3)}, leaves().digest)
    with pytest.raises(MutatedStateError, match=r"^params was changed") as caught:
        bad.verify()
    assert caught.value.path == "params"


# -------------------------------------------------------------------- changes in place


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.add_(1),
        lambda t: t[0].fill_(5),
        lambda t: t.view(2, 1).zero_().add_(3),
        lambda t: torch.add(t, 1, out=t),
        lambda t: torch._foreach_add_([t], 1),
        lambda t: t.detach().mul_(2).sub_(1),
    ],
)
def test_what_torch_counts_is_noticed(change: Callable[[torch.Tensor], object]) -> None:
    held = leaves()
    held.check()
    change(held["a"])
    with pytest.raises(MutatedStateError, match=r"^params\['a'\] was changed in place") as caught:
        held.check()
    assert caught.value.path == "params['a']"
    for act in (held.verify, held.own, lambda: held.map(torch.clone, same_bits=True)):
        with pytest.raises(MutatedStateError):
            act()


def write_data(t: torch.Tensor) -> None:
    t.data.add_(1)


def write_numpy(t: torch.Tensor) -> None:
    t.numpy()[0] = 7


def write_dlpack(t: torch.Tensor) -> None:
    torch.from_dlpack(t).fill_(9)


@pytest.mark.parametrize("change", [write_data, write_numpy, write_dlpack])
@pytest.mark.parametrize("known", [lambda x: x.hashes, lambda x: x.digest])
def test_what_torch_does_not_count_is_found_by_verify(change: Callable[[torch.Tensor], None], known) -> None:
    held = leaves()
    known(held)
    held.verify()
    change(held["b"])
    with pytest.raises(MutatedStateError, match=r"^params\['b'\] was changed in place"):
        held.verify()


def test_changes_before_are_not_held_against_it() -> None:
    t = torch.zeros(2).add_(1).mul_(3)
    Leaves({"a": t}).check()
    with torch.inference_mode():
        inference = torch.zeros(2)
    held = Leaves({"a": inference})  # such a tensor has no version
    held.check()
    assert held.digest == Leaves({"a": torch.zeros(2)}).digest


def test_own_shares_no_memory_and_keeps_digest_and_strides() -> None:
    held = Leaves({"w": torch.rand(2, 3, 4, 4, generator=torch.Generator()).to(memory_format=torch.channels_last)}, "params")
    digest = held.digest
    copy = held.own()
    assert copy.digest == digest
    assert copy["w"].stride() == held["w"].stride()
    assert copy["w"].data_ptr() != held["w"].data_ptr()
    copy.verify()


def test_map_forgets_the_hash_unless_the_bits_are_the_same() -> None:
    held = leaves()
    digest = held.digest
    assert held.map(lambda t: t + 1).digest == Leaves({"a": torch.ones(2), "b": torch.ones(3) * 2}).digest != digest
    assert held.map(torch.clone, same_bits=True).digest == digest
    assert held.map(lambda t: t + 1).where == "params"


# -------------------------------------------------------------------- specs and strides

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=4)


@given(SHAPES, st.randoms(use_true_random=False))
def test_order_is_restored_to_the_stride(shape: list[int], random) -> None:
    order = list(range(len(shape)))
    random.shuffle(order)
    t = torch.arange(float(np.prod(shape, dtype=int))).reshape([shape[d] for d in order])
    t = t.permute([order.index(d) for d in range(len(shape))])
    row_major = t.clone(memory_format=torch.contiguous_format)
    back = in_order(row_major, stride_order(t))
    assert bits(back) == bits(t)
    assert spec_of(back) == spec_of(t)
    if t.numel():
        assert back.stride() == t.stride()
    assert in_order(t, None).is_contiguous()
    assert in_order(back, stride_order(t)) is back


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 1, 3, 3), (4, 3, 1, 1), (1, 3, 2, 2), (4, 1, 1, 1), (1, 1, 1, 1)])
def test_channels_last_is_kept_where_an_axis_has_length_1(shape: tuple[int, ...]) -> None:
    """``is_contiguous()`` holds for both layouts of such a weight, and convolutions tell them apart, by other bits."""
    plain = torch.arange(float(np.prod(shape))).reshape(shape)
    t = plain.to(memory_format=torch.channels_last)
    assert stride_order(plain) is None
    assert in_order(plain.clone(), stride_order(t)).stride() == t.stride()
    assert in_order(t, None).stride() == plain.stride()


def test_spec() -> None:
    t = torch.zeros(2, 3, 4, 4)
    assert spec_of(t) == LeafSpec((2, 3, 4, 4), torch.float32, None)
    last = spec_of(t.to(memory_format=torch.channels_last))
    assert last == LeafSpec((2, 3, 4, 4), torch.float32, (0, 2, 3, 1))
    assert str(last) == "float32[2, 3, 4, 4] order (0, 2, 3, 1)"
    assert Leaves({"w": t}).spec == {"w": spec_of(t)}


@pytest.mark.parametrize(
    ("actual", "path", "words"),
    [
        ({"a": torch.zeros(2)}, "params['b']", "expected float32[3], got no such leaf in the file"),
        ({"a": torch.zeros(2), "b": torch.ones(3), "c": torch.ones(1)}, "params['c']", "expected no such leaf, got float32[1]"),
        ({"a": torch.zeros(4), "b": torch.ones(3)}, "params['a']", "expected float32[2], got float32[4]"),
        ({"a": torch.zeros(2), "b": torch.ones(3).int()}, "params['b']", "expected float32[3], got int32[3]"),
    ],
)
def test_names_shapes_and_dtypes_are_compared(actual: dict[str, torch.Tensor], path: str, words: str) -> None:
    with pytest.raises(TreeMismatchError) as caught:
        check_same_names("params", leaves().spec, Leaves(actual).spec, "the file")
    assert str(caught.value).startswith(f"{path}: {words}")
    assert caught.value.path == path
    assert (caught.value.expected, caught.value.actual) == (leaves().spec.get(path[8:-2]), Leaves(actual).spec.get(path[8:-2]))


def test_another_order_of_strides_is_no_mismatch() -> None:
    t = torch.zeros(2, 3, 2, 2)
    check_same_names("params", Leaves({"w": t}).spec, Leaves({"w": t.to(memory_format=torch.channels_last)}).spec, "it")
