"""The hash, written from the page in `purestate/store/README.md` and from nothing else, against its tables and a frozen store."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from purestate.core._digest import canonical_json

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "purestate/store/README.md").read_text().split("\n## The hash\n")[1].split("\n## ")[0]
GOLDEN = ROOT / "tests/golden/v1"


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table under a header, without their quotes."""
    lines = PAGE.split(f"| {header} |\n")[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def text(value: Any) -> str:
    """Canonical JSON, by hand."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return '"' + "".join(map(character, value)) + '"'
    if isinstance(value, list):
        return "[" + ",".join(map(text, value)) + "]"
    return "{" + ",".join(f"{text(key)}:{text(value[key])}" for key in sorted(value)) + "}"


def character(one: str) -> str:
    short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
    if one in short or 32 <= ord(one) < 127:
        return short.get(one, one)
    units = one.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def leaf(dtype: str, shape: str, elements: bytes) -> str:
    return blake3(f'["purestate/leaf/1","{dtype}",{shape}]'.encode() + b"\0" + elements).hexdigest()


def scalar(value: Any) -> str:
    return blake3(b"purestate/scalar/1\0" + text(value).encode("ascii")).hexdigest()


def tree(children: dict[str, str]) -> str:
    return blake3(b"purestate/tree/1\0" + text(children).encode("ascii")).hexdigest()


def state(snapshot: dict[str, Any]) -> str:
    found: dict[str, str] = {}
    for name in ("params", "frozen", "buffers", "optimizer", "epoch_scheduler", "step_scheduler", "ema", "extra"):
        part = snapshot["params"].get("beside") if name == "buffers" else snapshot.get(name)
        if part is not None:
            found[name] = f"fresh:{part['fresh']}" if "fresh" in part else part["digest"]
            if "skeleton" in part:
                assert part["digest"] == tree({"leaves": part["leaves"], "skeleton": scalar(part["skeleton"])})
        elif name not in ("ema", "extra"):
            found[name] = tree({})
    found |= {"key": scalar(snapshot["key"]), "counters": scalar(snapshot["counters"])}
    return f"b3:{tree(found)}"


@pytest.mark.parametrize(("dtype", "shape", "elements", "digest"), rows("dtype | shape | elements | digest"))
def test_leaves(dtype, shape, elements, digest):
    assert leaf(dtype, shape, bytes.fromhex(elements)) == digest


@pytest.mark.parametrize(("value", "digest"), rows("JSON | digest"))
def test_plain_values(value, digest):
    assert scalar(json.loads(value)) == digest


@pytest.mark.parametrize(("children", "digest"), rows("children | digest"))
def test_trees(children, digest):
    assert tree(json.loads(children)) == digest


def test_the_tables_are_read():
    assert [len(rows(header)) for header in ("dtype | shape | elements | digest", "JSON | digest", "children | digest")] == [
        8,
        8,
        3,
    ]


@pytest.mark.parametrize(
    "value",
    [1e-5, 1e-4, 0.1, 1e15, 1e16, 1e22, -0.0, 5e-324, 2**70, "a\x7f\x00\"\\/\n\u2028\U0001f600", {"b": 1, "a": [], "B": {}}],
)  # fmt: skip
def test_canonical_json_is_what_the_page_says(value):
    assert text(value).encode("ascii") == canonical_json(value)


def test_the_states_of_the_golden_store():
    lines = (GOLDEN / "checkpoints/adam/log.jsonl").read_text().splitlines()
    answers = [json.loads(line)["body"]["out"] for line in lines if '"kind":"done"' in line]
    assert [state(answer) for answer in answers] == [answer["hash"] for answer in answers]
    assert [answer["hash"] for answer in answers] == json.loads((GOLDEN / "facts.json").read_text())["states"]


def test_the_items_of_the_golden_store():
    for path in GOLDEN.glob("items/*/*/purestate.json"):
        assert tree({name: leaf["hash"] for name, leaf in json.loads(path.read_text())["leaves"].items()}) == path.parent.name


def test_no_line_of_a_table_is_left_out():
    assert len(re.findall(r"`[0-9a-f]{64}` \|$", PAGE, re.M)) == 19
