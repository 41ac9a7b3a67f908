from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from purestate.errors import MetricError, MissingExtraError
from purestate.train import _tensorboard
from purestate.train._tensorboard import Scalars, available, remove, require, rewrite, write_graph
from tests.helpers import ConvNet, Linear, Mlp, assert_trees_identical, build

EPOCHS = [
    (0, {"val_loss": 2.5, "val_accuracy": 0.125}, [0.5]),
    (1, {"train_loss": 2.0, "train_accuracy": 0.25, "val_loss": 1.5, "val_accuracy": 0.5}, [0.5]),
    (2, {"train_loss": 1.0, "train_accuracy": 0.75, "val_loss": 0.5, "val_accuracy": 0.875}, [0.25]),
]


def read(folder: Path):
    """Read a run as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    run = read(folder)
    return {tag: [(event.step, event.value) for event in run.Scalars(tag)] for tag in run.Tags()["scalars"]}


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_train_and_val_share_a_tag(tmp_path):
    with Scalars(tmp_path / "runs" / "a") as writer:
        for epoch in EPOCHS:
            writer.add(*epoch)
    assert scalars(tmp_path / "runs/a/train") == {
        "loss": [(1, 2.0), (2, 1.0)],
        "accuracy": [(1, 0.25), (2, 0.75)],
        "lr": [(0, 0.5), (1, 0.5), (2, 0.25)],
    }
    assert scalars(tmp_path / "runs/a/val") == {
        "loss": [(0, 2.5), (1, 1.5), (2, 0.5)],
        "accuracy": [(0, 0.125), (1, 0.5), (2, 0.875)],
    }


def test_an_epoch_is_there_as_soon_as_it_was_added(tmp_path):
    with Scalars(tmp_path) as writer:
        writer.add(*EPOCHS[1])
        watching = read(tmp_path / "val")
        assert [event.step for event in watching.Scalars("loss")] == [1]
        writer.add(*EPOCHS[2])
        assert [event.step for event in watching.Reload().Scalars("loss")] == [1, 2]


def test_several_groups_have_a_rate_each(tmp_path):
    with Scalars(tmp_path) as writer:
        writer.add(1, {}, [0.5, 0.25])
    assert scalars(tmp_path / "train") == {"lr/0": [(1, 0.5)], "lr/1": [(1, 0.25)]}
    assert not (tmp_path / "val").exists()


def test_nothing_is_there_before_a_value_is(tmp_path):
    Scalars(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_is_written(tmp_path):
    with Scalars(tmp_path) as writer:
        writer.add(1, {"train_loss": math.nan, "val_loss": math.inf}, [])
    assert math.isnan(scalars(tmp_path / "train")["loss"][0][1])
    assert scalars(tmp_path / "val") == {"loss": [(1, math.inf)]}


@pytest.mark.parametrize("name", ["loss", "test_loss", "train", "val_", ""])
def test_a_metric_without_a_phase_is_refused_and_nothing_written(tmp_path, name):
    with Scalars(tmp_path) as writer, pytest.raises(MetricError, match=rf"train_<name> or val_<name>, got '{name}'\.$"):
        writer.add(1, {"train_loss": 1.0, name: 2.0}, [0.1])
    assert files(tmp_path) == []


def test_a_training_that_goes_on_adds_files_that_are_read_in_order(tmp_path):
    for epoch in EPOCHS:
        with Scalars(tmp_path) as writer:
            writer.add(*epoch)
    assert len(files(tmp_path / "val")) == 3
    assert scalars(tmp_path / "val")["loss"] == [(0, 2.5), (1, 1.5), (2, 0.5)]


def test_no_thread_is_started(tmp_path):
    """A process with threads must not fork, and loaders fork their workers."""
    import threading

    before = threading.active_count()
    with Scalars(tmp_path) as writer:
        writer.add(*EPOCHS[1])
        assert threading.active_count() == before


def test_rewriting_replaces_values_keeps_what_is_not_tensorboards_and_goes_on(tmp_path):
    with Scalars(tmp_path) as writer:
        writer.add(7, {"train_loss": 9.0, "train_old": 1.0, "val_loss": 9.0}, [0.5])
    assert write_graph(tmp_path, build(Linear), torch.zeros(1, 3)) is None
    (tmp_path / "train" / "notes.txt").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with rewrite(tmp_path, EPOCHS[:2]) as writer:
        writer.add(*EPOCHS[2])
    with Scalars(tmp_path / "expected") as writer:
        for epoch in EPOCHS:
            writer.add(*epoch)
    for phase in ("train", "val"):
        assert scalars(tmp_path / phase) == scalars(tmp_path / "expected" / phase)
    assert read(tmp_path).Graph().node
    assert (tmp_path / "train" / "notes.txt").read_text() == (tmp_path / "notes.txt").read_text() == "mine"


def test_a_rewrite_that_fails_leaves_no_file_open(tmp_path):
    with pytest.raises(MetricError):
        rewrite(tmp_path, [EPOCHS[0], (1, {"loss": 1.0}, [])])


def test_removing_leaves_what_is_not_tensorboards(tmp_path):
    folder = tmp_path / "runs" / "a"
    rewrite(folder, EPOCHS).close()
    write_graph(folder, build(Linear), torch.zeros(1, 3))
    (folder / "val" / "mine").write_text("")
    remove(folder)
    assert files(folder) == ["val/mine"]
    (folder / "val" / "mine").unlink()
    remove(folder)
    assert list((tmp_path / "runs").iterdir()) == []
    remove(folder)


def names(folder: Path) -> list[str]:
    return [node.name for node in read(folder).Graph().node]


def test_the_graph_names_the_layers(tmp_path):
    assert write_graph(tmp_path, build(Mlp), torch.zeros(4, 3)) is None
    assert {"Mlp/Sequential[net]/Linear[0]/weight", "Mlp/Sequential[net]/Linear[3]/weight"} <= {
        name.rpartition("/")[0] for name in names(tmp_path)
    }


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, mask, x):
        return {"logits": self.fc(x) * mask}


class Pair(nn.Module):
    def forward(self, a, b):
        return a + b


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (nn.Linear(3, 2), torch.zeros(4, 3)),
        (nn.Linear(3, 2), (torch.zeros(4, 3), torch.zeros(4))),
        (nn.Linear(3, 2), [torch.zeros(4, 3), torch.zeros(4)]),
        (Pair(), (torch.zeros(4), torch.zeros(4), torch.zeros(1))),
        (Keywords(), {"x": torch.zeros(4, 3), "mask": torch.ones(4, 1)}),
        (nn.LSTM(3, 2), torch.zeros(5, 4, 3)),
        (nn.TransformerEncoderLayer(4, 2, batch_first=True), torch.zeros(2, 5, 4)),
    ],
    ids=["tensor", "tuple", "list", "two inputs", "keywords", "LSTM", "transformer"],
)
@pytest.mark.moves_generators  # building the modules
def test_examples_are_batches(tmp_path, module, example):
    assert write_graph(tmp_path, module, example) is None
    assert names(tmp_path)


class Restless(nn.Module):
    """Moves whatever it can reach: generators, a buffer, its input."""

    def __init__(self):
        super().__init__()
        self.fc, self.dropout = nn.Linear(3, 2), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        import random

        import numpy as np

        self.calls += 1
        random.random(), np.random.rand()
        x += torch.rand(3) + torch.rand(3, generator=self.generator)
        return self.dropout(self.fc(x))


@pytest.mark.parametrize("cls", [Restless, ConvNet])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_module_moves(tmp_path, cls, training):
    """That the global generators do not is seen by the guard of ``conftest.py``."""
    module = build(cls).train(training)
    example = torch.zeros(4, 3) if cls is Restless else torch.zeros(4, 1, 4, 4)
    before, given = copy.deepcopy(module), example.clone()
    assert write_graph(tmp_path, module, example) is None
    assert_trees_identical(dict(module.state_dict()), dict(before.state_dict()))
    assert_trees_identical(example, given)
    assert [m.training for m in module.modules()] == [m.training for m in before.modules()]
    assert all(param.grad is None for param in module.parameters())
    if cls is Restless:
        assert_trees_identical(module.generator.get_state(), before.generator.get_state())


def test_the_graph_is_that_of_evaluation(tmp_path):
    class Phase(nn.Module):
        def forward(self, x):
            return x.sin() if self.training else x.cos()

    assert write_graph(tmp_path, Phase().train(), torch.zeros(1)) is None
    assert {node.op for node in read(tmp_path).Graph().node} >= {"aten::cos"}


class Wordy(nn.Module):
    def forward(self, x):
        print("a\nb")
        raise KeyError("no such\nword")


class Silent(nn.Module):
    def forward(self, x):
        raise NotImplementedError


class Text(nn.Module):
    def forward(self, x):
        return "text"


class Uncopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.file = open(os.devnull)

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Wordy, r"Wordy has no graph: KeyError: 'no such\nword'"),
        (Silent, "Silent has no graph: NotImplementedError"),
        (Text, "Text has no graph: RuntimeError: "),
        (Uncopied, "Uncopied has no graph: TypeError: cannot pickle"),
    ],
)
def test_what_cannot_be_traced_is_told_and_an_earlier_graph_stays(tmp_path, cls, reason):
    write_graph(tmp_path, nn.Identity(), torch.zeros(1))
    before = files(tmp_path)
    module = cls()
    told = write_graph(tmp_path, module, torch.zeros(1))
    assert told is not None
    assert told.startswith(reason)
    assert "\n" not in told
    assert files(tmp_path) == before
    if cls is Uncopied:
        module.file.close()


def test_another_graph_replaces_the_first_and_scalars_stay(tmp_path):
    rewrite(tmp_path, EPOCHS).close()
    write_graph(tmp_path, build(Linear), torch.zeros(1, 3))
    write_graph(tmp_path, nn.Identity(), torch.zeros(1, 3))
    assert len([name for name in files(tmp_path) if "/" not in name]) == 1
    assert not any("Linear" in name for name in names(tmp_path))
    assert scalars(tmp_path / "val")["loss"] == [(0, 2.5), (1, 1.5), (2, 0.5)]


@pytest.fixture
def missing(monkeypatch):
    """TensorBoard is not installed: the import system finds no such package."""
    monkeypatch.setattr(_tensorboard, "find_spec", lambda name: None if name == "tensorboard" else pytest.fail(name))


@pytest.mark.usefixtures("missing")
def test_without_tensorboard_the_error_says_how_to_get_it(tmp_path):
    assert not available()
    calls = [require, lambda: Scalars(tmp_path), lambda: rewrite(tmp_path, []), lambda: write_graph(tmp_path, nn.Identity(), 0)]
    for call in calls:
        with pytest.raises(
            MissingExtraError, match=r"(?s)'tensorboard', and it is not installed.*purestate\[tensorboard\]"
        ) as caught:
            call()
        assert caught.value.extra == "tensorboard"
    remove(tmp_path)


def test_tensorboard_is_imported_with_the_first_value_and_torchs_part_with_the_graph(tmp_path):
    code = f"""
import sys
from pathlib import Path
from purestate.train._tensorboard import Scalars, available, write_graph
import torch
def loaded(): return [name in sys.modules for name in ("tensorboard", "torch.utils.tensorboard", "torch._dynamo")]
assert available()
with Scalars(Path({str(tmp_path)!r})) as scalars:
    print(*loaded())
    scalars.add(1, {{"val_loss": 1.0}}, [])
    print(*loaded())
write_graph(Path({str(tmp_path)!r}), torch.nn.Identity(), torch.zeros(1))
print(*loaded())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["False False False", "True False False", "True True False"]
    assert ran.stderr == ""
