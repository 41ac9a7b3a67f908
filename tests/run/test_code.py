"""The text behind a question is kept beside the answer, once, and goes wherever the answer goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import purestate as ps
from purestate.code._text import pieces, recomputed, text_of
from purestate.errors import MissingSnapshotError
from purestate.run._code import texts
from purestate.store._disk import DiskBackend
from tests.run.test_golden import GOLDEN
from tests.run.tiny import Ask, checkpoint, loader


def correct(y_pred, y_true):
    """Not kept."""
    return (y_pred.argmax(1) == y_true).sum()


def wrong(y_pred, y_true):
    return (y_pred.argmax(1) != y_true).sum()


ASK = Ask(options=dict(epochs=1, metrics=[correct]))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with ps.Store(tmp_path_factory.mktemp("code") / "store") as store:
        ck = checkpoint(store)
        s1 = ASK.of(ck)
        ck.evaluate(s1, ASK.val_dl, metrics=[correct])
        ck.predict(s1, ASK.val_dl)
        ck.evaluate(s1, ASK.val_dl, metrics=[wrong])
        ck.evaluate(s1, loader(4, seed=3), metrics=[wrong])
        ck.train(s1, ASK.train_dl, ASK.val_dl, epochs=1)
        ASK.of(checkpoint(store, "fork"))
        yield store


def codes(store: Any, id: str = "a") -> list[tuple[str, dict[str, Any]]]:
    records = store.open(id, echo=None)._ledger.log.records
    return [(record.kind, record.body["code"]) for record in records if "code" in record.body]


def kept(store: Any, id: str, question: dict[str, Any]) -> dict[str, bytes]:
    return texts(store._backend.log(id).records, store._backend, pieces(question["parts"].values()))


def test_every_digest_of_code_of_a_question_has_its_text(store):
    for record in store._backend.log("a").records:
        if "question" in record.body:
            question = record.body["question"]
            found = kept(store, "a", question)
            assert found.keys() == pieces(question["parts"].values())
            assert [recomputed(piece) for piece in found.values()] == list(found)
            digests = {name: value for name, value in question["parts"].items() if name.startswith("code.Mlp")}
            assert digests.keys() == {"code.Mlp", "code.Mlp.__init__", "code.Mlp.forward"}
            assert (
                text_of(found[digests["code.Mlp.forward"]])
                == "def forward(self, x: torch.Tensor) -> torch.Tensor:\n    return self.net(x)"
            )


def test_it_is_kept_once(store):
    told = codes(store)
    assert [kind for kind, _ in told] == ["done", "evaluate", "predict", "evaluate", "evaluate", "done"]
    [item] = told[0][1]["items"]
    # whoever asks with code that is known names it, and adds nothing
    assert [code for _, code in told if code != {"items": [item]}] == [told[3][1]]
    assert codes(store, "fork") == [("done", {"items": [item]})]
    # another metric is all that is told of the answer with another metric
    assert told[3][1]["items"] == [item]
    told_of = [text_of(piece.encode()) for piece in told[3][1]["pieces"].values()]
    assert [text for text in told_of if text] == ["def wrong(y_pred, y_true):\n    return (y_pred.argmax(1) != y_true).sum()"]
    leaves = store._backend.describe(item)
    assert {leaf.dtype for leaf in leaves.values()} == {"uint8"}
    assert sum(leaf.size for leaf in leaves.values()) < 3000


def test_what_the_code_of_an_answer_is_stays_with_it(store, tmp_path):
    [item] = codes(store)[0][1]["items"]
    with ps.Store(tmp_path / "copy") as copy:
        store.copy(copy, ["a"])
        assert store.check("bytes").ok
        assert item in set(copy._backend.items())
        question = copy._backend.log("a").records[1].body["question"]
        assert kept(copy, "a", question) == kept(store, "a", question)
        copy.open("a", echo=None).reset(0)
        assert copy.gc(dry_run=True).items == ()
        assert item not in copy.gc(voided=True).items  # the readers have it too
        for reader in ("evaluate", "predict"):
            copy.open("a", echo=None).reset(reader)
        assert item in copy.gc(voided=True).items
        assert kept(copy, "a", question).keys() < kept(store, "a", question).keys()
        with pytest.raises(MissingSnapshotError):
            copy._backend.get(item)
        assert copy.check("bytes").ok
        ASK.of(copy.open("a", echo=None))
        assert kept(copy, "a", question) == kept(store, "a", question)


def test_damage_of_it_is_found_and_named(store, tmp_path):
    [item] = codes(store)[0][1]["items"]
    with ps.Store(tmp_path / "copy") as copy:
        store.copy(copy, ["fork"])
        folder = copy._disk.item_path(item)
        noted = json.loads((folder / "purestate.json").read_bytes())
        name = next(name for name in noted["files"] if name.startswith("d/"))
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        report = copy.check("bytes")
        assert not report.ok
        assert any(item in finding.place for finding in report.findings)


def test_without_code_of_the_user_nothing_is_kept():
    ck = checkpoint()
    state = ps.setup(ps.init(lambda: nn.Linear(3, 2), seed=0), loss_cls=nn.CrossEntropyLoss)
    state = ps.setup(state, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
    ck.evaluate(ck.train(state, loader(), epochs=1), loader())
    assert [record.kind for record in ck._ledger.log.records if "code" in record.body] == []


def test_records_from_before_it_was_kept_have_none(tmp_path):
    backend = DiskBackend(GOLDEN / "v1")
    id = backend.ids()[0]
    records = backend.log(id).records
    parts = next(record for record in records if record.kind == "train").body["question"]["parts"]
    assert texts(records, backend, [value for value in parts.values() if isinstance(value, str)]) == {}
