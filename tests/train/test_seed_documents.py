"""Every block of the two documents that users of this face come from, with digits in the place of their data.

The calls are as they stand there, but for the import and the numbers of epochs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import purestate as ps
from purestate import train
from purestate.errors import MissingSnapshotError, StaleRecordError
from tests.helpers import assert_trees_identical, build
from tests.train.tiny import built, digits, folders, records

ADAM = dict(
    loss_cls=torch.nn.CrossEntropyLoss,
    optimizer_cls=torch.optim.Adam,
    optimizer_args=dict(lr=5e-3, weight_decay=5e-4),  # ten times the document's: a hundred digits learn something in an epoch
    epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR,
    epoch_scheduler_args=dict(step_size=10, gamma=0.2),
)
SGD = dict(optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.001))
ASK: dict[str, Any] = dict(watch="accuracy", load_best=True, metrics=[train.metric_accuracy])

SCRIPT = """
import json, sys
from pathlib import Path

import torch

from purestate import train
from tests.train.tiny import digits

train.set_root_folder(sys.argv[1])
train_dl, test_dl = digits(Path(sys.argv[2]))


def model_builder():
    return torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 10))


model = train.Model('model-id', model_builder(), 'Model description')

# Train model
with model.checkpoint(id=1) as cp:
    cp.setup(
        loss_cls=torch.nn.CrossEntropyLoss,
        optimizer_cls=torch.optim.Adam,
        optimizer_args=dict(lr=5e-4, weight_decay=5e-4),
        epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR,
        epoch_scheduler_args=dict(step_size=10, gamma=0.2)
    )
    cp.train(train_dl, test_dl, watch='accuracy', load_best=True, epochs=3, metrics=[train.metric_accuracy])
    cp.plot_metrics()
after_1 = model.state.hash

# In preparation for the next training cycle, plot loss vs. learning rate using a different optimizer
curve = model.cache(id=1).find_lr(train_dl, optimizer_cls=torch.optim.SGD)

# Train some more with a different optimizer
with model.checkpoint(2) as cp:
    cp.setup(
        optimizer_cls=torch.optim.SGD,
        optimizer_args=dict(lr=0.001),
        clear_epoch_scheduler=True
    )
    cp.train(train_dl, test_dl, watch='accuracy', load_best=True, epochs=3, metrics=[train.metric_accuracy])
    cp.plot_metrics()
after_2 = model.state.hash

# Rollback to the post-training state of checkpoint 1
model.load_checkpoint(id=1)
rolled_back = model.state.hash

with model.checkpoint(3) as cp:
    cp.train(train_dl, test_dl, watch='accuracy', load_best=True, epochs=4, metrics=[train.metric_accuracy])
    cp.plot_metrics()
after_3 = model.state.hash

# Measure the model's performance
performance = model.cache(3).evaluate(test_dl, metrics=[train.metric_accuracy])

found = dict(
    hashes=[after_1, after_2, rolled_back, after_3],
    losses=curve.losses,
    performance=performance,
    heads=[model.checkpoint(id)._log.head for id in (1, 2, 3)],
    heavy=[name for name in ('orbax', 'jax', 'torch._dynamo', 'tensorboard') if name in sys.modules],
)
print(json.dumps(found))

if 'delete' in sys.argv:
    # Deletes all files asssociated with checkpoint 1
    model.delete_checkpoint(1)

    # Deletes the model and all its checkpoints
    model.delete()
"""


@pytest.fixture
def data(digits_file: Path) -> tuple[Any, Any]:
    return digits(digits_file)


@pytest.fixture
def train_dl(data: tuple[Any, Any]) -> Any:
    return data[0]


@pytest.fixture
def test_dl(data: tuple[Any, Any]) -> Any:
    return data[1]


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


def model_builder() -> nn.Module:
    return built(Net)


@pytest.fixture
def model() -> train.Model:
    return train.Model("model-id", model_builder(), "Model description")


def again() -> train.Model:
    """Return the model as the script makes it when it is run again."""
    return train.Model("model-id", model_builder(), "Model description")


# ---------------------------------------------------------------- synopsis


def test_the_synopsis_in_two_processes(python, tmp_path, digits_file):
    script = tmp_path / "synopsis.py"
    script.write_text(SCRIPT)
    root = tmp_path / "root"
    first = python(script, root, digits_file)
    assert folders(root / "ckpts" / "checkpoints") == ["model-id", *(f"model-id--000{i}" for i in (1, 2, 3))]
    assert folders(root / "runs" / "model-id") == ["0001", "0002", "0003"]
    second = python(script, root, digits_file, "delete")
    *lines, found = first.stdout.splitlines()
    lines_again = second.stdout.splitlines()
    found_again = lines_again[len(lines)]
    assert lines == lines_again[: len(lines)]  # what is printed is the same live and from the log
    assert len([line for line in lines if line.startswith("Epoch ")]) == 3 + 3 + 4
    live, cached = json.loads(found), json.loads(found_again)
    assert "torch._dynamo" in live.pop("heavy")  # the check can see it
    assert cached.pop("heavy") == []  # nothing is computed, nothing is written
    assert live == cached  # states, answers, and no record was added
    after_1, after_2, rolled_back, after_3 = live["hashes"]
    assert rolled_back == after_1
    assert len({after_1, after_2, after_3}) == 3

    assert lines_again[-2:] == ["Deleted checkpoint 1 of model-id.", "Deleted model 'model-id' and 2 checkpoints."]
    assert folders(root / "ckpts" / "checkpoints") == []
    assert folders(root / "runs") == []


# ---------------------------------------------------------------- the training API


def adam_for_20_and_20(model, train_dl, test_dl, trains=2, **setup):
    with model.checkpoint(id=1, description="Adam for 20 + 20 epochs") as cp:
        cp.setup(**{**ADAM, **setup})
        histories = [cp.train(train_dl, test_dl, epochs=2, **ASK) for _ in range(trains)]
        cp.plot_metrics()
    return histories


def test_a_third_train_is_added(model, train_dl, test_dl):
    two = adam_for_20_and_20(model, train_dl, test_dl)
    held, count = model.state, records(model)
    assert model.checkpoint(1).description == "Adam for 20 + 20 epochs"
    assert two[0]["epoch"] == [1, 2]
    assert two[1]["epoch"] == [3, 4]

    model = again()
    assert adam_for_20_and_20(model, train_dl, test_dl) == two
    assert model.state == held
    assert records(model) == count

    model = again()
    three = adam_for_20_and_20(model, train_dl, test_dl, trains=3)
    assert three[:2] == two
    assert three[2]["epoch"] == [5, 6]
    assert records(model, 1, "train") == 3
    assert model.epoch == 6
    assert model.checkpoint(1).history["epoch"] == [1, 2, 3, 4, 5, 6]


def test_sgd_instead_of_adam_is_refused_until_the_checkpoint_is_deleted(model, train_dl, test_dl):
    adam_for_20_and_20(model, train_dl, test_dl)
    with_adam = model.state.hash

    model = again()
    with pytest.raises(
        StaleRecordError, match=r"optimizer class was 'torch\.optim\.adam\.Adam'.* now 'torch\.optim\.sgd\.SGD'"
    ) as refused:
        adam_for_20_and_20(model, train_dl, test_dl, optimizer_cls=torch.optim.SGD)
    assert "model.delete_checkpoint(id)" in str(refused.value)
    assert refused.value.op == 0
    assert refused.value.dependents == (1,)

    model.delete_checkpoint(id=1)
    adam_for_20_and_20(model, train_dl, test_dl, optimizer_cls=torch.optim.SGD)
    assert model.state.hash != with_adam
    assert model.epoch == 4
    held = model.state

    model = again()
    adam_for_20_and_20(model, train_dl, test_dl, optimizer_cls=torch.optim.SGD)
    assert model.state == held


# ---------------------------------------------------------------- the cache API


def test_the_cache_is_filled_fetched_and_emptied(model, train_dl, test_dl):
    train_dataloader, test_dataloader = train_dl, test_dl
    adam_for_20_and_20(model, train_dl, test_dl, trains=1)
    with model.checkpoint(2) as cp:
        cp.train(train_dl, test_dl, epochs=1, **ASK)
    held = model.state

    # Populate the cache
    curve = model.cache(id=1).find_lr(train_dataloader)
    value = model.cache(id=1).evaluate(test_dataloader)
    curve_2 = model.cache(id=2).find_lr(train_dataloader)
    assert curve_2.losses != curve.losses
    assert records(model, 1, "find_lr") == records(model, 1, "evaluate") == records(model, 2, "find_lr") == 1

    # Retrieve from cache
    assert model.cache(id=1).find_lr(train_dataloader) == curve
    assert again().cache(id=1).find_lr(train_dataloader) == curve
    assert records(model, 1, "find_lr") == 1
    assert "find_lr (1)" in repr(model.cache(1))

    # Delete a cache entry
    model.cache(id=1).delete("find_lr")
    assert "cached       evaluate (1)" in repr(model.cache(1))
    assert model.cache(id=1).find_lr(train_dataloader) == curve
    assert records(model, 1, "find_lr") == 2  # it was computed again
    assert model.cache(id=1).evaluate(test_dataloader) == value
    assert records(model, 1, "evaluate") == 1  # and this was not

    # Delete all cache entries
    model.cache(id=1).delete()
    assert "cached       nothing" in repr(model.cache(1))
    assert "find_lr (1)" in repr(model.cache(2))
    assert model.cache(id=1).evaluate(test_dataloader) == value
    assert records(model, 1, "evaluate") == 2

    assert model.state == held
    model.delete_checkpoint(1)
    with pytest.raises(MissingSnapshotError, match="checkpoint 1 of model 'model-id' has not been trained"):
        model.cache(id=1).evaluate(test_dataloader)


def test_a_cache_runs_on_its_own_checkpoint_wherever_the_model_is(model, train_dl, test_dl):
    adam_for_20_and_20(model, train_dl, test_dl, trains=1)
    at_1 = model.evaluate(test_dl, metrics=[train.metric_accuracy])
    with model.checkpoint(2) as cp:
        cp.train(train_dl, test_dl, epochs=1, **ASK)
    assert model.cache(1).evaluate(test_dl, metrics=[train.metric_accuracy]) == at_1
    assert model.cache(2).evaluate(test_dl, metrics=[train.metric_accuracy]) != at_1


def test_a_second_question_gets_its_own_answer(model, train_dl, test_dl):
    adam_for_20_and_20(model, train_dl, test_dl, trains=1)
    assert model.cache(1).evaluate(test_dl) != model.cache(1).evaluate(train_dl)
    assert set(model.cache(1).evaluate(test_dl, metrics=[train.metric_accuracy])) == {"loss", "accuracy"}
    assert set(model.cache(1).evaluate(test_dl)) == {"loss"}
    mean_of_squares = model.cache(1).find_lr(train_dl, max_rate=0.1), model.cache(1).find_lr(train_dl)
    assert mean_of_squares[0].rates != mean_of_squares[1].rates


# ---------------------------------------------------------------- loading


def test_schedulers_are_not_reverted_by_load_best(model, train_dl, test_dl):
    model.setup(**{**ADAM, "epoch_scheduler_args": dict(step_size=1, gamma=0.2), "optimizer_args": dict(lr=0.5)})
    with model.checkpoint(1) as cp:
        first = cp.train(train_dl, test_dl, watch="accuracy", load_best=True, epochs=3, metrics=[train.metric_accuracy])
        best = first["val_accuracy"].index(max(first["val_accuracy"]))
        second = cp.train(train_dl, test_dl, watch="accuracy", load_best=True, epochs=3, metrics=[train.metric_accuracy])
    assert best < 2  # the case that the document is about: a rate of 0.5 is best at first
    assert second["lr"][0] == pytest.approx(0.5 * 0.2**3)  # a rate is multiplied once an epoch, in floating point
    assert second["log"][0] == f"Initial val_loss={first['val_loss'][best]:.4f}, val_accuracy={first['val_accuracy'][best]:.4f}"
    model.load_checkpoint(id=1)
    assert model.epoch == 6


def overtrained(model, train_dl, test_dl):
    """Two checkpoints; in the second the best is not the last."""
    with model.checkpoint(1) as cp:
        cp.setup(**ADAM)
        cp.train(train_dl, test_dl, epochs=1, **ASK)
    with model.checkpoint(id=2, description="Additional 40 epochs") as cp:
        # the rate of 0.001 is good, and one of 100 from the second epoch on is not
        wild = dict(milestones=[1], gamma=1e5)
        cp.setup(**SGD, epoch_scheduler_cls=torch.optim.lr_scheduler.MultiStepLR, epoch_scheduler_args=wild)
        # Because load_best=False, if the best performing model was observed in, let's say, epoch 25/40, two checkpoints are
        # saved: "best" in epoch 25, and "last" in epoch 40.
        history = cp.train(train_dl, test_dl, watch="accuracy", load_best=False, epochs=3, metrics=[train.metric_accuracy])
        cp.plot_metrics()
    return history


def test_a_backup_is_loaded(model, train_dl, test_dl, capsys):
    history = overtrained(model, train_dl, test_dl)
    last = model.state
    accuracies = [float(history["log"][0].rpartition("=")[2]), *history["val_accuracy"]]
    best = accuracies.index(max(accuracies))
    assert best < 3
    assert model.evaluate(test_dl, metrics=[train.metric_accuracy])["accuracy"] == history["val_accuracy"][-1]

    capsys.readouterr()
    model.load_checkpoint(2, from_backup=True)
    assert capsys.readouterr().out.startswith("Loaded model-id from the best epoch of checkpoint 2: epoch=")
    backup = model.state
    assert backup != last
    assert model.epoch == 1 + best
    name = "model-id--0002"
    assert backup == model.store.load(name, best=True)
    with_schedulers = backup.digests["epoch_scheduler"]

    model.load_checkpoint(2)
    assert model.state == last
    model.load_checkpoint(2, from_backup=True, load_schedulers=False)
    assert model.state.digests["params"] == backup.digests["params"]
    assert model.state.digests["epoch_scheduler"] == last.digests["epoch_scheduler"] != with_schedulers

    # both go on, and both are answered when the script is run again
    with model.checkpoint(3) as cp:
        cp.train(train_dl, test_dl, epochs=1, **ASK)
    after, count = model.state, records(model)
    model = again()
    overtrained(model, train_dl, test_dl)
    model.load_checkpoint(2, from_backup=True, load_schedulers=False)
    with model.checkpoint(3) as cp:
        cp.train(train_dl, test_dl, epochs=1, **ASK)
    assert model.state == after
    assert records(model) == count


def test_without_a_backup_it_says_so(model, train_dl, test_dl, capsys):
    adam_for_20_and_20(model, train_dl, test_dl, trains=1)
    held = model.state
    capsys.readouterr()
    model.load_checkpoint(1, from_backup=True)
    assert "has no backup" in capsys.readouterr().out
    assert model.state == held


# ---------------------------------------------------------------- the early document


def test_a_checkpoint_is_asked_outside_of_its_block(model, train_dl, test_dl):
    adam_for_20_and_20(model, train_dl, test_dl, trains=1)
    held = model.state
    curve = model.checkpoint(id=1).find_lr(train_dl)
    value = model.checkpoint(id=1).evaluate(test_dl)
    assert (curve, value) == (model.cache(1).find_lr(train_dl), model.cache(1).evaluate(test_dl))
    # repeated calls get the answers in their order there, and here: by content
    assert [model.checkpoint(id=1).evaluate(loader) for loader in (test_dl, train_dl, test_dl)][::2] == [value, value]
    assert records(model, 1, "evaluate") == 2
    assert model.state == held


def test_managing_checkpoints(model, train_dl, test_dl):
    model.setup(**ADAM)
    with model.checkpoint(1) as cp:
        cp.train(train_dl, test_dl, epochs=1, **ASK)
    after_1 = model.state
    with model.checkpoint(2) as cp:
        cp.train(train_dl, test_dl, epochs=1, **ASK)
    after_2 = model.state
    model.load_checkpoint(id=1)
    assert model.state == after_1
    with model.checkpoint(3) as cp:
        cp.train(train_dl, test_dl, epochs=1, **ASK)
    assert model.state == after_2  # the same work from the same state: a fork that nothing was changed in
    assert [info.id[-4:] for info in model.checkpoints()] == ["0001", "0002", "0003"]
    parents = {info.id[-4:]: info.parent["checkpoint"] for info in model.checkpoints()}
    assert parents == {"0001": "model-id", "0002": "model-id--0001", "0003": "model-id--0001"}
    model.delete_checkpoint(1)
    assert [info.id[-4:] for info in model.checkpoints()] == ["0002", "0003"]
    assert model.state == after_2
    model.delete()
    assert model.checkpoints() == []
    assert model.epoch == 0


def test_a_state_dict_is_a_copy(train_dl, test_dl):
    model1, model2, model3 = (train.Model(f"model{i}", model_builder()) for i in (1, 2, 3))
    for each in (model1, model2, model3):
        each.setup(**ADAM)
    before = model1.state
    model1_state_dict = model1.state_dict()
    model2.load_state_dict(model1_state_dict)
    model1.train(train_dl, test_dl, watch="accuracy", load_best=False, epochs=1, metrics=[train.metric_accuracy])
    model3.load_state_dict(model1_state_dict)
    # there model3 is now as model1 is after training; here what was held is what it was
    assert_trees_identical(model1_state_dict, before.state_dict())
    assert_trees_identical(model2.state_dict(), before.state_dict())
    assert_trees_identical(model3.state_dict(), before.state_dict())
    assert model1.state.digests["params"] != before.digests["params"]
    model3.state = model1.state
    assert model3.state == model1.state


# ---------------------------------------------------------------- the same work, by functions


def test_the_functional_api_gives_the_same_hashes(train_dl, test_dl):
    model = train.Model("model-id", build(Net, 0))
    store = ps.MemoryStore()
    state = ps.setup(ps.init(build(Net, 0), seed=0), **ADAM)
    ask = {**ASK, "epochs": 2}

    with model.checkpoint(1) as cp:
        cp.setup(**ADAM)
        history = cp.train(train_dl, test_dl, **ask)
        cp.train(train_dl, test_dl, **ask)
    ck = store.checkpoint("chain", echo=None)
    s1 = ck.train(state, train_dl, test_dl, **ask)
    assert ck.last.history["val_loss"] == history["val_loss"]
    s2 = ck.train(s1, train_dl, test_dl, **ask)
    assert model.state.hash == s2.hash

    curve = model.cache(1).find_lr(train_dl, optimizer_cls=torch.optim.SGD)
    assert curve == ck.find_lr(s2, train_dl, optimizer_cls=torch.optim.SGD)
    assert model.cache(1).find_lr(train_dl) == ck.find_lr(s2, train_dl)
    metrics = [train.metric_accuracy]
    assert model.cache(1).evaluate(test_dl, metrics=metrics) == ck.evaluate(s2, test_dl, metrics=metrics)

    # two forks from the chain
    hashes = []
    for id, setup in ((2, {**SGD, "clear_epoch_scheduler": True}), (3, {})):
        model.load_checkpoint(1)
        with model.checkpoint(id) as cp:
            cp.setup(**setup)
            cp.train(train_dl, test_dl, **ask)
        fork = store.checkpoint(f"fork-{id}", echo=None)
        hashes.append(fork.train(ps.setup(s2, **setup), train_dl, test_dl, **ask).hash)
        assert model.state.hash == hashes[-1]
    assert hashes[0] != hashes[1]

    # a backup, and on from it
    hot = dict(optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=500.0))
    with model.checkpoint(4) as cp:
        cp.setup(**hot)
        cp.train(train_dl, test_dl, **{**ask, "load_best": False})
    backed = store.checkpoint("backed", echo=None)
    s4 = backed.train(
        ps.setup(model.store.load("model-id--0003", like=s2), **hot), train_dl, test_dl, **{**ask, "load_best": False}
    )
    assert model.state.hash == s4.hash
    model.load_checkpoint(4, from_backup=True)
    s5 = store.load("backed", best=True, like=s4)
    assert model.state.hash == s5.hash != s4.hash
    model.train(train_dl, test_dl, **ask)
    assert model.state.hash == ps.NullStore().checkpoint("x", echo=None).train(s5, train_dl, test_dl, **ask).hash
