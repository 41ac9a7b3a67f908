"""Network file systems are recognised by the system's list of mounts, and warned about when a store there is first written."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from purestate.errors import PureStateWarning
from purestate.store import _mounts
from purestate.store._disk import DiskBackend
from purestate.store._mounts import file_system

MOUNTS = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:50 / /home rw,relatime shared:5 - nfs4 server:/home rw,vers=4.2
24 23 0:51 / /home/me/local rw - ext4 /dev/vdb rw
25 22 0:52 / /mnt/two\040words rw - cifs //server/share rw
26 22 0:53 / /mnt/bucket rw - fuse.gcsfuse bucket rw
27 22 0:54 / /over rw - ext4 /dev/vdc rw
28 27 0:55 / /over rw - nfs server:/over rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/data/store", "ext4"),
        ("/home/me/store", "nfs4"),
        ("/homework", "ext4"),
        ("/home/me/local/store", "ext4"),
        ("/mnt/two words/store", "cifs"),
        ("/mnt/bucket", "fuse.gcsfuse"),
        ("/over/there", "nfs"),
    ],
)
def test_the_type_of_a_file_system(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system(Path(path), mounts) == kind


def test_a_system_that_does_not_tell(tmp_path):
    assert file_system(tmp_path, tmp_path / "nothing") == ""


def test_a_store_on_a_network_is_warned_about_when_it_is_written(tmp_store_path, tmp_path, monkeypatch):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_store_path.parent.resolve()} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(_mounts, "_MOUNTS", mounts)
    backend = DiskBackend(tmp_store_path)
    assert backend.ids() == []
    with pytest.warns(PureStateWarning, match="network file system \\(nfs4\\)"):
        backend.journal("test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend.journal("again")


def test_a_local_store_is_not(tmp_store_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiskBackend(tmp_store_path).journal("test")
