"""``import purestate`` costs what torch costs: nothing heavy comes with it. Measured in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    "orbax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "tensorstore",
    "matplotlib",
    "torch._dynamo",
    "torch._inductor",
    "tensorboard",
    "click",
    "sklearn",
    "scipy",
]


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    return modules_after("import purestate")


@pytest.mark.parametrize("name", HEAVY)
def test_import_leaves_it_out(loaded, name):
    assert "purestate" in loaded
    assert name not in loaded


def test_the_measurement_sees_an_import():
    assert "click" in modules_after("import click")
