"""The text behind a fingerprint hashes to it, whatever the code is, and anybody can say so who has the text alone."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from purestate.code import describe, describe_module, fingerprint
from purestate.code._text import encoded, pieces, recomputed, text_of
from tests.helpers import build


def documented(x, *, by=(1, 2.5)):
    """Not in the text."""

    def inner(y):
        """Nor this."""
        # nor this
        return y * by[0]

    return inner(x) if x else f"{x!r:>{by[1]}} {'é' * 2}"


def only_documented():
    """All that there is."""


def quoted_twice():
    """A docstring."""
    """And a text behind it, which would be one if that was gone."""
    return 1


@functools.lru_cache
def decorated(n: int) -> int:
    return n if n < 2 else decorated(n - 1) + decorated(n - 2)


async def asynchronous(source):
    async for piece in source:
        match piece:
            case {"a": [1, *rest], **others} if (n := len(rest)) > 1:
                yield n, others
            case _:
                yield lambda *_, key=1e1000, **__: key


SCALE = 3
pair = (lambda x: x * SCALE, lambda x: x * -SCALE)


class Base:
    limit = 10

    @property
    def half(self):
        return self.limit / 2


@dataclasses.dataclass
class Derived(Base):
    """A class."""

    rate: float = 0.1

    def forward(self, x):
        return super().half * x * self.rate


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.act = torch.relu

    def forward(self, x):
        return self.act(self.fc(x))


def without_source() -> Callable[[int], int]:
    namespace: dict[str, Any] = {}
    exec("def doubled(x):\n    return [x * 2 for _ in range(2)]\n", namespace)
    return namespace["doubled"]


def importing(x):
    from tests import fast

    return fast, x


CASES: dict[str, Any] = {
    "documented": documented,
    "only documented": only_documented,
    "quoted twice": quoted_twice,
    "decorated": decorated,
    "asynchronous": asynchronous,
    "two lambdas of a line": pair,
    "class": Derived,
    "object": Derived(0.2),
    "method": Derived(0.2).forward,
    "partial": functools.partial(documented, by=(2, 3)),
    "without source": without_source(),
    "importing": importing,
    "module as a value": types.SimpleNamespace(f=Net),
}


@pytest.mark.parametrize("name", CASES)
def test_every_piece_hashes_to_its_digest(name):
    found = fingerprint(CASES[name])
    digests = pieces([found.digest])
    parts = {value for value in found.parts.values() if isinstance(value, str) and len(value) == 32}
    assert digests == {found.digest, *parts}
    for digest in digests:
        piece = encoded(digest)
        assert recomputed(piece) == digest
        changed = json.loads(piece)
        for kind in ("source", "syntax", "bytecode"):
            if kind in changed:
                other = changed | {kind: changed[kind].replace("1", "4").replace("2", "5").replace("x", "z")}
                assert other == changed or recomputed(json.dumps(other).encode()) != digest


def test_the_text_is_source_without_what_is_not_hashed():
    found = fingerprint(documented)
    text = text_of(encoded(found.parts["documented"]))
    assert text is not None
    assert text.startswith("def documented(x, *, by=(1, 2.5)):\n\n    def inner(y):\n        return y * by[0]\n")
    assert "not" not in text.lower()
    assert text_of(encoded(fingerprint(only_documented).parts["only_documented"])) is not None
    assert "class" not in json.loads(encoded(fingerprint(Derived).parts["Derived"]))
    assert text_of(encoded(fingerprint(Derived).parts["Derived"])) is None


def test_two_lambdas_of_a_line_have_a_text_each():
    parts = fingerprint(pair).parts
    texts = [text_of(encoded(parts[name])) for name in ("<lambda>", "<lambda>#2")]
    assert texts == ["lambda x: x * SCALE", "lambda x: x * -SCALE"]


def test_what_source_cannot_say_is_kept_as_it_was_hashed():
    piece = json.loads(encoded(fingerprint(quoted_twice).parts["quoted_twice"]))
    assert list(piece) == ["content", "syntax"]
    assert piece["syntax"].startswith("FunctionDef(name=str:'quoted_twice'")
    piece = json.loads(encoded(fingerprint(CASES["without source"]).parts["doubled"]))
    assert list(piece) == ["bytecode", "content"]
    assert piece["bytecode"].startswith("python 3.")


def test_the_pieces_of_a_question_are_found_from_its_values():
    question = {"code": describe_module(build(Net)), "fn": describe(documented), "rate": 0.1, "name": "Net"}
    values = [*question["code"].values(), *question["fn"].values(), question["rate"], question["name"]]
    names = {"Net": None, "Net.forward": None, "Net.__init__": None}
    wanted = {question["code"][f"code.{name}"] for name in names}
    assert pieces(values) == wanted | {question["fn"]["digest"], fingerprint(documented).parts["documented"]}
    assert pieces(["0" * 32, 1, None, [1]]) == set()


def test_what_is_no_piece_is_refused():
    for wrong in (b"[]", b"{", b'{"content":[],"source":"("}', b'{"content":{},"source":"1\\n2"}', b'{"syntax":1}'):
        with pytest.raises(ValueError, match=r"no piece of code|Expecting"):
            recomputed(wrong)
