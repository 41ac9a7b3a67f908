"""Which epochs a retention policy keeps: what each means, and the algebra of joining them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import purestate as ps
from purestate.errors import SetupError
from purestate.run._policy import Past, Policy, all_of, any_of, best, every, last, seconds


def past(losses: Sequence[float], accuracies: Sequence[float] | None = None, *, took: float = 1.0, watch: str = "loss") -> Past:
    """Return epochs 0, 1, … with these validation losses."""
    metrics = [{"val_loss": loss} for loss in losses]
    if accuracies is not None:
        metrics = [{**entry, "val_accuracy": accuracy} for entry, accuracy in zip(metrics, accuracies, strict=True)]
    return Past(metrics, [took] * len(metrics), watch, {"accuracy"})


FALLING = past([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0])


def without_validation(epochs: int) -> Past:
    return Past([{}, *[{"train_loss": 1.0}] * epochs], [0.0, *[1.0] * epochs])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (last(1), {6}),
        (last(3), {4, 5, 6}),
        (last(100), {1, 2, 3, 4, 5, 6}),
        (best(1), {6}),
        (best(2), {5, 6}),
        (best(100), {0, 1, 2, 3, 4, 5, 6}),
        (every(1), {1, 2, 3, 4, 5, 6}),
        (every(2), {2, 4, 6}),
        (every(7), set()),
        (seconds(3), {2, 5}),  # the evaluation before the first epoch took a second, too
        (seconds(0.5), {1, 2, 3, 4, 5, 6}),
        (seconds(1000), set()),
        (last(2) | every(3), {3, 5, 6}),
        (last(3) & every(2), {4, 6}),
        (last(3) & every(2) | every(5), {4, 5, 6}),
    ],
)
def test_what_is_kept(policy, expected):
    assert policy.kept(FALLING) == expected


def test_the_best_is_the_first_of_equals_and_never_nan():
    assert best(2).kept(past([3.0, 1.0, 1.0, 2.0, math.nan, 1.0])) == {1, 2}
    assert best(9).kept(past([math.nan, 1.0, math.inf, math.nan])) == {1, 2}
    assert best(1).kept(past([math.nan] * 3)) == set()


def test_the_best_is_ranked_by_the_metric_that_is_watched_or_named_in_its_own_direction():
    losses, accuracies = [3.0, 1.0, 2.0, 4.0], [0.1, 0.2, 0.9, 0.8]
    assert best(1).kept(past(losses, accuracies)) == {1}
    assert best(1).kept(past(losses, accuracies, watch="accuracy")) == {2}
    assert best(2, "accuracy").kept(past(losses, accuracies)) == {2, 3}
    assert best(1, "loss").kept(past(losses, accuracies, watch="accuracy")) == {1}
    assert (best(1) | best(2, "f1") & last(1)).ranks("loss") == {"loss", "f1"}
    assert (last(1) & every(2) | seconds(3)).ranks("loss") == set()


def test_the_best_agrees_with_what_train_returns():
    from purestate.run._select import Selection, choose

    losses = [3.0, math.nan, 1.0, 2.0, 1.0]
    choice = choose(past(losses).metrics, Selection(4), higher_is_better=False)
    assert best(1).kept(past(losses)) == {choice.best}


def test_without_validation_there_is_no_best_and_the_input_is_no_epoch():
    history = without_validation(4)
    assert best(2).kept(history) == set()
    assert last(9).kept(history) == {1, 2, 3, 4}
    assert every(2).kept(history) == {2, 4}
    for policy in (last(1), best(1), every(1), seconds(1)):
        assert policy.kept(Past([{}], [0.0])) == policy.kept(Past([], [])) == set()


# -------------------------------------------------------------------- the algebra

COUNTS = st.integers(1, 6)
BASIC = st.one_of(
    COUNTS.map(last),
    COUNTS.map(best),
    COUNTS.map(lambda n: best(n, "accuracy")),
    COUNTS.map(every),
    st.floats(0.1, 20.0).map(seconds),
)
POLICIES = st.recursive(
    BASIC,
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda parts: st.sampled_from([any_of(*parts), all_of(*parts)])
    ),
    max_leaves=6,
)
VALUES = st.one_of(st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf]), st.floats(-3, 3))
EPOCHS = st.lists(st.tuples(VALUES, VALUES, st.floats(0.0, 5.0)), max_size=14)


def of(epochs: Sequence[tuple[float, float, float]]) -> Past:
    metrics = [{"val_loss": loss, "val_accuracy": accuracy} for loss, accuracy, _ in epochs]
    return Past(metrics, [took for *_, took in epochs], "loss", {"accuracy"})


@given(POLICIES, EPOCHS)
def test_what_is_dropped_never_comes_back(policy, epochs):
    """So that what a train keeps while it goes on is what the policy says of the whole history."""
    kept: set[int] = set()
    for n in range(len(epochs)):
        now = policy.kept(of(epochs[: n + 1]))
        assert now <= kept | {n}
        kept = set(now)
    assert kept == policy.kept(of(epochs))
    assert kept <= set(range(len(epochs)))


@given(POLICIES, POLICIES, EPOCHS)
def test_any_keeps_what_one_keeps_and_all_what_both_keep(a, b, epochs):
    history = of(epochs)
    assert (a | b).kept(history) == any_of(a, b).kept(history) == a.kept(history) | b.kept(history)
    assert (a & b).kept(history) == all_of(a, b).kept(history) == a.kept(history) & b.kept(history)
    assert (a & b).kept(history) <= a.kept(history) <= (a | b).kept(history)


@given(POLICIES, POLICIES, POLICIES, EPOCHS)
def test_the_laws_of_joining(a, b, c, epochs):
    history = of(epochs)

    def same(one: Policy, other: Policy) -> None:
        assert one.kept(history) == other.kept(history)

    same(a | b, b | a)
    same(a & b, b & a)
    same(a | a, a)
    same(a & a, a)
    same(a | (a & b), a)
    same(a & (a | b), a)
    same(a & (b | c), (a & b) | (a & c))
    assert ((a | b) | c) == (a | (b | c)) == any_of(a, b, c)
    assert ((a & b) & c) == (a & (b & c)) == all_of(a, b, c)


@given(COUNTS, COUNTS, EPOCHS)
def test_more_keeps_more(m, n, epochs):
    history, (fewer, more) = of(epochs), sorted((m, n))
    for kind in (last, best):
        assert kind(fewer).kept(history) <= kind(more).kept(history)
    assert every(fewer * more).kept(history) <= every(more).kept(history)
    assert seconds(fewer * more).kept(history) <= seconds(fewer).kept(history)


@given(st.lists(st.floats(0.0, 5.0), max_size=20), st.floats(0.5, 10.0))
def test_between_two_multiples_of_the_time_at_most_one_epoch_is_kept(took, t):
    history = Past([{}] * len(took), took)
    ends = np.cumsum(took)
    multiples = [ends[n] // t for n in sorted(seconds(t).kept(history))]
    assert len(set(multiples)) == len(multiples)
    assert len(multiples) <= (ends[-1] // t if len(took) else 0)


@given(POLICIES)
def test_a_policy_reads_as_it_is_written(policy):
    names = {"last": last, "best": best, "every": every, "seconds": seconds}
    again = eval(repr(policy), names)
    assert repr(again) == repr(policy)
    assert again == policy or "seconds" in repr(policy), "of a time the first digits are shown"
    assert hash(policy) == hash(policy)


def test_how_it_reads():
    assert repr(ps.keep.last(3) | ps.keep.best(2, "accuracy")) == "last(3) | best(2, 'accuracy')"
    assert repr((last(3) | every(2)) & best(1)) == "(last(3) | every(2)) & best(1)"
    assert repr(last(3) | every(2) & best(1)) == "last(3) | every(2) & best(1)"
    assert repr(seconds(600)) == "seconds(600)"
    assert any_of(last(2)) == all_of(last(2)) == last(2) != every(2)
    assert (last(1) | best(1)) != (last(1) & best(1))


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3", None])
def test_a_number_of_epochs_that_is_none(n):
    for make in (last, best, every):
        with pytest.raises(SetupError, match=rf"keep\.{make.__name__}: expected a whole number of at least 1, got"):
            make(n)
    assert last(np.int64(3)) == last(3)


@pytest.mark.parametrize("t", [0, -1.0, math.nan, math.inf, True, "3", None])
def test_a_time_that_is_none(t):
    with pytest.raises(SetupError, match=r"keep\.seconds: expected a time above 0, got"):
        seconds(t)


def test_what_is_no_policy():
    for make in (any_of, all_of):
        with pytest.raises(SetupError, match="at least one policy"):
            make()
        with pytest.raises(SetupError, match=r"expected policies such as keep\.last\(3\), got 3"):
            make(last(3), 3)
    with pytest.raises(SetupError, match="metric must be a name"):
        best(1, ps.metric_accuracy)
    with pytest.raises(TypeError):
        last(3) | 3
    with pytest.raises(TypeError):
        last(3) & "best"


def test_python_s_own_or_and_and_are_refused():
    """`last(3) or best(2)` would be `last(3)`, and nobody would notice."""
    for use in (lambda: last(3) or best(2), lambda: last(3) and best(2), lambda: not last(3)):
        with pytest.raises(SetupError, match=r"last\(3\) is neither true nor false(.|\n)*Write a \| b"):
            use()


def test_the_names_that_completion_shows():
    assert sorted(dir(ps.keep)) == sorted(["Policy", "all_of", "any_of", "best", "every", "last", "seconds"])
