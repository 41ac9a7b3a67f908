"""`purestate audit`: a script computes what it recorded again, in a process of its own, and what differs is told."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import purestate as ps
from purestate.cli._group import cli
from purestate.core import _runners
from purestate.errors import ScriptError, SetupError, UsageError
from purestate.report import _audit
from purestate.report._audit import AuditReport
from purestate.run import _audit_script, _mode
from purestate.run._ledger import Ledger
from purestate.run._script import command, target
from purestate.store import _placed
from purestate.store._disk import DiskBackend
from purestate.train import _place
from tests.report.planted import rewrite

ROOT = Path(__file__).parents[2]
LOG = "checkpoints/a/log.jsonl"
SCRIPT = """
import functools
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps
from purestate.core import _runners

torch.set_num_threads(1)
_runners.Runner = functools.partial(_runners.Runner, capture_after=1_000_000)  # it changes no bit, and spares seconds a process
x = torch.arange(96.0).reshape(32, 3).sin()
y = (x.sum(1) > 0).long()
data = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
val = [(x, y)]


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 2))


def train(store):
    s0 = ps.setup(ps.init(net, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
    ck, fork = (store.checkpoint(id, echo=None) for id in ("a", "fork"))
    s1 = ck.train(s0, data, val, epochs=3, load_best=True)
    ck.evaluate(s1, val)
    s2 = ck.train(s1, data, val, epochs=2)
    fork.train(ps.setup(s1, optimizer_cls=torch.optim.Adam), data, val, epochs=1)
    ck.find_lr(s2, data)
    ck.predict(s2, val)
    print("trained", *sys.argv[1:])


if __name__ == "__main__":
    train(ps.Store("ckpts"))
"""
MODEL = """
from purestate import train

m = train.Model("net", net())
for id in (1, 2):
    with m.checkpoint(id) as cp:
        cp.setup(loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam)
        cp.train(data, val, epochs=2)
m.cache(2).evaluate(val)
"""
OPS = [0, "evaluate", 1, "find_lr", "predict"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a script, and the store that it recorded in a process."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "train.py").write_text(SCRIPT)
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "train.py"], cwd=folder, env=given, check=True, capture_output=True, timeout=600)
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, as the current folder."""
    shutil.copytree(recorded, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


@contextmanager
def as_in_a_process(*arguments: str) -> Iterator[pytest.MonkeyPatch]:
    """Put back what a script does to the process that it runs in."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_runners, "Runner", _runners.Runner)
        patched.setattr(sys, "argv", list(arguments))
        yield patched
    torch.set_num_threads(threads)


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AuditReport]:
    """Audit with the script in this process, which spares starting one: what is put in another place there is put back."""

    def run(what: Any, orders: dict[str, Any], there: Path, timeout: float | None) -> tuple[int, list[dict[str, Any]]]:
        events, told = there / "events", there / "orders.json"
        events.touch()
        command("_audit_script", what, {**orders, "events": str(events)}, told)
        code = 0
        with as_in_a_process() as patched:
            patched.setattr(_mode, "_auditors", [])
            patched.setattr(_placed, "_moved", [])
            patched.setattr(_placed, "_stays", [])
            try:
                _audit_script.main(json.loads(told.read_text()))
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else 1
        return code, [json.loads(line) for line in events.read_text().splitlines()]

    monkeypatch.setattr(_audit, "_run", run)
    return lambda name="ckpts:a", script="train.py", **options: ps.audit(name, script, **options)


def plant(folder: Path, change: Callable[[list[tuple[str, dict[str, Any]]]], Any]) -> None:
    rewrite(folder / "ckpts" / LOG, change)


def epoch_hash(bodies: list[tuple[str, dict[str, Any]]]) -> None:
    next(body for kind, body in bodies if kind == "epoch" and body["n"] == 2)["hash"] = "b3:" + "0" * 64


def variant(folder: Path, *changes: tuple[str, str], name: str = "other.py") -> str:
    """Write the script in another form, and return its name."""
    text = SCRIPT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return name


def log_of(folder: Path) -> bytes:
    return (folder / "ckpts" / LOG).read_bytes()


# -------------------------------------------------------------------- on the command line


def test_a_run_is_computed_again_in_a_fresh_process(folder, capfd):
    before = log_of(folder)
    found = CliRunner().invoke(cli, ["audit", "ckpts:a", "--script", "train.py", "--json", "--", "--fast"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert [(one["op"], one["verdict"]) for one in told["ops"]] == [(op, "equal") for op in OPS]
    assert (told["ok"], told["notes"]) == (True, [])
    assert capfd.readouterr().err == "trained --fast\n", "what the script prints goes to stderr"
    assert log_of(folder) == before
    acts = [(act["op"], act["verdict"]) for act in DiskBackend(folder / "ckpts").acts() if act["act"] == "audit"]
    assert acts == [(op, "equal") for op in OPS]


def test_a_difference_is_told_and_the_exit_status_is_1(inside, folder):
    plant(folder, epoch_hash)
    found = CliRunner().invoke(cli, ["audit", "ckpts:a@0", "--script", "train.py"])
    assert found.exit_code == 1
    assert re.search(r"train 0 +1 +3 +differs though nothing in the envelope does", found.output)
    assert "checkpoint 'a', train 0, epoch 2: state was recorded as b3:00000000, and computing it again gave b3:" in found.output
    assert "purestate bisect ckpts:a@0 OTHER --script train.py" in found.output


# -------------------------------------------------------------------- what is audited


def test_a_train_alone_ends_the_script_behind_it(inside, capsys):
    report = inside("ckpts:a@0")
    assert [(one.op, one.verdict, one.epochs) for one in report.ops] == [(0, "equal", 3)]
    assert report.notes == ()
    assert capsys.readouterr().out == ""


def test_readers_by_their_name_and_checkpoints_by_theirs(inside):
    assert [one.op for one in inside(op="find_lr").ops] == ["find_lr"]
    assert [one.op for one in inside("ckpts:a", op=1).ops] == [1]
    assert [(one.checkpoint, one.op) for one in inside("ckpts:fork").ops] == [("fork", 0)]


def test_a_sample_is_that_of_its_seed(inside):
    picked = [tuple(one.op for one in inside(sample=2, seed=seed).ops) for seed in (0, 0, 1, 2)]
    assert picked[0] == picked[1]
    assert len(set(picked)) > 1
    assert all(len(ops) == 2 for ops in picked)
    assert [one.op for one in inside(sample=99).ops] == OPS


def test_a_function_gets_the_store_that_is_audited(inside, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    shutil.copy(folder / "train.py", folder / "as_module.py")
    report = inside("ckpts:a@0", script="as_module:train")
    assert report.ok, str(report)


def test_two_differences_in_a_run_are_both_told(inside, folder):
    def change(bodies: list[tuple[str, dict[str, Any]]]) -> None:
        epoch_hash(bodies)
        next(body for kind, body in bodies if kind == "evaluate")["answer"]["loss"] = 0.5

    plant(folder, change)
    report = inside()
    assert [(one.op, one.verdict) for one in report.ops if not one.ok] == [(0, "unexplained"), ("evaluate", "unexplained")]
    assert not report.ok
    assert [one.verdict for one in report.ops if one.ok] == ["equal"] * 3
    page = report._repr_html_()
    assert ">train 0</td>" in page
    assert "loss was recorded as 0.5" in page
    assert json.loads(report.to_json())["ops"][0]["differences"][0]["epoch"] == 2


# -------------------------------------------------------------------- what the script does


def test_a_script_of_another_model_is_a_finding_that_says_what_changed(inside, folder):
    report = inside(script=variant(folder, ("nn.Dropout(0.2)", "nn.Dropout(0.3)")))
    assert not report.ok
    last = report.ops[-1]
    assert (last.op, last.record, last.verdict) == ("train", None, "unrecorded")
    assert "train 0 is recorded for another question: module.1.p was 0.2 when this was recorded, now 0.3" in last.finding
    assert {one.verdict for one in report.ops[:-1]} == {"unasked"}
    assert "the script ended before it" in str(report)


def test_an_op_that_was_never_recorded_is_a_finding(inside, folder):
    name = variant(folder, ("    ck.predict(s2, val)", "    ck.predict(s2, val[:1] * 2)"))
    report = inside(script=name)
    assert [(one.op, one.verdict) for one in report.ops if not one.ok] == [("predict", "unrecorded")]
    assert "predict: was never recorded: the nearest predict" in str(report)


def test_what_the_script_does_not_ask_for_is_told(inside, folder):
    report = inside(script=variant(folder, ("    ck.find_lr(s2, data)\n", "")))
    assert report.ok
    assert [(one.op, one.said) for one in report.ops if one.verdict != "equal"] == [
        ("find_lr", "unknown: the script does not ask for it")
    ]
    with pytest.raises(UsageError, match=r"other.py does not ask for find_lr of ckpts:a\."):
        inside(script="other.py", op="find_lr")


def test_a_script_that_fails_is_a_message_with_its_place(inside, folder):
    name = variant(folder, ('    print("trained"', '    raise ValueError("no more")\n    print("trained"'))
    with pytest.raises(ScriptError, match=r"^audit: other.py fails with ValueError: no more \(other.py:\d+\)\n") as caught:
        inside(script=name)
    assert "Before that: train 0: equal, evaluate: equal" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    plant(folder, epoch_hash)
    report = inside(script=name)
    assert not report.ok, "a finding counts for more"
    assert "other.py fails with ValueError: no more" in report.notes[-1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise SystemExit(3)", "audit: other.py ended with the status 3"),
        ("def f(:", r"audit: other.py fails with SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name' .other.py:1."),
    ],
)
def test_a_script_that_does_not_run(text, says, inside, folder):
    (folder / "other.py").write_text(text)
    with pytest.raises(ScriptError, match=says):
        inside(script="other.py")


def test_a_module_of_a_package_runs_as_by_python_m(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head, body = SCRIPT.split("\n\ndef net():")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "net.py").write_text(f"from torch import nn\n\n\ndef net():{body.split('def train')[0]}")
    (tmp_path / "project" / "train.py").write_text(f"{head}\nfrom .net import net\n\n\ndef train{body.split('def train')[1]}")
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    recording = [sys.executable, "-m", "project.train"]
    subprocess.run(recording, env=given, check=True, capture_output=True, timeout=600)
    found = ps.audit("ckpts:a", "project.train", args=["-v"], op=0)
    assert (found.ok, len(found.ops)) == (True, 1)
    for missing in ("project.nothing", "project.net.train", "project.", "nothing"):
        with pytest.raises(ScriptError, match=f"there is no script '{missing}'"):
            ps.audit("ckpts:a", missing)


def test_ctrl_c_while_the_process_begins_has_no_traceback(tmp_path):
    (tmp_path / "script.py").touch()
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n")
    given = command("slow", target(tmp_path / "script.py", [], "audit"), {}, tmp_path / "orders")
    orders = json.loads((tmp_path / "orders").read_text())
    (tmp_path / "orders").write_text(json.dumps({**orders, "entry": "slow"}))
    ran = subprocess.run(given, capture_output=True, text=True, timeout=600)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")


def test_a_script_that_asks_for_nothing(inside, folder):
    (folder / "other.py").write_text("print(1)")
    with pytest.raises(UsageError, match=r"other.py does not ask for train 0 of ckpts:a\."):
        inside(script="other.py")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (dict(name="ckpts:a@7"), UsageError, "Checkpoint 'a' has no op 7"),
        (dict(op="test"), UsageError, "has no op 'test'"),
        (dict(name="ckpts:a@0", op=1), UsageError, "names train 0, and op=1 another one"),
        (dict(name="ckpts:b"), UsageError, "There is no checkpoint 'b'"),
        (dict(name="nowhere:a"), UsageError, "There is no store at 'nowhere'"),
        (dict(sample=0), SetupError, "expected sample to be a whole number from 1 on, got 0"),
        (dict(script="nowhere.py"), ScriptError, "audit: there is no script 'nowhere.py'"),
    ],
)
def test_a_wrong_call(options, error, says, inside):
    with pytest.raises(error, match=says):
        inside(**options)


@pytest.mark.parametrize("call", ["audit ckpts:a --script nowhere.py", "audit ckpts:a", "audit ckpts:a@9 --script train.py"])
def test_a_wrong_call_on_the_command_line(call, folder):
    found = CliRunner().invoke(cli, call.split())
    assert found.exit_code == 2
    assert "Traceback" not in found.output


def test_a_store_in_memory_computes_as_always(inside, folder):
    name = variant(
        folder, ("    s1 = ck.train", "    ps.MemoryStore().checkpoint('b', echo=None).evaluate(s0, val)\n    s1 = ck.train")
    )
    assert inside(script=name).ok


# -------------------------------------------------------------------- where the store is


def test_another_folder_than_the_one_that_recorded_it(inside, folder, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    report = inside(f"{folder / 'ckpts'}:a@0", script=folder / "train.py")
    assert report.ok
    assert "which holds no checkpoint" in report.notes[0]
    assert os.listdir() == []


@pytest.mark.moves_generators  # the script does, as scripts do
def test_a_script_of_the_stateful_face(inside, folder, monkeypatch):
    (folder / "other.py").write_text(SCRIPT.rpartition("if __name__")[0] + MODEL)
    monkeypatch.setattr(_place, "_place", _place.Place(root=folder))
    with as_in_a_process("other.py"):
        runpy.run_path("other.py", run_name="__main__")
    report = inside("ckpts:net--0002", script="other.py")
    assert [(one.op, one.verdict) for one in report.ops] == [(0, "equal"), ("evaluate", "equal")]
    assert report.notes == (), "the folder of the TensorBoard files is no store"


def test_a_copy_is_read_in_the_place_of_the_one_that_the_script_names(inside, folder):
    shutil.copytree(folder / "ckpts", folder / "copy")
    report = inside("copy:a@0")
    assert report.ok
    assert "which has the same log: 'copy' was read for it" in report.notes[0]
    assert [act["act"] for act in DiskBackend(folder / "copy").acts()][-1] == "audit"
    assert [act["act"] for act in DiskBackend(folder / "ckpts").acts()][-1] != "audit"


def test_another_log_is_not_taken_for_it(inside, folder):
    shutil.copytree(folder / "ckpts", folder / "copy")
    plant(folder, epoch_hash)
    with pytest.raises(UsageError, match="does not ask for train 0") as caught:
        inside("copy:a@0")
    assert "The script names another store" in str(caught.value)
    assert "has another log, which ends with" in str(caught.value)


def test_an_answer_of_another_checkpoint_that_is_missing_is_told(inside, folder):
    with ps.Store("ckpts") as store:
        store.delete("fork")
    report = inside()
    assert report.ok, "the fork is not what is audited"
    assert "The script ended at checkpoint 'fork'" in report.notes[0]
    assert [one.verdict for one in report.ops] == ["equal", "equal", "equal", "unasked", "unasked"]


# -------------------------------------------------------------------- a run that is not at its end, or not to be written


def test_a_run_that_is_being_written_is_audited_as_far_as_it_is(inside, folder):
    def begin(bodies: list[tuple[str, dict[str, Any]]]) -> Any:
        second = [i for i, (kind, _) in enumerate(bodies) if kind == "train"][1]
        return bodies[: second + 3]

    plant(folder, begin)
    with Ledger(DiskBackend(folder / "ckpts"), "a").writing():  # as a train does that goes on
        report = inside()
    assert report.ok
    assert [(one.op, one.verdict) for one in report.ops] == [(0, "equal"), ("evaluate", "equal"), (1, "unfinished")]
    assert "equal as far as it is recorded" in str(report)
    assert "The script ended at train 1, which is not finished" in report.notes[0]


def test_a_journal_that_cannot_be_written_is_told(inside, folder):
    (folder / "ckpts/journal.jsonl").unlink()
    (folder / "ckpts/journal.jsonl").mkdir()
    report = inside("ckpts:a@0")
    assert report.ok
    assert "This is not in the store's journal: " in report.notes[0]
