"""A step of the user's own in the place of ours: ``fn(state, batch) -> (state, metrics)``, any pure function of that kind.

`Own` is what a `train` works on then, as `purestate.core._work.Working` is with our step. What the function may do is its own
affair: the gradient, the optimizer, schedulers, clipping. What is looked at is that it is pure, and that what it returns goes
on from what it was given. The key, the counters and the recipe are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from purestate.core._batch import Batch, batch_size, owned
from purestate.core._component import Component
from purestate.core._guard import FIRST, GuardMode, exact
from purestate.core._hash import leaf_hash
from purestate.core._key import Key, Tag
from purestate.core._metrics import Metric, Sums, exact_dtype
from purestate.core._optim import stored_learning_rates
from purestate.core._seeds import seed_all
from purestate.core._state import COMPONENTS, SUBTREES, Counters, Origin, State, require
from purestate.core._tree import Leaves, check_same_names
from purestate.errors import ImpurityError, MetricError, MutatedStateError, SetupError, TreeMismatchError

__all__ = ["Means", "Own", "OwnStep", "check_own", "step_key"]

OwnStep = Callable[[State, Any], tuple[State, Mapping[str, Any]]]
"""What ``train(step=)`` takes."""


def step_key(state: State) -> Key:
    """Return the key of a state's next step, from which all that the step draws derives: another one for each step."""
    return state.key.derive(Tag.STEP, state.counters.step)


def check_own(step: Any, state: State, *, validated: bool, metrics: Iterable[Metric], warmup: int) -> None:
    """Raise `SetupError` where a step of the user's own, and what the op is told besides, do not go together."""
    if not callable(step) or isinstance(step, type):
        raise SetupError(
            f"train: expected step to be a function (state, batch) -> (state, metrics), got {step!r}.",
            fix="ps.make_step(state) is one.",
            argument="step",
        )
    recipe = require(state, "template", "train")
    if warmup:
        raise SetupError(
            f"train: warmup={warmup} was given together with step.",
            cause="Learning rates are the business of a step of your own.",
            fix="Leave it out, and let the rate rise in the step.",
            argument="warmup",
        )
    if recipe.epoch_scheduler is not None:
        raise SetupError(
            "train: the state has an epoch_scheduler, which nobody would step: step was given.",
            cause="Schedulers are the business of a step of your own, and it does not hear of epochs.",
            fix="Clear it: ps.setup(state, clear_epoch_scheduler=True).",
            argument="step",
        )
    if validated:
        require(state, "loss", "train")
    elif any(True for _ in metrics):
        raise SetupError(
            "train: metrics were given together with step, and there is no val_dl.",
            cause="In training the step measures what it likes; metrics are computed in validation.",
            fix="Return them from the step, or give a val_dl.",
            argument="metrics",
        )


class Own:
    """The state of a `train` in progress with a step of the user's own.

    Args:
        state: Where to start from. Its tensors are not copied: a step changes none.
        step: The function.
        key: The key of the op.
        guard: At which steps it is looked whether the step gives the same bits twice.
    """

    def __init__(self, state: State, step: OwnStep, key: Key, guard: GuardMode) -> None:
        self.epoch, self.step = state.counters.epoch, state.counters.step
        self._state, self._recipe, self._fn, self._key, self._guard = state, state.recipe, step, key, guard
        self._calls = 0
        self._rates = _rates(state)
        self._origin = Origin(state.origin.base or state.hash)  # or who returns `state.replace(...)` would hash each state

    def take(self, batch: Batch) -> tuple[Mapping[str, Any], int]:
        """Take a step. Returns its metrics, and how many samples the batch has.

        Raises:
            ImpurityError: The step changed the state that it was given, or gives other bits the second time.
            TreeMismatchError: What it returned does not go on from there.
            SetupError: It returned something else than a state and metrics.
        """
        self._calls += 1
        given = self.lend(key=self._key)._with(origin=self._origin)
        size = batch_size(batch)
        looked_at = self._guard == "always" or (self._guard == "first" and self._calls <= FIRST)
        before = owned(batch) if looked_at else batch
        if looked_at:
            _ = given.hash  # what is written past torch's counters is found by that
        new, metrics = self._called(given, batch)
        try:
            given.verify() if looked_at else given.check()
        except MutatedStateError as error:
            raise ImpurityError(
                f"train: the step changed {error.path} of the state that it was given.",
                cause="A step is a function: it leaves its arguments as they are, and returns a new state.",
                fix="Work on copies: tensor.clone(), and state.replace(params={...}).",
                path=error.path,
            ) from None
        _must_go_on(given, new)
        if looked_at and exact(given.params, given.frozen, given.buffers):
            self._compare((new, metrics), self._called(given, before))
        self._rates = _rates(given) or _rates(new)
        self._state = new
        self.step += 1
        return metrics, size

    def _called(self, given: State, batch: Batch) -> tuple[State, Mapping[str, Any]]:
        seed_all(step_key(given).seed)
        returned: Any = self._fn(given, batch)
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], State)):
            raise SetupError(
                f"train: expected the step to return (state, metrics), got {_kind(returned)}.",
                fix="return state.replace(params={...}), {'loss': loss}",
                argument="step",
            )
        if not isinstance(returned[1], Mapping):
            raise SetupError(
                f"train: expected the step to return its metrics as a dict, got {_kind(returned[1])}.", argument="step"
            )
        return returned

    def _compare(self, first: tuple[State, Mapping[str, Any]], again: tuple[State, Mapping[str, Any]]) -> None:
        one, two = (_bits(state, metrics) for state, metrics in (first, again))
        if (leaf := next((leaf for leaf in [*one, *two] if one.get(leaf) != two.get(leaf)), None)) is not None:
            raise ImpurityError(
                f"train: the step gave other bits in {leaf} when it ran again on the same state and batch.",
                cause="It depends on something else: what it keeps from call to call, the time, a generator of its own.",
                fix="Keep it in the state (a buffer, extra), and draw from torch's own generator, which is seeded for each step.",
                path=leaf,
            )

    @property
    def params(self) -> dict[str, torch.Tensor]:
        """The parameters as they are now."""
        return dict(self._state.params)

    @property
    def frozen(self) -> dict[str, torch.Tensor]:
        """The other parameters."""
        return dict(self._state.frozen)

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """The buffers as they are now."""
        return dict(self._state.buffers)

    def rates(self) -> list[float]:
        """The learning rate of each group of the optimizer during the last step, as far as the state tells."""
        return self._rates

    def restore_rates(self) -> None:
        """Do nothing: no rate was replaced."""

    def lend(self, *, key: Key) -> State:
        """Return the state as it is now. Nobody changes it later."""
        return self._state.based(key=key, counters=Counters(self.epoch, self.step), recipe=self._recipe)


class Means(Sums):
    """What the metrics of a step of the user's own add up to: each is a mean over the samples of its batch.

    Args:
        names: Of the metrics; None before the first batch.

    Example:
        >>> means = Means()
        >>> means.take({"loss": 2.0}, 2)
        >>> means.take({"loss": torch.tensor(5.0)}, 1)
        >>> means.means()
        {'loss': 3.0}
    """

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self._names = None if names is None else tuple(names)
        super().__init__(_named(self._names or ()))

    def take(self, metrics: Mapping[str, Any], size: int) -> None:
        """Add a batch.

        Args:
            metrics: Numbers and 0-d tensors, under the same names for each batch.
            size: How many samples the batch has.

        Raises:
            MetricError: One is something else, or the names are others than before.
        """
        if self._names is None:
            self._names, self.metrics = tuple(metrics), _named(metrics)
        elif tuple(metrics) != self._names and set(metrics) != set(self._names):
            raise MetricError(
                f"train: the step returned the metrics {', '.join(map(repr, metrics)) or 'none'}, "
                f"and {', '.join(map(repr, self._names)) or 'none'} before.",
                fix="Return the same ones for each batch; float('nan') where there is no value.",
            )
        sums = [(_number(name, metrics[name]) * size, None) for name in self._names]
        device = next((amount.device for amount, _ in sums if isinstance(amount, torch.Tensor)), None)
        self.add(torch.zeros((), device=device), sums, size)  # in the place of the loss, which is a metric like others here

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over samples."""
        return {name: value for name, value in super().means().items() if name in (self._names or ())}

    def copy(self) -> Means:
        """Return means to which nothing is added any more."""
        means = Means(self._names)
        means.samples, means._rows, means._total = self.samples, list(self._rows), self._total
        return means

    def plain(self) -> dict[str, Any]:
        """Return all of it as plain values. See `from_plain`."""
        return {**super().plain(), "names": None if self._names is None else list(self._names)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], metrics: Iterable[Metric], device: torch.device) -> Means:
        """Return the means that `plain` was called on."""
        means = cls(plain["names"])
        sums = Sums.from_plain(plain, means.metrics, device)
        means.samples, means._rows, means._total = sums.samples, sums._rows, sums._total
        return means


class _Measured(Metric):
    """The name of a metric that a step measures by itself. Unlike others it may be the loss."""

    def __post_init__(self) -> None:
        """Take any name."""


def _named(names: Iterable[str]) -> tuple[Metric, ...]:
    return tuple(_Measured(str(name), False, max) for name in names)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() == 0 and not value.dtype.is_complex:
        return value.detach().to(exact_dtype(value.device))  # so that a mean of float32 values is the one that `Sums` has
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MetricError(
            f"train: expected the step's metric {name!r} to be a number or a 0-d tensor, got {_kind(value)}.",
            fix="Return its mean over the batch.",
            metric=name,
        )
    return float(value)


def _rates(state: State) -> list[float]:
    return [] if state.optimizer is None else stored_learning_rates(state.optimizer)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(item).__name__ for item in value) or 'nothing'}"
    return f"a {type(value).__name__}"


def _bits(state: State, metrics: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{part}[{name!r}]": digest for part, leaves in state._leaves().items() for name, digest in leaves.hashes.items()}
    found |= {name: digest for name, digest in state.digests.items() if name in (*COMPONENTS, "extra")}
    return found | {f"the metric {name!r}": leaf_hash(torch.as_tensor(_number(name, value))) for name, value in metrics.items()}


def _must_go_on(before: State, after: State) -> None:
    """Raise `TreeMismatchError` unless what was there has the names, shapes and dtypes that it had.

    An optimizer and schedulers may come with the first step, and an optimizer's slots with any.
    """
    for part in (*SUBTREES, "ema"):
        _same_leaves(part, getattr(before, part), getattr(after, part))
    for part in (*COMPONENTS, "extra"):
        old: Component | None = getattr(before, part)
        new: Component | None = getattr(after, part)
        if old is None or new is old:
            continue
        had, has = (None if component is None else component.leaves for component in (old, new))
        if part != "extra" and has is not None:
            had = {path: leaf for path, leaf in had.items() if path in has} if had else had
            has = {path: leaf for path, leaf in has.items() if had and path in had}
        _same_leaves(part, had, has)


def _same_leaves(part: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
    if before is after:
        return
    if before is None or after is None:
        was, now = ("nothing" if leaves is None else f"{len(leaves)} leaves" for leaves in (before, after))
        raise TreeMismatchError(
            f"train: the state that the step returned has {now} as its {part}, and had {was} before.", path=part
        )
    if before.keys() != after.keys() or any(
        old is not (new := after[name]) and (old.shape != new.shape or old.dtype != new.dtype) for name, old in before.items()
    ):
        expected, actual = (Leaves(leaves, part).spec for leaves in (before, after))
        try:
            check_same_names(part, expected, actual, "the state that the step returned")
        except TreeMismatchError as error:
            raise TreeMismatchError(
                f"train: {error.problem}",
                cause="A step goes on from what it was given: names, shapes and dtypes stay.",
                path=error.path,
                expected=error.expected,
                actual=error.actual,
            ) from None
