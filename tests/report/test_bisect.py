"""`bisect`: the step and the leaf at which two runs part are found, with no more computed than has to be; no store is touched."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import purestate as ps
from purestate.cli._group import cli
from purestate.errors import CorruptLogError, ScriptError, UsageError
from purestate.report._bisect import bisect
from purestate.report._compared import compare_logs
from purestate.report._name import RunName
from purestate.report._opened import open_run
from purestate.report._parting import Bisection
from purestate.run._bisect import _operator
from tests.fast import one_thread
from tests.report import bisected
from tests.report.bisected import PLANT
from tests.report.planted import rewrite

__all__ = ["one_thread"]

ROOT = Path(__file__).parents[2]
LOG = "checkpoints/run/log.jsonl"
SMALL: dict[str, Any] = dict(epochs=3, batches=4, own_data=True)


class Lab:
    """A folder with stores of runs, and the scripts that made them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, name: str, plant: str = "", **options: Any) -> RunName:
        """Train in a store of that name, with something planted."""
        with pytest.MonkeyPatch.context() as patched:
            if plant:
                patched.setenv(PLANT, plant)
            bisected.main(str(self.folder / name), **options)
        return RunName(self.folder / name, "run")

    def several(self, name: str, plant: str) -> Path:
        """Run `bisected.several` likewise."""
        with pytest.MonkeyPatch.context() as patched:
            if plant:
                patched.setenv(PLANT, plant)
            bisected.several(str(self.folder / name))
        return self.folder / name

    def script(self, plant: str = "", text: str = "", **options: Any) -> str:
        """Write the script that makes such a run, in a store of whatever name."""
        path = self.folder / f"script{len(list(self.folder.glob('script*')))}.py"
        lines = ["import os, sys", f"sys.path.insert(0, {os.fspath(ROOT)!r})"]
        lines += [f"os.environ[{PLANT!r}] = {plant!r}"] if plant else []
        lines += [text or f"from tests.report.bisected import main\nmain('ckpts', **{options!r})"]
        path.write_text("\n".join(lines))
        return os.fspath(path)


def lab_in(folder: Path) -> Lab:
    return Lab(folder)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, RunName]:
    """2,000 steps in 20 epochs, of which every second is kept."""
    lab = Lab(tmp_path_factory.mktemp("long"))
    return lab, lab.record("a")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, RunName]:
    """Twelve steps in three epochs, with data of its own."""
    lab = Lab(tmp_path_factory.mktemp("small"))
    return lab, lab.record("a", **SMALL)


LEAVES = {
    "params": "params['4.weight']",
    "optimizer": "optimizer['state/4.weight/exp_avg']",
    "buffers": "buffers['1.running_mean']",
}
ANYWHERE = random.Random(7)
# a mean that runs forgets an ulp within some steps, so it is planted where the epoch ends: what is gone then parts no epochs
PLACES = [
    ("params", ANYWHERE.randrange(2, 2000)),
    *(
        pytest.param(what, step, marks=pytest.mark.slow)
        for what, step in [
            ("params", 1),
            ("params", 2000),
            ("optimizer", 2000),
            ("optimizer", 1),
            ("buffers", 700),
            ("buffers", 2000),
            *(("params", ANYWHERE.randrange(2, 2000)) for _ in range(3)),
            ("optimizer", 100 * ANYWHERE.randrange(1, 20)),
        ]
    ),
]


@pytest.mark.parametrize(("what", "step"), PLACES)
def test_one_ulp_in_one_leaf_at_one_step_of_2000_is_found(long, what, step):
    lab, a = long
    plant = f"{what}:{step}"
    b = lab.record(plant, plant)
    found = bisect(a, b, lab.script(), lab.script(plant))
    parting = found.parting
    assert (found.verdict, found.ok, found.failed, found.strayed, found.questions) == ("parted", False, None, (), ())
    assert (parting.op, parting.epoch, parting.batch, parting.step) == (0, (step - 1) // 100 + 1, (step - 1) % 100 + 1, step)
    assert (parting.by, parting.same_batch, parting.part, parting.gradients) == ("recomputed", True, what, ())
    [leaf] = parting.leaves
    assert (leaf.path, leaf.changed, leaf.ulps) == (LEAVES[what], 1, 1)
    assert parting.operator.kind == "other"  # the plant is operators of its own
    assert found.of == 2000
    assert found.steps <= 300
    assert found.start == (parting.epoch - 1) // 2 * 2


@pytest.mark.parametrize(
    ("plant", "step", "part", "leaf"),
    [
        ("data:3", None, "batch", "params['0.weight']"),
        pytest.param("loss:1", 1, "loss", "params['0.weight']", marks=pytest.mark.slow),
    ],
)
def test_what_differed_first_within_the_step_is_told(small, plant, step, part, leaf):
    lab, a = small
    b = lab.record(plant, plant, **SMALL)
    before = stamps(a.store), stamps(b.store)
    found = bisect(a, b, lab.script(**SMALL), lab.script(plant, **SMALL))
    assert (stamps(a.store), stamps(b.store)) == before, "a store was written to"
    parting = found.parting
    assert (parting.part, parting.same_batch) == (part, part != "batch")
    assert step in (None, parting.step)
    assert leaf in [one.path for one in parting.leaves]
    assert parting.operator is not None
    assert found.failed is None
    assert not found.strayed


# -------------------------------------------------------------------- what is recorded


def test_two_step_traces_name_step_and_leaf_and_compute_nothing(tmp_path):
    lab = Lab(tmp_path)
    plant = "optimizer:7"
    a, b = lab.record("a", trace="step", **SMALL), lab.record("b", plant, trace="step", **SMALL)
    found = bisect(a, b)
    parting = found.parting
    assert (parting.op, parting.epoch, parting.batch, parting.step, parting.by) == (0, 2, 3, 7, "recorded")
    assert (parting.same_batch, [leaf.path for leaf in parting.leaves]) == (True, [LEAVES["optimizer"]])
    assert (found.start, found.steps, found.of) == (None, 0, 12)
    data = bisect(a, lab.record("c", "data:3", trace="step", **SMALL)).parting
    assert (data.same_batch, data.part) == (False, "batch")


def test_a_difference_that_is_gone_before_the_epoch_ends_shows_in_step_traces(tmp_path):
    lab = Lab(tmp_path)
    a, b = lab.record("a", trace="step", **SMALL), lab.record("b", trace="step", **SMALL)

    def change(bodies: list[tuple[str, dict[str, Any]]]) -> None:
        segment = next(body for kind, body in bodies if kind == "epoch" and body["n"] == 2)["trace"]["steps"][0]
        rows = bytearray(base64.b64decode(segment["rows"]))
        rows[len(rows) // 4 + 20] ^= 1  # in the second of four rows, behind the batch: the hash of the state
        segment["rows"] = base64.b64encode(rows).decode()

    rewrite(b.store / LOG, change)
    found = bisect(a, b)
    assert (found.verdict, found.parting.epoch, found.parting.batch, found.parting.step) == ("parted", 2, 2, 6)
    assert found.parting.leaves == ()


def test_two_epoch_traces_name_the_leaves(tmp_path):
    lab = Lab(tmp_path)
    a, b = lab.record("a", trace="epoch", **SMALL), lab.record("b", "optimizer:8", trace="epoch", **SMALL)
    parting = bisect(a, b).parting
    assert (parting.epoch, parting.batch, parting.same_batch) == (2, None, None)
    assert [leaf.path for leaf in parting.leaves] == [LEAVES["optimizer"]]
    first = compare_logs(open_run(a), open_run(b)).first  # `diff` names them, too
    assert [one.what for one in first.differences] == ["state", LEAVES["optimizer"]]
    untraced = bisect(a, lab.record("d", "optimizer:8", **SMALL)).parting
    assert (untraced.epoch, untraced.leaves, untraced.same_batch) == (2, (), None)


def test_equal_runs_are_equal_whatever_was_traced(small):
    lab, a = small
    found = bisect(a, lab.record("traced", trace="step", **SMALL))
    assert (found.verdict, found.ok, found.compared, found.parting) == ("equal", True, 3, None)
    assert str(found).splitlines()[-1] == "equal: 3 epochs have the same hashes"


@pytest.mark.parametrize("further", [False, True])
def test_what_was_measured_otherwise_of_equal_states_is_a_finding(tmp_path, small, further):
    a = small[1]
    b = RunName(Path(shutil.copytree(a.store, tmp_path / "b")), "run")

    def change(bodies: list[tuple[str, dict[str, Any]]]) -> None:
        epochs = [body for kind, body in bodies if kind == "epoch"]
        epochs[1]["metrics"]["train_loss"] += 0.5
        if further:
            epochs[2]["hash"] = "0" * 64

    rewrite(b.store / LOG, change)
    found = bisect(a, b)
    assert (found.verdict, found.ok, found.compared) == (("parted", False, 2) if further else ("measured", False, 3))
    assert found.measured is not None
    assert found.measured.startswith("train 0, epoch 2: train_loss ")
    assert found.measured in str(found)


def test_runs_that_were_asked_other_questions_are_told_apart_by_what_was_asked(small):
    lab, a = small
    b = lab.record("faster", lr=2e-2, **SMALL)
    found = bisect(a, b, lab.script(**SMALL))
    assert (found.verdict, found.parting, found.start) == ("asked", None, None)
    assert [(one.part, one.what, one.a, one.b) for one in found.questions] == [("arguments", "optimizer lr", 0.01, 0.02)]
    anyway = bisect(a, b, anyway=True)
    assert (anyway.verdict, anyway.parting.epoch, len(anyway.questions)) == ("parted", 1, 1)


def test_runs_that_begin_with_other_states_part_before_the_first_step(small):
    lab, a = small
    b = lab.record("seeded", seed=1, **SMALL)
    found = bisect(a, b, lab.script(**SMALL), anyway=True)
    assert (found.verdict, found.parting.epoch, found.steps) == ("parted", 0, 0)
    assert "train 0: they begin with other states: b3:" in str(found)
    assert "--script" not in str(found)


def test_a_run_that_ends_before_the_other_is_equal_that_far_and_no_more(small, tmp_path):
    lab, a = small
    shorter = lab.record("shorter", **SMALL | {"epochs": 2})
    found = bisect(a, shorter)
    assert (found.verdict, found.ok, found.compared) == ("ends", False, 2)
    assert found.ends == f"{shorter} ends before epoch 3 of train 0"


def test_a_run_that_is_being_written_is_read_as_far_as_it_is(small):
    lab, a = small
    shutil.copytree(a.store, lab.folder / "writing")
    log = lab.folder / "writing" / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]) + lines[4][:50])  # its writer is in the middle of a line
    with ps.Store(lab.folder / "writing").open("run", echo=None)._ledger.log.lock():
        found = bisect(a, RunName(lab.folder / "writing", "run"))
    assert found.verdict == "ends"


# -------------------------------------------------------------------- what is not as it was


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "plant", "place"),
    [("first", "params:14", (0, 2, 4, 14)), ("first", "params:55", (1, 3, 5, 25)), ("fork", "params:77", (0, 2, 7, 17))],
)
def test_behind_warm_up_schedulers_the_best_epoch_and_a_fork(tmp_path, checkpoint, plant, place):
    lab = Lab(tmp_path)
    runs = [RunName(lab.several(name, planted), checkpoint) for name, planted in (("a", ""), ("b", plant))]
    text = "from tests.report.bisected import several\nseveral('ckpts')"
    parting = bisect(*runs, lab.script(text=text), lab.script(plant, text=text)).parting
    assert (parting.op, parting.epoch, parting.batch, parting.step) == place
    assert [leaf.path for leaf in parting.leaves if not leaf.path.startswith("ema")] == [LEAVES["params"]]
    assert {leaf.ulps for leaf in parting.leaves} == {1}
    assert parting.operator is not None


@pytest.mark.slow
def test_where_only_the_end_of_an_epoch_differs_that_is_said(small):
    lab, a = small
    b = lab.record("end", "scheduler:2", **SMALL)
    found = bisect(a, b, lab.script(**SMALL), lab.script("scheduler:2", **SMALL))
    assert (found.failed, found.strayed) == (None, ())
    assert (found.parting.epoch, found.parting.batch, found.parting.part) == (2, None, "epoch_scheduler")
    assert "optimizer.param_groups[0]['lr']" in [leaf.path for leaf in found.parting.leaves]
    assert "what comes at its end does not" in str(found)


def test_a_run_that_does_not_come_again_is_a_finding_of_its_own(small):
    lab, a = small
    b = lab.record("lost", "params:8", **SMALL)
    script = lab.script(**SMALL)  # which plants nothing
    found = bisect(a, b, script)
    [one] = found.strayed
    assert (one.run, one.epoch) == (str(b), 2)
    assert one.now != one.recorded
    assert found.parting.batch is None
    assert "both runs take the same steps" in found.failed
    assert f"not reproducible here: epoch 2 of {b} was recorded as" in str(found)


@pytest.mark.slow
def test_kept_states_that_are_gone_are_done_without(small):
    lab, a = small
    b = lab.record("halved", "params:12", **SMALL)
    for folder in ("a-halved", "b-halved"):
        shutil.copytree(a.store if folder[0] == "a" else b.store, lab.folder / folder)
        shutil.rmtree(lab.folder / folder / "items")
    halved = [RunName(lab.folder / folder, "run") for folder in ("a-halved", "b-halved")]
    found = bisect(*halved, lab.script(**SMALL), lab.script("params:12", **SMALL))
    assert (found.parting.step, found.start) == (12, 0)
    assert found.steps == 2 * 4 + 4 + 4  # the first two epochs once, the third of both


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise ValueError('no data')", "ValueError: no data"),
        pytest.param("print('nothing')", "never asked for that train", marks=pytest.mark.slow),
        pytest.param("sys.exit(3)", "it ended with the status 3", marks=pytest.mark.slow),
        pytest.param(
            "from purestate.report._bisect import bisect\nbisect(*sys.argv[1:], __file__)",
            "bisects itself",
            marks=pytest.mark.slow,
        ),
        pytest.param("os._exit(0)", "ended without a word", marks=pytest.mark.slow),
        pytest.param(
            f"from tests.report.bisected import main; main('ckpts', lr=3e-2, **{SMALL!r})",
            "recorded for another question: optimizer lr was 0.01 when this was recorded, now 0.03",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_script_that_does_not_come_to_the_train_is_told_beside_what_is_recorded(small, text, says):
    lab, a = small
    b = planted_log(lab, a, f"failing{len(list(lab.folder.iterdir()))}")
    before = stamps(a.store)
    found = bisect(a, b, lab.script(text=text), args=[str(a), str(b)])
    assert says in found.failed
    assert (found.verdict, found.parting.epoch, found.parting.batch) == ("parted", 2, None)
    assert stamps(a.store) == before


@pytest.mark.slow
def test_a_script_that_says_nothing_is_not_waited_for_for_ever(small):
    lab, a = small
    b = planted_log(lab, a, "asleep")
    with pytest.raises(ScriptError, match=r"said nothing for 1 s"):
        bisect(a, b, lab.script(text="import time\ntime.sleep(600)"), timeout=1)


@pytest.mark.slow
def test_the_number_of_threads_is_found_in_an_operator_and_is_not_reproducible_without_it(tmp_path):
    lab = Lab(tmp_path)
    scripts = [lab.script(text=f"import torch\ntorch.set_num_threads({n})\n{_WIDE}") for n in (1, 2)]
    runs: list[RunName] = []
    for script in scripts:
        runs.append(RunName(tmp_path / f"run{len(runs)}", "run"))
        subprocess.run([sys.executable, script, os.fspath(runs[-1].store)], check=True)
    if compare_logs(*map(open_run, runs)).ok:
        pytest.skip("here the number of threads decides no bit")
    found = bisect(*runs, *scripts)
    assert (found.parting.step, found.parting.same_batch, found.parting.operator.kind) == (1, True, "output")
    assert [one.what for one in found.envelope] == ["threads"]
    assert not found.strayed
    [strayed] = bisect(*runs, scripts[0]).strayed
    assert strayed.run == str(runs[1])


_WIDE = """
import purestate as ps
from tests.helpers import batch
from torch import nn
def build(): return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
s0 = ps.setup(ps.init(build, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
ck = ps.Store(sys.argv[1] if len(sys.argv) > 1 else "ckpts").checkpoint("run", echo=None)
ck.train(s0, [batch(32, (64,), 10)], epochs=1)
"""


def planted_log(lab: Lab, a: RunName, name: str) -> RunName:
    """Return a copy of a run, of whose second epoch another state is recorded."""
    shutil.copytree(a.store, lab.folder / name)

    def change(bodies: list[tuple[str, dict[str, Any]]]) -> None:
        next(body for kind, body in bodies if kind == "epoch" and body["n"] == 2)["hash"] = f"b3:{'0' * 64}"

    rewrite(lab.folder / name / LOG, change)
    return RunName(lab.folder / name, "run")


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_wrong_calls(small, tmp_path):
    lab, a = small
    with pytest.raises(UsageError, match="none for the first"):
        bisect(a, a, None, "b.py")
    with pytest.raises(UsageError, match="There is no checkpoint 'adam'"):
        bisect(a, RunName(a.store, "adam"))
    b = planted_log(lab, a, "wrong")
    with pytest.raises(ScriptError, match=r"bisect: there is no script 'nowhere\.py'"):
        bisect(a, b, "nowhere.py")
    log = b.store / LOG
    log.write_bytes(log.read_bytes().replace(b'"n":1', b'"n":2', 1))
    with pytest.raises(CorruptLogError):
        bisect(a, b)


# -------------------------------------------------------------------- the command, the operator


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bisect", *map(str, arguments)], prog_name="purestate")


def test_the_command_exits_with_0_1_or_2_and_speaks_json(small):
    lab, a = small
    b = planted_log(lab, a, "told")
    equal, parted = call(a, a, "--json"), call(a, b, "--json")
    assert (equal.exit_code, parted.exit_code, call(a, "nowhere").exit_code) == (0, 1, 2)
    assert json.loads(equal.output)["verdict"] == "equal"
    told = json.loads(parted.output)
    assert (told["ok"], told["parting"]["epoch"], told["compared"]) == (False, 2, 1)
    assert call(a, b, "--script-b", "x.py").exit_code == 2
    assert call(a, b, "--script", "x.py", "--", "--lr", "1").exit_code == 2
    found = ps.bisect(str(a), str(b))
    assert isinstance(found, Bisection)
    assert "train 0, epoch 2 is the first that ends on other bits" in found._repr_html_()


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([["add", "i", "o"], ["mul", "p", "q"]], None),
        ([["add", "i", "x"], ["mul", "x", "y"]], (1, "forward and backward", "add", "add", "output")),
        ([["add", "i", "o"], ["mul", "x", "y"]], (2, "update", "mul", "mul", "input")),
        ([["add", "i", "o"], ["sub", "p", "q"]], (2, "update", "mul", "sub", "other")),
        ([["add", "i", "o"]], (2, "update", "mul", None, "other")),
    ],
)
def test_the_first_operator_that_does_something_else(theirs, expected):
    ours = {"operators": [["add", "i", "o"], ["mul", "p", "q"]], "update": 1}
    found = _operator(ours, {"operators": theirs, "update": 1})
    assert (found and tuple(vars(found).values())) == expected
