"""What the bits of an answer may depend on is recorded with it, and with epochs that were computed elsewhere."""

from __future__ import annotations

import pytest
import torch

import purestate as ps
from purestate.run._envelope import contrast, elsewhere, envelope_of
from purestate.run._environment import environment
from tests.run.tiny import Ask, checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ck() -> ps.Checkpoint:
    ck, ask = checkpoint(), Ask()
    s1 = ask.of(ck)
    ck.evaluate(s1, ask.val_dl)
    ck.predict(s1, ask.val_dl)
    ck.find_lr(s1, ask.train_dl)
    return ck


def said(ck, kind):
    return next(envelope_of(record) for record in ck._ledger.log.records if record.kind == kind)


def test_every_op_that_computes_says_in_what_environment(ck):
    names = (
        "purestate torch numpy python machine system device cpu threads interop_threads deterministic matmul_precision "
        "fp32_precision default_dtype autocast mkl mkldnn"
    ).split()
    assert list(said(ck, "train")) == [*names, "workers"]
    for reader in ("evaluate", "predict", "find_lr"):
        assert list(said(ck, reader))[: len(names)] == names
        assert said(ck, reader)["threads"] == torch.get_num_threads()
    assert [record.kind for record in ck._ledger.log.records if record.kind == "epoch" and envelope_of(record)] == []


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        ("done", {"plan step": "captured", "plan optimizer": "long", "plan world_size": 1}),
        ("find_lr", {"plan step": "captured", "plan optimizer": "long", "plan world_size": 1}),
        ("evaluate", {"plan step": "uncaptured", "plan world_size": 1}),
        ("predict", {"plan step": "uncaptured", "plan world_size": 1}),
    ],
)
def test_what_ran_the_steps_is_said(ck, kind, plan):
    assert {name: value for name, value in said(ck, kind).items() if name.startswith("plan")} == plan


def test_a_step_of_ones_own_and_a_class_as_it_is_are_told_apart():
    class Own(torch.optim.SGD):
        pass

    ask = Ask(options=dict(epochs=2))
    state = ps.setup(ask.state(), optimizer_cls=Own, optimizer_args=dict(lr=0.1), clear_epoch_scheduler=True)
    ck = checkpoint()
    ck.train(state, ask.train_dl, epochs=2)
    assert said(ck, "done")["plan optimizer"] == "class"
    ck = checkpoint()
    fused = dict(lr=0.1, fused=True)
    ck.train(ps.setup(state, optimizer_cls=torch.optim.SGD, optimizer_args=fused), ask.train_dl, epochs=2, guard="always")
    assert (said(ck, "done")["plan step"], said(ck, "done")["plan optimizer"]) == ("uncaptured", "long fused")
    ck = checkpoint()
    ck.train(state, ask.train_dl, epochs=1, step=ps.make_step(state))
    assert said(ck, "done") == {"plan step": "own", "plan world_size": 1}


def test_epochs_that_are_computed_elsewhere_say_what_differs_and_no_others():
    ck, ask, threads = checkpoint(), Ask(), torch.get_num_threads()
    ask.of(ck)
    ask.of(ck, epochs=3)
    torch.set_num_threads(threads + 1)
    try:
        ask.of(ck, epochs=4)
    finally:
        torch.set_num_threads(threads)
    ask.of(ck, epochs=5)
    [train] = ck._ledger.chain.trains
    assert list(elsewhere(train)) == [(4, {"threads": threads + 1})]
    assert list(elsewhere(train, 3)) == []
    fields = ["of", "n", "epoch", "metrics", "lr", "seconds", "hash"]
    assert [list(train.epochs[n].body) for n in (0, 1, 3, 4, 5)] == [*[fields] * 3, [*fields, "environment"], fields]


def test_flags_of_now_are_noted(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    before, dtype = environment(CPU), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            now = environment(CPU)
    finally:
        torch.set_default_dtype(dtype)
    assert before["mkldnn"] is False
    assert contrast(before, now).differing == (("default_dtype", "float32", "float64"), ("autocast", None, "bfloat16"))


def test_a_precision_that_was_set_in_torchs_newer_words_is_noted():
    before = environment(CPU)
    assert before["matmul_precision"] == "highest"
    place = torch.backends.mkldnn.matmul
    was = place.fp32_precision  # 'none', or 'ieee' once somebody used torch's older words
    place.fp32_precision = "bf16"
    try:
        now = environment(CPU)
    finally:
        place.fp32_precision = was
    assert (now["matmul_precision"], now["fp32_precision"]) == (None, ["bf16", *before["fp32_precision"][1:]])


def test_what_only_one_of_two_says_is_not_known():
    full = environment(CPU)
    old = {name: value for name, value in full.items() if name not in ("numpy", "mkl")}
    assert contrast(full, full).differing == contrast(full, old).differing == ()
    assert contrast(old, full).untold == ("mkl", "numpy")
    assert contrast({}, full).missing
    assert contrast({}, full).untold == ()
    assert not contrast(full, old).missing
