"""Fingerprints of callables and objects: what is reached, what is refused, and where source is found or missing."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import linecache
import operator
import sys
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn

from purestate.code import describe, fingerprint
from purestate.code._package import package_of_file, package_of_module
from purestate.code._source import code_digest
from purestate.errors import FingerprintError

LIMIT = 3


def uses_limit(x):
    return x < LIMIT


class Declares:
    def __init__(self, version):
        self.version = version
        self.file = threading.Lock()

    def __purestate_fingerprint__(self):
        return {"version": self.version}


class Holder:
    def __init__(self, value):
        self.value = value


def run(source, filename="<made>", known=False):
    namespace = {"__name__": "made"}
    if known:
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec", dont_inherit=True), namespace)
    return namespace["target"]


def test_parts_name_what_is_reached():
    found = fingerprint(uses_limit)
    assert found.name == "uses_limit"
    assert found.parts.keys() == {"uses_limit", "LIMIT"}
    assert found.parts["LIMIT"] == 3
    assert fingerprint(torch.relu).packages == {"torch": torch.__version__}
    assert fingerprint(functools.reduce).packages == {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}


def test_describe_is_plain_for_plain_values():
    assert describe(None) is None
    assert describe([1, 1.0, True]) == [1, 1.0, True]
    assert describe((1, float("inf"))) == {"~": "tuple", "v": [1, {"~": "float", "v": "inf"}]}
    assert describe(uses_limit) == {"code": "uses_limit", "digest": fingerprint(uses_limit).digest}
    assert describe(torch.ones(2)).keys() == {"object", "digest"}
    assert describe([uses_limit, 1])["digest"] != describe([uses_limit, 2])["digest"]


@pytest.mark.parametrize("index", range(4))
def test_the_exact_lambda_of_a_line(index):
    several = [lambda: 1, lambda: (lambda: 2), lambda x=(lambda: 3): x, lambda: [i for i in range(4) if i]]  # fmt: skip
    alone = [
        lambda: 1,
        lambda: lambda: 2,
        lambda x=(lambda: 3): x,
        lambda: [i for i in range(4) if i],
    ]
    same = [code_digest(other.__code__, {}) == code_digest(several[index].__code__, {}) for other in alone]
    assert same == [i == index for i in range(4)]
    assert code_digest(several[1]().__code__, {}) == code_digest((lambda: 2).__code__, {})


def test_a_lambda_in_a_dict_over_several_lines():
    table = {
        "a": lambda x: x
        + 1,
        "b": lambda x: x + 1, "c": lambda x: x + 2,
    }  # fmt: skip
    digests = {key: code_digest(value.__code__, {}) for key, value in table.items()}
    assert digests["a"] == digests["b"] != digests["c"]


def test_source_of_a_notebook_cell():
    first = run("def target(x):\n    return x + 1\n", "<ipython-input-1>", known=True)
    again = run("# run again\ndef target(x):\n    return (x + 1)\n", "<ipython-input-2>", known=True)
    other = run("def target(x):\n    return x + 2\n", "<ipython-input-3>", known=True)
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(other)


def test_without_source_the_instructions_count():
    first, again, other = (
        run(f"{blank}def target(x):\n    return [i + {k} for i in x]\n") for blank, k in (("", 1), ("\n", 1), ("", 2))
    )
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(other)
    assert fingerprint(run("target = lambda x: x == 1")) != fingerprint(run("target = lambda x: x == 1.0"))


def test_a_file_that_was_edited_after_its_import_is_not_believed(tmp_path):
    file = tmp_path / "late.py"
    file.write_text("def target(x):\n    return x + 1\n")
    source = importlib.util.spec_from_file_location("late", file)
    before, after = importlib.util.module_from_spec(source), importlib.util.module_from_spec(source)
    source.loader.exec_module(before)
    file.write_text("def target(x):\n    return x + 200\n")
    source.loader.exec_module(after)
    assert fingerprint(before.target) != fingerprint(after.target)


def test_cycles_end():
    ring = [1]
    ring.append(ring)
    other = [1]
    other.append(other)
    assert fingerprint(ring) == fingerprint(other)
    assert fingerprint(ring) != fingerprint([1, [1]])
    a, b = Holder(1), Holder(2)
    a.other, b.other = b, a
    assert fingerprint(a) != fingerprint(b)
    keyed = {}
    keyed[1] = keyed
    assert fingerprint(keyed).digest


def test_installed_functions_hold_what_the_user_gave_them():
    assert fingerprint(torch.no_grad()(uses_limit)).parts.keys() == {"uses_limit", "LIMIT"}
    assert fingerprint(functools.singledispatch(uses_limit)).parts.keys() == {"uses_limit", "LIMIT"}
    assert fingerprint(torch.compile(uses_limit, backend="eager", disable=True)) == fingerprint(uses_limit)
    assert fingerprint(np.vectorize(uses_limit)).parts.keys() == {"uses_limit", "LIMIT"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (operator.itemgetter(1), operator.itemgetter(2)),
        (operator.methodcaller("sum", 1), operator.methodcaller("sum", 2)),
        (np.add, np.subtract),
        (np.float32(1), np.float64(1)),
        (torch.ops.aten.add, torch.ops.aten.sub),
        (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
        (np.array([None, 1], dtype=object), np.array([None, 2], dtype=object)),
        (np.array(["a"]), np.array(["b"])),
        (list[int], list[float]),
        (bytearray(b"a"), bytearray(b"b")),
        (str.upper, str.lower),
        ([].append, [1].append),
        (torch.Tensor.add, torch.Tensor.sub),
        (range(3), range(4)),
        (nn.Linear(2, 2).requires_grad_(False).weight * 0, torch.ones(2, 2)),
    ],
)
@pytest.mark.moves_generators
def test_kinds_of_objects(one, other):
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("make", [threading.Lock, lambda: iter([1]), lambda: (i for i in ()), itertools.count])
def test_what_has_no_content_is_refused_by_path(make):
    with pytest.raises(FingerprintError, match=r"^metric\.value is a ") as raised:
        fingerprint(Holder(make()), where="metric")
    assert raised.value.path == "metric.value"
    assert "__purestate_fingerprint__" in str(raised.value)


def test_a_global_without_content_is_named(tmp_path):
    with open(tmp_path / "log", "w") as file:
        target = run("def target(x):\n    return log.write(x)\n")
        target.__globals__["log"] = file
        with pytest.raises(FingerprintError, match=r"^target\.log is a _io\.TextIOWrapper"):
            fingerprint(target)


def test_declared_content_is_honoured_wherever_it_is():
    assert fingerprint(Declares(1)) == fingerprint(Declares(1))
    assert fingerprint([Holder(Declares(1))]) != fingerprint([Holder(Declares(2))])
    held = functools.partial(max, Declares(1))
    assert fingerprint(held) == fingerprint(functools.partial(max, Declares(1)))


def test_whose_code_it_is():
    assert package_of_module("torch.nn") == ("torch", torch.__version__)
    assert package_of_module("json.decoder")[0] == package_of_module("_thread")[0] == "python"
    assert package_of_module("purestate.errors")[0] == "purestate"
    assert package_of_module("__main__") is None
    assert package_of_file(__file__) is None
    assert package_of_file("<ipython-input-1>") is None
    assert package_of_file(pytest.__file__)[0] == "pytest"


def test_an_image_counts_by_its_pixels():
    image = pytest.importorskip("PIL.Image")
    one, other = (image.new("L", (2, 2), color) for color in (1, 2))
    assert fingerprint(one) == fingerprint(image.new("L", (2, 2), 1)) != fingerprint(other)


def test_nothing_is_modified():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    held = Holder([generator, {"a": torch.ones(2)}])
    fingerprint(held)
    assert torch.equal(generator.get_state(), before)
    assert vars(held).keys() == {"value"}


def test_copying_an_object_does_not_change_its_class():
    """``copy`` and ``pickle`` leave ``__slotnames__`` on the class of what they copy."""

    class Plain:
        def __init__(self) -> None:
            self.x = 1

    before = fingerprint(Plain).digest
    copy.deepcopy(Plain())
    assert "__slotnames__" in vars(Plain)
    assert fingerprint(Plain).digest == before


def test_a_namespace_counts_by_what_it_holds():
    one, same, other = (types.SimpleNamespace(p=p) for p in (0.1, 0.1, 0.2))
    assert fingerprint(one).digest == fingerprint(same).digest != fingerprint(other).digest


def test_a_dict_with_attributes_is_described():
    class Dot(dict):
        __getattr__ = dict.__getitem__

    assert fingerprint(Dot(a=1)).digest != fingerprint(Dot(a=2)).digest


class Counted(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)


def test_an_optimizer_of_ones_own_is_the_same_before_and_after_one_is_built():
    class Again(Counted):
        def step(self, closure=None):
            super().step(closure)

    before = describe(Again)
    Again([nn.Parameter(torch.ones(1))], lr=0.1)  # torch wraps the class's step now
    assert describe(Again) == before


def test_methods_of_a_dataclass_in_a_notebook_count():
    source = "import dataclasses\n@dataclasses.dataclass\nclass target:\n    k: int = 1\n    def f(self): return {}\n"
    one, same, other = (run(source.format(k), f"<ipython-input-{i}>", known=True) for i, k in enumerate((1, 1, 2)))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_a_function_of_more_names_than_an_instruction_can_number():
    def made(k):
        names = "".join(f"N{i} = {i}\n" for i in range(300))
        reads = "".join(f"    x += N{i}\n" for i in range(300))
        tail = "    from math import pi\n    import json.decoder as late\n    return x + held.K + pi\n"
        return run(f"import types\nheld = types.SimpleNamespace(K={k})\n{names}def target(x):\n{reads}{tail}")

    assert fingerprint(made(1)) == fingerprint(made(1)) != fingerprint(made(2))
    assert fingerprint(made(1)).packages.keys() == {"python"}
