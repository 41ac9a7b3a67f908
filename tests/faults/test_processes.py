"""Four processes on one checkpoint, of which some are killed or stopped: no record is lost or doubled, and nobody waits long."""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.server import PATIENCE, Child, Server, alive, until
from tests.faults.verify import acknowledged, whole

PROCESSES = 4
TAKE_OVER = 0.2
"""Seconds in which somebody else has the lock of a process that was killed."""


def said(child: Child) -> list[dict[str, Any]]:
    return [line["said"] for line in child.lines() if "said" in line]


def stop(child: Child, generator: random.Random) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(generator.uniform(0.005, 0.05))
    os.kill(child.pid, signal.SIGCONT)


def kill(child: Child, others: list[Child]) -> float:
    """Kill a process and return how long it took until one of the others acknowledged something."""
    began = time.monotonic()
    os.kill(child.pid, signal.SIGKILL)

    def later() -> list[float]:
        return [what["at"] for other in others for what in said(other)[-20:] if what["at"] > began]

    until(lambda: bool(later()), "nobody took over", PATIENCE)
    return min(later()) - began


def one_round(server: Server, root: Path, seed: int, before: list[dict[str, Any]], *, items: bool) -> list[float]:
    """Let four processes append while they are stopped and killed; look at the log; return the times of take-over."""
    generator = random.Random(seed)
    options: dict[str, Any] = dict(seconds=2 * PATIENCE, items=items)
    children = [server.start("contend", root, who=seed * PROCESSES + i, **options) for i in range(PROCESSES)]
    until(lambda: sum(bool(said(child)) for child in children) >= 2, "nobody appends", PATIENCE)
    waits: list[float] = []
    left = list(children)
    for _ in range(generator.randrange(2, 5)):
        time.sleep(generator.uniform(0.0, 0.04))
        if generator.random() < 0.5 or len(left) == 2:
            stop(generator.choice(left), generator)
        else:
            victim = left.pop(generator.randrange(len(left)))
            waits.append(kill(victim, left))
    for child in left:
        os.kill(child.pid, signal.SIGKILL)
    for child in children:
        before += child.wait().said
    log = whole(root / "store")
    acknowledged(log, before)
    counted = collections.Counter((record.body["who"], record.body["n"]) for record in log.log("shared").records)
    assert {"who", "n"} <= before[0].keys()
    assert max(counted.values()) == 1, f"seed {seed}: doubled: {counted.most_common(3)}"
    lost = {(what["who"], what["n"]) for what in before} - counted.keys()
    assert not lost, f"seed {seed}: lost: {sorted(lost)[:5]}"
    return waits


def rounds(server: Server, folder: Path, number: int, seed: int) -> float:
    """Return the median time of a take-over."""
    waits: list[float] = []
    before: list[dict[str, Any]] = []
    records = 0
    for i in range(1, number + 1):
        if i % 10 == 1:  # a log of a new store: a long one is slow to read for reasons that are not asked about here
            records += len(before)
            shutil.rmtree(folder / "shared", ignore_errors=True)
            (folder / "shared").mkdir()
            before = []
        waits += one_round(server, folder / "shared", seed + i, before, items=i % 10 == 0)
    waits.sort()
    print(
        f"{number} rounds, {records + len(before)} records acknowledged, {len(waits)} take-overs: "
        f"median {statistics.median(waits):.3f} s, 95 % {waits[int(len(waits) * 0.95)]:.3f} s, longest {waits[-1]:.3f} s"
    )
    return statistics.median(waits)


def test_some_rounds(server, tmp_path):
    rounds(server, tmp_path, 5, seed=100)


@pytest.mark.slow
def test_five_hundred_rounds(server, tmp_path):
    assert rounds(server, tmp_path, 500, seed=1000) < TAKE_OVER  # on a machine that does nothing else


def same_script(prepared, seed: int) -> None:
    """Let four processes run the same script; some are killed or stopped, the others end where one alone does."""
    generator = random.Random(seed)
    case = prepared("train")
    root = case.fresh()
    children = [case.start(root) for _ in range(PROCESSES)]
    for child in children[: generator.randrange(1, 3)]:
        time.sleep(generator.uniform(0.0, 0.4))
        if alive(child.pid):
            os.kill(child.pid, signal.SIGKILL)
    if alive(children[-1].pid):
        stop(children[-1], generator)
    outcomes = [child.wait() for child in children]
    for outcome in outcomes:
        assert outcome.errors == [], f"seed {seed}"
        assert case.values(outcome.said) == case.expected[: len(outcome.said)], f"seed {seed}"
        assert outcome.status == -signal.SIGKILL or len(outcome.said) == len(case.expected), outcome.output
    case.check(root, *(outcome.said for outcome in outcomes))
    kinds = collections.Counter(record.kind for record in whole(root / "store").log("a").records)
    assert (kinds["train"], kinds["epoch"], kinds["done"]) == (2, 6, 2), f"seed {seed}: {kinds}"
    case.finish(root, *(outcome.said for outcome in outcomes))


def test_the_same_script_four_times_at_once(prepared):
    for seed in range(2):
        same_script(prepared, seed)


@pytest.mark.slow
def test_the_same_script_four_times_at_once_many_times(prepared):
    for seed in range(10, 40):
        same_script(prepared, seed)


def test_items_are_collected_while_others_train(server, tmp_path):
    """What a deleted checkpoint and one that is trained share, as all that is written, is there when its record is."""
    (tmp_path / "root").mkdir()
    collector = server.start("collect", tmp_path / "root", seconds=2.0)
    said: list[dict[str, Any]] = []
    trained = 0
    while alive(collector.pid) and not any("end" in line for line in collector.lines()):
        children = [server.start("train", tmp_path / "root", id=f"a{trained}{i}", seed=1, trains=1) for i in range(2)]
        for outcome in (child.wait() for child in children):
            assert (outcome.status, outcome.errors) == (0, []), outcome.errors
            said += outcome.said
        trained += 1
    collected = collector.wait()
    assert (collected.status, collected.errors) == (0, []), collected.errors
    acknowledged(whole(tmp_path / "root" / "store"), said)
    print(f"{collected.said[0]['value']} collections, {2 * trained} trains meanwhile")
    assert collected.said[0]["value"] > 0
