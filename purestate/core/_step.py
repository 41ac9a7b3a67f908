"""The pure steps: a gradient step, an evaluation step and a prediction step, each a function of tensors and a batch.

The gradient is that of ``loss.backward()``, because it is ``loss.backward()``: forward runs with fresh leaves lent to a copy
of the module, and what arrives in their ``.grad`` is the answer. `torch.autograd.grad` would give other strides, and nothing
at all for what a reentrant activation checkpoint holds. Parameters are not updated here, no generator is seeded here, and
nothing is captured here (see `_capture`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from purestate.core._batch import batch_size
from purestate.core._loss import Objective, describe, inputs_of, tensors_in
from purestate.core._metrics import Amount, Metric
from purestate.core._module import Slots, fresh_copy, written_in_forward
from purestate.errors import ImpurityError, LossError, MetricError, PureStateError, UnsupportedError

__all__ = [
    "EvaluateStep",
    "GradientStep",
    "PredictStep",
    "Step",
    "StepOutput",
    "TakenTwiceError",
    "make_evaluate_step",
    "make_gradient_step",
    "make_predict_step",
    "same_bits",
]

Tensors = Mapping[str, Tensor]


@dataclass(slots=True)
class StepOutput:
    """What a step gives.

    Args:
        loss: The loss of the batch, 0-d, detached.
        gradients: By parameter, with its dtype and strides, owned by the caller; None where the loss does not depend on
            it, as ``backward()`` leaves it. Empty for an evaluation.
        buffers: The mapping that went in, if nothing was assigned; else a new one with the assigned tensors in it.
        sums: ``(sum, count or None)`` of each metric.
        size: How many samples the batch has.
    """

    loss: Tensor
    gradients: dict[str, Tensor | None]
    buffers: Tensors
    sums: tuple[tuple[Amount, Amount | None], ...]
    size: int


class TakenTwiceError(Exception):
    """Backward added to a gradient that had been taken: with reentrant activation checkpoints there is backward in backward."""


class GradientStep:
    """``step(params, frozen, buffers, batch) -> StepOutput``, in train mode, with gradients. See `make_gradient_step`."""

    training = True

    def __init__(self, template: nn.Module, objective: Objective, metrics: Sequence[Metric]) -> None:
        self.module = fresh_copy(template).train()
        self.objective = objective
        self.metrics = tuple(metrics)
        self.written: frozenset[str] | None = written_in_forward(template)
        """Parameters that forward writes by itself; of the frozen ones among them the caller must own a copy."""
        self._slots = Slots(self.module)
        self._checked = False

    def __call__(
        self, params: Tensors, frozen: Tensors, buffers: Tensors, batch: Any, take: Callable[[Tensor], Any] | None = None
    ) -> StepOutput:
        """Compute loss, gradients and metrics of a batch.

        Args:
            params: Trainable parameters without a graph. Written only by modules that do so, as ``Embedding(max_norm)``.
            frozen: The other parameters.
            buffers: Owned by the caller; modules such as batch normalisation update them in place.
            batch: What the loader gave, on the device of the parameters.
            take: Given each gradient when backward has added it up; what it returns is in the answer in its place. So a
                second set of gradients is never in memory as a whole.

        Raises:
            LossError: See `Objective`; also if the loss depends on no trainable parameter.
            MetricError: A metric failed or returned no sum.
            ImpurityError: Forward wrote a frozen parameter.
            TakenTwiceError: Backward went on with a gradient that was taken. Call it again without ``take``.
        """
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        taken: dict[str, Any] = {}
        if take is not None:
            for name, leaf in leaves.items():
                leaf.register_post_accumulate_grad_hook(partial(_take, taken, name, take))
        given = frozen
        if not self._checked:
            # once by content: what forward writes through `.data` moves no version
            frozen = {name: t if name in (self.written or ()) else t.clone() for name, t in frozen.items()}
        versions = [t._version for t in frozen.values()]
        with torch.enable_grad(), self._slots.lent(leaves, frozen, buffers):
            with nullcontext() if self._checked else _Registered():
                loss, outputs, target = self.objective(self.module, batch)
            self._differentiate(loss, outputs, target)
            after = self._slots.read_buffers()
        moved = {name for (name, t), version in zip(frozen.items(), versions, strict=True) if t._version != version}
        if not self._checked:
            moved |= {name for name, t in frozen.items() if not same_bits(t, given[name])}
            self._checked = True
        self._refuse_writes(moved - (self.written or frozenset()))
        for name, leaf in leaves.items():
            if leaf.data_ptr() != params[name].data_ptr():
                params[name].copy_(leaf.detach())  # forward did `parameter.data = value`
        assigned = {name: b.detach() for name, b in after.items() if b is not buffers[name]}
        sums = _measure(self.metrics, outputs, target)
        gradients = {name: taken.get(name, leaf.grad) for name, leaf in leaves.items()}
        return StepOutput(loss.detach(), gradients, {**buffers, **assigned} if assigned else buffers, sums, batch_size(batch))

    def _differentiate(self, loss: Tensor, outputs: Any, target: Any) -> None:
        if not loss.requires_grad:
            raise LossError(
                f"the loss of {self.objective.name} has no gradient: it depends on no trainable parameter.",
                cause="Forward detaches, runs under torch.no_grad(), or only uses frozen parameters.",
            )
        try:
            loss.backward()
        except RuntimeError as error:
            if self.objective.loss is not None and "Found dtype" in str(error):
                raise self.objective.misfit(outputs, target, error) from error
            raise

    def _refuse_writes(self, moved: set[str]) -> None:
        for name in sorted(moved):
            raise ImpurityError(
                f"forward wrote the frozen parameter {name!r}.",
                cause="A frozen parameter belongs to the state and is not copied for training.",
                fix="Register it as a buffer, which forward may update.",
            )


class EvaluateStep:
    """``step(params, frozen, buffers, batch) -> StepOutput``, in eval mode, without gradients. See `make_evaluate_step`."""

    training = False

    def __init__(self, template: nn.Module, objective: Objective | None, metrics: Sequence[Metric]) -> None:
        self.module = fresh_copy(template).eval()
        self.objective = objective
        self.metrics = tuple(metrics)
        self.written: frozenset[str] | None = None
        """Names that forward writes in place, known after the first call; they are copied for each later one."""
        self._slots = Slots(self.module)

    def __call__(self, params: Tensors, frozen: Tensors, buffers: Tensors, batch: Any) -> StepOutput:
        """Compute loss and metrics of a batch. No tensor is modified; what forward writes is gone after the call.

        Raises:
            LossError: See `Objective`.
            MetricError: A metric failed or returned no sum.
            ImpurityError: Forward wrote a tensor that it did not write at the first call.
        """
        assert self.objective is not None
        loss, outputs, target = self._read(params, frozen, buffers, batch)
        sums = _measure(self.metrics, outputs, target)
        return StepOutput(loss.detach(), {}, buffers, sums, batch_size(batch))

    def _read(self, params: Tensors, frozen: Tensors, buffers: Tensors, batch: Any) -> Any:
        written = self.written
        lent = [
            {name: t.clone() if written is None or name in written else t.detach() for name, t in tree.items()}
            for tree in (params, frozen, buffers)
        ]
        for t in lent[0].values():
            t.requires_grad_()  # under no_grad, too, torch.matmul folds its operands or not by who requires a gradient
        versions = {name: t._version for tree in lent for name, t in tree.items()}
        with torch.no_grad(), self._slots.lent(*lent), _Registered() if written is None else nullcontext():
            answer = self._run(batch)
        moved = frozenset(name for tree in lent for name, t in tree.items() if t._version != versions[name])
        if written is None:
            # by content, not by version: what forward writes through `.data` moves no version
            pairs = [
                (name, t, own[name])
                for tree, own in zip(lent, (params, frozen, buffers), strict=True)
                for name, t in tree.items()
            ]
            self.written = moved | {name for name, t, own in pairs if not same_bits(t, own)}
        elif moved - written:
            raise ImpurityError(
                f"forward in eval mode wrote {sorted(moved - written)!r} now and not at its first call.",
                cause="What forward writes is copied for each call, and what that is must be clear from the first batch.",
            )
        return answer

    def _run(self, batch: Any) -> Any:
        assert self.objective is not None
        return self.objective(self.module, batch)


class PredictStep(EvaluateStep):
    """``step(params, frozen, buffers, batch) -> outputs``, in eval mode, without gradients. See `make_predict_step`."""

    def __call__(self, params: Tensors, frozen: Tensors, buffers: Tensors, batch: Any) -> Any:
        """Return what the module returns for the inputs in a batch. No tensor is modified."""
        return self._read(params, frozen, buffers, batch)

    def _run(self, batch: Any) -> Any:
        args, kwargs = inputs_of(batch)
        if self.objective is None:
            return self.module(*args, **kwargs)
        with self.objective.mixed(batch):
            return self.module(*args, **kwargs)


Step = GradientStep | EvaluateStep


def make_gradient_step(template: nn.Module, objective: Objective, metrics: Sequence[Metric] = ()) -> GradientStep:
    """Make the pure gradient step of a module.

    Args:
        template: From `take_apart`. Not modified: the step has a copy of its own.
        objective: From `make_objective`.
        metrics: Measured on what the module returned in train mode.

    Example:
        >>> from purestate.core._loss import make_objective
        >>> from purestate.core._module import take_apart
        >>> template, params, frozen, buffers = take_apart(nn.Linear(2, 1, bias=False))
        >>> step = make_gradient_step(template, make_objective(nn.MSELoss))
        >>> step(params, frozen, buffers, (torch.zeros(3, 2), torch.zeros(3, 1))).gradients
        {'weight': tensor([[0., 0.]])}
    """
    return GradientStep(template, objective, metrics)


def make_evaluate_step(template: nn.Module, objective: Objective, metrics: Sequence[Metric] = ()) -> EvaluateStep:
    """Make the pure evaluation step of a module; arguments as in `make_gradient_step`."""
    return EvaluateStep(template, objective, metrics)


def make_predict_step(template: nn.Module, objective: Objective | None = None) -> PredictStep:
    """Make the pure prediction step of a module; of the objective only the precision counts."""
    return PredictStep(template, objective, ())


def _take(taken: dict[str, Any], name: str, take: Callable[[Tensor], Any], leaf: Tensor) -> None:
    assert leaf.grad is not None
    if name in taken:
        raise TakenTwiceError
    taken[name], leaf.grad = take(leaf.grad), None


class _Registered(TorchDispatchMode):
    """Refuses weights that were not lent: a template's (some kernels read them as if they were there), or a closure's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors_in(args):
            if tensor.is_meta or (tensor.requires_grad and isinstance(tensor, nn.Parameter)):
                raise UnsupportedError(
                    f"forward or loss uses a {describe(tensor)} in {func} that the module has not registered.",
                    cause="It is used from a plain list, dict or closure, where training does not reach it.",
                    fix="Use it from where it is registered (self.name, nn.ModuleList), or freeze it: requires_grad_(False).",
                )
        return func(*args, **(kwargs or {}))


def _measure(metrics: Sequence[Metric], outputs: Any, target: Any) -> tuple[tuple[Amount, Amount | None], ...]:
    if not metrics:
        return ()
    if outputs is None:
        raise MetricError(
            f"metric {metrics[0].name!r} needs the module's outputs, and loss_fn returns only the loss.",
            fix="Return both: loss_fn=lambda module, batch: (loss, outputs).",
            metric=metrics[0].name,
        )
    with torch.no_grad():
        return tuple(_measured(m, outputs, target) for m in metrics)


def _measured(metric: Metric, outputs: Any, target: Any) -> tuple[Amount, Amount | None]:
    try:
        return metric.measure(outputs.detach() if isinstance(outputs, Tensor) else outputs, target)
    except PureStateError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise MetricError(
            f"metric {metric.name!r} failed on output {describe(outputs)}, target {describe(target)}: {error}", metric=metric.name
        ) from error


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype, strides and bits.

    Strides of axes of length 1 mean nothing; the others decide in which order a norm adds up.
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.layout is torch.sparse_coo:
        return same_bits(a._indices(), b._indices()) and same_bits(a._values(), b._values())
    if any(n > 1 and s != t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)):
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
