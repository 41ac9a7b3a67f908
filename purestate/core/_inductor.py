"""A captured gradient step compiled by inductor: fewer kernels, other last bits.

What is compiled is the trace that `_capture` has held against the uncaptured step, without guards: the kinds of batches are
told apart before. Every step of an op is a compiled one, the first too, so that bits do not depend on where a run was cut.
torch keeps what it compiled in a cache of its own, from process to process.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from purestate.core._capture import Entry, Runner, Trees
from purestate.core._guard import GuardMode
from purestate.core._kept import Kept, signature_of
from purestate.core._replay import Layout, Program, Replay
from purestate.core._step import Step, StepOutput
from purestate.errors import UnsupportedError

__all__ = ["InductorRunner"]

_MOST_TRIES = 6
"""Calls until a kind of batch is captured and compared, if it ever is: seen, perhaps found to write, captured, compared."""


class InductorRunner(Runner):
    """Calls a step as inductor compiled it, after the captured step was compared with the uncaptured one.

    Random numbers come from torch's own kernels and generator. A mask of a tensor that is not contiguous has them in another
    order than in the uncompiled step.

    Args:
        step: From `make_gradient_step`. The runner is its only user.
        kept: What other runners of the same step captured and compiled.
        guard: As for `Runner`; a call that it looks at runs uncaptured on copies beside the compiled one.

    Raises:
        UnsupportedError: When it is called: the step cannot be captured or compiled, and why. It does not run uncompiled
            instead, which would give other bits than were asked for.
    """

    def __init__(self, step: Step, *, kept: Kept | None = None, guard: GuardMode = "first") -> None:
        super().__init__(step, others_after=1, kept=kept, guard=guard)
        self._traced: dict[Program, tuple[fx.GraphModule, Layout]] = {}
        self._compiled: dict[Program, Program] = {}

    def _first_calls(self, key: Any, trees: Trees, batch: Any, seed: int) -> StepOutput:
        for _ in range(_MOST_TRIES):
            entry = self._entries.get(key)
            if self._off or (entry is not None and entry.replay is not None and entry.compared == self._generation):
                break
            # on copies: what counts is what the compiled step does, also while it is captured and compared
            super()._first_calls(key, *self._copies(trees, batch), seed)
        entry = self._entries.get(key)
        if entry is None or entry.replay is None:
            reason = self._kinds.why_not or self.notice or "forward writes into its parameters"
            raise UnsupportedError(
                f"compile='inductor' cannot be used here: {reason}.",
                fix="Leave it out, or take it back with compile='none' in setup.",
            )
        for manual_seed in self._seeders:
            manual_seed(seed)
        return entry.replay(trees[2], *signature_of(batch)[1])

    def _each_call(self, key: Any, trees: Trees, batch: Any, seed: int) -> StepOutput:
        # the guard looks at a step on copies, since the bits are those of the compiled one
        self._guarded(*self._copies(trees, batch), seed)
        return self._first_calls(key, trees, batch, seed)

    def _write(self, graph: fx.GraphModule, layout: Layout) -> Program:
        traced = copy.deepcopy(graph), layout
        program = super()._write(graph, layout)
        self._traced[program] = traced
        return program

    def _bind(self, entry: Entry, program: Program | None) -> None:
        super()._bind(entry, program)
        if program is None:
            return
        if program not in self._compiled:
            known = entry.known.compiled if entry.known.program is program else None
            self._compiled[program] = known or _compile(*self._traced.pop(program))
        entry.known.compiled = self._compiled[program]
        entry.replay = self._compiled[program](*self._flat)


def _compile(graph_module: fx.GraphModule, layout: Layout) -> Program:
    """Compile a traced step, for tensors like those that it was traced with. The graph module is changed."""
    from torch._inductor import config, standalone_compile

    nodes = list(graph_module.graph.nodes)
    examples: list[Any] = [_like(node.meta["val"]) for node in nodes if node.op == "placeholder"]
    output = nodes[-1]
    values: list[Any] = list(output.args[0])
    places = [i for i, value in enumerate(values) if isinstance(value, fx.Node)]
    output.args = (tuple(values[i] for i in places),)
    graph_module.recompile()
    with warnings.catch_warnings(action="ignore"), config.patch(fallback_random=True):
        call = standalone_compile(graph_module, examples, dynamic_shapes="from_example_inputs")
    n, m = len(layout.gradients), len(layout.gradients) + len(layout.assigned)

    def bind(*bound: Tensor) -> Replay:
        def replay(buffers: Mapping[str, Tensor], *batch: Tensor) -> StepOutput:
            found: list[Any] = list(values)
            for place, value in zip(places, call(*bound, *batch), strict=True):
                found[place] = value
            gradients = dict(zip(layout.gradients, found[1 : n + 1], strict=True))
            assigned = dict(zip(layout.assigned, found[n + 1 : m + 1], strict=True))
            sums = tuple(zip(found[m + 1 :: 2], found[m + 2 :: 2], strict=True))
            return StepOutput(found[0], gradients, {**buffers, **assigned} if assigned else buffers, sums, layout.size)

        return replay

    return bind


def _like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
