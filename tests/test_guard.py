"""The guard of ``conftest.py`` sees what it must see: it is shown tests that leave traces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRACES = {
    "torch": "torch.rand(1)",
    "numpy": "np.random.rand()",
    "random": "random.random()",
    "environment": "os.environ['PURESTATE_TEST'] = '1'",
    "directory": "os.chdir('/')",
    "grad": "torch.set_grad_enabled(False)",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "dtype": "torch.set_default_dtype(torch.float64)",
    "warning": "import warnings; warnings.warn('old', DeprecationWarning, stacklevel=1)",
}
QUIET = {"nothing": "pass", "own_generator": "torch.rand(1, generator=torch.Generator())"}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(HERE / "conftest.py", folder)
    source = ["import os, random", "import numpy as np, pytest, torch"]
    source += [f"def test_{name}():\n    {line}" for name, line in (TRACES | QUIET).items()]
    source += ["@pytest.mark.moves_generators\ndef test_marked():\n    torch.rand(1)"]
    (folder / "test_it.py").write_text("\n\n".join(source))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        HERE.parent / "pyproject.toml",
        "--rootdir",
        folder,
        "-rA",
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run([*command, folder], capture_output=True, text=True, cwd=folder).stdout


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_is_seen(report, name):
    assert f"ERROR test_it.py::test_{name} " in report or f"FAILED test_it.py::test_{name} " in report


@pytest.mark.parametrize("name", [*QUIET, "marked"])
def test_what_leaves_none_passes(report, name):
    assert f"PASSED test_it.py::test_{name}\n" in report
    assert f"ERROR test_it.py::test_{name} " not in report
