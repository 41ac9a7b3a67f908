"""The examples in docstrings run. One test a module, in which ``ps``, ``torch``, ``nn`` and ``np`` are known."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
# A file without an example is not imported: the writer's process, for one, brings what the tests must not have.
FILES = [path for path in sorted((ROOT / "purestate").rglob("*.py")) if ">>> " in path.read_text()]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.moves_generators  # examples build modules as users do: nn.Linear(3, 2)
@pytest.mark.parametrize("name", [module_name(path) for path in FILES])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write "ckpts/digits"
    module = importlib.import_module(name)
    names = {"ps": importlib.import_module("purestate"), "torch": torch, "nn": nn, "np": np}
    result = doctest.testmod(module, extraglobs={k: v for k, v in names.items() if not hasattr(module, k)})
    assert result.attempted
    assert "jax" not in sys.modules, "an example imports JAX, and this process warns at every fork from now on"
    assert not result.failed, f"{result.failed} of {result.attempted} examples of {name}; see the captured output"
