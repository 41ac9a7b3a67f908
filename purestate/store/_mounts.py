"""Which file system a store is on, and the warning about those whose locks and syncs promise less."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from purestate.errors import PureStateWarning

__all__ = ["file_system", "warn_of_network"]

_NETWORK = frozenset(
    "9p afs beegfs ceph cifs coda gfs2 glusterfs gpfs lustre nfs nfs4 ocfs2 orangefs smb3 smbfs vboxsf virtiofs".split()
)
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def warn_of_network(path: Path) -> None:
    """Warn if a folder is on a network file system. Python shows a warning of the same text once.

    Warns:
        PureStateWarning: Locks there hold between the processes of one machine at most, and what was synced may be lost.
    """
    kind = file_system(path)
    if kind in _NETWORK or kind.startswith("fuse."):
        warnings.warn(
            f"The store {os.fspath(path)!r} is on a network file system ({kind}): its locks may not hold between machines, and "
            "what was synced may not be durable. Let one machine write, or keep the store on a local disk and copy it with "
            "store.copy(path).",
            PureStateWarning,
            stacklevel=2,
        )


def file_system(path: Path, mounts: Path | None = None) -> str:
    """Return the type of the file system that a path is on, such as ``'ext4'``; nothing where the system does not tell.

    Args:
        path: It need not exist.
        mounts: A list of mounts in place of ``/proc/self/mountinfo``.
    """
    try:
        lines = (mounts or _MOUNTS).read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    real = os.path.join(os.path.realpath(path), "")
    best, found = "", ""
    for line in lines:
        about, _, rest = line.partition(" - ")
        fields, kinds = about.split(" "), rest.split(" ")
        if len(fields) < 5:
            continue
        point = os.path.join(_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), fields[4]), "")
        if real.startswith(point) and len(point) >= len(best):  # of several on one place the last hides the others
            best, found = point, kinds[0]
    return found
