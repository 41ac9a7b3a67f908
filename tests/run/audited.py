"""A recorded run with an op of each kind, to be asked again in another mode; and data that changes behind its fingerprint."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import purestate as ps
from purestate.core import _runners
from purestate.core._capture import Runner
from tests.helpers import batch
from tests.run.tiny import Ask, loader
from tests.train import tiny

__all__ = ["OPS", "Drifting", "asked", "block", "files", "record", "script", "trained"]

OPS = ["train 0", "train 1", "train 0 of fork", "train 2", "evaluate", "find_lr", "predict"]
"""What `script` asks, in its order."""
_VALUES = batch(16)


class Drifting(Dataset[Any]):
    """Says that it never changes, and does."""

    offset = 0.0

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _VALUES[0][i] + self.offset, _VALUES[1][i]

    def __purestate_fingerprint__(self) -> str:
        return "drifting"


def asked(**parts: Any) -> Ask:
    """Return a training that stops after four epochs, of which the second is the best."""
    return Ask(**{"recipe": {}, "val_dl": loader(16, shuffle=False), **parts})


def script(store: Any) -> dict[str, Any]:
    """Ask every kind of op: a best epoch, kept epochs, a fork from another checkpoint, a stream that is left early."""
    ask = asked()
    ck, fork = (store.checkpoint(id, echo=None) for id in ("a", "fork"))
    said: list[str] = []

    def note(value: Any, of: ps.Checkpoint = ck) -> Any:
        assert of.last is not None
        said.append(of.last.audit or ("log" if of.last.cached else "ran"))
        return value

    s0 = note(
        ck.train(ck.root(ask.state()), ask.train_dl, ask.val_dl, epochs=6, load_best=True, patience=2, keep=ps.keep.every(3))
    )
    s1 = note(ck.train(s0, ask.train_dl, ask.val_dl, epochs=3, metrics=[ps.metric_accuracy], watch="accuracy", load_best=True))
    note(fork.train(ps.setup(s0, optimizer_cls=torch.optim.Adam), ask.train_dl, epochs=1), fork)
    for epoch in ck.epochs(s1, ask.train_dl, ask.val_dl, epochs=9):
        if epoch.n == 2:
            break
    note(None)
    values = note(ck.evaluate(s1, ask.val_dl, metrics=[ps.metric_accuracy]))
    curve = note(ck.find_lr(s1, ask.train_dl, epochs=2))
    outputs = note(ck.predict(s1, ask.val_dl))
    return {"said": said, "states": [s0.hash, s1.hash], "values": values, "losses": curve.losses, "outputs": outputs}


def record(folder: Path) -> dict[str, Any]:
    """Record `script` in a folder, before the fixtures of a test are there: uncaptured, as it is asked later."""
    with pytest.MonkeyPatch.context() as patched, ps.Store(folder) as store:
        patched.setattr(_runners, "Runner", functools.partial(Runner, capture_after=1_000_000))
        return script(store)


def trained(store: Any, **options: Any) -> ps.State:
    """Train on data that drifts."""
    ask = Ask()
    data = torch.utils.data.DataLoader(Drifting(), batch_size=8, shuffle=True)
    return store.checkpoint("a", echo=None).train(ask.state(), data, ask.val_dl, **{"epochs": 3, **options})


def block(epochs: int) -> str:
    """Train a model of the stateful face as a script without seeds does, ask its cache, and return the hash of its state."""
    m = tiny.model()
    tiny.block(m, epochs=epochs)
    m.cache(1).evaluate(tiny.val_dl())
    return m.state.hash


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what is in a folder, with size and time."""
    return {path.relative_to(folder).as_posix(): path.stat()[6::2] for path in folder.rglob("*")}
