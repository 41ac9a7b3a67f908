"""Bytes of strangers in numbers: atheris where it is installed, hypothesis in any case."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.conftest import ROOT
from tests.store.fuzz import SEEDS, TARGETS, give

pytestmark = pytest.mark.slow


@pytest.mark.skipif(find_spec("atheris") is None, reason="there is no atheris")
def test_atheris_finds_nothing():
    command = [sys.executable, "-m", "tests.store.fuzz", "-runs=300000", "-max_len=2048", "-seed=1", "-verbosity=0"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("target", range(len(TARGETS)), ids=[target.__name__ for target in TARGETS])
def test_many_changes_of_what_is_right(target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("item")
    whole = SEEDS[target]
    pieces = st.sampled_from([*SEEDS, b"9" * 30, b"[" * 2000, b"\xff", b"\0", b"null", b'"', b"}", b"-1", b"1e999", b"NaN"])
    cuts = st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)), pieces | st.binary(max_size=8))

    @settings(max_examples=5000, derandomize=True, deadline=None)
    @given(st.lists(cuts, max_size=4))
    def changed(changes):
        data = whole
        for start, end, piece in changes:
            data = data[:start] + piece + data[max(start, end) :]
        give(bytes([target]) + data, folder)

    changed()
