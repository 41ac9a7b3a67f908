"""A captured gradient step compiled by inductor: fewer kernels, other last bits.

What is compiled is the trace that `_capture` has held against the uncaptured step, without guards: the kinds of batches are
told apart before. Where `Update` says so, the optimizer's step is part of the same graph. Every step of an op is a compiled one,
the first too, so that bits do not depend on where a run was cut. torch keeps what it compiled in a cache of its own, from
process to process.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from purestate.core._capture import Entry, Runner, Trees
from purestate.core._guard import GuardMode
from purestate.core._joined import Joined
from purestate.core._kept import Kept, signature_of
from purestate.core._replay import Layout, Program, Replay
from purestate.core._seeds import preserved_generators
from purestate.core._step import Step, StepOutput
from purestate.core._update import TAKEN, Update
from purestate.core._watch import why
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
        update: Takes the steps of the optimizer. With one, the runner takes those that can be compiled with the gradient, and
            gives `TAKEN` in the place of gradients.
        kept: What other runners of the same step captured and compiled.
        guard: As for `Runner`; a call that it looks at runs uncaptured on copies beside the compiled one.

    Raises:
        UnsupportedError: When it is called: the step cannot be captured or compiled, and why. It does not run uncompiled
            instead, which would give other bits than were asked for.
    """

    compiled = True

    def __init__(self, step: Step, *, update: Update | None = None, kept: Kept | None = None, guard: GuardMode = "first") -> None:
        super().__init__(step, others_after=1, kept=kept, guard=guard)
        self._update = update
        self._compiled: dict[Program, _Compiled] = {}

    @property
    def writes(self) -> bool:
        """Whether a call may write into parameters: one that takes the optimizer's step does, and into moments too."""
        return super().writes or self._update is not None

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
            raise _refused(reason)
        if entry.program is not None and entry.program is entry.known.program:  # its graph has no tensor of this op
            entry.known.compiled = self._compiled[entry.program]
        for manual_seed in self._seeders:
            manual_seed(seed)
        return entry.replay(trees[2], *signature_of(batch)[1])

    def _each_call(self, key: Any, trees: Trees, batch: Any, seed: int) -> StepOutput:
        # the guard looks at a step on copies, since the bits are those of the compiled one
        self._guarded(*self._copies(trees, batch), seed)
        return self._first_calls(key, trees, batch, seed)

    def _write(self, graph: fx.GraphModule, layout: Layout) -> Program:
        traced = copy.deepcopy(graph)
        program = super()._write(graph, layout)
        self._compiled[program] = _Compiled(traced, layout)
        return program

    def _bind(self, entry: Entry, program: Program | None) -> None:
        super()._bind(entry, program)
        if program is None:
            return
        if program not in self._compiled:
            assert isinstance(entry.known.compiled, _Compiled)
            self._compiled[program] = entry.known.compiled
        entry.replay = self._compiled[program].bind(None if self._kinds.writes else self._update, self._flat)


class _Compiled:
    """A trace, and what inductor made of it when that was first needed.

    Args:
        graph: From `make_fx`.
        layout: What its arguments and its output mean.
    """

    def __init__(self, graph: fx.GraphModule, layout: Layout) -> None:
        self._graph, self._layout = graph, layout
        output = next(node for node in graph.graph.nodes if node.op == "output")
        self._values: list[Any] = list(output.args[0])
        self._alone: _Call | None = None
        self._joint: dict[Hashable, _Call] = {}

    def bind(self, update: Update | None, bound: Sequence[Tensor]) -> Replay:
        """Return the step on the tensors of an op, with the optimizer's step in it where that can be."""
        of: Joined | None = None
        joint: _Call | None = None
        if not all(isinstance(value, fx.Node) and _is_strided(value.meta["val"]) for value in self._gradients):
            update = None

        def replay(buffers: Mapping[str, Tensor], *batch: Tensor) -> StepOutput:
            nonlocal of, joint
            joined = None if update is None else update.joined()
            if joined is None:
                if self._alone is None:
                    self._alone = self._compile_alone()
                return self._output(self._alone(*bound, *batch), buffers)
            if joint is None or joined is not of:
                joint, of = self._compile_joint(joined), joined
            joined.advance()
            return self._output(joint(*bound, *joined.slots, joined.numbers, *batch), buffers, joint=True)

        return replay

    @property
    def _gradients(self) -> list[Any]:
        return self._values[1 : len(self._layout.gradients) + 1]

    def _output(self, results: Sequence[Tensor], buffers: Mapping[str, Tensor], *, joint: bool = False) -> StepOutput:
        layout, rest = self._layout, iter(results)
        n, m = len(layout.gradients), len(layout.gradients) + len(layout.assigned)
        values: list[Any] = [next(rest)]
        values += [None] * n if joint else [next(rest) if isinstance(v, fx.Node) else v for v in self._gradients]
        values += [next(rest) if isinstance(v, fx.Node) else v for v in self._values[n + 1 :]]
        gradients = TAKEN if joint else dict(zip(layout.gradients, values[1 : n + 1], strict=True))
        if layout.assigned:
            buffers = {**buffers, **dict(zip(layout.assigned, values[n + 1 : m + 1], strict=True))}
        sums = tuple(zip(values[m + 1 :: 2], values[m + 2 :: 2], strict=True))
        return StepOutput(values[0], gradients, buffers, sums, layout.size)

    def _examples(self) -> list[Tensor]:
        return [_like(node.meta["val"]) for node in _placeholders(self._graph)]

    def _compile_alone(self) -> _Call:
        graph = copy.deepcopy(self._graph)
        output = list(graph.graph.nodes)[-1]
        output.args = (tuple(value for value in output.args[0] if isinstance(value, fx.Node)),)
        return _compile(graph, self._examples())

    def _compile_joint(self, joined: Joined) -> _Call:
        key = joined.burnt_in, tuple((t.dtype, t.stride()) for t in joined.slots)
        if key not in self._joint:
            self._joint[key] = self._join(joined)
        return self._joint[key]

    def _join(self, joined: Joined) -> _Call:
        """Compile the trace, followed by what the optimizer does with its gradients."""
        from torch.fx.experimental.proxy_tensor import make_fx

        names, bound = self._layout.gradients, self._layout.bound
        examples = self._examples()
        n, first, batch = len(names), examples[:bound], examples[bound:]
        slots = [_like(slot) for slot in joined.slots]

        def apply(*tensors: Tensor) -> list[Tensor]:
            parameters, gradients = (dict(zip(names, some, strict=True)) for some in (tensors[:n], tensors[n : 2 * n]))
            joined.apply(parameters, gradients, tensors[2 * n : -1], tensors[-1])
            return []

        update = make_fx(apply, tracing_mode="fake")(
            *first[:n], *[_like(value.meta["val"]) for value in self._gradients], *slots, joined.numbers
        )
        graph = fx.Graph()
        given = [graph.placeholder(f"given_{i}") for i in range(bound + len(slots) + 1 + len(batch))]
        theirs = [*given[:bound], *given[bound + len(slots) + 1 :]]
        copied: Any = graph.graph_copy(self._graph.graph, dict(zip(_placeholders(self._graph), theirs, strict=True)))
        values: list[Any] = list(copied)
        arguments = [*given[:n], *values[1 : n + 1], *given[bound : bound + len(slots) + 1]]
        graph.graph_copy(update.graph, dict(zip(_placeholders(update), arguments, strict=True)))
        graph.output(tuple(value for value in [values[0], *values[n + 1 :]] if isinstance(value, fx.Node)))
        return _compile(fx.GraphModule(self._graph, graph), [*first, *slots, joined.numbers, *batch])


_Call = Callable[..., Sequence[Tensor]]


def _compile(graph_module: fx.GraphModule, examples: Sequence[Tensor]) -> _Call:
    """Compile a graph for tensors like these. The graph module is changed."""
    from torch._inductor import config, standalone_compile

    graph_module.recompile()
    # shapes and strides are what `Runner` tells kinds of batches apart by: asserting them again takes a tenth of a small step
    options = config.patch(fallback_random=True, size_asserts=False)
    try:
        with warnings.catch_warnings(action="ignore"), options, preserved_generators():
            return standalone_compile(graph_module, list(examples), dynamic_shapes="from_example_inputs")
    except Exception as error:  # a compiler's many passes have no common class; each is a reason why it cannot be used
        raise _refused(why(error)) from error


def _refused(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"compile='inductor' cannot be used here: {reason}.", fix="Leave it out, or take it back with compile='none' in setup."
    )


def _placeholders(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]


def _is_strided(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
