"""Mistakes: each is a typed error that names the place and the way out, and nothing that was recorded is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import purestate as ps
from purestate import errors
from tests.helpers import Mlp, batch, build
from tests.run.tiny import Ask, checkpoint, loader, start

X, Y = batch(8)


class Boom(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        if i == 5:
            raise KeyError("no such sample")
        return X[i], Y[i]

    def __purestate_fingerprint__(self) -> str:
        return "boom"


class Shrinks(IterableDataset):
    """Says that it has 8 samples and gives fewer."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        yield from zip(X[:3], Y[:3], strict=True)

    def __purestate_fingerprint__(self) -> str:
        return "shrinks"


class Custom:
    """Batches by a protocol of its own."""

    def __iter__(self) -> Any:
        yield X, Y


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, y_pred: torch.Tensor, y_true: torch.Tensor) -> torch.Tensor:
        return self.weight * nn.functional.cross_entropy(y_pred, y_true)


def bad_metric(y_pred, y_true):
    return "good"


def failing_metric(y_pred, y_true):
    return y_pred.nope


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.LazyLinear(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def trains(**changes: Any) -> Callable[[ps.Checkpoint], Any]:
    return lambda ck: Ask(**changes).of(ck)


def with_options(**options: Any) -> Callable[[ps.Checkpoint], Any]:
    return lambda ck: Ask().of(ck, **options)


def reads(op: str, *arguments: Any, **options: Any) -> Callable[[ps.Checkpoint], Any]:
    return lambda ck: getattr(ck, op)(*arguments, **options)


FOREIGN = (KeyError, RuntimeError)  # what the user's own code raises arrives as it is
MISTAKES: dict[str, tuple[Callable[[ps.Checkpoint], Any], type[Exception], str]] = {
    "an argument that the optimizer does not take": (
        lambda ck: start(optimizer_args=dict(learning_rate=0.1)),
        errors.SetupError,
        "learning_rate",
    ),
    "a value that the optimizer refuses": (trains(recipe=dict(optimizer_args=dict(lr=-1.0))), errors.SetupError, "lr"),
    "an argument that the scheduler does not take": (
        lambda ck: start(epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR, epoch_scheduler_args=dict(step=1)),
        errors.SetupError,
        "step",
    ),
    "an argument that the scheduler needs": (
        lambda ck: start(epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR),
        errors.SetupError,
        "step_size",
    ),
    "an optimizer that is no class": (lambda ck: start(optimizer_cls="adam"), errors.SetupError, "optimizer"),
    "a loss that is no class": (lambda ck: start(loss_cls="mse"), errors.SetupError, "loss"),
    "no loss": (lambda ck: ck.train(ps.init(Mlp), loader(), epochs=1), errors.SetupError, "train: the state has no loss"),
    "no optimizer": (
        lambda ck: ck.train(ps.setup(ps.init(Mlp), loss_cls=nn.CrossEntropyLoss), loader(), epochs=1),
        errors.SetupError,
        "train: the state has no optimizer",
    ),
    "a module in place of a state": (
        lambda ck: ck.train(build(Mlp), loader(), epochs=1),
        errors.SetupError,
        "expected a State first, got Mlp",
    ),
    "a module for evaluate": (lambda ck: ck.evaluate(build(Mlp), loader()), errors.SetupError, "expected a State first, got Mlp"),
    "a module for set_lr": (lambda ck: ps.set_lr(build(Mlp), 0.1), errors.SetupError, "expected a State first, got Mlp"),
    "a class for init": (lambda ck: ps.init("Mlp"), errors.UnsupportedError, "init: expected a torch.nn.Module"),
    "an unknown metric to watch": (
        with_options(watch="f1"),
        errors.MetricError,
        "watch='f1' is not computed; there is 'accuracy', 'loss'",
    ),
    "load_best without validation": (
        lambda ck: Ask(val_dl=None).of(ck, load_best=True),
        errors.SetupError,
        "load_best needs validation",
    ),
    "patience without validation": (
        lambda ck: Ask(val_dl=None).of(ck, patience=3),
        errors.SetupError,
        "patience needs validation",
    ),
    "epochs that are no integer": (
        with_options(epochs=2.0),
        errors.SetupError,
        "epochs must be an integer of at least 0, got 2.0",
    ),
    "negative epochs": (with_options(epochs=-1), errors.SetupError, "epochs must be an integer of at least 0, got -1"),
    "negative patience": (with_options(patience=-1), errors.SetupError, "patience must be an integer of at least 0, got -1"),
    "a warm-up that is a fraction": (
        with_options(warmup=0.5),
        errors.SetupError,
        "warmup must be an integer of at least 0, got 0.5",
    ),
    "a metric in place of a list": (with_options(metrics=ps.metric_accuracy), errors.MetricError, "metrics"),
    "a metric by name": (with_options(metrics=["accuracy"]), errors.MetricError, "accuracy"),
    "two metrics of one name": (with_options(metrics=[ps.metric_accuracy, ps.metric_accuracy]), errors.MetricError, "accuracy"),
    "a metric that returns text": (with_options(metrics=[bad_metric]), errors.MetricError, "bad_metric"),
    "a plateau scheduler without validation": (
        trains(recipe=dict(epoch_scheduler_cls=torch.optim.lr_scheduler.ReduceLROnPlateau), val_dl=None),
        errors.SetupError,
        "ReduceLROnPlateau",
    ),
    "an empty list": (trains(train_dl=[]), errors.EmptyLoaderError, "at least one batch"),
    "an empty loader": (trains(train_dl=DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=4)), errors.EmptyLoaderError, "batch"),
    "a loader that drops its only batch": (
        trains(train_dl=loader(3, batch_size=4, drop_last=True)),
        errors.EmptyLoaderError,
        "batch",
    ),
    "an empty validation loader": (trains(val_dl=[]), errors.EmptyLoaderError, "at least one batch"),
    "an empty loader to evaluate": (lambda ck: ck.evaluate(start(), []), errors.EmptyLoaderError, "at least one batch"),
    "a loader that gives fewer batches than its length": (
        trains(train_dl=DataLoader(Shrinks(), batch_size=2)),
        errors.BatchError,
        "batches",
    ),
    "a generator": (trains(train_dl=((X, Y) for _ in range(2))), errors.PureStateError, "generator"),
    "an iterator": (trains(train_dl=iter([(X, Y)])), errors.PureStateError, "iterator"),
    "an iterable of one's own": (trains(train_dl=Custom()), errors.UnsupportedError, "'Custom'"),
    "a tensor": (trains(train_dl=X), errors.PureStateError, "Tensor"),
    "a dataset": (trains(train_dl=TensorDataset(X, Y)), errors.PureStateError, "TensorDataset"),
    "a path": (trains(train_dl="data"), errors.PureStateError, "str"),
    "no training data": (trains(train_dl=None), errors.PureStateError, "None"),
    "batches without a target": (trains(train_dl=[X, X]), errors.LossError, "target"),
    "inputs of another width": (trains(train_dl=[(torch.ones(4, 5), Y[:4])]), RuntimeError, "4x5 and 3x8"),
    "output that does not fit the loss": (
        trains(recipe=dict(loss_cls=nn.BCEWithLogitsLoss)),
        errors.LossError,
        "BCEWithLogitsLoss cannot take the module's output",
    ),
    "a class too many": (trains(train_dl=[(X, Y + 7)]), errors.LossError, "2 classes"),
    "a loss with a value for each sample": (
        trains(recipe=dict(loss_args=dict(reduction="none"), loss_cls=nn.CrossEntropyLoss)),
        errors.LossError,
        "expected a scalar",
    ),
    "a loss with trainable parameters": (
        lambda ck: start(loss_cls=Learned),
        errors.UnsupportedError,
        "trainable parameters ['weight']",
    ),
    "an uninitialised lazy module": (lambda ck: start(Lazy), errors.UnsupportedError, "submodule 'fc' (LazyLinear)"),
    "a sample that cannot be loaded": (trains(train_dl=DataLoader(Boom(), batch_size=4)), KeyError, "no such sample"),
    "an id with a slash": (lambda ck: ps.MemoryStore().checkpoint("a/b"), errors.InvalidIdError, "'a/b'"),
    "an id with two dots": (lambda ck: ps.MemoryStore().checkpoint(".."), errors.InvalidIdError, "'..'"),
    "an empty id": (lambda ck: ps.MemoryStore().checkpoint(""), errors.InvalidIdError, "''"),
    "an id that is a number": (lambda ck: ps.MemoryStore().checkpoint(1), errors.InvalidIdError, "1"),
    "a learning rate range upside down": (
        lambda ck: ck.find_lr(start(), loader(), min_rate=1.0, max_rate=0.1),
        errors.SetupError,
        "min_rate",
    ),
    "no steps to find a rate in": (lambda ck: ck.find_lr(start(), loader(), epochs=0), errors.SetupError, "epochs"),
    "a rate before there is an optimizer": (lambda ck: ps.set_lr(start(), 0.1), errors.SetupError, "set_lr"),
    "freezing what is not there": (lambda ck: ps.freeze(start(), "decoder.*"), errors.StateError, "'decoder.*'"),
    "freezing everything": (lambda ck: ps.freeze(start(), "*"), errors.StateError, "no trainable parameter"),
    "replacing by another shape": (
        lambda ck: start().replace(params={n: t[:1] for n, t in start().params.items()}),
        errors.TreeMismatchError,
        "params['net.0.weight']",
    ),
    "assigning to a state": (lambda ck: setattr(start(), "params", {}), errors.FrozenStateError, "state.params"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_named_and_costs_nothing(what):
    mistake, kind, words = MISTAKES[what]
    store = ps.MemoryStore()
    ck = checkpoint(store)
    before = Ask().of(ck)
    with pytest.raises(kind, match=re.escape(words)) as caught:
        mistake(checkpoint(store, "other"))
    if kind not in FOREIGN:
        assert type(caught.value).__module__ == "purestate.errors"
    assert Ask().of(ck) == before
    assert ck.last is not None
    assert ck.last.cached
    after = checkpoint(store, "other")
    assert Ask().of(after) == before, "a mistake must not be in the way of what follows"


def test_a_question_that_failed_and_was_mended_is_not_stale(memory):
    """Nothing was answered, so there is nothing that the mended question would contradict."""
    ck = checkpoint(memory)
    with pytest.raises(errors.LossError):
        Ask(recipe=dict(loss_cls=nn.BCEWithLogitsLoss)).of(ck)
    Ask().of(ck)
