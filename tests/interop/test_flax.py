"""`to_flax` and `from_flax`, on Flax modules: the same outputs there, the same bits on the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import purestate as ps
from purestate.errors import PureStateWarning, SetupError, TreeMismatchError, UnsupportedError
from tests.helpers import ConvNet, Linear, Mlp, assert_trees_identical, build

pytestmark = pytest.mark.filterwarnings("ignore:to_jax. JAX would make:purestate.errors.PureStateWarning")

# Both sides sum some hundred products of numbers around 1 in float32, each in its own order. An element differs by what a few
# roundings make of that, 1e-5 of its size at the most; a kernel that is not transposed, or a gate that is not in its place,
# makes it another number altogether.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Case(NamedTuple):
    """A layer of torch, the same one of Flax, and an input. ``channels`` is the axis of channels, which Flax has last."""

    torch: Callable[[], nn.Module]
    flax: Callable[[Any], Any]
    shape: tuple[int, ...]
    channels: bool = False


CASES = {
    "Linear": Case(lambda: nn.Linear(5, 3), lambda f: f.Dense(3), (4, 5)),
    "Linear without bias": Case(lambda: nn.Linear(3, 3, bias=False), lambda f: f.Dense(3, use_bias=False), (4, 3)),
    "Conv1d": Case(lambda: nn.Conv1d(2, 4, 3), lambda f: f.Conv(4, (3,), padding="VALID"), (2, 2, 9), True),
    "Conv2d": Case(
        lambda: nn.Conv2d(2, 4, (3, 5), stride=2, padding=1),
        lambda f: f.Conv(4, (3, 5), strides=2, padding=1),
        (2, 2, 9, 8),
        True,
    ),
    "Conv2d of groups": Case(
        lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, bias=False),
        lambda f: f.Conv(6, (3, 3), feature_group_count=2, kernel_dilation=2, padding="VALID", use_bias=False),
        (2, 4, 9, 8),
        True,
    ),
    "Conv3d": Case(lambda: nn.Conv3d(1, 2, 2), lambda f: f.Conv(2, (2, 2, 2), padding="VALID"), (2, 1, 4, 5, 6), True),
    "ConvTranspose1d": Case(
        lambda: nn.ConvTranspose1d(2, 3, 3),
        lambda f: f.ConvTranspose(3, (3,), padding="VALID", transpose_kernel=True),
        (2, 2, 7),
        True,
    ),
    "ConvTranspose2d": Case(
        lambda: nn.ConvTranspose2d(2, 3, (3, 4), stride=2),
        lambda f: f.ConvTranspose(3, (3, 4), strides=(2, 2), padding="VALID", transpose_kernel=True),
        (2, 2, 5, 6),
        True,
    ),
    "LayerNorm": Case(lambda: nn.LayerNorm(6), lambda f: f.LayerNorm(epsilon=1e-5), (4, 6)),
    "LayerNorm of two axes": Case(
        lambda: nn.LayerNorm((3, 6)),
        lambda f: f.LayerNorm(epsilon=1e-5, reduction_axes=(-2, -1), feature_axes=(-2, -1)),
        (4, 3, 6),
    ),
    "RMSNorm": Case(lambda: nn.RMSNorm(6, eps=1e-5), lambda f: f.RMSNorm(epsilon=1e-5), (4, 6)),
    "GroupNorm": Case(lambda: nn.GroupNorm(2, 6), lambda f: f.GroupNorm(2, epsilon=1e-5), (4, 6, 5), True),
    "InstanceNorm2d": Case(lambda: nn.InstanceNorm2d(3, affine=True), lambda f: f.InstanceNorm(epsilon=1e-5), (2, 3, 5, 6), True),
    "BatchNorm1d": Case(lambda: nn.BatchNorm1d(6), lambda f: f.BatchNorm(use_running_average=True, epsilon=1e-5), (4, 6)),
    "BatchNorm2d": Case(
        lambda: nn.BatchNorm2d(3), lambda f: f.BatchNorm(use_running_average=True, epsilon=1e-5), (2, 3, 4, 5), True
    ),
    "Embedding": Case(lambda: nn.Embedding(7, 3), lambda f: f.Embed(7, 3), (4,)),
}


def scattered(module: nn.Module) -> nn.Module:
    """Return the module with other numbers in every tensor, so that none of them is a one or a zero by its initialisation."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.25)
    return module.eval()


def applied(jax: Any, flax_module: Any, variables: Any, x: np.ndarray, channels: bool) -> np.ndarray:
    y = jax.jit(flax_module.apply)(variables, np.moveaxis(x, 1, -1) if channels else x)
    return np.moveaxis(np.asarray(y), -1, 1) if channels else np.asarray(y)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_gives_the_same_output_in_flax_and_its_bits_come_back(jax, name):
    from flax import linen

    case = CASES[name]
    state = ps.init(scattered(build(case.torch)), seed=0)
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([0, 6, 3, 3]) if name == "Embedding" else x
    variables = ps.to_flax(state)
    with torch.no_grad():
        expected = ps.to_module(state, build(case.torch).eval())(x).numpy()
    flax_module = case.flax(linen)
    found = applied(jax, flax_module, variables, x.numpy(), case.channels)
    np.testing.assert_allclose(found, expected, **CLOSE)
    # the names and shapes are all that Flax itself makes, and no more
    first = np.moveaxis(x.numpy(), 1, -1) if case.channels else x.numpy()
    own = jax.eval_shape(flax_module.init, jax.random.key(0), first)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, own)
    assert ps.from_flax(variables, state).hash == state.hash


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 10}], ids=["plain", "no bias", "other widths"])
def test_attention_gives_the_same_output_in_flax_and_its_bits_come_back(jax, options):
    from flax import linen

    module = scattered(build(lambda: nn.MultiheadAttention(8, 2, batch_first=True, **options)))
    state = ps.init(module, seed=0)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 5, width, generator=g) for width in (8, options.get("kdim", 8), options.get("vdim", 8)))
    variables = ps.to_flax(state)
    theirs = linen.MultiHeadDotProductAttention(2, qkv_features=8, out_features=8, use_bias=options.get("bias", True))
    with torch.no_grad():
        expected = module(q, k, v, need_weights=False)[0].numpy()
    np.testing.assert_allclose(np.asarray(jax.jit(theirs.apply)(variables, *map(np.asarray, (q, k, v)))), expected, **CLOSE)
    back = ps.from_flax(variables, state)
    assert back.hash == state.hash
    assert list(ps.from_flax(variables, module)) == [name for name, _ in module.named_parameters()]


NAMES = {"conv": "Conv_0", "norm": "BatchNorm_0", "head": "Dense_0"}


def flax_net(linen: Any) -> Any:
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            x = linen.Conv(4, (3, 3), padding=1)(x)
            x = linen.BatchNorm(use_running_average=not train, epsilon=1e-5, momentum=0.9)(x)
            return linen.Dense(2)(linen.relu(x).mean((1, 2)))

    return Net()


def test_a_network_trained_in_flax_comes_back(jax):
    from flax import linen

    state = ps.init(scattered(build(ConvNet)), seed=0)
    apply, x = jax.jit(flax_net(linen).apply), torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    variables = ps.to_flax(state, names=NAMES)
    with torch.no_grad():
        np.testing.assert_allclose(
            apply(variables, x.permute(0, 2, 3, 1).numpy()), ps.to_module(state, build(ConvNet)).eval()(x), **CLOSE
        )
    moved = jax.tree.map(lambda leaf: leaf * 1.5, variables)
    back = ps.from_flax(moved, state, names=NAMES)
    assert_trees_identical(dict(back.params), {name: tensor * 1.5 for name, tensor in state.params.items()}, strides=True)
    with torch.no_grad():
        np.testing.assert_allclose(
            apply(moved, x.permute(0, 2, 3, 1).numpy()), ps.to_module(back, build(ConvNet)).eval()(x), **CLOSE
        )
    assert_trees_identical(back.buffers["norm.num_batches_tracked"], torch.tensor(0))  # Flax counts none
    assert ps.from_flax(variables, state, names=NAMES).hash == state.hash


def test_channels_last_comes_back_with_its_strides(jax):
    module = build(ConvNet).to(memory_format=torch.channels_last)
    state = ps.init(module, seed=0)
    back = ps.from_flax(ps.to_flax(state), state)
    assert (back.hash, back.spec) == (state.hash, state.spec)


def test_a_module_of_nnx(jax):
    from flax import nnx

    make = lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))  # noqa: E731
    state = ps.init(scattered(build(make)), seed=0)
    names = {str(i): f"layers.{i}" for i in range(3)}
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(4, use_running_average=True, epsilon=1e-5, rngs=rngs)
    net = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), norm, nnx.Linear(4, 2, rngs=rngs))
    theirs = nnx.state(net)
    nnx.replace_by_pure_dict(theirs, ps.to_flax(state, names=names, nnx=True))
    nnx.update(net, theirs)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ps.to_module(state, build(make)).eval()(x).numpy()
    np.testing.assert_allclose(np.asarray(net(x.numpy())), expected, **CLOSE)
    assert ps.from_flax(nnx.to_pure_dict(nnx.state(net)), state, names=names).hash == state.hash


class Own(nn.Module):
    """Tied weights, a parameter and a buffer of its own, a layer inside of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("offset", torch.ones(3))


def test_what_a_class_registers_itself_keeps_its_shape_and_what_is_tied_is_there_once(jax):
    state = ps.init(Own, seed=0)
    variables = ps.to_flax(state, names={"layers": "block"})
    assert jax.tree.map(np.shape, variables) == {
        "params": {"scale": (3,), "table": {"embedding": (7, 3)}, "block": {"0": {"kernel": (3, 3), "bias": (3,)}}}
    }
    assert ps.from_flax(variables, state, names={"layers": "block"}).hash == state.hash


def test_a_square_kernel_is_transposed_like_any_other(jax):
    module = build(lambda: nn.Linear(3, 3))
    kernel = np.asarray(ps.to_flax(module)["params"]["kernel"])
    assert_trees_identical(torch.tensor(kernel), module.weight.detach().t().contiguous())


class Biased(nn.Linear):
    """A layer of torch with a parameter more."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.gain = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Sequential(nn.LSTM(3, 2)), "expected a layer that Flax has, too, got LSTM at '0'"),
        (lambda: nn.Bilinear(2, 2, 2), "got Bilinear at 'the root'"),
        (lambda: nn.ConvTranspose2d(4, 4, 3, groups=2), "Flax has no transposed convolution of groups"),
        (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), "InstanceNorm keeps no running statistics"),
        (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), "adds no keys and values"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "at 'parametrizations.weight'"),
        (Biased, "expected no parameter 'gain' of a layer that Flax has, got Biased"),
    ],
)
def test_a_layer_without_a_counterpart_is_refused_by_name(jax, make, says):
    with pytest.raises(UnsupportedError, match=says):
        ps.to_flax(build(make))


def test_another_tree_is_refused_by_name(jax):
    state = ps.init(Linear, seed=0)
    variables = ps.to_flax(state)
    with pytest.raises(
        TreeMismatchError, match=r"expected float32\[3, 2\] at 'fc\.kernel' of params, for fc\.weight, got float32\[2, 3\]"
    ):
        ps.from_flax({"params": {"fc": {"kernel": np.zeros((2, 3), "float32"), "bias": np.zeros(2, "float32")}}}, state)
    with pytest.raises(
        TreeMismatchError, match=r"'fc\.kernel'.*no such leaf\.\nThere are Dense_0\.bias, Dense_0\.kernel\.\n.*names="
    ):
        ps.from_flax({"params": {"Dense_0": variables["params"]["fc"]}}, state)
    with pytest.raises(TreeMismatchError, match=r"no place for 'more\.bias'") as caught:
        ps.from_flax({"params": {**variables["params"], "more": {"bias": np.zeros(2, "float32")}}}, state)
    assert caught.value.actual == ("more.bias",)
    with pytest.raises(TreeMismatchError, match="expected nested dicts at variables"):
        ps.from_flax({"params": 3}, state)
    with pytest.raises(TreeMismatchError, match=r"'fc\.kernel' of params.*got a float"):
        ps.from_flax({"params": {"fc": {"kernel": 1.0}}}, state)
    with pytest.raises(TreeMismatchError, match=r"two leaves would be called 'net\.kernel'"):
        ps.to_flax(ps.init(Mlp, seed=0), names={"net.0": "net", "net.3": "net"})
    for call in (lambda names: ps.to_flax(state, names=names), lambda names: ps.from_flax(variables, state, names=names)):
        with pytest.raises(TreeMismatchError, match=r"no submodule 'fd'\.\nIt has fc\."):
            call({"fd": "Dense_0"})


def test_a_state_has_to_know_its_module(jax):
    with pytest.raises(SetupError, match="to_flax: the state does not know its module"):
        ps.to_flax(ps.init(Linear, seed=0).replace(recipe=None))
    with pytest.raises(SetupError, match="from_flax: expected a State first, got dict"):
        ps.from_flax({"params": {}}, {})


def test_statistics_of_64_bits_are_warned_about_as_ever(jax):
    module = nn.BatchNorm1d(2).double()
    with pytest.warns(PureStateWarning, match=r"tree\['params'\]\['scale'\]"):
        ps.to_flax(module)
