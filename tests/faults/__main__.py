"""Run one disturbance and tell how it went; ``--log FILE`` also keeps what the shim wrote down."""

from __future__ import annotations

import argparse
import errno
import tempfile
from pathlib import Path

from tests.faults import shim
from tests.faults.cases import CASES, Prepared
from tests.faults.one import disturb
from tests.faults.server import Server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("role", choices=shim.ROLES)
    parser.add_argument("action", choices=shim.ACTIONS)
    parser.add_argument("at", type=int, help="number of the call, from 1")
    parser.add_argument("error", nargs="?", default="ENOSPC")
    parser.add_argument("--mask", type=int, default=shim.CHANGES)
    asked = parser.parse_args()
    fault = shim.Fault(asked.role, asked.action, asked.at, getattr(errno, asked.error), asked.mask)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    server = Server(shim.build(folder), folder)
    try:
        case = Prepared(asked.case, server, folder / "case")
        calls = case.calls_of(asked.role)
        if asked.at <= len(calls):
            call = calls[asked.at - 1]
            print(f"undisturbed, call {asked.at} of {len(calls)} is {call.name} {call.path} {call.to}")
        print(disturb(case, fault))
    finally:
        server.close()
        print(f"left in {folder}")


if __name__ == "__main__":
    main()
