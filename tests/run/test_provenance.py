"""Who, when and from what is recorded beside answers; in a store for sharing, only when."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import purestate as ps
from purestate.errors import SetupError
from purestate.run import _provenance
from purestate.run._provenance import commit_of, provenance, without_secrets
from purestate.store import _journal, _locks
from tests.run.tiny import Ask, checkpoint, loader

NAMES = ("host-of-nobody", "user-of-nobody")
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture
def somebody(monkeypatch):
    """A user and a machine whose names are in no tensor by chance."""
    for module in (_provenance, _journal, _locks):
        for i, name in enumerate(("host", "user")):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda i=i: NAMES[i])
    _provenance._of_process.cache_clear()
    yield
    _provenance._of_process.cache_clear()


def exercised(store: ps.Store) -> ps.Checkpoint:
    """Do everything that writes to a store."""
    ck, ask = checkpoint(store), Ask()
    s1 = ask.of(ck, keep=ps.keep.every(1))
    ck.evaluate(s1, ask.val_dl)
    ck.find_lr(s1, ask.train_dl)
    ck.predict(s1, ask.val_dl)
    checkpoint(store, "r").root(ask.state())
    for _ in checkpoint(store, "s").epochs(ask.state(), ask.train_dl, epochs=3, resume_every="1 steps"):
        break
    ck.accept(0)
    ck.reset("evaluate")
    store.rename("r", "t")
    store.delete("s")
    store.gc(voided=True)
    with open(store._disk._layout.log("t"), "ab") as log:
        log.write(b"torn")
    store.repair()
    with store._backend.log("t").lock():
        store._backend.save_resume("t", {"of": ck.head}, {"0": dict(s1.params)}).result()
    return ck


def everything(folder: Path) -> bytes:
    names = [os.path.relpath(place, folder).encode() for place in folder.rglob("*")]
    return b"\n".join([*names, *(place.read_bytes() for place in folder.rglob("*") if place.is_file())])


def test_records_that_begin_or_end_an_op_say_who_and_when(somebody):
    ck, ask = checkpoint(), Ask()
    s1 = ask.of(ck)
    ck.evaluate(s1, ask.val_dl)
    records = ck._ledger.log.records
    assert {record.kind for record in records if "provenance" in record.body} == {"checkpoint", "train", "done", "evaluate"}
    for record in records:
        if (told := record.body.get("provenance")) is not None:
            assert list(told) == ["time", "user", "host", "git", "command", "cwd"]
            assert UTC.fullmatch(told["time"])
            assert (told["host"], told["user"], told["cwd"]) == (*NAMES, os.getcwd())
            assert told["command"] == [argument[:200] for argument in sys.orig_argv[1:]]
    epochs = [record.body for record in records if record.kind == "epoch"]
    assert {tuple(body) for body in epochs} == {("of", "n", "epoch", "metrics", "lr", "seconds", "hash")}


def test_provenance_is_no_part_of_the_question(somebody):
    store, ask = ps.MemoryStore(), Ask()
    first = ask.of(checkpoint(store))
    _provenance._of_process.cache_clear()
    ck = checkpoint(store)
    assert ask.of(ck) == first
    assert ck.last.cached


def test_a_store_for_sharing_says_nothing_of_who_wrote_it_and_where(somebody, tmp_path):
    for mode in ("full", "minimal"):
        folder = tmp_path / mode
        with ps.Store(folder, provenance=mode) as store:
            ck = exercised(store)
        written = everything(folder)
        found = [name for name in (*NAMES, os.getcwd(), str(tmp_path), str(Path.home())) if name.encode() in written]
        assert found == ([] if mode == "minimal" else [*NAMES, os.getcwd()])
        told = [record.body["provenance"] for record in ck._ledger.log.records if "provenance" in record.body]
        assert all((list(one) == ["time"]) == (mode == "minimal") and UTC.fullmatch(one["time"]) for one in told)
        acts = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        assert all(("user" in act) == (mode == "full") and UTC.fullmatch(act["time"]) for act in acts)


def test_a_store_stays_as_it_was_created(somebody, tmp_path):
    ask = Ask(options=dict(epochs=1))
    with ps.Store(tmp_path / "a", provenance="minimal") as store:
        ask.of(checkpoint(store))
    again = ps.Store(tmp_path / "a")
    again.open("a").reset()
    assert NAMES[0].encode() not in everything(tmp_path / "a")
    again.copy(tmp_path / "c")
    assert NAMES[0].encode() not in everything(tmp_path / "c")
    assert again.checkpoints()[0].id == "a"
    ps.Store(tmp_path / "a", provenance="full").open("a", echo=None).reset("evaluate")
    checkpoint(ps.Store(tmp_path / "a", provenance="full"), "b").evaluate(ask.state(), loader())
    assert NAMES[0].encode() in everything(tmp_path / "a")
    with pytest.raises(SetupError, match="'full' or 'minimal', got 'none'"):
        ps.Store(tmp_path / "b", provenance="none")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["a.py", "--password", "x", "-v"], ["a.py", "--password", "***", "-v"]),
        (["WANDB_API_KEY=x"], ["WANDB_API_KEY=***"]),
        (["--auth-token", "--lr", "1"], ["--auth-token", "--lr", "1"]),
        (["hf_abcdefghijklmnop", "--tokens"], ["***", "--tokens"]),
        (["https://me:secret@host/x"], ["https://***host/x"]),
        (["--epochs=3", "data/monkey.png"], ["--epochs=3", "data/monkey.png"]),
    ],
)
def test_secrets_of_the_command_line_are_left_out(given, told):
    assert without_secrets(given) == told


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    (root / "train.py").write_text("1\n")
    git(root, "add", "train.py")
    commit(root, "one")
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path, message: str) -> None:
    git(root, "-c", "user.name=n", "-c", "user.email=e@e", "commit", "--quiet", "--allow-empty", "-m", message)


def test_the_commit_is_read_without_git(repository):
    head = git(repository, "rev-parse", "HEAD")
    assert commit_of(repository) == head
    git(repository, "pack-refs", "--all")
    assert not list((repository / ".git" / "refs" / "heads").iterdir())
    assert commit_of(repository) == head
    other = repository.parent / "work tree"
    git(repository, "worktree", "add", "--quiet", str(other), "-b", "other")
    commit(other, "two")
    assert commit_of(other) == git(other, "rev-parse", "HEAD") != head
    git(other, "checkout", "--quiet", "--detach", head)
    assert commit_of(other) == head


def test_changes_of_tracked_files_are_told_and_results_beside_them_are_not(repository):
    assert _provenance._git(repository) == {"commit": commit_of(repository), "dirty": False}
    (repository / "results.txt").write_text("new")
    assert _provenance._git(repository)["dirty"] is False
    (repository / "train.py").write_text("2\n")
    (repository / "below").mkdir()
    assert _provenance._git(repository / "below")["dirty"] is True


def test_what_git_does_not_say_is_not_known(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / ".git").mkdir(parents=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (root / ".git" / "HEAD").write_text("ref: refs/heads/none\n")
    assert _provenance._git(root) == {"commit": None, "dirty": None}
    (root / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    assert commit_of(root) is None
    monkeypatch.setenv("PATH", "")
    assert _provenance._status(root) is None


def test_the_time_alone_asks_nobody(monkeypatch):
    monkeypatch.setattr(_provenance, "_of_process", lambda: pytest.fail("somebody was asked"))
    assert list(provenance(anonymous=True)) == ["time"]
