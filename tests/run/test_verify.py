"""`verify_resume`: sound training passes, and state that nobody saved is found, with the step and the tensors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import purestate as ps
from purestate.errors import ReplayError, ScriptError, SetupError
from purestate.store import _placed

ROOT = Path(__file__).parents[2]

HEAD = """
import functools
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
import purestate as ps
from purestate.core import _runners

torch.set_num_threads(1)
_runners.Runner = functools.partial(_runners.Runner, capture_after=1_000_000)  # it changes no bit, and spares seconds a process
x = torch.arange(96.0).reshape(32, 3).sin()
y = (x.sum(1) > 0).long()
val = [(x, y)]


def start(module=lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2)), **more):
    common = dict(loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1, momentum=0.9))
    return ps.setup(ps.init(module, seed=0), **{**common, **more})


def loader(data=TensorDataset(x, y), **options):
    return DataLoader(data, batch_size=8, **{"shuffle": True, **options})
"""

SOUND = """
class Augmented(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        return x[i] + torch.randn(3) / 10, y[i]


class Stream(IterableDataset):
    at = 0

    def __iter__(self):
        while self.at < 32:
            self.at += 1
            yield x[self.at - 1], y[self.at - 1]
        self.at = 0

    def __len__(self):
        return 32

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


if __name__ == "__main__":
    ck = ps.Store("kept").checkpoint("a")
    s0 = start(
        epoch_scheduler_cls=torch.optim.lr_scheduler.ReduceLROnPlateau,
        epoch_scheduler_args=dict(patience=0),
        step_scheduler_cls=torch.optim.lr_scheduler.OneCycleLR,
        step_scheduler_args=dict(max_lr=0.1, total_steps=40),
    )
    s1 = ck.train(s0, loader(Augmented(), num_workers=2), val, epochs=3, load_best=True, patience=2)
    s2 = ck.train(s1, loader(Stream(), shuffle=False), val, epochs=2)
    print(ck.evaluate(s2, val))
"""

HIDDEN = """
class Calls(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + self.calls / 10)


def train(store):
    s0 = start(lambda: nn.Sequential(nn.Linear(3, 4), Calls(4, 2)))
    store.checkpoint("a").train(s0, loader(), epochs=3, guard="off")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("verify")


def script(folder: Path, body: str, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(HEAD + body)
    return path


@pytest.mark.parametrize("n", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_sound_training_resumes(n, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = script(tmp_path, SOUND)
    report = ps.verify_resume(path, n=n)
    assert report.ok, str(report)
    assert report.steps == 20
    assert len({(cut.op, cut.epoch, cut.batch) for cut in report.cuts}) == n
    assert report.parting is None
    assert os.listdir(tmp_path) == ["train.py"], "the script's own store was made"
    assert report.check() is report


@pytest.fixture(scope="module")
def hidden(folder: Path) -> Any:
    """A module that counts its calls, in the function of a module."""
    script(folder, HIDDEN, "counting.py")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return ps.verify_resume("counting:train", n=1, seed=2)


def test_hidden_state_is_found(hidden):
    assert not hidden.ok
    (cut,) = hidden.cuts
    assert cut.kind == "bits"
    assert (cut.checkpoint, cut.op) == ("a", 0)
    assert cut.batch < 4 or cut.epoch < 3, "nothing comes behind the last step"


def test_the_first_step_that_differs_is_the_one_behind_the_cut(hidden):
    (cut,), parting = hidden.cuts, hidden.parting
    assert parting.step == (cut.epoch - 1) * 4 + cut.batch + 1
    assert (parting.epoch, parting.batch) == ((parting.step - 1) // 4 + 1, (parting.step - 1) % 4 + 1)
    assert parting.same_batch is True
    found = {leaf.path: leaf for leaf in parting.leaves}
    assert found["params['1.weight']"].changed == 8
    assert 0 < found["params['1.weight']"].largest < 1


def test_its_text_says_where_and_what_to_do(hidden):
    with pytest.raises(ReplayError) as caught:
        hidden.check()
    text = str(caught.value)
    assert text == str(hidden) == repr(hidden)
    assert text.splitlines()[0] == (
        "counting:train: killed behind 1 of 12 steps and run again, 0 of 1 ended like the undisturbed run."
    )
    assert f"batch {hidden.parting.batch} (step {hidden.parting.step}) is the first that gives other bits." in text
    assert "params['1.weight'] float32[2, 4]: 8 elements, by up to 0." in text
    assert "Keep it in a buffer" in text


COUNTING = """
class Counting(Dataset):
    seen = 0

    def __len__(self):
        return 32

    def __getitem__(self, i):
        self.seen += 1
        return x[i] * (1 + self.seen // 40), y[i]
"""
PLANTED = {
    "a dataset that changes after some samples": (
        COUNTING
        + """
    def __purestate_fingerprint__(self):
        return "counting"

ps.Store("s").checkpoint("a").train(start(), loader(Counting()), epochs=3)
""",
        "bits",
        "The batch was another: it is the data.",
    ),
    "a dataset whose count is part of the next question": (
        COUNTING
        + """
ck = ps.Store("s").checkpoint("a")
data = loader(Counting())
ck.train(ck.train(start(), data, epochs=1), data, epochs=3)
""",
        "question",
        "train 1 of 'a' asks another question: training data: dataset.seen was 32, now None",
    ),
    "a loss with a running average": (
        """
class Smooth(nn.CrossEntropyLoss):
    mean = 1.0

    def forward(self, y_pred, y_true):
        loss = super().forward(y_pred, y_true)
        self.mean = 0.9 * self.mean + 0.1 * float(loss.detach())
        return loss / self.mean

ps.Store("s").checkpoint("a").train(start(loss_cls=Smooth), loader(), epochs=3, guard="off")
""",
        "bits",
        "it is the module, the loss or the optimizer",
    ),
    "a metric that adds up by itself": (
        """
seen = []

def total(y_pred, y_true):
    seen.append(1)
    return float(len(seen)), 1

ps.Store("s").checkpoint("a").train(start(), loader(), epochs=3, metrics=[total], guard="off")
""",
        "bits",
        "train_total .* in place of .*, of the same state",
    ),
    "the order of a set": (
        """
names = {"one", "two", "three", "four", "five", "six", "seven", "eight"}
weight = torch.tensor([float(len(name)) for name in names])
ps.Store("s").checkpoint("a").train(start(), [(x[i : i + 8] * weight[:, None], y[i : i + 8]) for i in (0, 8, 16)], epochs=3)
""",
        "unstable",
        "undisturbed, train 0 of 'a' asks another question: training data",
    ),
    "a loss that draws from the system": (
        """
import random

class Noisy(nn.CrossEntropyLoss):
    def forward(self, y_pred, y_true):
        return super().forward(y_pred, y_true) * random.SystemRandom().random()

ps.Store("s").checkpoint("a").train(start(loss_cls=Noisy), loader(), epochs=1, guard="off")
""",
        "unstable",
        r"undisturbed, epoch 1 has other bits each time(.|\n)*epoch 1, batch 1 \(step 1\) is the first that gives other bits",
    ),
    "a file that the script writes": (
        """
import os
import re
from pathlib import Path

with Path("runs.txt").open("a") as file:
    file.write("run ")
s0 = start(optimizer_args=dict(lr=0.1 * len(Path("runs.txt").read_text().split())))
ps.Store("s").checkpoint("a").train(s0, loader(), epochs=3)
""",
        "unstable",
        "asks another question: optimizer lr was 0.1, now 0.2",
    ),
    "a script that begins by removing what it trained": (
        """
store = ps.Store("s")
if store.checkpoints():
    store.delete("a")
store.checkpoint("a").train(start(), loader(), epochs=3)
""",
        "anew",
        "began anew",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_found(name, tmp_path, monkeypatch):
    body, kind, says = PLANTED[name]
    monkeypatch.chdir(tmp_path)
    report = ps.verify_resume(script(tmp_path, body), n=2, seed=4)
    assert kind in {cut.kind for cut in report.cuts}, str(report)
    assert re.search(says, str(report)), str(report)


@pytest.mark.slow
def test_the_example_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ps.verify_resume(ROOT / "examples/digits.py", n=3, args=["--store", "kept"]).check()
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_model_that_holds_its_state_resumes(tmp_path, monkeypatch):
    """The stateful face keeps its store, and TensorBoard's files, in folders that it names itself."""
    monkeypatch.chdir(tmp_path)
    path = script(
        tmp_path,
        """
from purestate import train

model = train.Model("m", nn.Linear(3, 2))
with model.checkpoint(1) as cp:
    cp.setup(loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
    cp.train(loader(), val, epochs=3)
""",
    )
    report = ps.verify_resume(path, n=2)
    assert report.ok, str(report)
    assert os.listdir(tmp_path) == ["train.py"]


def test_a_script_that_fails_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "fails.py"
    path.write_text("import sys\nprint('so far')\nraise ValueError(sys.argv[1:])\n")
    with pytest.raises(ScriptError, match=r"fails\.py fails without being disturbed: ValueError: \['--fast'\]") as caught:
        ps.verify_resume(path, args=["--fast"])
    assert caught.value.output.startswith("so far\nTraceback")
    assert 'fails.py", line 3, in <module>' in str(caught.value)


def test_what_keeps_nothing_on_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScriptError, match=r"purestate\.run\._store:_Store\.check trains nothing in a ps\.Store"):
        ps.verify_resume(ps.Store.check)  # a function that takes a store


def test_a_run_that_takes_too_long_is_ended(tmp_path):
    path = tmp_path / "waits.py"
    path.write_text("import time\nwhile True:\n    time.sleep(1)\n")
    with pytest.raises(ScriptError, match=r"waits\.py did not end within 0\.1 s"):
        ps.verify_resume(path, timeout=0.1)


def test_what_cannot_be_run_is_refused():
    with pytest.raises(ScriptError, match=r"there is no script 'nowhere\.py' in '/"):
        ps.verify_resume("nowhere.py")
    with pytest.raises(ScriptError, match="<lambda> cannot be imported in another process"):
        ps.verify_resume(lambda store: None)
    with pytest.raises(SetupError, match="expected n to be a whole number from 1 on, got 0"):
        ps.verify_resume("train.py", n=0)
    with pytest.raises(SetupError, match="is a function and takes no args, got \\['-v'\\]"):
        ps.verify_resume("package.module:train", args=["-v"])


def test_a_script_that_verifies_itself_is_stopped(monkeypatch):
    monkeypatch.setattr(_placed, "_moved", [lambda path: path])  # as in a process that it started
    with pytest.raises(ScriptError, match=r"test_verify\.py verifies itself, without end"):
        ps.verify_resume(__file__)
