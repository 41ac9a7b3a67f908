"""An audit in the script's own process: what is equal is said to be, and what was planted is found, and named."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import purestate as ps
from purestate.core._plain import encode
from purestate.errors import AuditError, OfflineError
from purestate.run._again import Step, recompute
from purestate.run._mode import audited_by
from purestate.run._training import Training
from purestate.train import _place
from tests.helpers import assert_trees_identical, batch
from tests.report.planted import rewrite
from tests.run.audited import Drifting, asked, block, files, record, script, trained
from tests.run.tiny import Ask, checkpoint, loader

Bodies = list[tuple[str, dict[str, Any]]]
Plant = Callable[[Bodies], Iterable[tuple[str, dict[str, Any]]] | None]
LOG = "checkpoints/a/log.jsonl"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("recorded") / "store"
    return folder, record(folder)


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURESTATE_MODE", "audit")


def kept_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the files that an audit leaves alone: all but the journal and locks."""
    return {name: found for name, found in files(folder).items() if "journal" not in name and name not in (".", "locks")}


def journal(store: Any) -> list[dict[str, Any]]:
    return [act for act in store._backend.acts() if act["act"] == "audit"]


# -------------------------------------------------------------------- what is equal


def test_every_kind_of_op_is_equal_and_answered_from_the_log(recorded, audit, tmp_path):
    store = ps.Store(shutil.copytree(recorded[0], tmp_path / "store"))
    before = kept_of(tmp_path)
    found = script(store)
    assert found.pop("said") == ["equal"] * 7
    assert_trees_identical(found, {name: recorded[1][name] for name in found})
    assert kept_of(tmp_path) == before
    assert [(act["checkpoint"], act["op"], act["verdict"]) for act in journal(store)] == [
        *(("a", 0, "equal"), ("a", 1, "equal"), ("fork", 0, "equal"), ("a", 2, "equal")),
        *(("a", op, "equal") for op in ("evaluate", "find_lr", "predict")),
    ]
    assert store.check().ok


def test_the_printed_line_says_that_it_was_audited(memory, monkeypatch):
    said: list[str] = []
    ck = memory.checkpoint("a", echo=said.append)
    Ask().of(ck, epochs=1)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    Ask().of(ck, epochs=1)
    assert "| audited: equal |" in said[-1]


def test_the_stateful_face(tmp_path, monkeypatch):
    monkeypatch.setattr(_place, "_place", _place.Place(root=tmp_path))
    first = block(2)
    before = kept_of(tmp_path)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    assert block(2) == first
    assert kept_of(tmp_path) == before
    assert [act["verdict"] for act in journal(ps.Store(tmp_path / "ckpts"))] == ["equal", "equal"]


def test_what_is_never_kept_is_computed_as_always(audit):
    assert checkpoint(ps.NullStore()).evaluate(Ask().state(), loader())["loss"] > 0


def test_nan_is_equal_to_nan(memory, monkeypatch):
    def nans(y_pred: torch.Tensor, y_true: torch.Tensor) -> float:
        return float("nan")

    ck = checkpoint(memory)
    Ask().of(ck, epochs=1, metrics=[nans])
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    Ask().of(ck, epochs=1, metrics=[nans])
    assert ck.last.audit == "equal"


def test_a_finished_train_is_audited_as_far_as_it_is_asked(memory, monkeypatch):
    ck = checkpoint(memory)
    for epochs in (1, 3):
        Ask().of(ck, epochs=epochs)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    watched: list[int] = []
    monkeypatch.setattr(
        "purestate.run._audit.recompute", lambda call, train, last: watched.append(last) or recompute(call, train, last)
    )
    Ask().of(ck, epochs=1)
    Ask().of(ck, epochs=3)
    assert watched == [1, 3]


def test_another_watch_picks_another_epoch_of_the_same_train(memory, monkeypatch):
    ck = checkpoint(memory)
    watches = ("loss", "accuracy")
    for watch in watches:
        asked().of(ck, epochs=4, watch=watch, load_best=True)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    for watch in watches:
        asked().of(ck, epochs=4, watch=watch, load_best=True)
        assert ck.last.audit == "equal"


def test_a_resume_point_is_neither_used_nor_removed(disk, monkeypatch):
    def stop(epoch: ps.EpochView) -> None:
        if epoch.n == 2:
            raise KeyError(epoch.n)

    with pytest.raises(KeyError):
        Ask().of(checkpoint(disk), epochs=4, resume_every="epoch", on_epoch=stop)
    disk.close()
    folder = disk._disk.path
    assert (folder / "checkpoints/a/resume").is_dir()
    before = kept_of(folder)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    with pytest.raises(AuditError, match=r"train 0: was never recorded: train 0 has 2 epochs, and no answer is recorded"):
        Ask().of(checkpoint(disk), epochs=4)
    assert kept_of(folder) == before
    assert [act["verdict"] for act in journal(disk)] == ["unfinished", "unrecorded"]


def test_probed_data_is_unknown_and_not_equal(memory, monkeypatch):
    ask = Ask(train_dl=DataLoader(Unseen(), batch_size=4))
    ck = checkpoint(memory)
    ask.of(ck, epochs=1)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    ask.of(ck, epochs=1)
    assert ck.last.audit == "unknown: the data was only probed: what lies between the samples may differ"


class Unseen(torch.utils.data.Dataset[Any]):
    """Nobody sees its values before they are asked for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        x, y = batch(8)
        return x[i], y[i]


# -------------------------------------------------------------------- what differs


def of(bodies: Bodies, kind: str, n: int | None = None) -> dict[str, Any]:
    return next(body for name, body in bodies if name == kind and (n is None or body["n"] == n))


def epoch_hash(bodies: Bodies) -> None:
    of(bodies, "epoch", 3)["hash"] = "b3:" + "0" * 64


def metric(bodies: Bodies) -> None:
    of(bodies, "epoch", 2)["metrics"]["val_loss"] += 2.0**-52


def sign(bodies: Bodies) -> None:
    of(bodies, "epoch", 1)["metrics"]["train_loss"] = encode(float("nan"))


def rate(bodies: Bodies) -> None:
    of(bodies, "epoch", 1)["lr"] = [0.1]


def answer(bodies: Bodies) -> None:
    of(bodies, "done")["out"]["hash"] = "b3:" + "1" * 64


def best(bodies: Bodies) -> None:
    done = of(bodies, "done")
    done["best"] = done["returned"] = 4


def loss(bodies: Bodies) -> None:
    of(bodies, "evaluate")["answer"]["loss"] = 0.5


def sweep(bodies: Bodies) -> None:
    of(bodies, "find_lr")["answer"][1][2] = 0.5


def outputs(bodies: Bodies) -> None:
    item = of(bodies, "predict")
    item["item"] = of(bodies, "root")["state"]["params"]["item"]


PLANTED: dict[str, tuple[Plant, int | str, int | None, str]] = {
    "state": (epoch_hash, 0, 3, r"train 0, epoch 3: state was recorded as b3:00000000, and computing it again gave b3:\w{8}\."),
    "metric": (metric, 0, 2, r"train 0, epoch 2: val_loss was recorded as 0\.\d+, and computing it again gave 0\.\d+\."),
    "nan": (sign, 0, 1, r"train 0, epoch 1: train_loss was recorded as nan, and computing it again gave 0\.\d+\."),
    "rate": (rate, 0, 1, r"train 0, epoch 1: learning rates\[0\] was recorded as 0\.1, and computing it again gave 0\.05\."),
    "answer": (answer, 0, None, r"train 0, answer for 6 epochs was recorded as b3:11111111, and computing it again gave"),
    "best": (best, 0, None, r"train 0, best epoch for 6 was recorded as 4, and computing it again gave 2\."),
    "evaluate": (loss, "evaluate", None, r"evaluate, loss was recorded as 0\.5, and computing it again gave 0\.\d+\."),
    "find_lr": (sweep, "find_lr", None, r"find_lr, answer\[1\]\[2\] was recorded as 0\.5, and"),
    "predict": (outputs, "predict", None, r"predict, outputs was recorded as \w+"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_was_planted_is_found_and_named(what, recorded, audit, tmp_path):
    plant, op, epoch, says = PLANTED[what]
    folder = shutil.copytree(recorded[0], tmp_path / "store")
    rewrite(folder / LOG, plant)
    before = kept_of(folder)
    with pytest.raises(AuditError, match=f"^checkpoint 'a', {says}") as caught:
        script(ps.Store(folder))
    assert (caught.value.checkpoint, caught.value.op, caught.value.epoch) == ("a", op, epoch)
    assert "It differs though nothing in the envelope does." in str(caught.value)
    assert kept_of(folder) == before
    last = journal(ps.Store(folder))[-1]
    assert (last["op"], last["verdict"]) == (op, "unexplained")
    assert last["finding"] == str(caught.value).splitlines()[0]


def test_the_envelope_explains_a_difference(recorded, audit, tmp_path):
    def elsewhere(bodies: Bodies) -> None:
        metric(bodies)
        of(bodies, "train")["environment"]["threads"] = 64

    folder = shutil.copytree(recorded[0], tmp_path / "store")
    rewrite(folder / LOG, elsewhere)
    with pytest.raises(AuditError, match=r"It differs, and so does the envelope in threads \(64, now 1\)\.") as caught:
        script(ps.Store(folder))
    assert (caught.value.expected == caught.value.actual) is False
    assert journal(ps.Store(folder))[-1]["verdict"] == "expected"


def test_a_record_that_does_not_say_where_it_was_computed_explains_nothing(recorded, audit, tmp_path):
    def silent(bodies: Bodies) -> None:
        loss(bodies)
        del of(bodies, "evaluate")["environment"], of(bodies, "evaluate")["plan"]

    folder = shutil.copytree(recorded[0], tmp_path / "store")
    rewrite(folder / LOG, silent)
    with pytest.raises(AuditError, match=r"It is unknown whether that matters: the record does not say in what environment"):
        script(ps.Store(folder))


def test_data_that_changed_behind_its_fingerprint_is_found_with_its_leaves(memory, monkeypatch):
    trained(memory)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    trained(memory)
    monkeypatch.setattr(Drifting, "offset", 1e-3)
    with pytest.raises(AuditError, match=r"train 0, epoch 1: state was recorded as") as caught:
        trained(memory)
    text = str(caught.value)
    assert "3 of 3 epochs differ." in text
    assert "What differs in the state after epoch" in text
    assert "params['net.0.weight'] float32[8, 3]: 24 elements, by up to" in text


def test_a_traced_train_names_the_leaves_of_the_first_epoch(memory, monkeypatch):
    trained(memory, trace="epoch")
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    monkeypatch.setattr(Drifting, "offset", 1e-3)
    with pytest.raises(AuditError, match=r"What differs in the state after epoch 1:\n  params") as caught:
        trained(memory)
    assert "params['net.0.weight']: b3:" in str(caught.value)


def test_a_trace_that_contradicts_its_hash_names_nothing(disk, monkeypatch):
    Ask().of(checkpoint(disk), epochs=3, trace="epoch", metrics=[])
    disk.close()
    rewrite(disk._disk.path / LOG, epoch_hash)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    with pytest.raises(AuditError, match=r"train 0, epoch 3: state was recorded as b3:00000000"):
        Ask().of(checkpoint(ps.Store(disk._disk.path)), epochs=3, metrics=[])


def test_a_loss_that_is_not_finite_any_more_is_a_difference(memory, monkeypatch):
    trained(memory)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    monkeypatch.setattr(Drifting, "offset", float("inf"))
    with pytest.raises(AuditError, match=r"epoch 1: training loss was recorded as finite, and computing it again gave nan"):
        trained(memory)


def test_the_answer_of_a_stream_is_audited_before_its_first_epoch(memory, monkeypatch):
    trained(memory)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    monkeypatch.setattr(Drifting, "offset", 1e-3)
    ask, seen = Ask(), list[int]()
    data = DataLoader(Drifting(), batch_size=8, shuffle=True)
    with pytest.raises(AuditError):
        seen.extend(epoch.n for epoch in checkpoint(memory).epochs(ask.state(), data, ask.val_dl, epochs=3))
    assert seen == []


def halved(y_pred: torch.Tensor, y_true: torch.Tensor) -> torch.Tensor:
    return (y_pred.sum() * 0.5).detach()


def half(y_pred: torch.Tensor, y_true: torch.Tensor) -> torch.Tensor:
    return y_pred.detach().sum() / 2


def twice(y_pred: torch.Tensor, y_true: torch.Tensor) -> torch.Tensor:
    return y_pred.detach().sum() * 2


@pytest.mark.parametrize(("function", "equal"), [(half, True), (twice, False)])
def test_what_was_accepted_is_held_against_the_record_too(function, equal, memory, monkeypatch):
    ck = checkpoint(memory)
    Ask().of(ck, epochs=1, metrics=[ps.metric("m")(halved)])
    ck.accept(0)
    Ask().of(ck, epochs=1, metrics=[ps.metric("m")(function)])
    assert ck.last.cached
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    if equal:
        Ask().of(ck, epochs=1, metrics=[ps.metric("m")(function)])
        assert ck.last.audit == "equal"
    else:
        with pytest.raises(AuditError, match=r"(train|val)_m was recorded as"):
            Ask().of(ck, epochs=1, metrics=[ps.metric("m")(function)])


# -------------------------------------------------------------------- what was never recorded


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (
            lambda ck: asked(lr=0.1).of(ck, metrics=[]),
            r"train: was never recorded: train 0 is recorded .*lr was 0\.05 .*now 0\.1",
        ),
        (lambda ck: asked(seed=1).of(ck, metrics=[]), "train: was never recorded: train 0 is recorded .*seed .*now 1"),
        (lambda ck: ck.evaluate(Ask().state(), loader(6)), "evaluate: was never recorded: the nearest evaluate"),
        (lambda ck: checkpoint(ps.MemoryStore(), "b").root(Ask().state()), "root: was never recorded: no initial state"),
    ],
)
def test_what_was_never_recorded_is_a_finding(ask, says, recorded, audit, tmp_path):
    store = ps.Store(shutil.copytree(recorded[0], tmp_path / "store"))
    before = kept_of(tmp_path)
    with pytest.raises(AuditError, match=f"(?s){says}"):
        ask(checkpoint(store))
    assert kept_of(tmp_path) == before


def test_an_initializer_of_one_ulp_is_told_as_another_input(memory, monkeypatch):
    ulp = [False]

    class Exact(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            if ulp[0]:
                with torch.no_grad():
                    self.weight[0, 0] = torch.nextafter(self.weight[0, 0], torch.tensor(9.0))

    Ask(module=Exact).of(checkpoint(memory), epochs=1)
    monkeypatch.setenv("PURESTATE_MODE", "audit")
    Ask(module=Exact).of(checkpoint(memory), epochs=1)
    ulp[0] = True
    with pytest.raises(AuditError, match=r"was never recorded: train 0 is recorded for another question"):
        Ask(module=Exact).of(checkpoint(memory), epochs=1)


def test_stores_are_not_written_to(recorded, audit, tmp_path):
    store = ps.Store(shutil.copytree(recorded[0], tmp_path / "store"))
    for act in (store.gc, lambda: checkpoint(store).reset(0), lambda: store.delete("a")):
        with pytest.raises(OfflineError, match="PURESTATE_MODE=audit leaves stores as they are"):
            act()


def test_where_the_journal_cannot_be_written_it_is_said(recorded, audit, tmp_path):
    folder = shutil.copytree(recorded[0], tmp_path / "store")
    rewrite(folder / LOG, metric)
    (folder / "journal.jsonl").unlink()
    (folder / "journal.jsonl").mkdir()
    store = ps.Store(folder)
    ck = checkpoint(store, "fork")
    s0 = ps.Store(recorded[0]).load("a", op=0, like=asked().state())
    with pytest.raises(AuditError, match="This is not in the store's journal: "):
        script(store)
    assert (ck.id, s0.counters.epoch) == ("fork", 4)


# -------------------------------------------------------------------- the way to compute again


class Recomputed:
    """An auditor that goes through epochs of a train, step by step."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self.epochs: dict[int, str] = {}
        self.steps: list[tuple[int, int, str, str]] = []

    def train(self, call: Training, train: Any) -> None:
        for epoch in recompute(call, train, self._last, first=self._first, on_step=self._on_step):
            self.epochs[epoch.n] = epoch.state.hash

    def _on_step(self, step: Step) -> None:
        self.steps.append((step.n, step.batch, step.state.hash, step.data))

    def reader(self, reader: Any, ledger: Any, record: Any) -> None:
        raise AssertionError("nobody asks")

    def missing(self, ledger: Any, op: str, why: str, train: Any) -> Any:
        raise AssertionError("nothing is missing")


def test_epochs_are_computed_again_from_the_nearest_kept_one_step_by_step(disk, monkeypatch):
    monkeypatch.setattr("purestate.run._mode._auditors", [])
    ck = checkpoint(disk)
    hashes = {
        epoch.n: epoch.hash for epoch in ck.epochs(Ask().state(), Ask().train_dl, Ask().val_dl, epochs=6, keep=ps.keep.every(2))
    }
    seen: list[Recomputed] = []
    for first, last, computed in ((0, 2, [0, 1, 2]), (5, 6, [5, 6]), (6, 6, [5, 6]), (1, 1, [0, 1])):
        seen.append(Recomputed(first, last))
        audited_by(seen[-1])
        Ask().of(ck, epochs=6, metrics=[])
        assert seen[-1].epochs == {n: hashes[n] for n in computed}
        assert [(n, i) for n, i, *_ in seen[-1].steps] == [(n, i) for n in computed if n for i in (1, 2)]
    assert seen[1].steps == seen[2].steps
    assert len({state for *_, state, _ in seen[0].steps}) == 4
