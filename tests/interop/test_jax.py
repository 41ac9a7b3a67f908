"""`to_jax` and `from_jax`: the same bits, in the same memory where both sides can have it; and what is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import purestate as ps
from purestate.core._hash import dtype_name
from purestate.core._key import Key
from purestate.errors import MutatedStateError, PureStateWarning, StateError, TreeMismatchError, UnsupportedError
from tests.helpers import ConvNet, Mlp, assert_trees_identical, batch, bits

NARROW = "bool uint8 int8 uint16 int16 uint32 int32 float16 bfloat16 float32 complex64".split()
FLOAT8 = "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu".split()
WIDE = "uint64 int64 float64 complex128".split()
SHAPES = [(), (0,), (0, 3), (1,), (2, 3, 4)]


def filled(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of all kinds of bits: nan with payloads, -0.0, denormal numbers."""
    kind = getattr(torch, dtype)
    data = torch.randint(
        0, 256, (math.prod(shape) * kind.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return (data > 127).reshape(shape) if dtype == "bool" else data.view(kind).reshape(shape)


def trained() -> ps.State:
    """A state that has parameters, buffers and moments, and was hashed."""
    state = ps.setup(ps.init(ConvNet, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam)
    state, _ = ps.make_step(state)(state, batch(8, (1, 4, 4)))
    assert state.hash
    return state


def address(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    return value.ctypes.data if isinstance(value, np.ndarray) else value.unsafe_buffer_pointer()


def run(code: str, **environment: str) -> str:
    """Return what a script prints in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


# -------------------------------------------------------------------- there and back


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", NARROW + FLOAT8)
def test_every_dtype_of_both_goes_there_and_back_to_the_bit(jax, dtype, shape):
    tensor = filled(dtype, shape)
    array = ps.to_jax(tensor)
    assert isinstance(array, jax.Array)
    assert (array.dtype.name, array.shape) == (dtype, shape)
    assert np.asarray(array).tobytes() == bits(tensor)
    assert_trees_identical(ps.from_jax(array), tensor, strides=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", WIDE)
def test_64_bits_go_there_and_back_where_jax_is_switched_to_them(jax, dtype, shape):
    jax.config.update("jax_enable_x64", True)
    tensor = filled(dtype, shape)
    array = ps.to_jax(tensor)
    assert isinstance(array, jax.Array)
    assert array.dtype.name == dtype
    assert_trees_identical(ps.from_jax(array), tensor)


@pytest.mark.parametrize("dtype", WIDE)
def test_64_bits_stay_numpy_where_jax_would_narrow_them_and_a_warning_names_them(jax, dtype):
    tensor = filled(dtype, (2, 3))
    with pytest.warns(PureStateWarning, match=r"32-bit numbers of tree\['a'\]\[0\]; they stay numpy.*jax_enable_x64"):
        tree = ps.to_jax({"a": [tensor], "b": torch.ones(2)})
    array = tree["a"][0]
    assert isinstance(array, np.ndarray)
    assert address(array) == address(tensor)
    assert not array.flags.writeable  # it is the tensor's memory
    assert_trees_identical(ps.from_jax(tree, like={"a": [tensor], "b": torch.ones(2)})["a"], [tensor])


def test_a_warning_counts_what_it_does_not_name(jax):
    with pytest.warns(PureStateWarning, match=r"tree\[7\] and 3 more; they stay"):
        ps.to_jax([torch.zeros(1, dtype=torch.int64)] * 11)


def test_narrowed_only_when_asked_and_no_integer_changes(jax):
    tree = {"n": torch.tensor([3, -4]), "x": torch.tensor([0.1], dtype=torch.float64)}
    found = ps.to_jax(tree, narrow=True)
    assert [found[name].dtype.name for name in tree] == ["int32", "float32"]
    assert found["n"].tolist() == [3, -4]
    with pytest.raises(UnsupportedError, match=r"an integer at tree\['n'\] needs 64 bits"):
        ps.to_jax({"n": torch.tensor([2**40])}, narrow=True)
    with pytest.raises(TreeMismatchError, match=r"tree\['n'\]: expected int64\[2\], got int32\[2\]"):
        ps.from_jax(found, like=tree)


@pytest.mark.parametrize("state", [trained, lambda: ps.init(Mlp, seed=0)], ids=["trained", "fresh"])
@pytest.mark.filterwarnings("ignore:to_jax. JAX would make:purestate.errors.PureStateWarning")  # the counter of BatchNorm
def test_a_state_goes_there_and_back_with_its_hash_and_its_memory(jax, state):
    state = state()
    tree = ps.to_jax(state)
    assert list(tree) == list(state.spec)
    back = ps.from_jax(tree, like=state)
    assert isinstance(back, ps.State)
    assert (back.hash, list(back.params), back.spec) == (state.hash, list(state.params), state.spec)
    assert [address(back.params[name]) for name in back.params] == [address(t) for t in state.params.values()]
    assert back.origin.acts[-1] == {"replace": sorted(tree)}


def test_parts_of_a_state_are_enough(jax):
    state = trained()
    doubled = {name: array * 2 for name, array in ps.to_jax(dict(state.params)).items()}
    back = ps.from_jax({"params": doubled}, like=state)
    assert_trees_identical(dict(back.params), {name: tensor * 2 for name, tensor in state.params.items()})
    assert (back.digests["optimizer"], back.digests["buffers"]) == (state.digests["optimizer"], state.digests["buffers"])
    assert back.hash != state.hash


class Pair(NamedTuple):
    left: Any
    right: Any


def test_trees_of_any_pytrees_keep_their_types_and_dicts_their_order(jax):
    from flax.core import freeze

    tree = {"b": Pair(torch.ones(2), [None, 3, "text"]), "a": (freeze({"x": torch.zeros(1)}),), "c": np.ones(2, "float32")}
    found = ps.to_jax(tree)
    assert list(found) == ["b", "a", "c"]
    assert type(found["b"]) is Pair
    assert found["b"].right == [None, 3, "text"]
    assert type(found["a"][0]).__name__ == "FrozenDict"
    assert isinstance(found["c"], jax.Array)
    back = ps.from_jax(found)
    assert_trees_identical(back["b"].left, torch.ones(2))
    assert_trees_identical(back["a"][0]["x"], torch.zeros(1))


# -------------------------------------------------------------------- memory


def test_memory_is_shared_where_it_is_aligned_and_in_rows(jax):
    tensor = torch.arange(1000.0).reshape(10, 100)
    array = ps.to_jax(tensor)
    assert address(tensor) % 64 == 0
    assert address(array) == address(tensor) == address(ps.from_jax(array))
    ours = jax.numpy.arange(5.0) * 2
    assert address(ps.from_jax(ours)) == address(ours)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(1001.0)[1:],
        torch.arange(1000.0).reshape(10, 100).T,
        torch.arange(1000.0).reshape(10, 100)[:, ::2],
        torch.ones(1, 100).expand(4, 100),
        torch.zeros(8, 3, 4, 4).to(memory_format=torch.channels_last),
        (torch.ones(4, dtype=torch.complex64) * 1j).conj(),
        torch._neg_view(torch.ones(4)),
    ],
    ids="offset transposed strided expanded channels_last conjugated negated".split(),
)
def test_what_is_not_aligned_or_not_in_rows_is_copied_once(jax, tensor):
    array = ps.to_jax(tensor)
    assert address(array) != address(tensor)
    before = bits(tensor)
    assert np.asarray(array).tobytes() == before
    assert np.asarray(array).flags.c_contiguous  # else JAX would copy it at every call
    if tensor.is_contiguous() or tensor.is_conj():
        return
    # the strides come back, since they decide bits of what is computed later
    assert_trees_identical(ps.from_jax(array, like=tensor.clone()), tensor.clone(), strides=True)


def test_strides_of_axes_of_length_one_are_no_reason_to_copy(jax):
    tensor = torch.zeros(8, 1, 4, 4).to(memory_format=torch.channels_last)
    assert tensor.stride() != torch.zeros(8, 1, 4, 4).stride()
    array = ps.to_jax(tensor)
    assert address(array) == address(tensor)
    assert np.asarray(array).flags.c_contiguous
    assert_trees_identical(ps.from_jax({"x": array}, like={"x": tensor})["x"], tensor, strides=True)


def test_copies_when_asked(jax):
    tensor = torch.ones(100)
    array = ps.to_jax(tensor, copy=True)
    back = ps.from_jax(array, copy=True)
    tensor.add_(1)
    assert array.tolist() == [1.0] * 100
    assert len({address(tensor), address(array), address(back)}) == 3


def test_what_is_lent_outlives_the_tensor(jax):
    arrays = [ps.to_jax(torch.full((1000,), float(i))) for i in range(20)]
    assert [float(array.sum()) for array in arrays] == [1000.0 * i for i in range(20)]
    tensors = [ps.from_jax(jax.numpy.full((1000,), float(i))) for i in range(20)]
    assert [float(tensor.sum()) for tensor in tensors] == [1000.0 * i for i in range(20)]


def test_donating_what_is_lent_deletes_the_array_and_leaves_the_state(jax):
    """On the CPU: JAX has no right to memory of others, so it computes into memory of its own."""
    state = ps.init(Mlp, seed=0)
    before = state.hash
    arrays = ps.to_jax(state.params)
    places = {address(array) for array in arrays.values()}
    moved = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(arrays)
    assert all(array.is_deleted() for array in arrays.values())
    assert places.isdisjoint(address(array) for array in moved.values())
    state.verify()
    assert ps.from_jax({"params": moved}, like=state).hash != before == state.own().hash
    with pytest.raises(
        StateError, match=r"params\['net\.0\.weight'\] is deleted\.\nIt was donated to a jitted function"
    ) as caught:
        ps.from_jax({"params": arrays}, like=state)
    assert caught.value.path == "params['net.0.weight']"


def test_donating_what_was_handed_to_torch_leaves_the_tensor(jax):
    array = jax.numpy.ones(1000) * 3
    tensor = ps.from_jax(array)
    jax.jit(lambda x: x * 0, donate_argnums=0)(array).block_until_ready()
    assert tensor.tolist() == [3.0] * 1000


def test_writing_into_what_is_lent_is_found_by_verify(jax):
    state = ps.init(Mlp, seed=0)
    assert state.hash
    array = ps.to_jax(state.params)["net.0.bias"]
    torch.from_dlpack(array).add_(1)
    state.check()  # torch counts changes by tensor, and that was another one
    with pytest.raises(MutatedStateError, match=r"params\['net\.0\.bias'\] was changed in place"):
        state.verify()


# -------------------------------------------------------------------- a pytree


def test_a_state_is_a_pytree(jax):
    state = trained()
    doubled = jax.tree.map(lambda tensor: tensor * 2, state)
    assert isinstance(doubled, ps.State)
    assert list(doubled.params) == list(state.params)  # and not in the order of names
    assert doubled.recipe is state.recipe
    assert (doubled.key, doubled.counters) == (state.key, state.counters)
    assert_trees_identical(dict(doubled.buffers), {name: tensor * 2 for name, tensor in state.buffers.items()})
    assert doubled.hash not in {state.hash, None}
    assert doubled.origin.base == state.origin.base
    same = jax.tree.map(lambda tensor: tensor, state)
    assert (same.hash, same == state, hash(same)) == (state.hash, True, hash(state))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths[:2] == [".params['conv.weight']", ".params['conv.bias']"]


def test_arrays_that_a_map_puts_into_a_state_are_tensors(jax):
    state = ps.init(Mlp, seed=0)
    moved = jax.tree.map(lambda tensor: jax.numpy.abs(ps.to_jax(tensor)), state)
    assert_trees_identical(dict(moved.params), {name: tensor.abs() for name, tensor in state.params.items()})
    mean = jax.tree.map(lambda a, b: (a + b) / 2, state, moved)
    assert mean.hash == state.replace(params={n: (t + t.abs()) / 2 for n, t in state.params.items()}).hash
    params = jax.tree.map(lambda tensor: -tensor, state.params)
    assert type(params) is type(state.params)
    assert params.digest != state.params.digest


def test_states_of_other_models_do_not_fit_together(jax):
    with pytest.raises(ValueError, match="different numbers of pytree children at key path"):
        jax.tree.map(lambda a, b: a, ps.init(Mlp, seed=0), ps.init(ConvNet, seed=0))


# -------------------------------------------------------------------- the key


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("partitionable", [False, True])
def test_the_key_is_a_key_of_jax(jax, x64, partitionable):
    """Folding is the same with 64 bits or 32, and whether keys are partitionable or not; splitting and seeding are not."""
    jax.config.update("jax_enable_x64", x64)
    jax.config.update("jax_threefry_partitionable", partitionable)
    state = ps.init(Mlp, seed=2**40 + 7)
    key = jax.random.wrap_key_data(state.key.words)
    for data in (0, 1, 77, 2**31, 2**32 - 1):
        folded = jax.random.key_data(jax.random.fold_in(key, data))
        assert folded.tolist() == [state.key.fold_in(data).hi, state.key.fold_in(data).lo]
    assert Key(*map(int, jax.random.key_data(key))) == state.key
    split = [Key(*map(int, words)) for words in jax.random.key_data(jax.random.split(key, 3))]
    assert (split == [state.key.fold_in(i) for i in range(3)]) is partitionable
    if x64:  # without 64 bits JAX takes no such seed
        assert Key(*map(int, jax.random.key_data(jax.random.key(2**40 + 7)))) == Key.from_seed(2**40 + 7)


# -------------------------------------------------------------------- the hash


@pytest.mark.parametrize("dtype", [*NARROW, *FLOAT8])
def test_a_tree_has_one_hash_on_both_sides(jax, dtype):
    tree = {"b": {"w": filled(dtype, (2, 3))}, "a": filled(dtype, ())}
    theirs = ps.to_jax(tree)
    numpy = jax.tree.map(np.asarray, theirs)
    assert len({ps.tree_hash(ps.flatten(each)) for each in (tree, theirs, numpy)}) == 1


def test_what_has_no_elements_has_no_hash(jax):
    gone = jax.numpy.ones(3)
    gone.delete()
    for value, says in ((gone, "deleted"), (jax.random.key(0), "key_data")):
        with pytest.raises(UnsupportedError, match=f"an array with elements at 'a'.*{says}"):
            ps.tree_hash({"a": value})
    with pytest.raises(UnsupportedError, match=r"an array with elements at 'a'.*traced"):
        jax.jit(lambda value: ps.tree_hash({"a": value}))(jax.numpy.ones(3))


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"params": {}}, r"params\['net\.0\.weight'\]: expected float32\[8, 3\], got no such leaf"),
        ({"params": {"more": 1}}, r"params\['more'\]: expected no such leaf, got a int"),
        ({"params": {"net": {"0": 1}}}, r"params\['net'\]: expected no such leaf, got a dict.*\n.*ps\.flatten"),
        ({"weights": {}}, r"expected parts of a state \(params, frozen, buffers\).*got 'weights'"),
        ([1], "expected a dict of parts of a state, got a list"),
    ],
)
def test_other_names_than_those_of_the_state_are_refused(jax, tree, says):
    with pytest.raises(TreeMismatchError, match=says):
        ps.from_jax(tree, like=ps.init(Mlp, seed=0))


@pytest.mark.parametrize("change", ["shape", "dtype", "more"])
def test_another_shape_or_dtype_is_refused_by_name(jax, change):
    state = ps.init(Mlp, seed=0)
    arrays = ps.to_jax(dict(state.params))
    other = {
        "shape": {"net.0.weight": arrays["net.0.weight"].T},
        "dtype": {"net.0.weight": arrays["net.0.weight"].astype("bfloat16")},
        "more": {"net.1.weight": arrays["net.0.weight"]},
    }[change]
    for like, tree in ((state, {"params": arrays | other}), (dict(state.params), arrays | other)):
        with pytest.raises(TreeMismatchError, match=r"\['net\.[01]\.weight'\]: expected"):
            ps.from_jax(tree, like=like)


@pytest.mark.parametrize(
    ("like", "tree"),
    [
        ({"a": [torch.ones(2)]}, {"a": [np.ones(2, "float32")], "b": 1}),
        ({"a": [torch.ones(2)]}, {"a": [np.ones(2, "float32")] * 2}),
        ({"a": [torch.ones(2)]}, {"a": [np.ones(3, "float32")]}),
        ([torch.ones(2)], [2.0]),
        ([torch.ones(2), 3], [np.ones(2, "float32"), np.ones(2, "float32")]),
    ],
)
def test_another_tree_is_refused(jax, like, tree):
    with pytest.raises(TreeMismatchError, match=r"expected .* got"):
        ps.from_jax(tree, like=like)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")  # torch's, at the first tensor of that dtype
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.ones(2, 2).to_sparse(), r"expected a dense tensor with elements at tree\['a'\], got torch\.sparse_coo"),
        (lambda: torch.ones(2, device="meta"), "got torch.strided on meta"),
        (lambda: torch.zeros(2, dtype=torch.complex32), r"JAX has no dtype for complex32 at tree\['a'\]"),
        (lambda: np.array(["x"]), r"torch has no dtype for <U1 at tree\['a'\]"),
    ],
    ids=["sparse", "meta", "complex32", "texts"],
)
def test_what_jax_cannot_have_is_refused(jax, make, says):
    with pytest.raises(UnsupportedError, match=says):
        ps.to_jax({"a": make()})


def test_what_torch_cannot_have_is_refused(jax):
    with pytest.raises(UnsupportedError, match=r"torch has no dtype for int4 at tree\['a'\]"):
        ps.from_jax({"a": jax.numpy.ones(2, jax.numpy.int4)})
    with pytest.raises(UnsupportedError, match=r"torch has no dtype for key<fry> at tree\['a'\]\.\n.*jax\.random\.key_data"):
        ps.from_jax({"a": jax.random.key(0)})


def test_inside_of_jit_there_is_nothing_to_hand_over(jax):
    with pytest.raises(StateError, match=r"from_jax: tree\['a'\] has no value yet"):
        jax.jit(lambda x: ps.from_jax({"a": x}))(jax.numpy.ones(2))


def test_where_jax_was_there_first_and_has_two_devices():
    """What is spread over them is refused, what is on each of them is taken; and a state is a pytree."""
    code = """
    import jax, jax.numpy as jnp, torch
    import purestate as ps
    print(type(jax.tree.map(lambda x: x, ps.init(lambda: torch.nn.Linear(2, 1), seed=0))).__name__)
    mesh, P = jax.make_mesh((2,), ("x",)), jax.sharding.PartitionSpec
    spread = jax.device_put(jnp.arange(4.0), jax.sharding.NamedSharding(mesh, P("x")))
    same = jax.device_put(jnp.arange(4.0), jax.sharding.NamedSharding(mesh, P()))
    second = jax.device_put(jnp.arange(4.0), jax.devices()[1])
    print(ps.from_jax([same, second]))
    try:
        ps.from_jax({"w": spread})
    except ps.PureStateError as error:
        print(type(error).__name__, error.path, error)
    print(ps.from_jax(jax.device_put(spread, jax.devices()[0])))
    """
    out = run(code, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert out.startswith("State\n")
    assert out.count("tensor([0., 1., 2., 3.])") == 3
    assert "StateError tree['w'] from_jax: tree['w'] is spread over 2 devices, and a tensor is on one.\nBring it together" in out


def test_nothing_of_jax_comes_before_it_is_asked_for_and_without_it_the_extra_is_named():
    code = """
    import sys
    import numpy as np
    import torch
    import purestate as ps
    state = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
    ps.flatten(ps.nest(state.params))
    ps.to_jax
    print("jax" in sys.modules, "flax" in sys.modules)
    before = np.random.get_state()[1].tolist(), np.random.get_state()[2]
    sys.modules["jax"] = None  # what Python does where there is none: importing it fails
    for call in (ps.to_jax, ps.from_jax):
        try:
            call(torch.ones(2))
        except ImportError as error:
            print(type(error).__name__, error.extra, error)
    del sys.modules["jax"]
    ps.to_jax(state)
    print((np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before)
    import jax
    print(type(jax.tree.map(lambda x: x, state)).__name__, [name for name in ("flax", "optax", "orbax") if name in sys.modules])
    """
    assert run(code).splitlines() == [
        "False False",
        "MissingExtraError jax to_jax: JAX is not installed.",
        "Install it: pip install 'purestate[jax]'.",
        "MissingExtraError jax from_jax: JAX is not installed.",
        "Install it: pip install 'purestate[jax]'.",
        "True",
        "State []",
    ]


def test_the_dtypes_of_both_are_all_tried():
    from purestate.interop._jax import _COMMON

    assert set(_COMMON) == {*NARROW, *FLOAT8, *WIDE}
    assert all(dtype_name(dtype) == name for name, dtype in _COMMON.items())
