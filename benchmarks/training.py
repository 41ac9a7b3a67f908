"""Whole training: digits, MLP, Adam, StepLR, validation and accuracy each epoch, the best kept."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import purestate as ps
from benchmarks._measure import Case, Peer, Row, child, compare, figure
from benchmarks._models import MLP, Trained, adam_state, by_hand, digits, on_device_sums, same_bits, seeds_of

__all__ = ["rows"]

GROUP = "training"
NULL, HAND, TUNED = "purestate, NullStore", "by hand, DataLoader", "by hand, index_select, sums on device"


def rows(quick: bool) -> list[Row]:
    """Return the rows of this group."""
    epochs, rounds = (5, 2) if quick else (100, 7)
    train_dl, val_dl = digits()
    train, val = train_dl.dataset.tensors, val_dl.dataset.tensors  # type: ignore[attr-defined]
    trained: dict[str, Trained] = {}

    def case(
        who: str, prepare: Callable[[int], Callable[[], Any]], result: Callable[[Any], Trained] = lambda found: found
    ) -> Case:
        """Each round has a seed, the same for all. The clock counts neither what prepares nor what reads the result."""
        seeds = itertools.count()

        def run() -> float:
            train = prepare(next(seeds))
            began = time.perf_counter()
            found = train()
            seconds = time.perf_counter() - began
            trained[who] = result(found)
            return seconds

        return run

    def ours(who: str, store: Any) -> Case:
        return case(
            who, lambda seed: lambda: _ours(store.checkpoint(f"run-{seed}", echo=None), seed, train_dl, val_dl, epochs), _read
        )

    def hand(seed: int) -> Callable[[], Trained]:
        state = adam_state(MLP, seed)
        seeds = seeds_of(state, epochs, len(train_dl))
        return lambda: by_hand(ps.to_module(state, MLP()), train_dl, val_dl, seeds)

    def tuned(seed: int) -> Callable[[], Trained]:
        state = adam_state(MLP, seed)
        return lambda: on_device_sums(ps.to_module(state, MLP()), train, val, epochs)

    with (
        tempfile.TemporaryDirectory() as folder,
        ps.Store(folder) as disk,
        Peer("_lightning", epochs, needs=["lightning"]) as lightning,
        Peer("_jax", "train", epochs, needs=["jax", "optax"]) as jax,
    ):
        cases = {
            "purestate": ours("purestate", disk),
            NULL: ours(NULL, ps.NullStore()),
            HAND: case(HAND, hand),
            TUNED: case(TUNED, tuned),
        }
        for warm in cases.values():  # imports, the writer process, allocators
            warm()
        notes = {who: (lambda who=who: _equality(trained["purestate"], trained[who])) for who in (NULL, HAND)}
        peers = {"Lightning": lightning.case, "JAX jit, optax": jax.case}
        found = compare(GROUP, f"train {epochs} epochs into a Store", cases | peers, rounds, unit="s", notes=notes)
    return [*found, *_first_calls(1 if quick else 5)]


def _ours(checkpoint: Any, seed: int, train_dl: Any, val_dl: Any, epochs: int) -> tuple[Any, ps.State]:
    state, metrics = adam_state(MLP, seed, decay=True), [ps.metric_accuracy]
    state = checkpoint.train(state, train_dl, val_dl, epochs=epochs, watch="accuracy", load_best=True, metrics=metrics)
    return checkpoint, state


def _read(found: tuple[Any, ps.State]) -> Trained:
    checkpoint, state = found
    return state.state_dict(), checkpoint.history.get("val_loss", [])  # a NullStore keeps none


def _equality(ours: Trained, theirs: Trained) -> str:
    """Say whether weights are equal to the bit; and the last losses, which are not added up in the same order."""
    found = "equal bits" if same_bits(ours[0], theirs[0]) else "OTHER BITS"
    if not theirs[1]:
        return found
    last, other = ours[1][-1], theirs[1][-1]
    return f"{found}, val_loss " + ("equal" if last == other else f"{abs(last - other) / other:.0e} apart")


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
