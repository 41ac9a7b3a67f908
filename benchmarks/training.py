"""Whole training: digits, MLP, Adam, StepLR, validation and accuracy each epoch, the best kept."""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import purestate as ps
from benchmarks._measure import Row, child, compare, figure, timed
from benchmarks._models import MLP, adam_state, by_hand, digits, on_device_sums

__all__ = ["rows"]

GROUP = "training"


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    epochs, rounds = (20, 3) if quick else (100, 7)
    train_dl, val_dl = digits()
    train, val = train_dl.dataset.tensors, val_dl.dataset.tensors  # type: ignore[attr-defined]
    seeds = itertools.count()
    with tempfile.TemporaryDirectory() as folder, ps.Store(folder) as disk:
        null = ps.NullStore()

        def ours(store: Any) -> None:
            n = next(seeds)
            checkpoint = store.checkpoint(f"run-{n}", echo=None)
            state = adam_state(MLP, n, decay=True)
            metrics = [ps.metric_accuracy]
            checkpoint.train(state, train_dl, val_dl, epochs=epochs, watch="accuracy", load_best=True, metrics=metrics)

        cases = {
            "purestate": timed(lambda: ours(disk)),
            "purestate, NullStore": timed(lambda: ours(null)),
            "by hand, DataLoader": timed(lambda: by_hand(train_dl, val_dl, epochs, next(seeds))),
            "by hand, index_select, sums on device": timed(lambda: on_device_sums(train, val, epochs, next(seeds))),
        }
        for case in cases.values():  # imports, the writer process, allocators
            case()
        found = compare(GROUP, f"train {epochs} epochs into a Store", cases, rounds, unit="s")
    return [*found, *_first_calls(2 if quick else 5)]


def _first_calls(rounds: int) -> list[Row]:
    """What a fresh process pays once: the first two trains of two epochs each, after ``import torch, purestate``."""
    answers: dict[str, list[dict[str, Any]]] = {"ours": [], "hand": []}
    for _ in range(rounds):
        for who, found in answers.items():
            found.append(child("_first_call", who))
    return [
        figure(
            GROUP,
            f"{which} train of 2 epochs in a process",
            [answer[which] for answer in answers["ours"]],
            [answer[which] for answer in answers["hand"]],
            against="by hand, DataLoader",
            unit="s",
        )
        for which in ("first", "second")
    ]
