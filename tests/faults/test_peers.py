"""The same faults for others, for the table in the documents. Nothing is asserted of them but that the harness sees something."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import shim
from tests.faults.power import Disk, fingerprint, states, write_tree
from tests.faults.server import ROOT

pytestmark = pytest.mark.slow


def peer(*arguments: object, library: Path | None = None) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.peers", *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_orbax_and_a_power_cut(tmp_path):
    root, log, control = tmp_path / "root", tmp_path / "calls", tmp_path / "control"
    root.mkdir()
    library = shim.build(tmp_path)
    shim.Control(control, root, shim.Fault(), log)
    peer("save", root, control, library=library)
    calls = list(shim.read_log(log))
    before = tmp_path / "before"  # the first step, as it was when the second began: all durable
    before.mkdir()
    (root / "store").rename(before / "store")
    for path in sorted((before / "store").rglob("*"), reverse=True):
        if path.relative_to(before / "store").parts[0] != "0":
            path.rmdir() if path.is_dir() else path.unlink()
    acknowledged = next(i for i, call in enumerate(calls) if call.name == "mark")
    found: dict[bytes, tuple[int, str]] = {}
    tried = 0
    (tmp_path / "states").mkdir()
    calls = [call for call in calls if call.name != "mark"]
    for at, variant, tree in states(Disk(before, str(root.resolve())), calls, each=False, draws=2, seed=0):
        tried += 1
        if (key := fingerprint(tree)) not in found:
            write_tree(tree, tmp_path / "states" / f"{len(found):05d}")
            found[key] = at, variant
        elif at >= acknowledged:
            found[key] = at, variant
    outcomes = peer("look", tmp_path / "states")
    where = list(found.values())
    seen: collections.Counter[str] = collections.Counter()
    for i, (_, outcome) in enumerate(sorted(outcomes.items())):
        seen[f"{outcome}, {'acknowledged' if where[i][0] >= acknowledged else 'before'}"] += 1
    print(f"Orbax: {len(calls)} calls, {tried} states, {len(found)} differ: {dict(seen)}")
    assert seen["new, acknowledged"], "not even the undisturbed state is right"


def test_flipped_bits(tmp_path):
    counted = peer("flip", tmp_path, 1000)
    print(counted)
    for name, seen in counted.items():
        assert sum(seen.values()) == 1000, name
