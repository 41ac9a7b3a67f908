"""What `setup` was told about the loss, as one function ``objective(module, batch) -> (loss, outputs, target)``.

Here is the convention of what a batch is (all but the last are inputs, the last is the target), and here the errors that
torch raises inside a loss get words. No gradient is taken here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from purestate.core._hash import dtype_name
from purestate.errors import LossError, SetupError, UnsupportedError

__all__ = ["Objective", "describe", "inputs_of", "make_objective", "tensors_in"]

_FROM_LOSS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


class Objective:
    """How a module and a batch give a loss. Made by `make_objective`.

    Args:
        loss: ``(pred, target) -> scalar``; None where ``loss_fn`` is given.
        loss_fn: ``(module, batch) -> loss`` or ``(loss, outputs)``; None where ``loss`` is given.
        autocast: The dtype of `torch.autocast` around forward and loss, or None for none.
    """

    def __init__(self, loss: Callable[..., Any] | None, loss_fn: Callable[..., Any] | None, autocast: torch.dtype | None) -> None:
        self.loss = loss
        self.loss_fn = loss_fn
        self.autocast = autocast
        self.module = loss if isinstance(loss, nn.Module) else None
        self.name = _name(loss if loss is not None else loss_fn)
        self._device: torch.device | None = None

    def __call__(self, module: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        """Return ``(loss, outputs, target)``: the loss 0-d and with its graph, outputs None where ``loss_fn`` gives none.

        Raises:
            LossError: The batch has no target, or the loss cannot be computed from outputs and target, or is no scalar.
        """
        if self.loss is None:
            return self._whole(module, batch)
        inputs, target = _split(batch)
        with self.mixed(batch):
            outputs = module(*inputs)
            self._follow(outputs)
            versions = [b._version for b in self.module.buffers()] if self.module is not None else []
            try:
                loss = self.loss(outputs, target)
            except torch.OutOfMemoryError:
                raise
            except _FROM_LOSS as error:
                raise self.misfit(outputs, target, error) from error
        if self.module is not None and versions != [b._version for b in self.module.buffers()]:
            raise UnsupportedError(
                f"the loss {self.name} changes its own buffers, which belong to no state.",
                fix="Make it a submodule of the model and use setup(loss_fn=lambda module, batch: ...).",
            )
        return self._scalar(loss), outputs, target

    def mixed(self, batch: Any) -> Any:
        """Return the autocast context of the recipe, for the device that the batch is on."""
        if self.autocast is None:
            return nullcontext()
        device = next((t.device.type for t in tensors_in(batch)), "cpu")
        return torch.autocast(device, dtype=self.autocast)

    def misfit(self, outputs: Any, target: Any, error: Exception) -> LossError:
        """Return the error for outputs and a target that do not fit the loss."""
        return LossError(
            f"{self.name} cannot take the module's output and the target: output {describe(outputs)}, target {describe(target)}.",
            cause=_cause(self.name, outputs, target, error),
            fix=f"torch says: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
        )

    def _whole(self, module: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        assert self.loss_fn is not None
        with self.mixed(batch):
            answer = self.loss_fn(module, batch)
        loss, outputs = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        target = batch[-1] if isinstance(batch, (tuple, list)) and batch else batch
        return self._scalar(loss), outputs, target

    def _scalar(self, loss: Any) -> Tensor:
        if not isinstance(loss, Tensor):
            raise LossError(
                f"{self.name} returned a {type(loss).__name__}, expected a tensor with one element.",
                cause="A number taken out of a tensor with .item() or float() has no gradient."
                if isinstance(loss, (int, float))
                else None,
            )
        if loss.numel() != 1:
            raise LossError(
                f"{self.name} returned a loss of shape {tuple(loss.shape)}, expected a scalar.",
                cause="It has a value for each sample, as reduction='none' gives.",
                fix="Use reduction='mean', or return loss.mean().",
            )
        return loss.reshape(()) if loss.dim() else loss

    def _follow(self, outputs: Any) -> None:
        # class weights and the like are buffers of the loss and have to be where the outputs are
        if self.module is not None and isinstance(outputs, Tensor) and outputs.device != self._device:
            self.module.to(outputs.device)
            self._device = outputs.device


def make_objective(
    loss: Any = None,
    loss_args: Mapping[str, Any] | None = None,
    *,
    loss_fn: Callable[..., Any] | None = None,
    autocast: torch.dtype | None = None,
) -> Objective:
    """Make the objective of what `setup` was told.

    Args:
        loss: A loss class, an instance of one (copied, never modified), or any function ``(pred, target) -> scalar``.
        loss_args: Arguments for a class.
        loss_fn: In place of ``loss``: ``(module, batch) -> loss`` or ``(loss, outputs)``.
        autocast: The dtype of `torch.autocast` around forward and loss.

    Raises:
        SetupError: Neither or both are given, or the class does not take the arguments.
        UnsupportedError: The loss has trainable parameters.

    Example:
        >>> objective = make_objective(nn.MSELoss)
        >>> loss, outputs, target = objective(nn.Identity(), (torch.ones(2), torch.zeros(2)))
        >>> loss
        tensor(1.)
    """
    if (loss is None) == (loss_fn is None):
        raise SetupError(
            "setup takes loss_cls or loss_fn, one of them.",
            fix="loss_cls=torch.nn.CrossEntropyLoss, for example.",
            argument="loss_cls",
        )
    if isinstance(loss, type):
        try:
            loss = loss(**(loss_args or {}))
        except TypeError as error:
            raise SetupError(
                f"loss_cls={loss.__name__} cannot be made of loss_args={dict(loss_args or {})!r}: {error}",
                argument="loss_args",
            ) from error
    elif loss_args:
        raise SetupError(f"loss_args are for a class, and loss_cls={_name(loss)} is none.", argument="loss_args")
    if isinstance(loss, nn.Module):
        if trainable := [name for name, p in loss.named_parameters() if p.requires_grad]:
            raise UnsupportedError(
                f"the loss {_name(loss)} has trainable parameters {trainable!r}, which are in no module that is trained.",
                cause="A state holds the parameters of one module.",
                fix="Make the loss a submodule of the model, and tell setup how it is computed: "
                "setup(loss_fn=lambda module, batch: module.loss(module(batch[0]), batch[1])).",
            )
        loss = copy.deepcopy(loss)
    if not callable(loss if loss is not None else loss_fn):
        raise SetupError(
            f"the loss must be a class or callable, got {loss if loss is not None else loss_fn!r}.", argument="loss_cls"
        )
    return Objective(loss, loss_fn, autocast)


def inputs_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that predicting takes from a batch.

    A tensor is the input itself; of a tuple or list all but the last, if it has more than one; a mapping gives keywords.
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return (tuple(batch[:-1]) if len(batch) > 1 else tuple(batch)), {}
    return (batch,), {}


def _split(batch: Any) -> tuple[tuple[Any, ...], Any]:
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return tuple(batch[:-1]), batch[-1]
    if isinstance(batch, Mapping):
        raise LossError(
            f"a batch is {describe(batch)}, from which loss_cls cannot tell inputs and target.",
            fix="Say it yourself: setup(loss_fn=lambda module, batch: module(**batch).loss).",
        )
    raise LossError(
        f"a batch is {describe(batch)}, expected a tuple of inputs and a target.",
        cause="The data set has no targets.",
        fix="Say what the loss is: setup(loss_fn=lambda module, batch: ...).",
    )


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nesting of mappings, tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in tensors_in(item)] if isinstance(value, (tuple, list)) else []


def _name(loss: Any) -> str:
    return getattr(loss, "__qualname__", type(loss).__qualname__)


def describe(value: Any) -> str:
    """Return what something is in an error: dtype and shape of a tensor, the kind of anything else."""
    if isinstance(value, Tensor):
        return f"{dtype_name(value.dtype)} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(describe(v) for v in value[:3])})"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {[str(key) for key in value][:6]!r}"
    return f"a {type(value).__name__}"


def _cause(name: str, outputs: Any, target: Any, error: Exception) -> str | None:
    if not isinstance(outputs, Tensor):
        return "The module returns more than one tensor; loss_fn=lambda module, batch: ... can pick the right one."
    if not isinstance(target, Tensor):
        return "The target is the last element of a batch, and it is no tensor."
    if name in ("CrossEntropyLoss", "NLLLoss"):
        if isinstance(error, IndexError) or "out of bounds" in str(error):
            return f"The module returns {outputs.shape[1] if outputs.dim() > 1 else 1} classes, and a target is not below that."
        if target.dtype not in (torch.int64, torch.uint8) and target.shape != outputs.shape:
            return "Class indices must be int64: convert them with .long()."
        if target.dim() == outputs.dim() and target.shape[-1] == 1:
            return "The target has a last axis of length 1 too many: target.squeeze(-1)."
        return "Expected an output of shape (N, C, ...) and class indices of shape (N, ...)."
    if outputs.shape != target.shape:
        return "Output and target should have the same shape; an axis of length 1 is often too many or missing."
    if outputs.dtype != target.dtype:
        return f"Output and target should have the same dtype: target.to(torch.{dtype_name(outputs.dtype)})."
    return None
