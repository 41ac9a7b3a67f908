"""The source text behind a run is shown, and of two runs compared, from what their stores keep."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import purestate as ps
from purestate.cli._group import cli
from purestate.report._code import show_code
from purestate.report._detail import show
from purestate.report._diff import compare
from purestate.report._history import history
from purestate.report._name import RunName
from tests.run.tiny import loader


def networks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            """One of two."""
            return self.fc(x).relu()

    first = Net

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x).tanh()  # the other

    return first, Net


def correct(y_pred, y_true):
    return (y_pred.argmax(1) == y_true).sum()


def helped(y_pred, y_true):
    return correct(y_pred, y_true) * 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunName]:
    """Two runs, whose modules differ in a line, and one that is the first again."""
    folder, names = tmp_path_factory.mktemp("code"), []
    for i, cls in enumerate((*networks(), networks()[0])):
        with ps.Store(folder / str(i)) as store:
            s0 = ps.setup(ps.init(cls, seed=0), loss_cls=nn.CrossEntropyLoss)
            s0 = ps.setup(s0, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
            ck = store.checkpoint("a", echo=None)
            ck.evaluate(ck.train(s0, loader(), epochs=1), loader(), metrics=[helped])
        names.append(RunName(folder / str(i), "a"))
    return names


def test_the_code_of_a_run_is_shown_by_name(runs):
    found = show_code(runs[0])
    names = {one.name.removeprefix("networks."): one.text for one in found.code}
    assert names.keys() == {"Net", "Net.__init__", "Net.forward", "helped", "correct"}
    assert names["Net"] is None
    assert names["Net.forward"] == "def forward(self, x):\n    return self.fc(x).relu()"
    assert names["correct"] == "def correct(y_pred, y_true):\n    return (y_pred.argmax(1) == y_true).sum()"
    assert all(one.kept for one in found.code)
    assert "def forward(self, x):\n    return self.fc(x).relu()\n\n# " in str(found)
    assert {one.name for one in show_code(RunName(runs[0].store, "a", 0)).code} < {one.name for one in found.code}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("forward", ["networks.Net.forward"]), ("help*", ["helped"]), ("*Net.*", ["networks.Net.__init__", "networks.Net.forward"])],
)
def test_a_name_selects(runs, pattern, names):
    assert sorted(one.name for one in show_code(runs[0], pattern).code) == names
    result = CliRunner().invoke(cli, ["show", str(runs[0]), "--code", pattern, "--json"])
    assert sorted(one["name"] for one in json.loads(result.output)["code"]) == names


def test_two_runs_whose_code_differs_say_where(runs):
    found = compare(runs[0], runs[1])
    assert found.log.because == ("code of networks.Net.forward (code)",)
    [one] = found.code
    assert one.name == "networks.Net.forward"
    assert one.diff.splitlines()[-2:] == ["-    return self.fc(x).relu()", "+    return self.fc(x).tanh()"]
    assert one.diff in str(found)
    assert "<pre>--- a: networks.Net.forward" in found.to_html()
    result = CliRunner().invoke(cli, ["diff", str(runs[0]), str(runs[1])])
    assert result.exit_code == 1
    assert one.diff in result.output


def test_runs_of_the_same_code_have_nothing_to_say_of_it(runs):
    found = compare(runs[0], runs[2])
    assert (found.ok, found.code) == (True, ())


def test_what_was_recorded_before_texts_were_kept_says_so(golden):
    found = show_code(golden)
    assert [one.kept for one in found.code] == [False] * len(found.code)
    assert str(found) == "not kept: Net, Net.__init__, Net.forward"


def test_who_recorded_it_is_shown_and_makes_no_difference(runs, golden):
    [train], [reading] = show(runs[0]).trains, show(runs[0]).readings
    assert list(train.provenance) == ["time", "user", "host", "git", "command", "cwd"]
    assert train.provenance["time"] <= train.answers[0].provenance["time"] <= reading.provenance["time"]
    assert f"by {train.provenance['user']} on {train.provenance['host']}" in str(show(runs[0]))
    entries = history(runs[0]).entries
    assert [entry.kind for entry in entries if entry.provenance] == ["checkpoint", "train", "done", "evaluate"]
    assert f"{train.provenance['time']} {train.provenance['user']}@{train.provenance['host']}" in str(history(runs[0]))
    assert show(golden).trains[0].provenance == {}
    found = compare(runs[0], runs[2])
    assert (found.ok, found.log.envelope) == (True, ())
    times = [show(run).trains[0].answers[0].provenance["time"] for run in (runs[0], runs[2])]
    assert [line.split(", ")[1] for line in str(found).splitlines()[:2]] == times
    assert [one["time"] for one in found.recorded] == times
    assert str(compare(golden, golden)).splitlines()[0] == f"a: {golden}"
