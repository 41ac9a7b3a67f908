"""Logs whose bodies were changed and whose digests are right again: what another run, or another program, would have written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from purestate.core._digest import tree_hash
from purestate.core._hash import leaf_hash
from purestate.run._question import Question
from purestate.store._disk import DiskBackend
from purestate.store._record import EMPTY_HEAD, decode, encode

__all__ = ["GOLDEN", "asked", "plant_ulp", "records_of", "rewrite", "write"]

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"

Bodies = list[tuple[str, dict[str, Any]]]


def records_of(log: Path) -> Bodies:
    """Return kind and body of each record of a log."""
    return [(record.kind, copy.deepcopy(record.body)) for record in decode(log.read_bytes())]


def write(log: Path, bodies: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Write a log of these records."""
    lines, head = list[bytes](), EMPTY_HEAD
    for seq, (kind, body) in enumerate(bodies):
        record = encode(seq, head, kind, body)
        head = record.digest
        lines.append(record.line + b"\n")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"".join(lines))


def rewrite(log: Path, change: Callable[[Bodies], Iterable[tuple[str, dict[str, Any]]] | None]) -> None:
    """Change the bodies of a log, in place or by returning others, and make its chain of digests anew."""
    bodies = records_of(log)
    found = change(bodies)
    write(log, bodies if found is None else found)


def asked(bodies: Bodies, seq: int, **parts: Any) -> None:
    """Change what the question of a record asks: dotted names with ``__`` for the dots."""
    question = bodies[seq][1]["question"]
    question["parts"] |= {name.replace("__", "."): value for name, value in parts.items()}
    question["digest"] = Question(question["op"], question["parts"]).digest


def plant_ulp(folder: Path, backend: DiskBackend, leaf: str) -> None:
    """Make one element of a leaf of the parameters of the golden store's last answer the next number."""

    def change(bodies: Bodies) -> None:
        answer = bodies[9][1]["out"]
        leaves = dict(backend.get(answer["params"]["item"]))
        leaves[leaf] = leaves[leaf].clone()
        leaves[leaf].view(torch.int32)[1, 2] += 1
        hashes = {name: leaf_hash(tensor) for name, tensor in leaves.items()}
        digest = tree_hash(hashes)
        backend.put({digest: leaves})
        answer["params"] |= {"item": digest, "digest": tree_hash({name: hashes[name] for name in answer["params"]["names"]})}
        answer["hash"] = "b3:" + "0" * 64

    rewrite(folder / "checkpoints/adam/log.jsonl", change)
