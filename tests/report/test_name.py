"""How a run is named, and what is said where nothing has that name."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from purestate.errors import UsageError
from purestate.report._name import RunName
from purestate.report._opened import open_run, open_store


@pytest.mark.parametrize(
    ("text", "store", "checkpoint", "op"),
    [
        ("ckpts", "ckpts", None, None),
        ("ckpts/", "ckpts", None, None),
        ("ckpts:adam", "ckpts", "adam", None),
        ("/a/b:adam-lr_0.01@12", "/a/b", "adam-lr_0.01", 12),
        ("a:b/c", "a:b/c", None, None),
        ("a:b:c", "a:b", "c", None),
        ("a@1:c@0", "a@1", "c", 0),
    ],
)
def test_a_name_is_read(text, store, checkpoint, op):
    assert RunName.parse(text) == RunName(Path(store), checkpoint, op)


@pytest.mark.parametrize("text", ["ckpts", "ckpts:adam", "ckpts:adam@1"])
def test_a_name_is_written_as_it_is_read(text):
    assert str(RunName.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "ckpts:", "ckpts:.adam", "ckpts:adam@", "ckpts:adam@-1", "ckpts:adam@x", "ckpts:a b", "a:b@1@2"]
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(UsageError, match="STORE"):
        RunName.parse(text)


def test_a_folder_with_a_colon_in_its_name_is_that_folder(planted, tmp_path):
    folder = planted().store.rename(tmp_path / "odd:adam")
    assert RunName.parse(str(folder)) == RunName(folder)
    assert RunName.parse(f"{folder}:adam").checkpoint == "adam"


def test_of_a_store_with_one_checkpoint_its_name_may_be_left_out(golden):
    assert open_run(RunName(golden.store)).id == "adam"


def test_a_store_that_is_not_there_lists_those_nearby(golden):
    with pytest.raises(UsageError, match="There is no store at") as caught:
        open_run(RunName(golden.store.parent, "adam"))
    assert caught.value.available == (str(golden.store),)


def test_a_folder_that_this_user_may_not_read_is_not_called_no_store():
    """Root may read everything, so it becomes nobody for a moment."""
    user = os.geteuid()
    with TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        (Path(above) / "store").mkdir(mode=0o300)
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(UsageError, match=r"Cannot read the folder '.*store'\.\nThis user may not"):
                open_store(Path(above) / "store")
        finally:
            os.seteuid(user)


def test_a_checkpoint_that_is_not_there_lists_those_that_are(golden):
    with pytest.raises(UsageError, match="no checkpoint 'sgd'") as caught:
        open_run(RunName(golden.store, "sgd"))
    assert caught.value.available == (f"{golden.store}:adam",)


@pytest.mark.parametrize("ask", ["train", "answer"])
def test_an_op_that_is_not_there_lists_those_that_are(golden, ask):
    with pytest.raises(UsageError, match="train 2") as caught:
        getattr(open_run(RunName(golden.store, "adam", 2)), ask)()
    assert caught.value.available == (f"{golden}@0", f"{golden}@1")


def test_an_empty_store_says_so(tmp_path):
    (tmp_path / "format.json").write_text('{"purestate": 1}')
    with pytest.raises(UsageError, match="0 checkpoints"):
        open_run(RunName(tmp_path))
