"""Who does something, where and when, in the one form that journal, records and locks have it."""

from __future__ import annotations

import os
import pwd
import socket
import time

__all__ = ["host", "now", "user"]


def now() -> str:
    """Return the time in UTC, to the second: ``'2026-01-31T12:00:00Z'``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def user() -> str:
    """Return the name of the user that this process runs as, or the number of one without a name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()
