"""The stateful face: what it adds to the functional API, and the second run of its synopsis."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import purestate as ps
from benchmarks._measure import Case, Row, Skipped, child, compare, figure, skipped
from benchmarks._models import MLP, adam_state, digits
from purestate import train

__all__ = ["rows"]

GROUP = "model"
THEIRS = "pytorch_scripts, its second run"
AGAIN = "synopsis of the stateful face, second run, imports aside"


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    return [*_overhead(quick), *_synopsis(1 if quick else 5)]


def _overhead(quick: bool) -> list[Row]:
    epochs, rounds = (5, 2) if quick else (100, 9)
    train_dl, val_dl = digits()
    options: dict[str, Any] = dict(epochs=epochs, watch="accuracy", load_best=True, metrics=[ps.metric_accuracy])

    def case(run: Callable[[int], Any]) -> Case:
        numbers = itertools.count()

        def timed() -> float:
            number = next(numbers)
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                run(number)
            return time.perf_counter() - began

        return timed

    with tempfile.TemporaryDirectory() as folder, ps.Store(folder) as store:
        train.set_root_folder(folder)

        def with_model(number: int) -> None:
            model = train.Model(f"model-{number}", MLP(), store=store)
            model.state = adam_state(MLP, number, decay=True)
            with model.checkpoint(1) as cp:
                cp.train(train_dl, val_dl, **options)

        def with_functions(number: int) -> None:
            root = store.checkpoint(f"root-{number}", echo=None)
            root.root(ps.init(MLP()))
            checkpoint = store.checkpoint(f"run-{number}", echo=None)
            checkpoint.train(adam_state(MLP, number, decay=True), train_dl, val_dl, **options)

        cases = {"purestate": case(with_model), "functional API": case(with_functions)}
        for warm in cases.values():
            warm()
        return compare(GROUP, f"train {epochs} epochs in a block of a Model", cases, rounds, unit="s")


def _synopsis(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        places = {who: Path(folder) / who for who in ("ours", "theirs")}
        firsts = {"ours": child("_synopsis", "ours", places["ours"])["main"]}
        if importlib.util.find_spec("pytorch_scripts") is not None:
            firsts["theirs"] = child("_synopsis", "theirs", places["theirs"])["main"]
        again: dict[str, list[float]] = {who: [] for who in firsts}
        for _ in range(rounds):
            for who, seconds in again.items():
                seconds.append(child("_synopsis", who, places[who])["main"])
    found = [figure(GROUP, AGAIN, again["ours"], [firsts["ours"]] * rounds, against="its first run", unit="s")]
    if "theirs" not in again:
        return [*found, skipped(GROUP, AGAIN, Skipped("pytorch_scripts not installed"), against=THEIRS, unit="s")]
    return [*found, figure(GROUP, AGAIN, again["ours"], again["theirs"], against=THEIRS, unit="s")]
