"""Blocks: run again, run on, refused; ids and places; what is printed, returned and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import purestate as ps
from purestate import train
from purestate.errors import (
    InvalidIdError,
    MetricError,
    MissingSnapshotError,
    MutatedStateError,
    SetupError,
    StaleRecordError,
    StateError,
    StoreLockedError,
    TreeMismatchError,
)
from purestate.store._locks import FileLock
from tests.helpers import Linear, Mlp, batch, build
from tests.train.test_tensorboard import files, scalars
from tests.train.tiny import ASK, SETUP, block, built, folders, model, records, train_dl, val_dl

SGD: dict[str, Any] = dict(optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.01), clear_epoch_scheduler=True)


@pytest.fixture
def store() -> ps.MemoryStore:
    return ps.MemoryStore()


def three_blocks(m: train.Model) -> list[str]:
    """Blocks 1, 2 and 3, each behind the one before. Returns the hashes of their ends."""
    hashes = []
    for id in (1, 2, 3):
        block(m, id, setup={1: SETUP, 2: SGD, 3: {}}[id], epochs=1)
        hashes.append(m.state.hash)
    return hashes


# ---------------------------------------------------------------- cells that are run again


@pytest.mark.parametrize("order", [[1, 2, 3], [1, 1, 1], [3, 3], [2, 3], [1, 2, 1, 2, 3]], ids=str)
def test_cells_are_run_again_in_one_process(store, order):
    m = model(store=store)
    hashes, count = three_blocks(m), records(m)
    for id in order:
        block(m, id, setup={1: SETUP, 2: SGD, 3: {}}[id], epochs=1)
        assert m.state.hash == hashes[id - 1]
    assert records(m) == count


def test_cells_are_run_again_in_another_process(store):
    m = model(store=store)
    hashes, count = three_blocks(m), records(m)
    again = model(store=store)
    assert three_blocks(again) == hashes
    block(again, 2, setup=SGD, epochs=1)
    assert again.state.hash == hashes[1]
    assert records(again) == count


def test_a_block_that_follows_another_than_it_did_is_refused_by_name(store):
    three_blocks(model(store=store))
    again = model(store=store)
    block(again, 1, epochs=1)
    here = again.state
    with pytest.raises(StaleRecordError, match="checkpoint 3 of model 'net' began from net--0002 train 0") as refused:
        block(again, 3, setup=None, epochs=1)
    assert "the model is at net--0001 train 0" in refused.value.problem
    assert refused.value.checkpoint == "net--0003"
    assert again.state is here
    block(again, 2, setup=SGD, epochs=1)  # and the model can be used as before
    again.state = ps.init(build(Mlp, 7), seed=7)
    with pytest.raises(StaleRecordError, match="the model is at a state of no checkpoint"):
        block(again, 1, epochs=1)


def test_a_cell_is_run_again_after_training_without_a_log(store):
    m = model(store=store)
    block(m)
    held, count = m.state, records(m)
    m.train(train_dl(), val_dl(), load_best=False, epochs=1)
    m.setup(**SGD)
    m.train(train_dl(), val_dl(), load_best=False, epochs=1)
    assert m.epoch == 4
    block(m)
    assert m.state == held
    assert records(m) == count
    m.train(train_dl(), load_best=False, epochs=1)
    m.delete_checkpoint(1)
    assert m.epoch == 3  # the model was not at its end
    block(m)
    assert m.state == held


def test_a_block_of_another_model_is_not_taken_for_it(store):
    one, two = model("one", store=store), model("two", store=store)
    block(one)
    block(two)
    assert one.state != two.state
    assert [info.id for info in one.checkpoints()] == ["one--0001"]


def test_a_changed_setup_is_refused_and_the_cell_can_be_mended(store):
    m = model(store=store)
    first = block(m)
    held = m.state
    with pytest.raises(StaleRecordError, match=r"optimizer lr was 0\.05 when this was recorded, now 0\.5") as refused:
        block(m, setup={**SETUP, "optimizer_args": dict(lr=0.5)})
    assert "cp.reset(0)" in str(refused.value)
    block(m)  # the change is undone
    assert m.state == held
    first.reset()
    block(m, setup={**SETUP, "optimizer_args": dict(lr=0.5)})
    assert m.state != held
    m.checkpoint(1).accept()
    mended = m.state
    block(m, setup={**SETUP, "optimizer_args": dict(lr=0.25)})  # said to be the same
    assert m.state == mended


def test_fewer_trains_than_recorded_give_the_state_after_the_last_one_asked(store):
    m = model(store=store)
    block(m, trains=1)
    after_one = m.state
    block(m, trains=2)
    after_two, count = m.state, records(m)
    assert after_two != after_one
    again = model(store=store)
    cp = block(again, trains=1)
    assert again.state == after_one
    # and what is asked about the checkpoint afterwards is about that, too
    assert (
        cp.evaluate(val_dl())
        == again.evaluate(val_dl())
        != ps.NullStore().checkpoint("x", echo=None).evaluate(after_two, val_dl())
    )
    again.load_checkpoint(1)
    assert again.state == after_one
    block(again, trains=2)
    again.load_checkpoint(1)
    assert again.state == after_two
    assert records(again, kind="train") == 2
    assert records(again) == count + 1  # the evaluation


def test_fewer_epochs_and_more_again(store):
    m = model(store=store)
    ask = dict(load_best=False)
    block(m, epochs=3, **ask)
    after_three = m.state
    block(m, epochs=1, **ask)
    after_one = m.state
    assert m.epoch == 1
    assert after_one != after_three
    again = model(store=store)
    block(again, epochs=3, **ask)
    assert again.state == after_three
    block(again, 2, setup=None, epochs=1)
    again.load_checkpoint(1)  # the block asked for three, although one epoch was asked for last in another process
    assert again.state == after_three


def test_an_exception_in_the_middle_of_a_block(store):
    undisturbed = model(store=ps.MemoryStore(), module=build(Mlp, 0))
    block(undisturbed, trains=2)
    m = model(store=store, module=build(Mlp, 0))

    def cell(fails: bool) -> None:
        with m.checkpoint(1) as cp:
            cp.setup(**SETUP)
            cp.train(train_dl(), val_dl(), **ASK)
            if fails:
                raise ZeroDivisionError
            cp.train(train_dl(), val_dl(), **ASK)

    with pytest.raises(ZeroDivisionError):
        cell(fails=True)
    assert records(m, 1, "done") == 1
    cell(fails=False)
    assert m.state == undisturbed.state
    assert records(m, 1, "train") == 2


def fails_after_setup(m: train.Model, id: int, setup: dict[str, Any]) -> None:
    with m.checkpoint(id) as cp:
        cp.setup(**setup)
        raise ZeroDivisionError


@pytest.mark.parametrize("id", [1, 2])
def test_what_a_failed_cell_set_up_does_not_stay(store, id):
    without = {name: value for name, value in SETUP.items() if "scheduler" not in name}
    undisturbed = model(store=ps.MemoryStore(), module=build(Mlp, 0))
    m = model(store=store, module=build(Mlp, 0))
    for each in (undisturbed, m):
        if id == 2:
            block(each, 1, setup=without)
        if each is m:
            with pytest.raises(ZeroDivisionError):
                fails_after_setup(m, id, SETUP)
            with pytest.raises(MetricError, match="watch='accuracy' is not computed"):
                block(m, id, metrics=[])
        block(each, id, setup=without)
    assert m.state == undisturbed.state
    again = model(store=store)
    block(again, 1, setup=without)
    assert id == 2 or again.state == m.state


def test_loading_drops_what_a_failed_cell_set_up(store):
    m = model(store=store)
    block(m, 1)
    end = m.state
    with pytest.raises(ZeroDivisionError):
        fails_after_setup(m, 2, SGD)
    m.load_checkpoint(1)
    assert m.state == end
    assert m.state.recipe is not None
    assert m.state.recipe.optimizer is not None
    assert m.state.recipe.optimizer.cls is torch.optim.Adam


class Interrupting(Dataset[Any]):
    """Samples that raise once, after a number of reads. What is asked for is the samples."""

    def __init__(self, reads: int | None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.x, self.y = batch(16)
        self.reads, self.error = reads, error

    def __purestate_fingerprint__(self) -> Any:
        return [self.x, self.y]

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> Any:
        if self.reads is not None:
            self.reads -= 1
            if self.reads < 0:
                self.reads = None
                raise self.error
        return self.x[i], self.y[i]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_ctrl_c_in_the_third_epoch_keeps_two(store, error, capsys):
    def cell(m: train.Model, data: Dataset[Any]) -> Any:
        with m.checkpoint(1) as cp:
            cp.setup(**SETUP)
            return cp.train(DataLoader(data, batch_size=4, shuffle=True), val_dl(), **{**ASK, "epochs": 4})

    undisturbed = model(store=ps.MemoryStore(), module=build(Mlp, 0))
    history = cell(undisturbed, Interrupting(None))
    m = model(store=store, module=build(Mlp, 0))
    data = Interrupting(2 * 16 + 5, error)  # a probe may read some
    with pytest.raises(error):
        cell(m, data)
    assert data.reads is None
    finished = records(m, 1, "epoch") - 1  # one is the evaluation before the first
    assert 1 <= finished <= 2
    capsys.readouterr()
    resumed = cell(m, data)
    assert resumed["log"] == history["log"] == capsys.readouterr().out.splitlines()
    assert resumed["val_loss"] == history["val_loss"]
    assert m.state == undisturbed.state
    assert records(m, 1, "epoch") == 1 + 4
    again = model(store=store)
    assert cell(again, data)["log"] == history["log"]
    assert again.state == m.state


def test_ctrl_c_from_a_metric(store):
    pressed: list[int] = []

    class Pressing:
        def __purestate_fingerprint__(self) -> Any:
            return "sum of squares"

        def __call__(self, y_pred: Any, y_true: Any) -> Any:
            pressed.append(1)
            if len(pressed) == 12:
                raise KeyboardInterrupt
            return (y_pred**2).sum()

    square = train.metric("square", higher_is_better=False)(Pressing())
    m = model(store=store)
    with pytest.raises(KeyboardInterrupt):
        block(m, watch="square", metrics=[square], epochs=5, guard="off")  # which would refuse the metric's count
    assert len(pressed) == 12
    count = records(m, 1, "epoch")
    block(m, watch="square", metrics=[square], epochs=5, guard="off")
    assert m.epoch == 5
    assert 1 < count < records(m, 1, "epoch") == 6


# ---------------------------------------------------------------- deleting


def test_a_deleted_checkpoint_is_trained_again_from_its_first_input(store, capsys):
    m = model(store=store)
    begin = m.state
    hashes = three_blocks(m)
    capsys.readouterr()
    m.delete_checkpoint(3)
    assert "Deleted checkpoint 3 of net. The model is where it was before it." in capsys.readouterr().out
    assert m.state.hash == hashes[1]
    m.delete_checkpoint(1)
    assert capsys.readouterr().out == "Deleted checkpoint 1 of net.\n"
    assert m.state.hash == hashes[1]
    m.delete_checkpoint(1)
    assert capsys.readouterr().out == "net has no checkpoint 1 to delete.\n"
    with m.checkpoint(1) as cp:  # although the model is at the end of 2
        assert m.state == begin
        cp.setup(**SETUP)
        cp.train(train_dl(), val_dl(), **{**ASK, "epochs": 1})
    assert m.state.hash == hashes[0]
    assert three_blocks(m) == hashes


def test_a_cell_is_known_past_a_checkpoint_that_was_deleted(store):
    m = model(store=store)
    hashes = three_blocks(m)
    m.delete_checkpoint(2)
    block(m, 1, epochs=1)  # the model is at the end of 3, which came from 2, which came from 1
    assert m.state.hash == hashes[0]
    assert three_blocks(m) == hashes


def test_a_deleted_checkpoint_is_trained_again_in_another_process(store):
    hashes = three_blocks(model(store=store))
    m = model(store=store)
    begin = m.state
    m.load_checkpoint(1)
    m.delete_checkpoint(1)
    assert m.state == begin
    assert m.state.recipe is not None
    assert m.state.recipe.optimizer is None  # what the block had set up is not there before it
    assert three_blocks(m) == hashes


def test_a_deleted_checkpoint_that_ends_otherwise_does_not_pass_for_what_the_next_one_began_from(store):
    m = model(store=store)
    three_blocks(m)
    m.delete_checkpoint(1)
    block(m, 1, setup={**SETUP, "optimizer_args": dict(lr=0.5)}, epochs=1)
    with pytest.raises(StaleRecordError, match="checkpoint 2 of model 'net' began from net--0001 train 0"):
        block(m, 2, setup=SGD, epochs=1)


def test_a_deleted_model_begins_anew(store, capsys):
    m = model(store=store)
    begin, hashes = m.state, three_blocks(m)
    capsys.readouterr()
    m.delete()
    assert capsys.readouterr().out == "Deleted model 'net' and 3 checkpoints.\n"
    assert store.checkpoints() == []
    assert m.state == begin
    assert three_blocks(m) == hashes
    assert model(store=store).state == begin  # it has its root again
    m.delete()
    other = model(store=store)
    assert other.state != begin  # the root is gone: other weights


def test_a_model_whose_structure_changed_is_refused_until_it_is_deleted(store):
    block(model(store=store))
    with pytest.raises(TreeMismatchError, match="'net' began with a module of another structure") as refused:
        model(module=built(Mlp, hidden=5), store=store)
    assert "params['net.0.weight'] was float32 (8, 3), now float32 (5, 3)" in refused.value.problem
    with pytest.raises(TreeMismatchError, match=r"params\['fc.weight'\] was not there, now float32 \(2, 3\)"):
        model(module=built(Linear), store=store)
    assert [info.id for info in store.checkpoints()] == ["net", "net--0001"]
    train.delete_model("net", store=store)
    assert store.checkpoints() == []
    model(module=built(Mlp, hidden=5), store=store)


def test_another_seed_is_refused(store):
    model(store=store, seed=1)
    with pytest.raises(StaleRecordError, match="'net' began with seed 1, now 2"):
        model(store=store, seed=2)


# ---------------------------------------------------------------- what does not fit


def test_blocks_do_not_nest_and_ops_belong_in_them(store):
    m = model(store=store)
    with m.checkpoint(1) as cp:
        with pytest.raises(SetupError, match=r"checkpoint 2 was called inside the block of checkpoint 1"), m.checkpoint(2):
            pass
        for call in (m.delete, lambda: m.load_checkpoint(1), lambda: m.delete_checkpoint(1), lambda: m.train(train_dl())):
            with pytest.raises(SetupError, match="was called inside the block of checkpoint 1"):
                call()
        cp.setup(**SETUP)
        with pytest.raises(SetupError, match="setup was called twice in the block of checkpoint 1"):
            cp.setup(**SGD)
        cp.train(train_dl(), val_dl(), **ASK)
    for call in (lambda: cp.train(train_dl(), val_dl()), lambda: cp.setup(**SETUP)):
        with pytest.raises(SetupError, match="checkpoint 1: setup and train belong in a block"):
            call()
    with cp:  # the same object, again
        cp.setup(**SETUP)
        cp.train(train_dl(), val_dl(), **ASK)
    assert records(m, 1, "train") == 1


def test_what_is_missing_is_said_with_the_calls_of_this_face(store):
    m = model(store=store)
    with pytest.raises(SetupError, match="the model has no loss") as missing, m.checkpoint(1) as cp:
        cp.train(train_dl(), val_dl())
    assert "cp.setup(loss_cls=torch.nn.CrossEntropyLoss" in str(missing.value)
    m.setup(**SETUP)
    with pytest.raises(SetupError, match="load_best needs validation, and there is no val_dl") as missing, m.checkpoint(1) as cp:
        cp.train(train_dl())
    assert (
        missing.value.fix == "Give one: cp.train(train_dl, val_dl, ...); or load_best=False, which goes on from the last epoch."
    )
    with pytest.raises(MissingSnapshotError, match="checkpoint 7 of model 'net' has not been trained"):
        m.load_checkpoint(7)
    with pytest.raises(SetupError, match=r"expected a torch\.nn\.Module, got type"):
        train.Model("net", Mlp)
    with pytest.raises(TypeError, match="unexpected keyword argument"), m.checkpoint(1) as cp:
        cp.setup(loss="no", optimizer=torch.optim.Adam)
    with pytest.raises(SetupError, match="expected store to be a Store or a MemoryStore, got str"):
        train.Model("net", built(), store="ckpts")
    with pytest.raises(MetricError, match="plot_metrics expects a column"), m.checkpoint(1) as cp:
        cp.plot_metrics()
    with pytest.raises(SetupError, match="is a module"):
        train(m.state)
    assert records(m, 1) == 0


# ---------------------------------------------------------------- ids and places


@pytest.mark.parametrize(
    ("id", "name"),
    [(1, "0001"), (0, "0000"), (1.5, "0001.5"), (2.0, "0002"), (10000, "10000"), ("warm-up", "warm-up"), ("1", "1")],
)
def test_ids(store, id, name):
    m = model(store=store)
    assert m.checkpoint(id)._log.id == f"net--{name}"
    if type(id) is int:
        assert m.checkpoint(np.int64(id))._log.id == f"net--{name}"


@pytest.mark.parametrize(
    "id", [-1, -0.5, True, None, "", "two words", "a/b", "..", ".hidden", "a--b", float("nan"), float("inf"), 1e-11, (1,)]
)
def test_ids_that_cannot_be(store, id):
    m = model(store=store)
    with pytest.raises(InvalidIdError):
        m.checkpoint(id)


@pytest.mark.parametrize("id", ["", "my model", "a/b", "a--b", "..", ".x", None, 3])
def test_ids_of_models_that_cannot_be(store, id):
    with pytest.raises(InvalidIdError):
        train.Model(id, built(), store=store)


def test_checkpoints_are_listed_by_number(store, capsys):
    m = model(store=store)
    m.setup(**SETUP)
    for id in (10000, "words", 9999, 2, 1.5, 1, 1.25):
        block(m, id, setup=None, epochs=1)
    own = [info.id.removeprefix("net--") for info in m.checkpoints()]
    assert own == ["0001", "0001.25", "0001.5", "0002", "9999", "10000", "words"]
    shown = [line.split()[0] for line in repr(m).splitlines()[3:]]
    assert shown == own


def test_places(root):
    for namespace, separator, folder in ((None, "--", "ckpts"), ("ns", "--", "ckpts/ns"), ("ns", ".", "ckpts/ns")):
        train.set_namespace(namespace)
        train.set_model_checkpoint_sep(separator)
        m = model()
        assert not (root / folder / "checkpoints" / f"net{separator}0001").exists()
        block(m, epochs=1)
        assert (root / folder / "checkpoints" / f"net{separator}0001" / "log.jsonl").exists()
    assert folders(root / "runs" / "ns" / "net") == ["0001"]
    with pytest.raises(InvalidIdError, match="stands between the two in names"):
        m.checkpoint(1.5)
    train.set_root_folder(root / "elsewhere")
    train.set_namespace(None)
    train.set_model_checkpoint_sep("--")
    block(model(), epochs=1)
    assert folders(root / "elsewhere") == ["ckpts", "runs"]
    m.delete()  # where it was made, and only that
    assert not (root / "runs" / "ns" / "net").exists()
    assert folders(root / "runs" / "net") == folders(root / "elsewhere" / "runs" / "net") == ["0001"]


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "items", "checkpoints", "two words"])
def test_namespaces_that_cannot_be(name):
    with pytest.raises(InvalidIdError):
        train.set_namespace(name)


def test_separators_that_cannot_be():
    with pytest.raises(InvalidIdError):
        train.set_model_checkpoint_sep("/")


# ---------------------------------------------------------------- several at a time


def test_two_models_of_one_id_in_one_process(store):
    one, two = model(store=store), model(store=store)
    assert one.state == two.state
    block(one)
    count = records(one)
    block(two)
    assert one.state == two.state
    assert records(one) == count
    block(two, 2, setup=SGD)
    block(one, 2, setup=SGD)
    assert one.state == two.state
    two.delete_checkpoint(2)
    block(one, 2, setup=SGD)
    assert one.state == one.store.load("net--0002")


SLOW = """
import sys, time
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from purestate import train
from tests.helpers import batch
from tests.train.tiny import ASK, model, val_dl

train.set_root_folder(sys.argv[1])


class Waiting(Dataset):
    def __init__(self):
        self.x, self.y = batch(16)

    def __len__(self):
        return 16

    def __getitem__(self, i):
        if in_block:
            print("begun", flush=True)
            while not (Path(sys.argv[1]) / "go on").exists():
                time.sleep(0.01)
        return self.x[i], self.y[i]

    def __purestate_fingerprint__(self):
        return [self.x, self.y]


in_block = False
m = model()
m.load_checkpoint(1)
with m.checkpoint(2) as cp:
    in_block = True
    cp.train(DataLoader(Waiting(), batch_size=8), val_dl(), **{**ASK, "epochs": 1})
"""


def test_while_another_process_trains_one_reads_and_is_told(root, start, monkeypatch):
    hold = FileLock.hold
    monkeypatch.setattr(FileLock, "hold", lambda lock, timeout: hold(lock, 0.5 if timeout == 10 else timeout))  # less patience
    block(model(), 1, epochs=1)
    script = root / "slow.py"
    script.write_text(SLOW)
    with start(script, root) as process:
        while "begun" not in (line := process.stdout.readline()):
            assert line, "the script ended"
        m = model()
        block(m, 1, epochs=1)  # from the log
        assert m.cache(1).evaluate(val_dl())
        with pytest.raises(StoreLockedError, match="'net--0002'"):
            block(m, 2, setup=SGD, epochs=1)
        m.load_checkpoint(1)
        block(m, 3, setup=None, epochs=1)  # another checkpoint can be trained meanwhile
        (root / "go on").touch()
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert [info.id for info in m.checkpoints()] == [f"net--000{i}" for i in (1, 2, 3)]


# ---------------------------------------------------------------- without the log


def test_uncached_ops_record_nothing(store):
    m = model(store=store)
    m.setup(**SETUP)
    begin, count = m.state, len(store.checkpoints())
    curve = m.find_lr(train_dl())
    assert len(curve.rates) == len(curve.losses) == len(train_dl())
    value = m.evaluate(val_dl(), metrics=[train.metric_accuracy])
    assert m.evaluate(val_dl(), loss_cls=nn.MultiMarginLoss)["loss"] != value["loss"]
    assert m.state is begin
    history = m.train(train_dl(), val_dl(), **ASK)
    assert m.epoch == len(history["epoch"]) == 2
    assert m.state != begin
    assert len(store.checkpoints()) == count == 1
    assert records(m) == 2  # the checkpoint and its root


def test_a_block_behind_an_uncached_train_is_answered_in_another_process(store):
    def script(m: train.Model) -> str:
        m.setup(**SETUP)
        m.train(train_dl(), val_dl(), **ASK)
        block(m, 1, setup=None)
        block(m, 1, setup=None)  # and the cell is run again
        return m.state.hash

    m = model(store=store)
    end, count = script(m), records(m)
    again = model(store=store)
    assert script(again) == end
    assert records(again) == count
    third = model(store=store)
    third.load_checkpoint(1)
    assert third.state.hash == end
    block(third, 1, setup=None)  # from its first input, which the record keeps
    assert third.state.hash == end
    assert records(third) == count


# ---------------------------------------------------------------- loaded where the block was not run


def make_sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=0.01)


def test_components_are_made_again_from_the_record(store):
    m = model(store=store)
    block(m, 1, setup={**SETUP, "clip_grad_norm": 1.0, "loss_args": dict(label_smoothing=0.1)})
    block(m, 2, setup=None)
    end = m.state
    again = model(store=store)
    again.load_checkpoint(1)
    block(again, 2, setup=None)
    assert again.state == end
    assert again.cache(1).evaluate(val_dl()) == m.cache(1).evaluate(val_dl())
    assert again.cache(1).find_lr(train_dl()) == m.cache(1).find_lr(train_dl())
    assert "Adam(lr=0.05), StepLR(gamma=0.5, step_size=2)" in repr(again.cache(1))


def test_a_function_cannot_be_made_again_and_is_named(store):
    without = {name: value for name, value in SETUP.items() if not name.startswith("optimizer")}
    block(model(store=store), setup={**without, "optimizer_fn": make_sgd})
    again = model(store=store)
    before = again.state
    with pytest.raises(StateError, match="the optimizer of checkpoint 'net--0001' cannot be made again from its record") as lost:
        again.load_checkpoint(1)
    assert "Run the block" in str(lost.value)
    assert again.state is before
    block(again, setup={**without, "optimizer_fn": make_sgd})
    end = again.state
    block(again, 2, setup=SGD)
    again.load_checkpoint(1)
    assert again.state == end


def test_an_edited_cell_is_not_answered_because_its_checkpoint_was_loaded(store):
    block(model(store=store))
    m = model(store=store)
    m.load_checkpoint(1)
    without = {name: value for name, value in SETUP.items() if "scheduler" not in name}
    with pytest.raises(StaleRecordError, match=r"epoch_scheduler was .*StepLR.*now there is none"):
        block(m, setup=without)


def test_a_cell_behind_a_backup_is_run_again(store):
    m = model(store=store)
    wild = dict(epoch_scheduler_cls=torch.optim.lr_scheduler.MultiStepLR, epoch_scheduler_args=dict(milestones=[1], gamma=1e4))
    block(
        m,
        1,
        setup={**SETUP, "optimizer_cls": torch.optim.SGD, "optimizer_args": dict(lr=0.01), **wild},
        load_best=False,
        epochs=3,
        watch="loss",
    )
    last = m.state
    m.load_checkpoint(1, from_backup=True)
    backup = m.state
    assert backup != last
    block(m, 2, setup=SGD)
    end = m.state
    for again in (m, model(store=store)):
        if again is not m:
            again.load_checkpoint(2)
        with again.checkpoint(2) as cp:
            assert again.state.digests["params"] == backup.digests["params"]
            cp.setup(**SGD)
            cp.train(train_dl(), val_dl(), **ASK)
        assert again.state == end


# ---------------------------------------------------------------- printed and returned


def test_printed_lines_are_the_same_from_the_log(store, capsys):
    m = model(store=store)
    capsys.readouterr()
    block(m, trains=2)
    live = capsys.readouterr()
    block(m, trains=2)
    cached = capsys.readouterr()
    assert live == cached
    assert live.err == ""  # no bar where nobody is watching
    lines = live.out.splitlines()
    assert lines[0].startswith("Initial val_loss=0.")
    assert [line[:10] for line in lines if line.startswith("Epoch")] == ["Epoch 1/2:", "Epoch 2/2:"] * 2
    assert lines[1].count(", ") == 3
    assert lines[3].startswith("Best: ")
    block(model(store=store), trains=2)
    assert capsys.readouterr().out.splitlines()[1:] == lines


def test_a_history(store):
    m = model(store=store)
    with m.checkpoint(1) as cp:
        cp.setup(**SETUP)
        first = cp.train(train_dl(), val_dl(), **ASK)
        second = cp.train(train_dl(), val_dl(), **ASK)
    names = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds", "log"]
    assert list(first) == list(second) == names
    assert first["epoch"] + second["epoch"] == cp.history["epoch"] == [1, 2, 3, 4]
    assert first["lr"] == [0.05, 0.05]
    assert second["lr"] == [0.025, 0.025]
    assert all(len(first[name]) == 2 for name in names[:-1])
    assert "val_accuracy" in first._repr_html_()
    assert "log" not in first._repr_html_()
    assert len(cp.plot_metrics().axes) == len(cp.plot_metrics(first).axes) == len(train.plot_metrics(second).axes)


def test_without_validation(store, capsys):
    m = model(store=store)
    capsys.readouterr()
    with m.checkpoint(1) as cp:
        cp.setup(**SETUP)
        history = cp.train(train_dl(), load_best=False, epochs=2)
    assert list(history) == ["epoch", "train_loss", "lr", "seconds", "log"]
    assert capsys.readouterr().out.splitlines() == history["log"]
    assert [line[:22] for line in history["log"]] == ["Epoch 1/2: train_loss=", "Epoch 2/2: train_loss="]
    m.load_checkpoint(1, from_backup=True)
    assert "has no backup" in capsys.readouterr().out


def test_patience(store, capsys):
    m = model(store=store)
    setup = {**SETUP, "optimizer_cls": torch.optim.SGD, "optimizer_args": dict(lr=0.0)}  # nothing ever gets better
    with m.checkpoint(1) as cp:
        cp.setup(**setup)
        history = cp.train(train_dl(), val_dl(), epochs=10, patience=3)
    assert history["epoch"] == [1, 2, 3]
    assert history["log"][-1].startswith("Stopped after 3 epochs. Best: before the first epoch, val_loss=")
    assert history["log"][1].startswith("Epoch 1/10: ")
    block(m, 1, setup=setup, watch="loss", metrics=[], epochs=10, patience=5)  # more patience goes on
    assert m.epoch == 5


def test_warmup(store):
    m = model(store=store)
    setup = {**SETUP, "epoch_scheduler_args": dict(step_size=1, gamma=0.5)}
    with m.checkpoint(1) as cp:
        cp.setup(**setup)
        history = cp.train(train_dl(), val_dl(), **{**ASK, "epochs": 4, "warmup": 2})
    ck = ps.MemoryStore().checkpoint("x", echo=None)
    s0 = ps.setup(model("other", build(Mlp, 1000), store=ps.MemoryStore()).state, **setup)
    s1 = ck.train(s0, train_dl(), val_dl(), **{**ASK, "epochs": 4, "warmup": 2, "load_best": True})
    assert m.state.hash == s1.hash
    assert history["lr"] == ck.last.history["lr"]
    assert history["lr"][-1] < history["lr"][1]


def test_a_step_scheduler_and_warmuplr(store):
    m = model(store=store)
    block(m, setup={**SETUP, "step_scheduler_cls": train.WarmUpLR, "step_scheduler_args": dict(total_iters=6)}, load_best=False)
    end = m.state
    again = model(store=store)
    again.load_checkpoint(1)  # the class is this library's, and made again from the record
    assert again.state == end
    block(
        again,
        setup={
            **SETUP,
            "step_scheduler_fn": None,
            "step_scheduler_cls": train.WarmUpLR,
            "step_scheduler_args": dict(total_iters=6),
        },
        load_best=False,
    )
    assert again.state == end


def test_metrics_of_the_user(store):
    @train.metric("mistakes", higher_is_better=False)
    def mistakes(y_pred: Any, y_true: Any) -> Any:
        return (y_pred.argmax(-1) != y_true).sum()

    m = model(store=store)
    with m.checkpoint(1) as cp:
        cp.setup(**SETUP)
        history = cp.train(train_dl(), val_dl(), watch="mistakes", epochs=3, metrics=[mistakes, train.metric_accuracy])
    for mistaken, right in zip(history["val_mistakes"], history["val_accuracy"], strict=True):
        assert mistaken + right == pytest.approx(1.0)  # two means in floating point
    assert m.evaluate(val_dl(), metrics=[mistakes])["mistakes"] <= min(history["val_mistakes"])


def test_shown(store):
    m = model(store=store)
    assert repr(m).splitlines()[0] == "Model('net')"
    assert "persisted    no" in repr(m.checkpoint(1))
    with m.checkpoint(1, description="a <first> one") as cp:
        cp.setup(**SETUP)
        cp.train(train_dl(), val_dl(), **ASK)
    cp.evaluate(val_dl())
    assert "description  a <first> one" in repr(cp)
    assert "evaluate (1)" in repr(cp)
    assert "a &lt;first&gt; one" in cp._repr_html_()
    assert "a &lt;first&gt; one" in m._repr_html_()
    assert model(store=store).checkpoint(1).description == "a <first> one"


def test_print_params(store, capsys):
    m = model(store=store)
    capsys.readouterr()
    m.print_params()
    full = capsys.readouterr().out
    assert "net.0 (Linear)" in full
    assert full.endswith("Trainable params: 50. Untrainable params: 0. Buffers: 0.\n")
    m.print_params(full=False)
    assert capsys.readouterr().out == "Trainable params: 50. Untrainable params: 0. Buffers: 0.\n"


# ---------------------------------------------------------------- TensorBoard


def test_tensorboard_files_come_and_go(root):
    m = model()
    block(m, 1, trains=2)
    block(m, 2, setup=SGD, epochs=1)
    runs = root / "runs" / "net"
    assert folders(runs) == ["0001", "0002"]
    loss = scalars(runs / "0001" / "val")["loss"]
    assert [step for step, _ in loss] == [0, 1, 2, 3, 4]
    written = [float(np.float32(value)) for value in m.checkpoint(1).history["val_loss"]]
    assert [value for _, value in loss[1:]] == written
    assert [step for step, _ in scalars(runs / "0002" / "train")["lr"]] == [4, 5]  # 4: before its first epoch
    graph = [name for name in files(runs / "0001") if "/" not in name]
    assert len(graph) == 1  # of the model before the first epoch

    before = {name: scalars(runs / name / "val") for name in ("0001", "0002")}
    count = len(files(runs))
    block(m, 1, trains=2)  # from the log: nothing is written
    assert len(files(runs)) == count
    block(m, 1, trains=3)  # goes on in place of what is there
    assert [step for step, _ in scalars(runs / "0001" / "val")["loss"]] == [0, 1, 2, 3, 4, 5, 6]
    assert scalars(runs / "0002" / "val") == before["0002"]

    m.delete_checkpoint(1)
    assert folders(runs) == ["0002"]
    m.delete()
    assert folders(root / "runs") == []


def test_tensorboard_files_are_written_again_from_the_log(root):
    import shutil

    m = model()
    block(m, 1, trains=2)
    runs = root / "runs" / "net"
    before = {phase: scalars(runs / "0001" / phase) for phase in ("train", "val")}
    shutil.rmtree(root / "runs")
    again = model()
    assert again.write_tensorboard(batch(4)) == runs
    assert {phase: scalars(runs / "0001" / phase) for phase in ("train", "val")} == before
    assert len([name for name in files(runs / "0001") if "/" not in name]) == 1


def test_a_run_that_was_killed_is_whole_in_tensorboard(root):
    m = model()
    data = Interrupting(2 * 16 + 5)

    def cell(m: train.Model) -> None:
        with m.checkpoint(1) as cp:
            cp.setup(**SETUP)
            cp.train(DataLoader(data, batch_size=4, shuffle=True), val_dl(), **{**ASK, "epochs": 4})

    with pytest.raises(KeyboardInterrupt):
        cell(m)
    cell(model())
    assert [step for step, _ in scalars(root / "runs" / "net" / "0001" / "val")["loss"]] == [0, 1, 2, 3, 4]


def test_nothing_is_left_that_was_changed_in_place(store):
    m = model(store=store)
    block(m)
    with torch.no_grad():
        m.model.net[0].weight.zero_()
    with pytest.raises(MutatedStateError):
        block(m)


# ---------------------------------------------------------------- in processes of their own

UNSEEDED = """
import json, sys
from pathlib import Path

import torch

from purestate import train
from tests.helpers import Mlp
from tests.train.tiny import ASK, SETUP, train_dl, val_dl

train.set_root_folder(sys.argv[1])
torch.seed()
module = Mlp()
given = module.net[0].weight.sum().item()
model = train.Model("net", module)
if "load" in sys.argv:
    model.load_checkpoint(1)
else:
    with model.checkpoint(1) as cp:
        cp.setup(**SETUP)
        cp.train(train_dl(), val_dl(), **ASK)
print(json.dumps([given, model.state.hash, model.cache(1).evaluate(val_dl())]))
"""


def test_a_script_without_seeds_in_processes_of_its_own(python, tmp_path):
    import json

    script = Path(tmp_path / "script.py")
    script.write_text(UNSEEDED)
    outputs = [python(script, tmp_path / "root", *more).stdout.splitlines()[-1] for more in ([], [], ["load"])]
    first, second, loaded = map(json.loads, outputs)
    assert len({first[0], second[0], loaded[0]}) == 3  # the weights that the module came with
    assert first[1:] == second[1:] == loaded[1:]


# -------------------------------------------------------------------- what is gone or damaged


def test_a_cache_voids_answers_and_never_trains(store):
    m = model(store=store)
    block(m)
    for name in (0, "bogus", "predict"):
        with pytest.raises(SetupError, match="there are those of 'evaluate' and 'find_lr'"):
            m.cache(1).delete(name)
    assert "1 train" in repr(m.cache(1))


def test_a_checkpoint_whose_parent_is_gone_can_be_deleted(store, capsys):
    m = model(store=store)
    block(m)
    block(m, 2)
    again = model(store=store)
    again.load_checkpoint(2)
    again.delete_checkpoint(1)
    again.delete_checkpoint(2)
    assert "What it began from is gone, so the model is where it was at first." in capsys.readouterr().out
    assert again.epoch == 0


def test_what_is_damaged_can_be_deleted(root, capsys):
    m = model()
    block(m)
    log = root / "ckpts/checkpoints/net--0001/log.jsonl"
    log.write_bytes(b"damaged\n" + log.read_bytes())
    again = model()
    again.delete_checkpoint(1)
    assert not log.exists()
    block(again)
    log.write_bytes(b"damaged\n" + log.read_bytes())
    train.delete_model("net")
    assert not log.exists()
    train.delete_model("net")
    assert capsys.readouterr().out.splitlines()[-1] == "There is no model 'net' to delete."


def test_a_tensorboard_that_cannot_be_imported_stops_the_curves_and_not_the_training(python, tmp_path):
    for folder in ("", "compat", "compat/proto"):
        (tmp_path / "tensorboard" / folder).mkdir(exist_ok=True)
        (tmp_path / "tensorboard" / folder / "__init__.py").touch()
    (tmp_path / "tensorboard/compat/proto/event_pb2.py").write_text("raise TypeError('Descriptors cannot be created directly.')")
    script = tmp_path / "script.py"  # the folder of a script is the first where modules are looked for
    script.write_text(
        f"from purestate import train\nfrom tests.train.tiny import *\ntrain.set_root_folder({str(tmp_path)!r})\n"
        "m = model()\nblock(m)\nprint('trained', m.epoch)\n"
    )
    said = python(script).stdout
    assert said.count("cannot be imported: TypeError: Descriptors cannot be created directly.") == 1
    assert said.splitlines()[-1] == "trained 2"


def test_bars_may_be_off(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nos.environ['TQDM_DISABLE'] = '1'\nsys.stderr.isatty = lambda: True\n"
        "from purestate import train\nfrom purestate.run import _progress\nfrom tests.train.tiny import *\n"
        f"_progress._PATIENCE = 0.0\ntrain.set_root_folder({str(tmp_path)!r})\n"
        "m = model()\nblock(m)\nprint('trained', m.epoch)\n"
    )
    assert python(script).stdout.splitlines()[-1] == "trained 2"


def test_there_need_be_no_terminal(store, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    m = model(store=store)
    block(m)
    assert m.epoch == 2
