"""The zoo: modules of every kind that has ever made a pure step differ from ``backward()``, each with a batch and a loss.

A new kind joins by a row in `ZOO`. `why_not` is None where the step is captured, else a piece of the notice.
`impure` is a piece of the error where the guard refuses it.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint

__all__ = ["ZOO", "Animal"]

N, D, C = 6, 8, 3
"""Batch, features, classes."""


@dataclass(frozen=True)
class Animal:
    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[], Any] = nn.CrossEntropyLoss
    loss_fn: Callable[[nn.Module, Any], Any] | None = None
    why_not: str | None = None
    impure: str | None = None


def labels() -> Tensor:
    return torch.randint(C, (N,))


def vectors() -> tuple[Tensor, Tensor]:
    return torch.randn(N, D), labels()


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 2, 6, 6), labels()


def sequences() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 5, D), labels()


def words() -> tuple[Tensor, Tensor]:
    return torch.randint(10, (N, 5)), labels()


class Fn(nn.Module):
    """A module made of layers and of what forward does with them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *inputs: Any) -> Tensor:
        return self._forward(self, *inputs)


def fn(forward: Callable[..., Tensor], **layers: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: Fn(forward, **{name: make() for name, make in layers.items()})


def linear() -> nn.Module:
    return nn.Linear(D, C)


def quiet(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            return make()

    return build


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, C))


def conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.Flatten(), nn.Linear(64, C))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.1, batch_first=True)
    return Fn(
        lambda m, x: m.fc(m.encoder(x).mean(1)), encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), fc=linear()
    )


def tied() -> nn.Module:
    m = Fn(lambda m, x: m.out(m.emb(x).mean(1)), emb=nn.Embedding(10, D), out=nn.Linear(D, 10))
    m.out.weight = m.emb.weight
    return m


def running(m: Fn, x: Tensor) -> Tensor:
    m.run = 0.9 * m.run + 0.1 * x.mean(0).detach()
    return m.fc(x - m.run)


def packed(m: Fn, x: Tensor) -> Tensor:
    sequence = rnn.pack_padded_sequence(x, torch.tensor([5, 4, 3, 3, 2, 1]), batch_first=True)
    return m.fc(m.lstm(sequence)[1][0][-1])


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * 3 * x**2


class CubeContext(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * 3 * x**2


def penalty(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch
    x = x.detach().requires_grad_()
    out = module(x)
    (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return F.cross_entropy(out, y) + g.square().sum(), out


def autocast(m: Fn, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.net(x)


def own_generator(m: Fn, x: Tensor) -> Tensor:
    if not hasattr(m, "generator"):
        m.generator = torch.Generator().manual_seed(3)
    return m.fc(x * torch.rand(D, generator=m.generator))


def counting(m: Fn, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return m.fc(x) / m.calls


def remembering(m: Fn, x: Tensor) -> Tensor:
    hidden = getattr(m, "hidden", torch.zeros(D))
    m.hidden = (hidden + x.mean(0)).detach()
    return m.fc(x + hidden)


def caching(m: Fn, x: Tensor) -> Tensor:
    if not hasattr(m, "table"):
        m.table = torch.arange(D).float().cos()
    m.last = m.fc(x * m.table)
    return m.last


def hooked() -> nn.Module:
    m = mlp()
    m[0].register_forward_hook(lambda module, args, output: output * 2)
    return m


def clamping(m: Fn, x: Tensor) -> Tensor:
    m.fc.weight.data.clamp_(-0.2, 0.2)
    return m.fc(x)


def replacing_data(m: Fn, x: Tensor) -> Tensor:
    m.fc.weight.data = m.fc.weight.data / m.fc.weight.data.norm()
    return m.fc(x)


def blocks(m: Fn, x: Tensor, reentrant: bool) -> Tensor:
    if reentrant:
        x = x.detach().requires_grad_()
    return m.fc(checkpoint(m.body, x, use_reentrant=reentrant))


def body() -> nn.Module:
    return nn.Sequential(nn.Linear(D, D), nn.Dropout(0.2), nn.Tanh())


def sdpa(m: Fn, x: Tensor, **arguments: Any) -> Tensor:
    q, k, v = m.qkv(x).view(N, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return m.fc(F.scaled_dot_product_attention(q, k, v, **arguments).transpose(1, 2).reshape(N, 5, D).mean(1))


def qkv() -> nn.Module:
    return nn.Linear(D, 3 * D)


def rnn_of(cls: type[nn.RNNBase]) -> Callable[[], nn.Module]:
    return fn(lambda m, x: m.fc(m.rnn(x)[0][:, -1]), rnn=lambda: cls(D, D, 2, batch_first=True, dropout=0.2), fc=linear)


def embedding(**arguments: Any) -> Callable[[], nn.Module]:
    return fn(lambda m, x: m.fc(m.emb(x).mean(1)), emb=lambda: nn.Embedding(10, D, **arguments), fc=linear)


def data_dependent(m: Fn, x: Tensor) -> Tensor:
    out = m.fc(x)
    return out * 2 if out.sum() > 0 else out


def masked(m: Fn, x: Tensor) -> Tensor:
    out = m.fc(x)
    return out + x[x > 0].sum()


def stochastic_depth(m: Fn, x: Tensor) -> Tensor:
    return m.fc(x if torch.rand([]) < 0.5 else m.body(x))


def experts(m: Fn, x: Tensor) -> Tensor:
    weight, choice = m.gate(x).softmax(-1).max(-1)
    return torch.stack([e(x) for e in m.experts], 1)[torch.arange(N), choice] * weight[:, None]


_VALUE = "a value out of a tensor"
ZOO = (
    Animal("mlp, in-place relu, dropout", mlp, vectors),
    Animal("convolution, batch norm", lambda: conv(nn.BatchNorm2d(4), nn.ReLU()), images),
    Animal("batch norm without momentum", lambda: conv(nn.BatchNorm2d(4, momentum=None)), images, why_not=_VALUE),
    Animal(
        "group norm, instance norm that tracks",
        lambda: conv(nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, track_running_stats=True)),
        images,
    ),
    Animal("layer norm, rms norm", lambda: nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.RMSNorm(D), linear()), vectors),
    Animal("channels_last", lambda: conv(nn.ReLU()).to(memory_format=torch.channels_last), images),
    Animal("pooling, upsampling", lambda: conv(nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")), images),
    Animal("transposed convolution", lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 2), nn.Flatten(), nn.Linear(98, C)), images),
    Animal("dropout of channels, prelu", lambda: conv(nn.Dropout2d(0.3), nn.PReLU()), images),
    Animal("randomised relu", lambda: nn.Sequential(nn.Linear(D, D), nn.RReLU(), linear()), vectors),
    Animal("attention, causal", fn(lambda m, x: sdpa(m, x, is_causal=True), qkv=qkv, fc=linear), sequences),
    Animal("attention, dropout", fn(lambda m, x: sdpa(m, x, dropout_p=0.2), qkv=qkv, fc=linear), sequences),
    Animal(
        "multi-head attention, dropout",
        fn(
            lambda m, x: m.fc(m.a(x, x, x)[0].mean(1)),
            a=lambda: nn.MultiheadAttention(D, 2, dropout=0.2, batch_first=True),
            fc=linear,
        ),
        sequences,
    ),
    Animal("transformer encoder, dropout", encoder, sequences),
    Animal("lstm, dropout", rnn_of(nn.LSTM), sequences),
    Animal("gru, dropout", rnn_of(nn.GRU), sequences),
    Animal("rnn, dropout", rnn_of(nn.RNN), sequences),
    Animal(
        "lstm over a packed sequence",
        fn(packed, lstm=lambda: nn.LSTM(D, D, batch_first=True), fc=linear),
        sequences,
        why_not=_VALUE,
    ),
    Animal("embedding, padding", embedding(padding_idx=0), words),
    Animal("embedding, sparse gradient", embedding(sparse=True), words),
    Animal("embedding with max_norm writes its weight", embedding(max_norm=1.0), words),
    Animal("embedding bag", fn(lambda m, x: m.fc(m.bag(x)), bag=lambda: nn.EmbeddingBag(10, D), fc=linear), words),
    Animal("tied weights", tied, words),
    Animal("weight norm", lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(D, D)), linear()), vectors),
    Animal("weight norm, old hook", quiet(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(D, D)), linear())), vectors),
    Animal("spectral norm", lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(D, D)), linear()), vectors),
    Animal("spectral norm, old hook", quiet(lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(D, D)), linear())), vectors),
    Animal("orthogonal", lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(D, D)), linear()), vectors),
    Animal("activation checkpoint", fn(lambda m, x: blocks(m, x, False), body=body, fc=linear), vectors, why_not="other bits"),
    Animal(
        "activation checkpoint, reentrant",
        fn(lambda m, x: blocks(m, x, True), body=body, fc=linear),
        vectors,
        why_not="other bits",
    ),
    Animal("autocast to bfloat16 inside", fn(autocast, net=mlp), vectors),
    Animal("bfloat16", lambda: mlp().bfloat16(), lambda: (torch.randn(N, D).bfloat16(), labels())),
    Animal("float64", lambda: mlp().double(), lambda: (torch.randn(N, D).double(), labels())),
    Animal("autograd.Function, old style", fn(lambda m, x: m.fc(Cube.apply(m.body(x))), body=body, fc=linear), vectors),
    Animal(
        "autograd.Function, setup_context", fn(lambda m, x: m.fc(CubeContext.apply(m.body(x))), body=body, fc=linear), vectors
    ),
    Animal("gradient penalty", lambda: nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, C)), vectors, loss_fn=penalty),
    Animal("unused parameter", fn(lambda m, x: m.fc(x), fc=linear, spare=linear), vectors),
    Animal(
        "parameter without layer",
        fn(lambda m, x: m.fc(x * m.scale), fc=linear, scale=lambda: nn.Parameter(torch.ones(()))),
        vectors,
    ),
    Animal("forward hook", hooked, vectors),
    Animal("buffer assigned", fn(running, fc=linear, run=lambda: torch.zeros(D)), vectors),
    Animal("table made at the first call", fn(caching, fc=linear), vectors),
    Animal("mixture of experts", fn(experts, gate=linear, experts=lambda: nn.ModuleList([linear() for _ in range(C)])), vectors),
    Animal("embedding regularised, two outputs", mlp, vectors, loss_fn=lambda m, b: (F.cross_entropy(m(b[0]), b[1]), m(b[0]))),
    Animal("mapping batch", linear, lambda: {"input": torch.randn(N, D)}, loss_fn=lambda m, b: m(**b).square().mean()),
    Animal("two inputs", fn(lambda m, a, b: m.fc(a + b), fc=linear), lambda: (torch.randn(N, D), torch.randn(N, D), labels())),
    Animal("autoencoder: input is target", lambda: nn.Linear(D, D), lambda: (x := torch.randn(N, D), x), loss=nn.MSELoss),
    Animal("class weights", linear, vectors, loss=lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 0.3, 0.5]))),
    Animal("plain function as loss", linear, vectors, loss=lambda: F.cross_entropy),
    Animal("weight clamped through .data", fn(clamping, fc=linear), vectors),
    Animal("weight exchanged through .data", fn(replacing_data, fc=linear), vectors, why_not="`.data =`"),
    Animal("branch on data", fn(data_dependent, fc=linear), vectors, why_not=_VALUE),
    Animal("shape from data", fn(masked, fc=linear), vectors, why_not="shape that depends on data"),
    Animal("stochastic depth", fn(stochastic_depth, fc=linear, body=body), vectors, why_not=_VALUE),
    Animal(
        "generator of its own",
        fn(own_generator, fc=linear),
        vectors,
        why_not="attribute 'generator'",
        impure="drew from module.generator",
    ),
    Animal(
        "counter attribute",
        fn(counting, fc=linear),
        vectors,
        why_not="attribute 'calls'",
        impure="moved module.calls from 1 to 2",
    ),
    Animal(
        "hidden state in an attribute",
        fn(remembering, fc=linear),
        vectors,
        why_not="tensor attribute 'hidden'",
        impure="moved module.hidden",
    ),
    Animal("python's random", fn(lambda m, x: m.fc(x) * random.random(), fc=linear), vectors, why_not="`random`"),
    Animal("numpy's random", fn(lambda m, x: m.fc(x) * float(np.random.rand()), fc=linear), vectors, why_not="numpy's"),
    Animal("numpy inside", fn(lambda m, x: m.fc(x) * float(x.numpy().max()), fc=linear), vectors, why_not=".numpy()"),
)
