"""``python -m benchmarks``: run the groups, print one table."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import Row, as_json, table

GROUPS = ("training", "step", "memory", "model", "rerun", "hashing", "storage", "log", "fork", "resume", "trace", "interop")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line names and print it.

    Effects:
        Writes below a temporary folder, and the file that ``--json`` names.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios against peers, measured in the same run.")
    names = f"one of {', '.join(GROUPS)}; may be repeated"
    parser.add_argument("--only", action="append", choices=GROUPS, metavar="NAME", help=names)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes: to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    args = parser.parse_args(argv)
    about = environment()
    print("  ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    rows: list[Row] = []
    for group in args.only or GROUPS:
        began = time.perf_counter()
        rows += importlib.import_module(f"benchmarks.{group}").rows(args.quick)
        print(f"{group}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    about["load at the end"] = _load()
    if args.json is not None:
        args.json.write_text(json.dumps({"environment": about, "quick": args.quick, "rows": as_json(rows)}, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Return what the figures depend on."""
    packages = ("torch", "orbax-checkpoint", "tensorstore", "blake3", "numpy", "jax", "optax", "lightning")
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "load": _load(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    main()
