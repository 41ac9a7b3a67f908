"""Projects with an edit: what can change an answer is never answered from the log, what cannot is.

Each edit is asked about through the script itself, against the log of the unedited project. A third of the changes is
tried by default, all of them with ``-m slow``, where some go through processes of their own as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import purestate as ps
from tests.code.planted import PROJECTS, Workplace

ROOT = Path(ps.__path__[0]).parent
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Workplace, Any]]]:
    """Return a project by name, with a store in which its unedited run is recorded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    known: dict[str, tuple[Workplace, Any]] = {}

    def get(name: str) -> tuple[Workplace, Any]:
        if name not in known:
            place, store = Workplace(PROJECTS[name], tmp_path_factory.mktemp(name) / "project"), ps.MemoryStore()
            assert place.ask(store) is False
            assert place.ask(store) is True
            known[name] = place, store
        return known[name]

    yield get
    torch.set_num_threads(threads)


def test_there_are_as_many_as_are_promised_and_no_two_the_same():
    for kind, least in (("changes", 500), ("neutral", 100)):
        edits = [(name, edit) for name, project in PROJECTS.items() for edit in getattr(project, kind)]
        assert len(set(edits)) == len(edits) >= least


@pytest.mark.parametrize("third", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW)])
@pytest.mark.parametrize("name", PROJECTS)
def test_no_change_is_answered_from_the_log(recorded, name, third):
    place, store = recorded(name)
    answered, unsaid = list[str](), list[str]()
    for edit in PROJECTS[name].changes[third::3]:
        answer = place.ask(store, edit)
        if answer is True:
            answered.append(edit.name)
        elif edit.says not in str(answer):
            unsaid.append(f"{edit.name}: {edit.says!r} is not in {str(answer).splitlines()[0]!r}")
    assert answered == []
    assert unsaid == []
    assert place.ask(store) is True, "an edit was not undone"


@pytest.mark.parametrize("name", PROJECTS)
def test_neutral_edits_are_answered_from_the_log(recorded, name):
    place, store = recorded(name)
    answers = {edit.name: place.ask(store, edit) for edit in PROJECTS[name].neutral}
    assert {name: str(answer) for name, answer in answers.items() if answer is not True} == {}


@pytest.mark.parametrize("name", ["tabular", "sequence"])
def test_another_folder_and_another_name_of_the_script_are_the_same(recorded, name, tmp_path):
    _, store = recorded(name)
    moved = Workplace(PROJECTS[name], tmp_path / "elsewhere" / "moved")
    (moved.folder / "train.py").rename(moved.folder / "experiment_2.py")
    assert moved.ask(store, script="experiment_2") is True


def test_a_path_inside_of_an_object_counts_with_its_folder(recorded, tmp_path):
    """The one false alarm that we know: what a transform is told is not known to be a path."""
    _, store = recorded("images")
    answer = Workplace(PROJECTS["images"], tmp_path / "moved").ask(store)
    assert isinstance(answer, ps.StaleRecordError)
    assert [change[0] for change in answer.changes] == ["training data: code of dataset.transforms"]


def test_another_version_of_an_installed_package_is_named(recorded, tmp_path):
    _, store = recorded("sequence")
    other = Workplace(PROJECTS["sequence"], tmp_path / "other")
    installed = other.folder / "site-packages"
    (installed / "tinylib-1.0.dist-info").rename(installed / "tinylib-1.1.dist-info")
    assert "package tinylib was '1.0' when this was recorded, now '1.1'" in str(other.ask(store))


def process(folder: Path, store: Path, *options: str, script: str = "train.py", **where: Any) -> bool | str:
    """Run a script in a process of its own; return whether the log answered all of it, or the error that it did not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder / "site-packages")))}
    environment |= where.pop("env", {})
    command = [sys.executable, *options, str(folder / script), str(store)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **where)
    if done.returncode:
        assert "StaleRecordError: " in done.stderr, done.stderr
        return done.stderr
    return all(json.loads(done.stdout.splitlines()[-1]))


@SLOW
@pytest.mark.parametrize("name", PROJECTS)
def test_some_go_through_processes_of_their_own(name, tmp_path):
    """What is asked here in one process is what a script asks: of each kind of edit some, and what only a process can change."""
    project = PROJECTS[name]
    place, store = Workplace(project, tmp_path / "project"), tmp_path / "store"
    assert process(place.folder, store) is False
    assert process(place.folder, store, "-O", cwd=tmp_path, env={"PYTHONHASHSEED": "7"}) is True
    for edit in project.changes[:: len(project.changes) // 9]:
        with place.edited(edit):
            answer = process(place.folder, store)
        assert answer is not True, edit.name
        assert edit.says in str(answer)
    for edit in project.neutral[:: len(project.neutral) // 4]:
        with place.edited(edit):
            assert process(place.folder, store) is True, edit.name
