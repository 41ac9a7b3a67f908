"""Metrics, and the means that an epoch ends with.

A metric gives a *sum over a batch*; the mean over a dataset is the sum of those sums divided by the number of samples, so
that batches of different sizes weigh right. `Sums` adds up on the device, in float64, and asks the device for numbers
only at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purestate.errors import MetricError

__all__ = ["Metric", "Sums", "as_metrics", "metric", "metric_accuracy", "metric_binaccuracy"]

RESERVED = frozenset({"loss", "lr", "epoch", "seconds"})
Amount = Tensor | float
_FLUSH = 1024


@dataclass(frozen=True)
class Metric:
    """A named sum over a batch.

    Args:
        name: What it is called in histories; validation adds ``val_``.
        higher_is_better: Which of two values `train(watch=name)` takes for the better one.
        fn: ``(y_pred, y_true) -> sum`` or ``(sum, count)``; sums and counts are numbers or tensors with one element.
    """

    name: str
    higher_is_better: bool
    fn: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        """Refuse names that histories use for something else."""
        if not self.name or self.name in RESERVED:
            raise MetricError(
                f"a metric cannot be called {self.name!r}; {', '.join(sorted(RESERVED))} are taken.", metric=self.name
            )

    def __call__(self, y_pred: Any, y_true: Any) -> Any:
        """Return what ``fn`` returns."""
        return self.fn(y_pred, y_true)

    def measure(self, y_pred: Any, y_true: Any) -> tuple[Amount, Amount | None]:
        """Return ``(sum, count)`` of a batch; the count is None where samples are counted.

        Raises:
            MetricError: The function returned something else than a scalar sum, or a pair of scalars.
        """
        value = self.fn(y_pred, y_true)
        if not isinstance(value, tuple):
            return self._scalar(value, "a sum over the batch"), None
        if len(value) != 2:
            raise MetricError(
                f"metric {self.name!r} returned {len(value)} values, expected a sum or (sum, count).", metric=self.name
            )
        return self._scalar(value[0], "a sum"), self._scalar(value[1], "a count")

    def _scalar(self, value: Any, what: str) -> Amount:
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            return value.detach().reshape(())
        if isinstance(value, (bool, int, float)):
            return value
        if not isinstance(value, Tensor) and getattr(value, "shape", None) == ():
            return value.item()
        came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise MetricError(
            f"metric {self.name!r} returned {came}, expected {what}: a number or a tensor with one element.",
            cause="It has a value for each sample." if isinstance(value, Tensor) else None,
            fix="Return `value.sum()`: purestate divides by the number of samples." if isinstance(value, Tensor) else None,
            metric=self.name,
        )


def metric(name: str, higher_is_better: bool = True) -> Callable[[Callable[[Any, Any], Any]], Metric]:
    """Make a metric of a function.

    Args:
        name: What it is called in histories. ``loss``, ``lr``, ``epoch`` and ``seconds`` are taken.
        higher_is_better: Whether the larger of two values is the better one.

    Returns:
        A decorator for a function ``(y_pred, y_true)`` that returns a sum over the batch, or ``(sum, count)``.

    Raises:
        MetricError: The name is taken.

    Example:
        >>> @metric("abs_error", higher_is_better=False)
        ... def abs_error(y_pred, y_true):
        ...     return (y_pred - y_true).abs().sum()
        >>> abs_error(torch.ones(3), torch.zeros(3))
        tensor(3.)
    """

    def decorate(fn: Callable[[Any, Any], Any]) -> Metric:
        named = Metric(name, higher_is_better, fn)
        object.__setattr__(named, "__doc__", fn.__doc__)
        return named

    return decorate


@metric("accuracy")
def metric_accuracy(y_pred: Tensor, y_true: Tensor) -> Tensor:
    """Count the samples whose largest prediction is at the true index.

    Args:
        y_pred: Logits or probabilities, shape ``(N, ..., C)``: classes are on the last axis.
        y_true: Indices, shape ``(N, ...)``.
    """
    _must_be_tensors("accuracy", y_pred, y_true)
    return (y_pred.argmax(-1) == y_true).sum()


@metric("binaccuracy")
def metric_binaccuracy(y_pred: Tensor, y_true: Tensor) -> Tensor:
    """Count the predictions that round to the truth.

    Args:
        y_pred: Probabilities between 0 and 1, not logits; any shape.
        y_true: 0 or 1, same shape.
    """
    _must_be_tensors("binaccuracy", y_pred, y_true)
    return (y_pred.round() == y_true).sum()


def _must_be_tensors(name: str, y_pred: Any, y_true: Any) -> None:
    if not (isinstance(y_pred, Tensor) and isinstance(y_true, Tensor)):
        raise MetricError(
            f"metric {name!r} takes two tensors, got {type(y_pred).__name__} and {type(y_true).__name__}.",
            cause="Of a tuple or list batch the last entry is the target; of a mapping it is the whole batch.",
            fix="Write one: @ps.metric('accuracy') on a function (outputs, batch) that picks from the batch.",
            metric=name,
        )


def as_metrics(metrics: Iterable[Metric | Callable[[Any, Any], Any]]) -> tuple[Metric, ...]:
    """Return metrics for what a user named: `Metric` objects, or functions, whose name without ``metric_`` counts.

    Raises:
        MetricError: A name is taken or occurs twice, something is not callable, or one metric came instead of a list.

    Example:
        >>> [m.name for m in as_metrics([metric_accuracy])]
        ['accuracy']
    """
    if isinstance(metrics, str | Metric) or callable(metrics):
        name = metrics if isinstance(metrics, str) else getattr(metrics, "name", getattr(metrics, "__name__", "..."))
        raise MetricError(f"metrics must be a list, got {metrics!r}.", fix=f"Write metrics=[{name}].", metric=name)
    found: dict[str, Metric] = {}
    for item in metrics:
        if not isinstance(item, Metric):
            item = _from_function(item)
        if item.name in found:
            raise MetricError(
                f"two metrics are called {item.name!r}.", fix="Name one of them with @metric('another name').", metric=item.name
            )
        found[item.name] = item
    return tuple(found.values())


class Sums:
    """What batches add up to, on the device that they are on.

    Args:
        metrics: The metrics whose values `add` is given, in this order.

    Example:
        >>> sums = Sums([metric_accuracy])
        >>> sums.add(torch.tensor(2.0), [(torch.tensor(1), None)], 2)
        >>> sums.add(torch.tensor(5.0), [(torch.tensor(1), None)], 1)
        >>> sums.means()
        {'loss': 3.0, 'accuracy': 0.6666666666666666}
    """

    def __init__(self, metrics: Iterable[Metric] = ()) -> None:
        self.metrics = tuple(metrics)
        self.samples = 0
        self._rows: list[tuple[Tensor, Iterable[tuple[Amount, Amount | None]], int]] = []
        self._total: Tensor | None = None

    def add(self, loss: Tensor, values: Iterable[tuple[Amount, Amount | None]], size: int) -> None:
        """Add a batch. Costs no arithmetic until 1,024 batches are together, and never waits for the device.

        Args:
            loss: The mean loss of the batch, 0-d, detached.
            values: ``(sum, count or None)`` for each metric.
            size: How many samples the batch has.
        """
        self.samples += size
        self._rows.append((loss, values, size))
        if len(self._rows) == _FLUSH:
            self._flush()

    def means(self) -> dict[str, float]:
        """Return the mean of the loss over samples, and of each metric over samples or over its own count.

        A mean over nothing is nan.
        """
        self._flush()
        if self._total is None:
            return {"loss": math.nan, **{m.name: math.nan for m in self.metrics}}
        loss, *pairs = self._total.tolist()
        means = {"loss": loss / self.samples if self.samples else math.nan}
        for m, total, count in zip(self.metrics, pairs[::2], pairs[1::2], strict=True):
            means[m.name] = total / count if count else math.nan
        return means

    def copy(self) -> Sums:
        """Return sums to which nothing is added any more. Costs no arithmetic."""
        sums = Sums(self.metrics)
        sums.samples, sums._rows, sums._total = self.samples, list(self._rows), self._total
        return sums

    def plain(self) -> dict[str, Any]:
        """Return all of it as numbers, from which `from_plain` makes sums that give the same means. Waits for the device."""
        rows = [
            [float(loss), size, [[_number(amount), None if n is None else _number(n)] for amount, n in values]]
            for loss, values, size in self._rows
        ]
        return {"samples": self.samples, "total": None if self._total is None else self._total.tolist(), "rows": rows}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], metrics: Iterable[Metric], device: torch.device) -> Sums:
        """Return the sums that `plain` was called on.

        Args:
            plain: What it returned.
            metrics: The same metrics.
            device: Where the batches are that will be added.
        """
        sums = cls(metrics)
        exact = exact_dtype(device)
        sums.samples = plain["samples"]
        sums._total = None if plain["total"] is None else torch.tensor(plain["total"], dtype=exact, device=device)
        sums._rows = [
            (torch.tensor(loss, dtype=exact, device=device), [(amount, n) for amount, n in values], size)
            for loss, size, values in plain["rows"]
        ]
        return sums

    def _flush(self) -> None:
        if not self._rows:
            return
        losses, values, sizes = zip(*self._rows, strict=True)
        self._rows = []
        device = losses[0].device
        exact = exact_dtype(device)

        def column(amounts: Iterable[Amount]) -> Tensor:
            amounts = list(amounts)
            tensors = [a for a in amounts if isinstance(a, Tensor)]
            if not tensors:
                return torch.tensor(amounts, dtype=exact, device=device)
            if len(tensors) == len(amounts) and len({a.dtype for a in tensors}) == 1:
                return torch.stack(tensors).to(exact)
            return torch.stack([torch.as_tensor(a, dtype=exact, device=device) for a in amounts])

        columns = [column(losses) * column(sizes)]
        for i in range(len(self.metrics)):
            columns.append(column(v[i][0] for v in values))
            columns.append(column(size if v[i][1] is None else v[i][1] for v, size in zip(values, sizes, strict=True)))
        total = torch.stack(columns).sum(1)
        self._total = total if self._total is None else self._total + total


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which a device adds up."""
    return torch.float32 if device.type == "mps" else torch.float64


def _number(amount: Amount) -> float:
    return amount.item() if isinstance(amount, Tensor) else amount


def _from_function(fn: Any) -> Metric:
    name = getattr(fn, "__name__", None) or (type(fn).__name__ if callable(fn) else None)
    if name is None or not callable(fn):
        raise MetricError(f"{fn!r} is not a metric.", fix="Give a function (y_pred, y_true) that returns a sum over the batch.")
    if not name.isidentifier():
        raise MetricError(
            f"a metric needs a name, and {fn!r} has none.", fix="Name it: metric('my_metric')(lambda y_pred, y_true: ...)."
        )
    return Metric(name.removeprefix("metric_"), True, fn)
