"""One contract for every backend; what keeps nothing keeps nothing, and refuses the same."""

from __future__ import annotations

import pytest
import torch

from purestate.errors import (
    CheckpointNotFoundError,
    InvalidIdError,
    MissingSnapshotError,
    MutatedStateError,
    StoreLockedError,
    TreeMismatchError,
    UnsupportedError,
)
from purestate.store._backend import Backend
from purestate.store._disk import DiskBackend
from purestate.store._memory import MemoryBackend, NullBackend
from purestate.store._record import EMPTY_HEAD
from tests.store.conftest import digest_of

LEAVES = {"w": torch.arange(6.0).reshape(2, 3).t(), "e": torch.empty(0)}
DIGEST = digest_of(LEAVES)


@pytest.fixture(params=["disk", "memory", "null"])
def any_backend(request, tmp_store_path) -> Backend:
    return {"disk": lambda: DiskBackend(tmp_store_path), "memory": MemoryBackend, "null": NullBackend}[request.param]()


@pytest.fixture(params=["disk", "memory"])
def keeping(request, tmp_store_path) -> Backend:
    return {"disk": lambda: DiskBackend(tmp_store_path), "memory": MemoryBackend}[request.param]()


def append(backend: Backend, id: str, n: int) -> list[str]:
    log = backend.log(id)
    with log.lock():
        return [log.append("train", {"n": i}).digest for i in range(n)]


def test_records(keeping):
    digests = append(keeping, "a", 3)
    log = keeping.log("a")
    assert [record.digest for record in log.records] == digests
    assert [record.prev for record in log.records] == [EMPTY_HEAD, *digests[:2]]
    assert [(record.seq, record.kind, record.body) for record in log.records] == [(i, "train", {"n": i}) for i in range(3)]
    assert (log.head, log.exists(), keeping.ids()) == (digests[-1], True, ["a"])
    assert append(MemoryBackend(), "a", 3) == digests  # the same bytes everywhere
    append(keeping, "a", 1)
    log.refresh()
    assert len(log.records) == 4


def test_items(keeping):
    assert not keeping.has(DIGEST)
    with keeping.writing():
        keeping.put({DIGEST: LEAVES})
    assert keeping.has(DIGEST)
    found = keeping.get(DIGEST)
    assert list(found) == ["w", "e"]
    assert torch.equal(found["w"], LEAVES["w"])
    assert found["w"].is_contiguous()
    found["w"].zero_()
    assert torch.equal(keeping.get(DIGEST, ["w"])["w"], LEAVES["w"])
    with pytest.raises(TreeMismatchError):
        keeping.get(DIGEST, ["x"])
    with pytest.raises(MutatedStateError):
        keeping.put({"0" * 64: LEAVES})


def test_resume_points(keeping):
    assert keeping.load_resume("a") is None
    body = {"epoch": 1, "list": [1, 2.5, None]}
    keeping.save_resume("a", body, {"params": LEAVES, "none": {}}).result()
    found, leaves = keeping.load_resume("a")
    assert found == body
    assert torch.equal(leaves["params"]["w"], LEAVES["w"])
    assert list(leaves) == ["params", "none"]
    keeping.clear_resume("a")
    assert keeping.load_resume("a") is None


def test_deleting(keeping):
    append(keeping, "a", 2)
    append(keeping, "b", 1)
    keeping.put({DIGEST: LEAVES})
    keeping.delete("a")
    assert (keeping.ids(), keeping.log("a").exists(), keeping.has(DIGEST)) == (["b"], False, True)
    assert [(act["act"], act["checkpoint"], act["records"]) for act in keeping.acts()] == [("delete", "a", 2)]
    assert {"time", "user", "host", "pid"} < keeping.acts()[0].keys()


def test_what_every_backend_refuses(any_backend):
    with pytest.raises(InvalidIdError):
        any_backend.log("../x")
    with pytest.raises(CheckpointNotFoundError):
        any_backend.log("a", must_exist=True)
    with pytest.raises(CheckpointNotFoundError):
        any_backend.delete("a")
    with pytest.raises(MissingSnapshotError):
        any_backend.get(DIGEST)
    with pytest.raises(StoreLockedError):
        any_backend.log("a").append("train", {})
    log = any_backend.log("a")
    with log.lock(), pytest.raises(UnsupportedError):
        log.append("train", {"t": (1,)})


def test_every_backend_can_be_prepared_and_closed(any_backend):
    any_backend.warm()
    any_backend.warm()
    any_backend.close()
    any_backend.close()


def test_null_keeps_nothing():
    null = NullBackend()
    digests = append(null, "a", 2)
    log = null.log("a")
    with log.lock():
        assert log.append("train", {"n": 0}).digest == digests[0]
    assert (list(log.records), log.head, log.exists(), null.ids()) == ([], EMPTY_HEAD, False, [])
    null.put({DIGEST: LEAVES})
    assert not null.has(DIGEST)
    handle = null.save_resume("a", {}, {"params": LEAVES})
    assert handle.done()
    handle.result()
    assert null.load_resume("a") is None
    null.journal("x")
    assert null.acts() == []
