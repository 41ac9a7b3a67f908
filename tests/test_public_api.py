"""The door: which names `purestate` exports, that each is documented, and that its documentation is about its parameters."""

from __future__ import annotations

import inspect
import re
import tomllib
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import purestate as ps

# A name that is added or removed changes this list, the README and CHANGELOG.md.
NAMES = """
    Checkpoint CheckpointInfo Curve EpochView Key LeafDiff MemoryStore Metric NullStore PureStateError StaleRecordError State
    Store Summary audit averaged bisect compare diff flatten freeze from_flax from_jax from_orbax init jax_step make_loss
    make_step metric metric_accuracy metric_binaccuracy nest optax plot_metrics set_lr setup state_hash to_flax to_jax to_module
    tree_hash unfreeze verify_resume
""".split()
# The functions of the module `ps.keep`.
KEEP = "Policy all_of any_of best every last seconds".split()
# Users get these from a call; what they are made from is no promise.
NOT_BUILT_BY_USERS = {"Checkpoint", "State", "EpochView", "keep.Policy"}
SECTIONS = {"Args", "Attributes", "Returns", "Yields", "Raises", "Effects", "Example"}


def exported() -> list[str]:
    """Return the names that completion shows for `purestate`, without modules and what the door imports for itself."""
    names = [name for name in dir(ps) if name[0] != "_" and not isinstance(getattr(ps, name), ModuleType)]
    return [name for name in names if not hasattr(typing, name) and name != "annotations"]


def functions() -> dict[str, Any]:
    """Return every public function, class and method of a public class, by dotted name."""
    found: dict[str, Any] = {}
    for name, thing in {
        **{name: getattr(ps, name) for name in NAMES},
        **{f"keep.{name}": getattr(ps.keep, name) for name in KEEP},
    }.items():
        found[name] = thing.fn if isinstance(thing, ps.Metric) else thing
        for attribute in dir(thing) if isinstance(thing, type) else ():
            member = inspect.getattr_static(thing, attribute)
            ours = (getattr(inspect.unwrap(getattr(thing, attribute)), "__module__", None) or "").startswith("purestate")
            if attribute[0] != "_" and callable(getattr(thing, attribute)) and ours:
                found[f"{name}.{attribute}"] = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    return found


def parameters(name: str, thing: Any) -> list[str]:
    """Return the parameters that a caller may give."""
    if name in NOT_BUILT_BY_USERS or (isinstance(thing, type) and issubclass(thing, BaseException)):
        return []
    return [parameter for parameter in inspect.signature(thing).parameters if parameter not in {"self", "cls"}]


def documented(docstring: str) -> list[str]:
    """Return the names in the sections Args and Attributes of a docstring."""
    found: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if section := re.match(r"(\w+):$", line):
            inside = section[1] in {"Args", "Attributes"}
        elif inside and (entry := re.match(r" {4}\*{0,2}(\w+): ", line)):
            found.append(entry[1])
    return found


FUNCTIONS = functions()


def test_the_names_are_these_and_no_others():
    assert exported() == NAMES
    assert sorted(dir(ps.keep)) == KEEP


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_says_what_it_is(name):
    docstring = inspect.getdoc(FUNCTIONS[name])
    assert docstring, f"{name} has no docstring"
    assert docstring.splitlines()[0].endswith((".", "?", ":")), "the first line is a sentence"
    assert set(re.findall(r"^([A-Z]\w+):$", docstring, re.M)) <= SECTIONS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_parameters_that_it_documents_are_those_that_it_has(name):
    takes, told = parameters(name, FUNCTIONS[name]), documented(inspect.getdoc(FUNCTIONS[name]) or "")
    if takes and told:
        assert told == takes
    # one or two can be told in the sentence itself
    assert told or len(takes) <= 2, f"{name} documents none of {takes}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_and_result_has_a_type(name):
    thing = FUNCTIONS[name]
    if parameters(name, thing):
        signature = inspect.signature(thing)
        missing = [p.name for p in signature.parameters.values() if p.name not in {"self", "cls"} and p.annotation is p.empty]
        assert missing == []
        assert isinstance(thing, type) or signature.return_annotation is not signature.empty


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert ps.__version__ == project["version"]


def test_the_checks_see_what_they_look_for():
    assert documented("Do it.\n\nArgs:\n    one: 1.\n    *two: 2.\n\nReturns:\n    three: 3.") == ["one", "two"]
    assert parameters("Checkpoint.train", ps.Checkpoint.train)[:3] == ["state", "train_dl", "val_dl"]
    assert "Store.checkpoint" in FUNCTIONS
