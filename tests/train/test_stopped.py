"""A block that was stopped in the middle of an epoch, and run again."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from purestate.errors import SetupError
from purestate.run._resume import ResumePoints
from tests.train.tiny import SETUP, block, built, model, train_dl, val_dl


def test_a_block_goes_on_in_the_middle_of_an_epoch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    first, other = (built() for _ in range(2))
    whole = block(model("whole", first), epochs=3)
    lines = capsys.readouterr().out.splitlines()
    between, batches = ResumePoints.between, iter(range(1, 100))

    def stopping(self: ResumePoints, *args: Any, **options: Any) -> None:
        if next(batches) == 9:
            signal.raise_signal(signal.SIGINT)
        between(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(ResumePoints, "between", stopping)
        with pytest.raises(KeyboardInterrupt):
            block(model("net", first), epochs=3)
    m = model("net", other)
    again = block(m, epochs=3)
    assert m.state.hash == whole._log.last.output
    assert again._log.last.computed == 2
    said = capsys.readouterr().out.splitlines()
    assert said[3] == "net--0001: stopped after 1 epoch and 1 batch of epoch 2. Run it again to go on from there."
    assert said[4:7] == lines[:3]
    assert said[7] == "net--0001: goes on after epoch 1 and 1 batch."
    assert said[8:] == lines[3:]


def test_how_often_is_checked_before_anything_is_computed():
    with model().checkpoint(1) as cp:
        cp.setup(**SETUP)
        with pytest.raises(SetupError, match="resume_every must be like '60s'"):
            cp.train(train_dl(), val_dl(), epochs=1, resume_every="often")
