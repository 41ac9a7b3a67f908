"""One training step: as `train` takes it against zero_grad, backward, step; against compilers, JAX and naive `torch.func`."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable

import torch
from torch import nn

import purestate as ps
from benchmarks._measure import Case, Peer, Row, Skipped, compare, figure, skipped, timed
from benchmarks._models import CNN, StepMLP, Transformer, WideTransformer, adam_state, same_bits
from benchmarks._settings import ADAM
from benchmarks._steps import WARM, Batch, Loop, captured, functional, repeat, stateful, streamed, uncaptured

__all__ = ["rows"]

GROUP = "step"
MLP_NAME = "step of MLP 64-128-10, batch 64"
HAND, FUSED = "backward()", "backward(), fused=True"


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    rounds = 3 if quick else 25
    target = torch.randint(10, (64,))
    pictures = torch.rand(64, 1, 28, 28), target
    tokens = torch.randint(100, (32, 32)), target[:32]
    more_tokens = torch.randint(100, (16, 64)), target[:16]
    return [
        *_mlp((torch.rand(64, 64), target), rounds, 60 if quick else 200, quick),
        *_modules("step of CNN with BatchNorm, 28x28, batch 64", CNN, pictures, rounds, 10),
        *_modules("step of transformer, 2 layers, width 64, dropout", Transformer, tokens, rounds, 6),
        *_modules("step of transformer, 4 layers, width 128", WideTransformer, more_tokens, min(rounds, 15), 2),
        _capturing("capturing the step of the CNN, once", CNN, pictures, 2 if quick else 7),
    ]


def _mlp(batch: Batch, rounds: int, steps: int, quick: bool) -> list[Row]:
    state = adam_state(StepMLP)
    fused_state = adam_state(StepMLP, setup=dict(optimizer_args=dict(**ADAM, fused=True)))
    ours, hand = captured(state, batch).warm(), stateful(state, StepMLP, batch).warm()
    fused, hand_fused = captured(fused_state, batch).warm(), stateful(state, StepMLP, batch, fused=True).warm()
    with Peer("_jax", "step", steps, needs=["jax", "optax"]) as jax, _compiled(steps, quick) as compiler:
        cases: dict[str, Case | Skipped] = {
            "purestate": repeat(ours, steps),
            HAND: repeat(hand, steps),
            "purestate, uncaptured": repeat(uncaptured(state, batch).warm(), steps),
            "torch.func.grad, Adam as a function": repeat(functional(state, StepMLP, batch).warm(), steps),
            "torch.compile of model and optimizer": compiler.case,
            "JAX jit, optax": jax.case,
        }
        found = compare(GROUP, MLP_NAME, cases, rounds, unit="us", times=steps, notes=_notes(HAND, ours, hand))
    cases = {"purestate": repeat(fused, steps), FUSED: repeat(hand_fused, steps)}
    notes = _notes(FUSED, fused, hand_fused)
    found += compare(GROUP, f"{MLP_NAME}, fused=True", cases, rounds, unit="us", times=steps, notes=notes)
    return [*found, *_inductor(repeat(hand_fused, steps), batch, rounds, steps)]


def _compiled(steps: int, quick: bool) -> Peer:
    return Peer("_compiled", steps, skip="not with --quick: a compiler's first start takes half a minute" if quick else "")


def _inductor(hand: Case, batch: Batch, rounds: int, steps: int) -> list[Row]:
    """Through the public stream, since what it is built of is the library's own affair."""
    name = f"{MLP_NAME}, compile='inductor'"
    if "compile" not in inspect.signature(ps.setup).parameters:
        return [skipped(GROUP, name, Skipped("setup takes no compile"), against=FUSED, unit="us")]
    state = adam_state(StepMLP, setup=dict(optimizer_args=dict(**ADAM, fused=True), compile="inductor"))
    return compare(GROUP, name, {"purestate": streamed(state, batch, steps), FUSED: hand}, rounds, unit="us", times=steps)


def _modules(name: str, module: type[nn.Module], batch: Batch, rounds: int, steps: int) -> list[Row]:
    state = adam_state(module)
    ours, hand = captured(state, batch).warm(), stateful(state, module, batch).warm()
    cases = {
        "purestate": repeat(ours, steps),
        HAND: repeat(hand, steps),
        "purestate, uncaptured": repeat(uncaptured(state, batch).warm(), steps),
    }
    return compare(GROUP, name, cases, rounds, unit="us", times=steps, notes=_notes(HAND, ours, hand))


def _notes(who: str, ours: Loop, theirs: Loop) -> dict[str, Callable[[], str]]:
    """Both have taken the same number of steps from the same state."""
    return {who: lambda: "equal bits" if same_bits(ours.params(), theirs.params()) else "OTHER BITS"}


def _capturing(name: str, module: type[nn.Module], batch: Batch, rounds: int) -> Row:
    """What the first steps cost more than as many uncaptured ones. The process is warm: `torch._dynamo` is imported."""
    seconds = []
    for seed in range(rounds):
        state = adam_state(module, seed)
        plain = uncaptured(state, batch).warm()
        as_many = statistics.median(repeat(plain, WARM)() for _ in range(3))
        seconds.append(timed(captured(state, batch).warm)() - as_many)
    return figure(GROUP, name, seconds, unit="s")
