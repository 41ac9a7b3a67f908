"""An epoch that goes on behind batch k gives, bit for bit, what the whole epoch gives behind batch k: every kind of loader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest

from purestate.code import describe
from purestate.data._fingerprint import describe_data
from tests.contracts import loaders
from tests.contracts.loaders import LOADERS, go_on, whole


@cache
def uninterrupted(name: str) -> tuple[list[str], list[Any]]:
    """Return the digests of a whole epoch and the positions in it; how workers are started may not matter."""
    return whole(LOADERS[name.replace(", spawned", "")])


def expected(name: str, cut: int) -> tuple[list[str], list[Any], int]:
    """Return the batches behind a cut, the positions behind each, and how often something is said."""
    batches, positions = uninterrupted(name)
    replayed = LOADERS[name].replays is not None and any(positions[cut - 1]["before"])  # or it is the beginning anyway
    return batches[cut:], positions[cut:], int(replayed)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # where there are two processors
@pytest.mark.parametrize("name", LOADERS)
def test_an_epoch_goes_on_in_the_same_process(name: str) -> None:
    row = LOADERS[name]
    assert len(set(uninterrupted(name)[0])) == len(uninterrupted(name)[0]) > max(row.cuts), "the cuts are not in the middle"
    for cut in row.cuts:
        batches, positions, said = go_on(row, cut, uninterrupted(name)[1][cut - 1], len(uninterrupted(name)[0]))
        assert (batches, positions, len(said)) == expected(name, cut), f"cut after {cut}"
        if row.replays is not None and said:
            assert said[0].startswith(f"resuming in the middle of an epoch reads again the {cut} batches before it: ")
            assert row.replays in said[0]


def test_an_epoch_goes_on_in_a_fresh_process() -> None:
    rows = {name: row for name, row in LOADERS.items() if row.fresh}
    asked = {
        name: (len(uninterrupted(name)[0]), {cut: uninterrupted(name)[1][cut - 1] for cut in row.cuts[-1:]})
        for name, row in rows.items()
    }
    answered = subprocess.run(
        [sys.executable, "-m", loaders.__name__],
        input=json.dumps(asked),
        env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONHASHSEED": "7"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    for name, cuts in json.loads(answered.stdout).items():
        for cut, (batches, positions, said) in cuts.items():
            assert (batches, positions, len(said)) == expected(name, int(cut)), f"{name}, cut after {cut}"


@pytest.mark.parametrize("name", [name for name in LOADERS if name.startswith(("map", "StatefulDataLoader, map"))])
def test_neither_order_nor_values_of_map_style_data_depend_on_workers(name: str) -> None:
    kind = name.rpartition(",")[0].removesuffix(", persistent").removesuffix(", spawned")
    assert uninterrupted(name) == uninterrupted(f"{kind}, 0 workers")


@pytest.mark.parametrize("name", [name for name in LOADERS if name.startswith("StatefulDataLoader, st")])
def test_a_stateful_loader_asks_the_question_of_a_plain_one(name: str) -> None:
    plain = LOADERS[name.removeprefix("StatefulDataLoader, ")]
    assert describe_data(LOADERS[name].make(), describe) == describe_data(plain.make(), describe)


def test_torchdata_is_there_where_the_tests_are_run_for_everybody() -> None:
    assert "TOX_ENV_NAME" not in os.environ or find_spec("torchdata") is not None
