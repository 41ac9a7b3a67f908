"""The README holds: its code runs, its outputs are what comes out, its promises name tests that exist.

Hashes, losses and seconds depend on torch's build and on the machine, so outputs are compared without them.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import purestate as ps
from tests.test_public_api import NAMES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = ["README.md", "CHANGELOG.md", "purestate/README.md", "purestate/store/README.md", "tests/README.md"]
ROOMS = [path.parent.name for path in sorted((ROOT / "purestate").glob("*/__init__.py"))]
HASH = re.compile(r"b3:[0-9a-f]{8}")


def blocks(title: str, language: str) -> list[str]:
    """Return the blocks of a language in a section of the README."""
    section = README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def masked(text: str) -> str:
    """Return an output without what differs between machines."""
    for pattern, instead in (
        (HASH, "#"),
        (r"best (\d+|at the start)", "best #"),
        (r"Best: (epoch \d+|before the first epoch)", "Best: #"),
        (", which the model has now", ""),
        (r"\d+\.\d{3} s", "# s"),
        (r"\d\.\d{4}\b", "#"),
    ):
        text = re.sub(pattern, instead, text)
    return text.strip()


def edited(script: str, diff: str) -> str:
    """Apply an edit as the README shows it: lines without sign are where it goes, and must be there once."""
    old = "".join(line[1:] + "\n" for line in diff.splitlines() if line[0] in " -")
    new = "".join(line[1:] + "\n" for line in diff.splitlines() if line[0] in " +")
    assert script.count(old) == 1, f"not in the script:\n{old}"
    return script.replace(old, new)


DATA, BY_HAND, SCRIPT = blocks("A loop, and what replaces it", "python")
LONGER, OTHER_RATE, FORK = blocks("Four edits", "diff")
SHOWN = [*blocks("A loop, and what replaces it", "text"), *blocks("Four edits", "text")]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: batches of 32 rows gain nothing from a second, and wait for it where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def output_of(script: str, path: Path) -> str:
    """Run a script in its folder; return what it prints, and of a `StaleRecordError` what Python prints last."""
    path.write_text(script)
    out = io.StringIO()
    with contextlib.chdir(path.parent), contextlib.redirect_stdout(out):
        try:
            names = runpy.run_path(os.fspath(path), run_name="__main__")
            if "store" in names:
                names["store"].close()
        except ps.StaleRecordError as error:
            print("".join(traceback.format_exception_only(error)))
    return out.getvalue()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> list[str]:
    """What the script prints, then again, then after each edit; behind the last one, the blocks on use as a library ran."""
    folder = tmp_path_factory.mktemp("readme")
    longer = edited(DATA + SCRIPT, LONGER)
    library = "".join(["print('---')\n", *blocks("As a library", "python")])
    scripts = [DATA + SCRIPT, DATA + SCRIPT, longer, edited(longer, OTHER_RATE), edited(longer, FORK) + library]
    with one_thread():
        return [output_of(script, folder / f"train{i}.py") for i, script in enumerate(scripts)]


@pytest.mark.parametrize("i", range(5))
def test_an_output_is_what_the_readme_shows(outputs, i):
    assert masked(outputs[i].split("---")[0]) == masked(SHOWN[i])


def test_a_second_run_ends_on_the_same_hashes(outputs):
    assert HASH.findall(outputs[0]) == HASH.findall(outputs[1]) != []
    assert HASH.findall(SHOWN[0]) == HASH.findall(SHOWN[1])
    assert "ran" not in outputs[1]


def test_the_blocks_on_use_as_a_library_run(outputs):
    train, find_lr, predict, mean, averaged, own = outputs[-1].split("---")[1].strip().splitlines()
    assert re.match(r"adam train 1 \| \d+ epochs", train)
    assert find_lr.startswith("adam find_lr")
    assert predict.startswith("adam predict")
    assert mean.startswith("mean train 0 | 5 epochs")
    assert averaged.startswith("mean evaluate | loss")
    assert own.startswith("own train 0 | 2 epochs")


@pytest.mark.moves_generators  # a module that nobody seeded draws its weights
def test_the_model_prints_what_the_readme_shows_and_the_same_again(tmp_path):
    title = "With a model that holds its state"
    script, shown = DATA + blocks(title, "python")[0], blocks(title, "text")[0]
    with one_thread():
        first, second = (output_of(script, tmp_path / "model.py") for _ in range(2))
    assert first == second
    assert masked(first) == masked(shown)


@pytest.mark.moves_generators  # a loop by hand seeds and draws
def test_the_loop_by_hand_learns_as_much(outputs, tmp_path):
    (tmp_path / "hand.py").write_text(DATA + BY_HAND)
    with one_thread():
        names = runpy.run_path(os.fspath(tmp_path / "hand.py"))
    accuracy = float(re.search(r"val_accuracy (\d\.\d+)", outputs[0])[1])
    # other random numbers: two runs of the same task are within a few of 359 samples of each other
    assert abs(names["best"] - accuracy) < 0.05


def promises() -> list[str]:
    """Return the test ids in the README, each ``file::function``."""
    return re.findall(r"`(tests/[\w/]+\.py::\w+)`", README)


def test_every_promise_names_its_tests():
    section = README.split("\n## What you can rely on\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 8
    assert [row for row in rows if "::" not in row] == []


@pytest.mark.parametrize("id", promises())
def test_the_test_of_a_promise_exists(id):
    file, function = id.split("::")
    tree = ast.parse((ROOT / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_in_the_readme_or_has_an_example(name):
    assert re.search(rf"\b{name}\b", README) or ">>> " in inspect.getdoc(getattr(ps, name))


@pytest.mark.parametrize("file", DOCUMENTS)
def test_what_a_document_links_to_exists(file):
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", (ROOT / file).read_text()) if "://" not in link]
    assert [link for link in links if not (ROOT / file).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_the_map_names_the_files_that_there_are(room):
    files = re.split(r"^## ", (ROOT / "purestate/README.md").read_text(), flags=re.M)[3]
    parts = re.findall(rf"^\*\*{room}\*\*(.*?)(?=^\*\*|\Z)", files, re.M | re.S)
    there = {path.stem for path in (ROOT / "purestate" / room).glob("_*.py")} - {"__init__"}
    assert {name for part in parts for name in re.findall(r"`(_\w+)`", part)} == there


def test_the_example_runs_twice_and_computes_once(tmp_path):
    script = (ROOT / "examples/digits.py").read_text()
    path = tmp_path / "digits.py"
    path.write_text(re.sub(r"epochs=\d+", "epochs=1", script))  # what it does stays, for a ninth of the time
    environment = os.environ | {"PYTHONPATH": os.fspath(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", os.fspath(path), "--plots", "out"]
    runs = [subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    ran, found = ([line for line in run.stdout.splitlines() if " s | b3:" in line] for run in runs)
    assert len(ran) == len(found) == 6
    assert [HASH.findall(line) for line in ran] == [HASH.findall(line) for line in found]
    assert [line for line in ran if "| ran" not in line] == []
    assert [line for line in found if "| from the log |" not in line] == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adam.png", "all.png", "find_lr.png"}
