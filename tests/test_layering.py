"""Imports point one way: a room may import only rooms below it, never a sibling, and few files may name a heavy library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "purestate"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
LAYER = {
    "errors": 0,
    "typing": 0,
    "core": 1,
    "data": 2,
    "code": 2,
    "store": 2,
    "interop": 2,
    "distributed": 2,
    "view": 2,
    "run": 3,
    "train": 4,
    "compat": 4,
    "report": 4,
    "cli": 5,
    "__init__": 9,
    "__main__": 9,
}
# What only these files or rooms (ending in a slash) may import, also inside a function.
GATED = {
    "orbax": {"store/_worker.py"},
    "jax": {"store/_worker.py", "interop/"},
    "optax": {"interop/_optax.py"},
    "flax": set[str](),
    "tensorstore": {"store/_reader.py"},
    "matplotlib": {"view/"},
    "torch.distributed": {"distributed/"},
    "tensorboard": {"train/_tensorboard.py"},
    "torch.utils.tensorboard": {"train/_tensorboard.py"},
    "safetensors": {"interop/_safetensors.py"},
    "blake3": {"core/_hash.py", "core/_digest.py", "store/", "code/"},
    "click": {"cli/"},
    "pickle": set[str](),
    "cloudpickle": set[str](),
    "dill": set[str](),
    "shelve": set[str](),
}
# What makes a function's answer depend on more than its arguments. `random` is not here: core seeds the global generators
# from the key for what the user's module draws, and puts them back; nor is `threading`, whose lock keeps two ops apart.
IMPURE = set("os io sys time datetime logging pathlib tempfile shutil subprocess socket uuid".split())


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def parse(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def walk(node: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """Yield every node below one, without ``if TYPE_CHECKING:`` unless ``types``."""
    for child in ast.iter_child_nodes(node):
        if types or not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from walk(child, types=types)


def imports(tree: ast.Module, *, types: bool = True) -> Iterator[tuple[str, int]]:
    """Yield every imported dotted name with its line, inside functions as well. Relative imports: ruff's TID252."""
    for node in walk(tree, types=types):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def upward(file: str, tree: ast.Module) -> list[str]:
    """Return what a file imports from beside or above it."""
    here = room(file)
    names = ((name, line, [*name.split("."), ""][1]) for name, line in imports(tree) if name.split(".")[0] == "purestate")
    return [
        f"{file}:{line} imports {name}: {here!r} may only import rooms below it"
        for name, line, there in names
        if there != here and LAYER.get(there, 9) >= LAYER[here]
    ]


def covers(places: set[str], file: str) -> bool:
    return any(file == place or (place.endswith("/") and file.startswith(place)) for place in places)


def gated(file: str, tree: ast.Module) -> list[str]:
    """Return what a file imports although it is kept to other files. An annotation may name what is not imported."""
    return [
        f"{file}:{line} imports {name}: allowed only in {sorted(allowed) or 'no file'}"
        for name, line in imports(tree, types=False)
        for package, allowed in GATED.items()
        if f"{name}.".startswith(f"{package}.") and not covers(allowed, file)
    ]


def impure(file: str, tree: ast.Module) -> list[str]:
    """Return what a file of core imports although core knows no file, clock or environment."""
    return [f"{file}:{line} imports {name}" for name, line in imports(tree) if name.split(".")[0] in IMPURE]


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    assert room(file) in LAYER, f"{room(file)!r} is a new room: give it a layer"
    assert upward(file, parse(file)) == []


@pytest.mark.parametrize("file", FILES)
def test_heavy_libraries_stay_in_their_files(file):
    assert gated(file, parse(file)) == []


@pytest.mark.parametrize("file", [file for file in FILES if room(file) == "core"])
def test_core_is_pure(file):
    tree = parse(file)
    assert impure(file, tree) == []
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    assert [n for n in documented if "Effects:" in (ast.get_docstring(n) or "")] == []


@pytest.mark.parametrize("file", FILES)
def test_a_file_holds_one_idea(file):
    # the checker is copied to where nothing else of this is, so that its readers of foreign formats are in it
    assert len((ROOT / file).read_text().splitlines()) < (1100 if file == "store/checker.py" else 500)


def test_every_gate_names_a_room_that_may_exist():
    assert {room(place) for places in GATED.values() for place in places} <= set(LAYER)


@pytest.mark.parametrize(
    ("file", "line", "check"),
    [
        ("core/_step.py", "from purestate.store import Store", upward),
        ("core/_step.py", "import purestate", upward),
        ("store/_log.py", "from purestate.data._order import order", upward),
        ("run/_resume.py", "def f():\n    from purestate.train import Model", upward),
        ("store/_store.py", "import jax.numpy", gated),
        ("run/_ask.py", "from orbax import checkpoint", gated),
        ("store/_log.py", "def f():\n    import pickle", gated),
        ("core/_hash.py", "from torch import distributed", gated),
        ("run/_ask.py", "if TYPE_CHECKING:\n    from purestate.train import Model", upward),
        ("core/_hash.py", "import time", impure),
    ],
)
def test_the_checks_see_a_violation(file, line, check):
    assert len(check(file, ast.parse(line))) == 1


def test_an_annotation_may_name_a_heavy_library():
    assert gated("run/_ask.py", ast.parse("if TYPE_CHECKING:\n    from matplotlib.figure import Figure")) == []
