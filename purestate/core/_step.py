"""The pure steps: a gradient step, an evaluation step and a prediction step, each a function of tensors and a batch.

The gradient is that of ``loss.backward()``, bit for bit: the same forward pass runs with tensors lent to a copy of the
module, then `torch.autograd.grad`. Parameters are not updated here, no generator is seeded here, and nothing is captured
here (see `_capture`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from purestate.core._batch import batch_size
from purestate.core._loss import Objective, describe, inputs_of, tensors_in
from purestate.core._metrics import Amount, Metric
from purestate.core._module import Slots, fresh_copy, written_in_forward
from purestate.errors import ImpurityError, LossError, MetricError, PureStateError

__all__ = [
    "EvaluateStep",
    "GradientStep",
    "PredictStep",
    "Step",
    "StepOutput",
    "make_evaluate_step",
    "make_gradient_step",
    "make_predict_step",
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


class GradientStep:
    """``step(params, frozen, buffers, batch) -> StepOutput``, in train mode, with gradients. See `make_gradient_step`."""

    training = True

    def __init__(self, template: nn.Module, objective: Objective, metrics: Sequence[Metric]) -> None:
        self.module = fresh_copy(template).train()
        self.objective = objective
        self.metrics = tuple(metrics)
        self.written: frozenset[str] | None = written_in_forward(template)
        self._slots = Slots(self.module)

    def __call__(self, params: Tensors, frozen: Tensors, buffers: Tensors, batch: Any) -> StepOutput:
        """Compute loss, gradients and metrics of a batch.

        Args:
            params: Trainable parameters without a graph. Written only by modules that do so, as ``Embedding(max_norm)``.
            frozen: The other parameters.
            buffers: Owned by the caller; modules such as batch normalisation update them in place.
            batch: What the loader gave, on the device of the parameters.

        Raises:
            LossError: See `Objective`; also if the loss depends on no trainable parameter.
            MetricError: A metric failed or returned no sum.
            ImpurityError: Forward wrote a frozen parameter.
        """
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        versions = [t._version for t in frozen.values()]
        with torch.enable_grad(), self._slots.lent(leaves, frozen, buffers):
            loss, outputs, target = self.objective(self.module, batch)
            gradients = self._differentiate(loss, outputs, target, leaves)
            after = self._slots.read_buffers()
        self._keep(params, leaves, frozen, versions)
        assigned = {name: b.detach() for name, b in after.items() if b is not buffers[name]}
        sums = _measure(self.metrics, outputs, target)
        owned = _owned(gradients, leaves, batch)
        return StepOutput(loss.detach(), owned, {**buffers, **assigned} if assigned else buffers, sums, batch_size(batch))

    def _differentiate(self, loss: Tensor, outputs: Any, target: Any, leaves: Tensors) -> tuple[Tensor | None, ...]:
        if not loss.requires_grad:
            raise LossError(
                f"the loss of {self.objective.name} has no gradient: it depends on no trainable parameter.",
                cause="Forward detaches, runs under torch.no_grad(), or only uses frozen parameters.",
            )
        try:
            return torch.autograd.grad(loss, tuple(leaves.values()), allow_unused=True)
        except RuntimeError as error:
            if self.objective.loss is not None and "Found dtype" in str(error):
                raise self.objective.misfit(outputs, target, error) from error
            raise

    def _keep(self, params: Tensors, leaves: Tensors, frozen: Tensors, versions: list[int]) -> None:
        for name, leaf in leaves.items():
            if leaf.data_ptr() != params[name].data_ptr():
                params[name].copy_(leaf.detach())  # forward did `parameter.data = value`
        for (name, tensor), version in zip(frozen.items(), versions, strict=True):
            if tensor._version != version and name not in (self.written or ()):
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
        versions = {name: t._version for tree in lent for name, t in tree.items()}
        with torch.no_grad(), self._slots.lent(*lent):
            answer = self._run(batch)
        moved = frozenset(name for tree in lent for name, t in tree.items() if t._version != versions[name])
        if written is None:
            self.written = moved
        elif moved - written:
            raise ImpurityError(
                f"forward in eval mode wrote {sorted(moved - written)!r} now and not at its first call.",
                cause="An evaluation only reads: what forward writes is copied, and what that is must be clear from the first batch.",
            )
        return answer

    def _run(self, batch: Any) -> Any:
        assert self.objective is not None
        return self.objective(self.module, batch)


class PredictStep(EvaluateStep):
    """``step(params, frozen, buffers, batch) -> outputs``, in eval mode, without gradients. See `make_predict_step`."""

    def __call__(self, params: Tensors, frozen: Tensors, buffers: Tensors, batch: Any) -> Any:  # type: ignore[override]
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


def _owned(gradients: Iterable[Tensor | None], leaves: Tensors, batch: Any) -> dict[str, Tensor | None]:
    """Give every gradient memory of its own with its parameter's strides, as ``backward()`` does in ``.grad``."""
    taken = {t.data_ptr() for t in tensors_in(batch) if t.layout is torch.strided}
    owned: dict[str, Tensor | None] = {}
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        if gradient is not None and gradient.layout is torch.strided and gradient.numel():
            if gradient.stride() != leaf.stride() or (at := gradient.data_ptr()) in taken or at == leaf.data_ptr():
                gradient = torch.empty_like(leaf, requires_grad=False).copy_(gradient)
                at = gradient.data_ptr()
            taken.add(at)
        owned[name] = gradient
    return owned


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
