"""The harness sees what it must see: every call that changes a store, in processes as everybody starts them."""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.faults import shim
from tests.faults.server import ROOT

SAVE = """
import os, sys
from pathlib import Path
from tests.faults import scenarios, shim
root = Path(sys.argv[1])
control = shim.Control(root.with_name("control"), root, shim.Fault(), root.with_name("calls"))
os.environ["FAULTS_CONTROL"] = str(control.path)
shim.arm(control.path, "main")
scenarios.save(str(root / "store"), lambda what: None, records=1)
"""

# The shim passes calls on by these numbers; libc's own would be others.
PAST_IT = {"write", "pwrite64", "rename", "renameat", "unlink", "rmdir", "mkdir", "link", "symlink", "truncate", "creat", "open"}


def calls_of(server, folder, *, real):
    (folder / "root").mkdir(parents=True)
    log = folder / "calls"
    assert server.run("save", folder / "root", real=real, log=log, records=1).status == 0
    return {(call.role, call.name) for call in shim.read_log(log) if call.name != "mark"}


def test_a_forked_writer_does_what_one_does_that_is_started(server, tmp_path):
    """How often is left to TensorStore's threads, which write a manifest now and then once more."""
    assert calls_of(server, tmp_path / "real", real=True) == calls_of(server, tmp_path / "forked", real=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")
def test_nothing_goes_past_the_shim(tmp_path):
    root, trace = tmp_path / "root", tmp_path / "trace"
    root.mkdir()
    library = shim.build(tmp_path)
    command = ["strace", "-f", "-y", "-s", "0", "-o", trace, "-e", "trace=file,desc", "-E", f"LD_PRELOAD={library}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, sys.executable, "-c", SAVE, root], env=environment, cwd=ROOT, check=True)
    seen = collections.Counter(
        found[1]
        for line in trace.read_text(errors="replace").splitlines()
        if str(root) in line and (found := re.match(r"\d+ +([a-z0-9_]+)\(", line)) and " = -1 " not in line
    )
    noted = collections.Counter(call.name for call in shim.read_log(tmp_path / "calls") if call.worked)
    assert not PAST_IT & seen.keys()
    for name, number in {"fsync": "fsync", "fdatasync": "fdatasync", "rename": "renameat2", "mkdir": "mkdirat"}.items():
        assert noted[name] == seen[number] > 0, name
    assert noted["write"] == seen["writev"] + seen["pwritev"]
