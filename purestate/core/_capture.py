"""A step captured once for each kind of batch and replayed from then on, with the same bits.

`Runner` calls a pure step. After a call or more of a kind of batch it traces the step to a graph of aten operators
(`torch.fx.experimental.proxy_tensor.make_fx`), writes the graph as one Python function and calls that. Replaying leaves out
Python, autograd and the module, and computes the same operators in the same order. It is believed only as far as it was
compared: see `Runner`. Optimizers are not captured here.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import optree
import torch
from torch import Tensor, fx

from purestate.core._guard import FIRST, Guard, GuardMode, exact
from purestate.core._hash import leaf_hash
from purestate.core._hidden import Attributes
from purestate.core._kept import Kept, Kinds, Known, signature_of, tensor_key
from purestate.core._outcome import digest, outcome
from purestate.core._replay import Layout, Program, Replay, writes_into, written_out
from purestate.core._seeds import GlobalStates, global_states, put_back, seed_all
from purestate.core._step import GradientStep, Step, StepOutput, TakenTwiceError
from purestate.core._watch import (
    CannotCaptureError,
    NoEscape,
    OtherBitsError,
    StaticShapes,
    WritesParametersError,
    refuse_fast_path,
    stand_in,
    why,
)
from purestate.errors import CaptureMismatchError, PureStateError, StateError

__all__ = ["Entry", "Runner", "Tensors", "Trees"]

_MOST_SIGNATURES = 8
_OTHERS_AFTER = 200
"""Calls after which another kind of batch is captured than the first: capturing costs as much as hundreds of small steps, which
the short batch at the end of each epoch does not win back."""
_OTHER_SEED = 0x9E3779B97F4A7C15
Tensors = Mapping[str, Tensor]
Trees = tuple[Tensors, Tensors, Tensors]
_Expected = tuple[Mapping[str, Any], GlobalStates]


@dataclass(slots=True)
class Entry:
    """One kind of batch in one op."""

    known: Known
    """What all ops know of it."""
    calls: int = 0
    program: Program | None = None
    """The captured step."""
    replay: Replay | None = None
    """The captured step on the tensors of this op."""
    compared: int = -1
    """The generation of `Runner.start_epoch` in which it was last compared; -1 before the first call after capture."""


class Runner:
    """Calls a step: captured and replayed where that gives the same bits, as it is where not.

    A captured step is compared with the uncaptured one, bit for bit, in loss, gradients, buffers, written parameters,
    metrics and generators: when it is captured, under another seed, at the next call of that kind of batch, and in epochs
    1, 2, 4, 8 and so on. Comparing runs the step twice and holds copies of the buffers and two sets of gradients meanwhile;
    copies of the parameters only where forward writes into them.

    Args:
        step: From `make_gradient_step` or `make_evaluate_step`. The runner is its only user.
        capture_after: How many calls with a kind of batch run uncaptured before it is captured, at least 1. Capturing
            costs as much as some hundred small steps, which an evaluation of few batches does not win back.
        others_after: The same for all kinds of batches after the first that was captured; some hundred if left out.
        kept: What other runners of the same step captured. It is compared at its first call, and where it gives other bits
            now (a global variable that the loss reads has changed) the step is captured anew.
        guard: Which of the uncaptured calls `Guard` looks at: ``'first'`` for the first of the op, the first of each kind
            of batch and those that compare, ``'always'`` for all calls, none of which is replayed then, ``'off'`` for none.

    Example:
        >>> from torch import nn
        >>> from purestate.core._loss import make_objective
        >>> from purestate.core._module import take_apart
        >>> from purestate.core._step import make_gradient_step
        >>> template, *tensors = take_apart(nn.Linear(2, 1))
        >>> runner = Runner(make_gradient_step(template, make_objective(nn.MSELoss)))
        >>> batch = torch.zeros(3, 2), torch.zeros(3, 1)
        >>> losses = [runner(*tensors, batch, seed).loss for seed in range(4)]
        >>> runner.captured, runner.notice
        (1, None)
    """

    compiled = False

    def __init__(
        self,
        step: Step,
        *,
        capture_after: int = 1,
        others_after: int | None = None,
        kept: Kept | None = None,
        guard: GuardMode = "first",
    ) -> None:
        self.step = step
        self._guard = None if guard == "off" else Guard(step, guard)
        self._to_guard = FIRST
        self.notice: str | None = None
        """Why the step runs uncaptured, once that is known. Set at most once."""
        self._capture_after = max(capture_after, 1)
        self._others_after = max(_OTHERS_AFTER if others_after is None else others_after, self._capture_after)
        self._kept = kept if kept is not None else Kept()
        self._kinds = Kinds()
        self._entries: dict[Any, Entry] = {}
        self._epoch = 0
        self._generation = 0
        self._off = False
        self._takes = isinstance(step, GradientStep)
        self._trees: Trees | None = None
        self._flat: list[Tensor] = []
        self._spec: Any = None
        self._seeders: list[Callable[[int], Any]] = [torch.default_generator.manual_seed]

    @property
    def captured(self) -> int:
        """How many kinds of batches are replayed."""
        return sum(entry.replay is not None for entry in self._entries.values())

    @property
    def writes(self) -> bool:
        """Whether the step was seen to write into parameters."""
        return self._kinds.writes or bool(self.step.written)

    def start_epoch(self, n: int) -> None:
        """Say that epoch ``n`` begins, so that at 1, 2, 4, 8, ... the next call of each kind of batch compares."""
        self._epoch = n
        if n > 0 and n & (n - 1) == 0:
            self._generation += 1
            self._to_guard = max(self._to_guard, 1)

    def __call__(self, params: Tensors, frozen: Tensors, buffers: Tensors, batch: Any, seed: int) -> StepOutput:
        """Seed the generators and run the step.

        Uncaptured, torch's, numpy's and Python's generators are seeded; replayed, torch's, since no Python runs.

        Args:
            params: Trainable parameters, without a graph.
            frozen: The other parameters.
            buffers: Buffers; updated in place by modules that do so.
            batch: What the loader gave, on the device of the parameters.
            seed: ``0 <= seed < 2**64``.

        Raises:
            CaptureMismatchError: A replay that had been right before gave other bits than the uncaptured step.
            ImpurityError: The step moved what is in no state, or depends on such. See `Guard`.
            PureStateError: As the step raises it.
        """
        if self._off and (self._guard is None or not self._to_guard):
            seed_all(seed)
            return self.step(params, frozen, buffers, batch)
        key, leaves = signature_of(batch)
        if self._trees is None or not self._same_trees(params, frozen, buffers):
            self._take_trees(params, frozen, buffers)
        entry = self._entries.get(key)
        if entry is not None and entry.replay is not None and entry.compared == self._generation:
            for manual_seed in self._seeders:
                manual_seed(seed)
            try:
                return entry.replay(buffers, *leaves)
            except (torch.OutOfMemoryError, PureStateError):
                raise
            except RuntimeError as error:
                raise self._mismatch(f"a replay gave other bits in a shape ({error})") from error
        if self._guard is not None and self._guard.always:
            return self._each_call(key, (params, frozen, buffers), batch, seed)
        return self._first_calls(key, (params, frozen, buffers), batch, seed)

    def _each_call(self, key: Any, trees: Trees, batch: Any, seed: int) -> StepOutput:
        return self._guarded(trees, batch, seed)

    def _guarded(self, trees: Trees, batch: Any, seed: int, before: tuple[Trees, Any] | None = None) -> StepOutput:
        """Run the step uncaptured under the eyes of the guard, if there is one."""
        guard = self._guard

        def run() -> StepOutput:
            seed_all(seed)
            return self.step(*trees, batch)

        if guard is None:
            return run()
        self._to_guard = max(self._to_guard - 1, 0)
        if not guard.calls or not exact(*trees):
            return guard(run, lambda _: {}, lambda: None)
        copies, bits = before or self._copies(trees, batch), self._bits(trees)

        def again() -> Mapping[str, Any] | None:
            if bits != self._bits(trees):
                self._kinds.writes = True  # the next call has copies, and can be run again
                return None
            return self._once_more(copies, seed)

        return guard(run, lambda output: self._seen(output, trees), again)

    def _same_trees(self, *trees: Tensors) -> bool:
        start = 0
        for tree in trees:
            stop = start + len(tree)
            if not all(map(operator.is_, tree.values(), self._flat[start:stop])):
                return False
            start = stop
        return start == len(self._flat)

    def _take_trees(self, *trees: Tensors) -> None:
        self._trees = cast(Trees, trees)
        self._flat = [t for tree in trees for t in tree.values()]
        if any(t.requires_grad for t in self._flat):
            raise StateError(
                "a step takes tensors that require no gradient: it takes the gradient itself.", fix="Give it tensor.detach()."
            )
        spec = (*map(tuple, trees), *map(tensor_key, self._flat))
        if spec != self._spec:
            self._spec = spec
            self._entries = {}
            self._kinds = self._kept.kinds(spec)
            if self._kinds.why_not is not None:
                self._give_up(self._kinds.why_not)
            if any(t.device.type == "cuda" for t in self._flat):
                self._seeders = [g.manual_seed for g in (torch.default_generator, *torch.cuda.default_generators)]
        for entry in self._entries.values():
            if entry.replay is not None:
                self._bind(entry, entry.program)

    def _bind(self, entry: Entry, program: Program | None) -> None:
        entry.program = program
        entry.replay = None if program is None else program.bind(*self._flat)

    def _first_calls(self, key: Any, trees: Trees, batch: Any, seed: int) -> StepOutput:
        if self._off:
            pass
        elif key is None:
            self._give_up("a batch holds something else than dense tensors without gradient, numbers and texts")
        elif key not in self._entries and len(self._entries) == _MOST_SIGNATURES:
            self._note(
                f"batches come in more than {_MOST_SIGNATURES} kinds (shapes, dtypes, plain values); the others run uncaptured"
            )
        else:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = Entry(self._kinds.of(key))
                self._bind(entry, entry.known.program)
            entry.calls += 1
            entry.known.calls += 1
            if entry.replay is not None:
                return self._compare(entry, trees, batch, seed)
            if entry.calls > 1 and entry.known.calls > (self._others_after if self.captured else self._capture_after):
                return self._capture(entry, trees, batch, seed)
            if entry.calls <= FIRST:
                return self._guarded(trees, batch, seed)
        if self._guard is not None and self._to_guard:
            return self._guarded(trees, batch, seed)
        seed_all(seed)
        return self.step(*trees, batch)

    def _capture(self, entry: Entry, trees: Trees, batch: Any, seed: int) -> StepOutput:
        before, bits = self._copies(trees, batch), self._bits(trees)
        attributes = self._attributes()
        seed_all(seed)
        python = global_states()
        output = self._guarded(trees, batch, seed, before)
        after = global_states()
        now = self._attributes()
        try:
            if bits != self._bits(trees):
                raise WritesParametersError
            self._refuse_hidden(attributes, python, after)
            refuse_fast_path(self.step.module, training=self.step.training)
            expected = self._seen(output, trees), after
            try:
                program, lasts = self._believed(before, seed, expected, NoEscape())
            except OtherBitsError:
                # where Python calls are watched, torch's own layers take other kernels: nothing escaped, so watch no more
                program, lasts = self._believed(before, seed, expected, nullcontext())
            self._bind(entry, program)
            entry.known.keep(program if lasts else None, now.values)
        except WritesParametersError:
            self._kinds.writes = True  # the next call captures it, with copies
        except Exception as error:  # tracing runs the user's code: whatever it raises, the same step has just run without it
            self._kinds.why_not = why(error)
            self._give_up(self._kinds.why_not)
        finally:
            now.put_back()
            put_back(after)
        return output

    def _believed(
        self, before: tuple[Trees, Any], seed: int, expected: _Expected, watch: AbstractContextManager[Any]
    ) -> tuple[Program, bool]:
        try:
            graph, layout = self._trace(self._copies(*before), seed, watch)
        except TakenTwiceError:
            self._takes = False
            graph, layout = self._trace(self._copies(*before), seed, watch)
        if self.step.training and not self._kinds.writes and writes_into(graph, len(before[0][0])):
            raise WritesParametersError
        # tensors that are no argument belong to this op's copy of the module or of the loss
        lasts = all(node.op != "get_attr" for node in graph.graph.nodes)
        program = self._write(graph, layout)
        self._must_equal(program, before, seed, expected)
        other = seed ^ _OTHER_SEED
        seen = self._once_more(before, other)
        self._must_equal(program, before, other, (seen, global_states()))
        return program, lasts

    def _once_more(self, inputs: tuple[Trees, Any], seed: int) -> dict[str, Any]:
        """Run the step on copies and return digests: of a gradient when it is there, so that none waits for the others."""
        trees, batch = self._copies(*inputs)
        seed_all(seed)
        with warnings.catch_warnings(action="ignore"):
            try:
                return self._seen(self.step(*trees, batch, *([digest] if self._takes else [])), trees)
            except TakenTwiceError:
                self._takes = False
        return self._once_more(inputs, seed)

    def _write(self, graph: fx.GraphModule, layout: Layout) -> Program:
        return written_out(graph, layout)

    def _compare(self, entry: Entry, trees: Trees, batch: Any, seed: int) -> StepOutput:
        before, bits = self._copies(trees, batch), self._bits(trees)
        seed_all(seed)
        python = global_states()
        output = self._guarded(trees, batch, seed, before)
        after = global_states()
        assert entry.program is not None
        try:
            if bits != self._bits(trees):
                raise OtherBitsError("a replay gave other bits in params")
            if entry.calls == 1:  # another op captured it
                self._refuse_other(entry.known, python, after)
            self._must_equal(entry.program, before, seed, (self._seen(output, trees), after))
        except CannotCaptureError as reason:
            if entry.compared >= 0:
                raise self._mismatch(str(reason)) from None
            if entry.calls == 1:
                entry.known.keep(None)
                self._bind(entry, None)
                return output
            self._give_up(str(reason))
        finally:
            put_back(after)
        entry.compared = self._generation
        return output

    def _refuse_other(self, known: Known, before: GlobalStates, after: GlobalStates) -> None:
        attributes = self._attributes()
        if attributes.values != known.attributes:
            raise CannotCaptureError("an attribute of the module or of the loss has changed since")
        self._refuse_hidden(attributes, before, after)

    def _trace(self, inputs: tuple[Trees, Any], seed: int, watch: AbstractContextManager[Any]) -> tuple[fx.GraphModule, Layout]:
        from torch._guards import TracingContext, tracing
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx

        trees, batch = inputs
        leaves, structure = optree.tree_flatten(batch, none_is_leaf=True)
        # one object for each place: a batch (x, x) must not be taken for a batch whose two tensors are always one
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        bound = [t for tree in trees for t in tree.values()]
        flat = [*bound, *(leaves[i] for i in places)]
        layout: list[Layout] = []
        take = [stand_in] if self._takes else []

        def run(*tensors: Tensor) -> list[Any]:
            rest = iter(tensors)
            params, frozen, buffers = ({name: next(rest) for name in tree} for tree in trees)
            filled = list(leaves)
            for i, tensor in zip(places, rest, strict=True):
                filled[i] = tensor
            with watch, StaticShapes():
                full = optree.tree_unflatten(structure, filled)
                output = self.step(params, frozen, buffers, full, *take)
            assigned = {name: b for name, b in output.buffers.items() if b is not buffers[name]}
            names = list(output.gradients), list(assigned)
            layout.append(Layout(len(bound), *names, len(output.sums), output.size, self.step.training))
            return [output.loss, *output.gradients.values(), *assigned.values(), *(a for pair in output.sums for a in pair)]

        attributes = self._attributes()
        seed_all(seed)
        python = global_states()
        # one fake mode for all shapes that are noted of the graph: make_fx would make one for each value
        shapes = tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
        with warnings.catch_warnings(action="ignore"), shapes:
            graph_module = make_fx(run)(*flat)
        constants = [getattr(graph_module, str(n.target)) for n in graph_module.graph.nodes if n.op == "get_attr"]
        self._refuse_hidden(attributes, python, global_states(), constants)
        return graph_module, layout[0]

    def _attributes(self) -> Attributes:
        objective = self.step.objective
        loss = None if objective is None else objective.module
        return Attributes(self.step.module, objective, *([] if loss is None else [loss]))

    def _refuse_hidden(
        self, attributes: Attributes, before: GlobalStates, after: GlobalStates, constants: Sequence[Any] = ()
    ) -> None:
        if before.python != after.python:
            raise CannotCaptureError("forward draws from Python's `random`")
        if any(not np.array_equal(a, b) for a, b in zip(before.numpy[1:], after.numpy[1:], strict=True)):
            raise CannotCaptureError("forward draws from numpy's generator")
        if name := attributes.moved(constants):
            raise CannotCaptureError(
                f"forward changes {name}, which belongs to no state: a resumed run lacks it; make it a buffer"
            )

    def _copies(self, trees: Trees, batch: Any) -> tuple[Trees, Any]:
        params, frozen, buffers = trees
        written = self.step.written or ()
        copied = (
            {name: t.clone() if self._kinds.writes or name in written else t for name, t in params.items()},
            {name: t.clone() if name in written else t for name, t in frozen.items()},
            {name: t.clone() for name, t in buffers.items()},
        )
        return copied, optree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, batch, none_is_leaf=True)

    def _bits(self, trees: Trees) -> list[str]:
        """Digests of the parameters that `_copies` does not copy: what else runs the step is not to change them."""
        if self._kinds.writes or not self.step.training:
            return []
        return [leaf_hash(t) for name, t in trees[0].items() if name not in (self.step.written or ())]

    def _seen(self, output: StepOutput, trees: Trees) -> dict[str, Any]:
        return outcome(output, trees, written=self.step.written or (), params=self._kinds.writes)

    def _must_equal(self, program: Program, inputs: tuple[Trees, Any], seed: int, expected: _Expected) -> None:
        trees, batch = self._copies(*inputs)
        for manual_seed in self._seeders:
            manual_seed(seed)
        try:
            replay = program.bind_taken(*(t for tree in trees for t in tree.values()))
            actual = replay(digest, trees[2], *signature_of(batch)[1])
        except RuntimeError as error:
            raise OtherBitsError(f"a replay gave other bits in a shape ({error})") from error
        seen = self._seen(actual, trees)
        for leaf in [*expected[0], *seen]:
            if expected[0].get(leaf) != seen.get(leaf):
                raise OtherBitsError(f"a replay gave other bits in {leaf}")
        before, after = expected[1], global_states()
        if not all(map(torch.equal, [before.torch_cpu, *before.torch_cuda], [after.torch_cpu, *after.torch_cuda])):
            raise OtherBitsError("a replay gave other bits in the state of torch's generator")

    def _mismatch(self, reason: str) -> CaptureMismatchError:
        leaf = reason.removeprefix("a replay gave other bits in ")
        return CaptureMismatchError(
            f"epoch {self._epoch}: the captured step gave other bits than the uncaptured one in {leaf}.",
            cause="Forward, loss or a metric depends on something that moved since: a global variable, a file, the time.",
            fix="Keep what moves in a buffer. Epochs since the last power of two may be wrong, too.",
            path=leaf,
            epoch=self._epoch,
        )

    def _give_up(self, reason: str) -> None:
        self._off = True
        self._entries = {}
        self._note(f"the step runs uncaptured: {reason}")

    def _note(self, text: str) -> None:
        if self.notice is None:
            self.notice = text
