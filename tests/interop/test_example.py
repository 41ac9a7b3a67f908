"""The example of torch and JAX, as people run it, in processes of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("example") / "jax_interop.py"
    path.write_text((EXAMPLES / "jax_interop.py").read_text().replace("epochs=10", "epochs=2"))
    return path


@pytest.fixture(scope="module")
def first(script) -> list[str]:
    return run(script)


def run(script: Path) -> list[str]:
    environment = os.environ | {"PYTHONPATH": os.fspath(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", os.fspath(script), "--store", "kept"]
    found = subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


def told(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Return accuracy and hash, by who told them."""
    found = [re.match(r"(torch|JAX),? ?(.*): accuracy (0\.\d{4}), (b3:[0-9a-f]{8})$", line) for line in lines]
    return {f"{match[1]} {match[2]}".strip(): (match[3], match[4]) for match in found if match}


def test_accuracies_and_hashes_are_the_same_on_both_sides(first):
    said = told(first)
    assert list(said) == [
        "torch",
        "JAX from plain Orbax",
        "JAX after 5 epochs of Optax",
        "torch of 4 leaves, 9 unused",
    ]
    torch, read, trained, back = said.values()
    assert (read[1], back[1]) == (torch[1], trained[1])
    assert torch[1] != trained[1]
    # the same parameters, and sums in another order: one of 359 samples may be on the edge between two digits
    assert abs(float(read[0]) - float(torch[0])) < 0.003
    assert abs(float(back[0]) - float(trained[0])) < 0.003
    assert float(trained[0]) > 0.3


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_ends_on_the_same_hash(script, first):
    second = run(script)
    assert first[-1] == second[-1]
    assert re.fullmatch(r"an epoch later: b3:[0-9a-f]{8}", second[-1])
    assert [line for line in second if "| ran" in line or line.startswith("JAX")] == []
