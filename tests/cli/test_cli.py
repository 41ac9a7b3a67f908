"""The commands: what they print, what they exit with, and that nobody ever sees a traceback."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import purestate as ps
from purestate.cli._group import _COMMANDS, cli
from tests.report.planted import GOLDEN, records_of, rewrite, write

ROOT = Path(__file__).parents[2]
LOG = "checkpoints/adam/log.jsonl"
READING = [
    "ls {}",
    "log {}:adam",
    "show {}:adam",
    "show {}:adam@1",
    "diff {0} {0}",
    "check {}",
    "gc {} --dry-run",
    "hash {}:adam",
]


def call(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=input, prog_name="purestate")


def no_traceback(result: Result) -> bool:
    return result.exception is None or isinstance(result.exception, SystemExit)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the golden store."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "store"))


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_a_help_and_is_in_the_readme(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"`{command}" in (ROOT / "README.md").read_text().split("## On the command line")[1].split("\n## ")[0]
    first = result.output.split("\n\n")[1].strip()
    assert len(first) < 60, "one line in the list of commands"
    assert first.endswith(".")


@pytest.mark.parametrize("command", [command for command in _COMMANDS if command != "log"])
def test_every_command_takes_json(command):
    assert "--json" in call(command, "--help").output


@pytest.mark.parametrize("command", READING)
def test_what_only_reads_writes_nothing_and_finds_nothing(command, store):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    arguments = command.format(store).split()
    text, told = call(*arguments), call(*arguments, "--json")
    assert (text.exit_code, told.exit_code) == (0, 0), text.output
    assert text.output.strip()
    assert json.loads(told.output)["ok"] is True
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


@pytest.mark.parametrize(
    "command",
    [
        "ls nowhere",
        "ls {}:adam",
        "gc {}:adam",
        "repair {}:adam",
        "log {}:sgd",
        "show {}:adam@7",
        "show {}:",
        "diff {} nowhere",
        "hash nowhere",
        "rm {} --yes",
        "reset {}:adam --yes",
        "accept {}:adam",
        "reset {}:adam@7 --yes",
        "rm {}:adam@0 --yes",
        "rm {}:sgd --yes",
        "copy {}:adam@0 {}-copy",
        "copy {}:sgd {}-copy",
        "rename {}:adam@0 eve",
        "rename {} eve",
        "rename {}:sgd eve",
        "rename {}:adam a/b",
        "rename {}:adam adam",
        "check nowhere",
        "gc nowhere",
        "frobnicate",
    ],
)
def test_a_wrong_call_exits_with_2(command, store):
    result = call(*command.format(store, store).split())
    assert result.exit_code == 2
    assert no_traceback(result)
    assert result.stderr.strip()
    assert (store / LOG).read_bytes() == (GOLDEN / LOG).read_bytes()


def damaged(store: Path) -> None:
    data = bytearray((store / LOG).read_bytes())
    data[300] ^= 1
    (store / LOG).write_bytes(data)


def newer_format(store: Path) -> None:
    (store / "format.json").write_text('{"purestate": 99}')


def newer_record(store: Path) -> None:
    rewrite(store / LOG, lambda bodies: [*bodies, ("hologram", {})])


def strange_records(store: Path) -> None:
    rewrite(store / LOG, lambda bodies: [(kind, {}) for kind, _ in bodies])


def without_items(store: Path) -> None:
    shutil.rmtree(store / "items")


BAD = [damaged, newer_format, newer_record, strange_records, without_items]


@pytest.mark.parametrize("spoil", BAD)
@pytest.mark.parametrize(
    "command", [*READING, "diff {} " + str(GOLDEN), "export {}:adam {}/out", "accept {}:adam@0", "reset {}:adam@0 -y"]
)
def test_bad_input_is_told_and_never_a_traceback(command, spoil, store):
    spoil(store)
    for json_too in ([], ["--json"]):
        result = call(*command.format(store, store).split(), *json_too)
        assert no_traceback(result), result.exception
        assert result.exit_code in (0, 1, 2)
        assert "Traceback" not in result.output


@pytest.mark.parametrize("spoil", [damaged, newer_format, newer_record])
@pytest.mark.parametrize("command", ["ls {}", "log {}:adam", "check {}"])
def test_damage_is_a_finding(command, spoil, store):
    spoil(store)
    if command == "log {}:adam" and spoil is newer_record:
        return  # a line can be shown whatever it means
    assert call(*command.format(store).split()).exit_code == 1


def test_check_finds_a_missing_item_and_a_head_that_was_cut_off(store):
    head = json.loads(call("log", store, "--json").output)["head"]
    assert call("check", store, "--expect-head", head).exit_code == 0
    assert call("check", store, "--expect-head", f"b3:{head[:12]}").exit_code == 0
    assert call("check", store, "--expect-head", "0" * 64).exit_code == 1

    rewrite(store / LOG, lambda bodies: [*bodies, ("accept", {"of": 1})])
    grown = call("check", store, "--expect-head", head)
    assert (grown.exit_code, "1 records were appended since" in grown.output) == (0, True)

    shutil.copyfile(GOLDEN / LOG, store / LOG)
    rewrite(store / LOG, lambda bodies: bodies[:-1])
    cut = call("check", store, "--expect-head", head)
    assert cut.exit_code == 1
    assert "no record has the expected head" in cut.output

    shutil.rmtree(store / "items/12")
    lost = call("check", store, "--json")
    assert lost.exit_code == 1
    assert "missing" in [one["kind"] for one in json.loads(lost.output)["store"]["findings"]]


def test_diff_says_by_its_status_whether_runs_are_equal(store, tmp_path):
    other = Path(shutil.copytree(store, tmp_path / "other"))
    assert call("diff", store, other).exit_code == 0
    rewrite(other / LOG, lambda bodies: bodies[4][1].update(hash="b3:" + "0" * 64))
    result = call("diff", store, other)
    assert result.exit_code == 1
    assert "differs though nothing in the envelope does" in result.output
    assert "train 0, epoch 2" in result.output


def test_diff_takes_files(store, tmp_path):
    [item] = store.glob("items/12/*")
    assert call("diff", f"{store}:adam", item).exit_code == 0
    other = call("diff", item, f"{store}:adam@0", "--json")
    assert other.exit_code == 1
    told = json.loads(other.output)
    assert (told["ok"], len(told["changed"]) + told["equal"], told["only_a"], told["only_b"]) == (False, 9, [], [])
    (tmp_path / "f.txt").write_text("hello, world")
    wrong = call("diff", store, tmp_path / "f.txt")
    assert (wrong.exit_code, "no file that can be hashed leaf by leaf" in wrong.stderr) == (2, True)


def test_rm_asks_and_removes(store):
    for answer in ("n\n", ""):
        asked = call("rm", f"{store}:adam", input=answer)
        assert asked.exit_code == 2
        assert "Nothing was removed" in asked.stderr
        assert (store / LOG).exists()
    assert call("rm", f"{store}:adam", input="y\n").exit_code == 0
    assert not (store / LOG).exists()
    assert (store / "items/12").exists()


def test_rm_removes_what_is_damaged(store):
    damaged(store)
    assert call("rm", f"{store}:adam", "--yes").exit_code == 0
    assert json.loads(call("ls", store, "--json").output)["checkpoints"] == []


def test_gc_says_first_and_asks(store):
    assert "3 stay" in call("gc", store).output
    call("rm", f"{store}:adam", "--yes")
    planned = call("gc", store, "--dry-run", "--json")
    assert (planned.exit_code, len(json.loads(planned.output)["gc"]["items"])) == (0, 3)
    assert call("gc", store, input="n\n").exit_code == 2
    assert (store / "items/12").exists()
    assert "3 items" in call("gc", store, "--yes").output
    assert call("gc", store, "--yes").output == "0 items, 0 bytes, removed; 0 stay\n"
    assert json.loads(call("gc", store, "--json").output)["gc"]["dry_run"] is False
    assert list((store / "items").glob("*/*")) == []


def test_reset_and_accept_are_recorded(store):
    assert call("accept", f"{store}:adam@1").exit_code == 0
    assert call("reset", f"{store}:adam@1", input="n\n").exit_code == 2
    assert "voided train 1" in call("reset", f"{store}:adam@1", "--yes").output
    assert [kind for kind, _ in records_of(store / LOG)][-2:] == ["accept", "reset"]
    assert [train["op"] for train in json.loads(call("show", store, "--json").output)["trains"]] == [0]


def test_repair_clears_what_a_kill_left(store):
    (store / LOG).write_bytes((store / LOG).read_bytes() + b'{"digest":"9f')
    assert "1 thing mended" in call("repair", store).output
    assert (store / LOG).read_bytes() == (GOLDEN / LOG).read_bytes()


def test_a_resume_point_whose_op_is_done_is_told_and_removed_as_by_the_store(store):
    backend = ps.Store(store)._backend
    train = next(record for record in backend.log("adam").records if record.kind == "train")
    with backend.log("adam").lock():
        backend.save_resume("adam", {"of": train.digest, "input": "", "states": {"1": {}}}, {}).result()
    (store / "facts.json").unlink()
    [finding] = json.loads(call("check", store, "--json").output)["store"]["findings"]
    assert finding["place"] == "checkpoints/adam/resume"
    assert str(ps.Store(store).check()) + "\n" == call("check", store).output
    assert call("repair", store).output.startswith("1 thing mended")
    assert ps.Store(store).check().findings == ()


def test_copies_and_new_names(store, tmp_path):
    there = tmp_path / "all"
    copied = call("copy", store, there)
    assert (copied.exit_code, copied.stdout) == (0, "1 checkpoint: 11 records and 3 items copied\n")
    again = call("copy", f"{store}:adam", there, "--json")
    assert (again.exit_code, "1 checkpoint: 0 records and 0 items copied" in again.stdout) == (0, True)
    assert (there / LOG).read_bytes() == (store / LOG).read_bytes()
    renamed = call("rename", f"{there}:adam", "eve")
    assert (renamed.exit_code, renamed.stdout) == (0, f"{there}:adam is {there}:eve now\n")
    assert call("diff", f"{there}:eve", f"{store}:adam").exit_code == 0
    assert call("check", there).exit_code == 0
    assert call("copy", there, store).exit_code == 0
    rewrite(store / "checkpoints" / "eve" / "log.jsonl", lambda bodies: bodies[1][1].update(more=1))
    taken = call("copy", there, store)
    assert taken.exit_code == 2
    assert "another checkpoint" in taken.stderr


def test_export_writes_a_folder(store, tmp_path):
    result = call("export", f"{store}:adam", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.isdigit()) == ["0", "1"]
    again = call("export", f"{store}:adam", tmp_path / "out")
    assert (again.exit_code, "in which there is something" in again.stderr) == (2, True)
    (tmp_path / "file").write_text("x")
    onto = call("export", f"{store}:adam", tmp_path / "file")
    assert (onto.exit_code, "file', a file." in onto.stderr) == (2, True)


def test_a_log_is_followed_while_it_is_written(store):
    bodies = records_of(store / LOG)
    write(store / LOG, bodies[:3])
    command = [sys.executable, "-u", "-m", "purestate", "log", str(store), "--follow", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert [json.loads(process.stdout.readline())["seq"] for _ in range(3)] == [0, 1, 2]
            write(store / LOG, bodies)
            assert [json.loads(process.stdout.readline())["seq"] for _ in range(3, 11)] == list(range(3, 11))
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_what_ctrl_c_ends_is_no_finding(store, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "purestate", "audit", f"{store}:adam", "--script", str(script)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr.strip()) == (130, "", "Stopped.")


@pytest.mark.parametrize("command", ["ls {}", "log {}", "show {}", "diff {0} {0}", "--help", "--version"])
def test_what_reads_logs_imports_neither_torch_nor_numpy(command, store):
    code = (
        "import sys\nfrom purestate.cli import main\n"
        f"sys.argv = ['purestate', *{command.format(store).split()!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy', 'orbax', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_command_is_installed_by_its_name():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["purestate"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_package_runs_as_the_command():
    ran = subprocess.run([sys.executable, "-m", "purestate", "ls", "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "nowhere" in ran.stderr


def test_runs_are_completed(store, tmp_path, monkeypatch):
    from purestate.cli._complete import completions

    monkeypatch.chdir(tmp_path)
    (tmp_path / "stuff").mkdir()
    assert completions("st") == ["store", "store:", "stuff/"]
    assert completions(f"{tmp_path}/sto") == [f"{store}", f"{store}:"]
    assert completions("store:") == completions("store:ad") == ["store:adam"]
    assert completions("store:adam@") == ["store:adam@0", "store:adam@1"]
    assert completions("store:b") == completions("nowhere/") == completions("nowhere:") == []


@pytest.mark.parametrize(
    ("words", "at", "found"),
    [
        ("purestate show sto", 2, ["plain,store", "plain,store:"]),
        ("purestate show store :", 3, ["plain,adam"]),
        ("purestate show store : ad", 4, ["plain,adam"]),
        ("purestate show store : adam @", 5, ["plain,0", "plain,1"]),
        ("purestate diff store : adam @ 0 store : adam @ 1", 11, ["plain,1"]),
        ("purestate diff store : adam sto", 5, ["plain,store", "plain,store:"]),
        ("purestate sh", 1, ["plain,show"]),
        ("purestate show store:ad", 2, ["plain,store:adam"]),
    ],
)
def test_bash_is_told_the_part_that_it_replaces(words, at, found, store):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_PURESTATE_COMPLETE": "bash_complete"}
    environment |= {"COMP_WORDS": words.replace(" ", "\n"), "COMP_CWORD": str(at)}
    code = "from purestate.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=store.parent, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == found


STRANGE = [
    (2, "n", None),
    (3, "n", "x"),
    (3, "of", {}),
    (3, "seconds", "x"),
    (3, "hash", {}),
    (3, "metrics", [1]),
    (3, "lr", {"hash": 5}),
    (1, "environment", 3),
    (1, "parent", {}),
    (1, "question", {"digest": "x"}),
    (6, "returned", 7),
    (6, "selection", None),
    (6, "kept", {"x": 3}),
    (9, "out", {"hash": "b3:1"}),
    (9, "out", {"hash": "b3:1", "params": {"digest": None}}),
    (10, "answer", 3),
    (10, "input", []),
]
"""Fields of the golden records that hold something else than their kind does."""


@pytest.mark.parametrize(("seq", "field", "value"), STRANGE)
def test_records_of_a_stranger_are_told_and_never_a_traceback(seq, field, value, store):
    rewrite(store / LOG, lambda bodies: bodies[seq][1].update({field: value}))
    for command in [*READING, "show {}:adam@0", f"diff {GOLDEN} {{}}", f"diff {{}} {GOLDEN}", "check {} --level records"]:
        result = call(*command.format(store).split())
        assert no_traceback(result), (command, result.exception)
