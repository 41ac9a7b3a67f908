"""Metrics are sums over a batch; means weigh batches by their size and are the same however they were added up."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purestate.core._metrics import Metric, Sums, as_metrics, metric, metric_accuracy, metric_binaccuracy
from purestate.errors import MetricError


def test_accuracy_counts_the_largest_on_the_last_axis() -> None:
    pred = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]])
    assert metric_accuracy(pred, torch.tensor([1, 0, 0])).item() == 2
    assert metric_accuracy(pred[None], torch.tensor([[1, 0, 0]])).item() == 2


def test_binaccuracy_rounds_probabilities() -> None:
    assert metric_binaccuracy(torch.tensor([0.2, 0.7, 0.9]), torch.tensor([0.0, 1.0, 0.0])).item() == 2


def test_functions_are_named_after_themselves() -> None:
    def metric_hits(y_pred: Any, y_true: Any) -> int:
        return 1

    made = as_metrics([metric_hits, metric_accuracy])
    assert [(m.name, m.higher_is_better) for m in made] == [("hits", True), ("accuracy", True)]
    assert metric("mae", higher_is_better=False)(metric_hits).higher_is_better is False


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ([metric_accuracy, metric_accuracy], "two metrics are called 'accuracy'"),
        ([lambda a, b: 0], "needs a name"),
        ([3], "3 is not a metric"),
    ],
)
def test_what_is_no_metric_is_refused(metrics: list[Any], text: str) -> None:
    with pytest.raises(MetricError, match=text):
        as_metrics(metrics)


@pytest.mark.parametrize("name", ["loss", "lr", "epoch", "seconds", ""])
def test_taken_names_are_refused(name: str) -> None:
    with pytest.raises(MetricError, match="cannot be called") as caught:
        metric(name)(max)
    assert caught.value.metric == name


@pytest.mark.parametrize("value", [3, 3.0, True, torch.tensor(3), torch.tensor([[3.0]]), torch.tensor(3.0).numpy()[()]])
def test_scalars_are_sums(value: Any) -> None:
    total, count = Metric("m", True, lambda a, b: value).measure(None, None)
    assert float(total) == float(value)
    assert count is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.ones(3), r"a tensor of shape \(3,\)[\s\S]*value.sum\(\)"),
        ("a", "returned a str"),
        ((1, 2, 3), "returned 3 values"),
        ((1, torch.ones(2)), "expected a count"),
        (None, "NoneType"),
    ],
)
def test_anything_else_is_a_metric_error(value: Any, text: str) -> None:
    with pytest.raises(MetricError, match=text) as caught:
        Metric("m", True, lambda a, b: value).measure(None, None)
    assert caught.value.metric == "m"


BATCHES = st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=40)


@given(BATCHES)
def test_means_are_weighted_by_samples(batches: list[tuple[float, int, int]]) -> None:
    sums = Sums([Metric("a", True, max), Metric("b", True, max)])
    for loss, hits, size in batches:
        sums.add(torch.tensor(loss), [(torch.tensor(hits), None), (hits, torch.tensor(2))], size)
    n = sum(size for *_, size in batches)
    means = sums.means()
    # float64 sums in another order than fsum's: a few units in the last place of the largest summand
    assert means["loss"] == pytest.approx(math.fsum(loss * size for loss, _, size in batches) / n, rel=1e-12, abs=1e-10)
    assert means["a"] == sum(hits for _, hits, _ in batches) / n
    assert means["b"] == sum(hits for _, hits, _ in batches) / (2 * len(batches))
    assert sums.samples == n


def test_numbers_and_tensors_of_any_dtype_add_up_alike_over_flushes() -> None:
    def run(kinds: list[Any]) -> dict[str, float]:
        sums = Sums([Metric("a", True, max)])
        for i in range(2500):
            sums.add(torch.tensor(0.1 * i), [(kinds[i % len(kinds)](i), None)], 1 + i % 3)
        return sums.means()

    reference = run([float])
    assert reference == run([torch.tensor]) == run([int, torch.tensor]) == run([torch.tensor, lambda i: torch.tensor(float(i))])


def test_large_counts_are_exact() -> None:
    sums = Sums([Metric("a", True, max)])
    for value in (2**40 + 1, 1):
        sums.add(torch.tensor(0.0), [(torch.tensor(value), None)], 1)
    assert sums.means()["a"] == (2**40 + 2) / 2


def test_means_over_nothing_are_nan_and_means_can_be_asked_again() -> None:
    sums = Sums([metric_accuracy])
    assert all(math.isnan(v) for v in sums.means().values())
    sums.add(torch.tensor(1.0), [(torch.tensor(0), torch.tensor(0))], 2)
    assert sums.means()["loss"] == sums.means()["loss"] == 1.0
    assert math.isnan(sums.means()["accuracy"])
