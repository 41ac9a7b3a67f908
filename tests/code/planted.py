"""Small edits of projects that a researcher would have: some that change an answer, some that cannot.

A project is a folder with a script ``train.py``, whose ``main(store)`` says of each op whether the log answered it. A
`Workplace` runs it in this process, with what a fresh one would import, in a hundredth of the time.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import torch

import purestate as ps
from purestate.code._package import package_of_module
from tests.code import planted_images, planted_sequence, planted_tabular

__all__ = ["PROJECTS", "Edit", "Project", "Workplace"]

_LONG_AGO = 1_700_000_000_000_000_000
"""When the data files of a project were written, in nanoseconds: their times count."""


@dataclass(frozen=True)
class Edit:
    """One text in one file in the place of another that is there once; or what is done to the folder.

    Args:
        file: A file of the project.
        old: What is in it.
        new: What takes its place.
        says: What the error has to say of it.
        act: What is done to the folder besides.
    """

    file: str
    old: str = ""
    new: str = ""
    says: str = ""
    act: Callable[[Path], object] | None = None

    @property
    def name(self) -> str:
        """What it is called where a test fails."""
        return f"{self.file}: {self.act.__name__ if self.act else f'{self.old!r} -> {self.new!r}'}"


@dataclass(frozen=True)
class Project:
    """Source files and data by name, and what is edited."""

    files: Mapping[str, str]
    changes: tuple[Edit, ...]
    neutral: tuple[Edit, ...]
    data: Callable[[Path], object] = lambda folder: None


def _edits(rows: list[Any]) -> tuple[Edit, ...]:
    return tuple(row if isinstance(row, Edit) else Edit("", act=row) if callable(row) else Edit(*row) for row in rows)


def _project(module: Any) -> Project:
    data = getattr(module, "data", lambda folder: None)
    return Project(module.FILES, _edits(module.CHANGES), _edits(module.NEUTRAL), data)


PROJECTS = {
    "tabular": _project(planted_tabular),
    "images": _project(planted_images),
    "sequence": _project(planted_sequence),
}


class Workplace:
    """A folder with a project, in which one edit after the other is made, asked about and undone.

    Args:
        project: What is written.
        folder: Where. Made here.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        self.project = project
        self.folder = folder
        folder.mkdir(parents=True)
        for name, text in project.files.items():
            self._write(name, text)
        self.data()

    def data(self) -> None:
        """Write the data files as they were, times included."""
        self.project.data(self.folder)
        for place, _, names in os.walk(self.folder):
            for name in names:
                if (Path(place, name).relative_to(self.folder)).as_posix() not in self.project.files:
                    os.utime(Path(place, name), ns=(_LONG_AGO, _LONG_AGO))

    @contextmanager
    def edited(self, edit: Edit) -> Iterator[None]:
        """Make an edit for the length of a ``with`` block.

        Raises:
            AssertionError: What is edited is not there, or not once.
        """
        if edit.file:
            text = self.project.files[edit.file]
            assert text.count(edit.old) == 1, f"{edit.name}: it is there {text.count(edit.old)} times"
            self._write(edit.file, text.replace(edit.old, edit.new))
        try:
            if edit.act is not None:
                edit.act(self.folder)
            yield
        finally:
            if edit.file:
                self._write(edit.file, self.project.files[edit.file])
            if edit.act is not None:
                shutil.rmtree(self.folder / "files", ignore_errors=True)
                self.data()

    def ask(self, store: Any, edit: Edit | None = None, script: str = "train") -> bool | ps.StaleRecordError:
        """Run a script as if in a fresh process, with an edit.

        Returns:
            Whether the log answered all that it asked; the error where it did not.
        """
        with nullcontext() if edit is None else self.edited(edit), _fresh(self.folder):
            try:
                return all(importlib.import_module(script).main(store))
            except ps.StaleRecordError as error:
                return error

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)
        at = _LONG_AGO + next(_writes) * 1_000_000_000  # Python believes in what it read until size or second are others
        os.utime(self.folder / name, ns=(at, at))


class _Loader(SourceFileLoader):
    """Compiles each text once, so that only what was edited is new to the library."""

    def get_code(self, fullname: str) -> CodeType:
        key = self.path, self.get_data(self.path)
        if key not in _codes:
            _codes[key] = self.source_to_code(key[1], self.path)
        return _codes[key]


_codes: dict[tuple[str, bytes], CodeType] = {}
_writes = itertools.count()


@contextmanager
def _fresh(folder: Path) -> Iterator[None]:
    """Import from a folder, and forget afterwards what was imported, set and written over there."""
    known, path, where, state = set(sys.modules), list(sys.path), os.getcwd(), torch.get_rng_state()
    sys.path[:0] = [str(folder), str(folder / "site-packages")]
    importlib.invalidate_caches()

    def find(place: str) -> FileFinder:
        if not place.startswith(str(folder)):
            raise ImportError(place)
        return FileFinder(place, (_Loader, SOURCE_SUFFIXES))

    sys.path_hooks.insert(0, find)
    package_of_module.cache_clear()
    patched = {(owner, name): vars(owner)[name] for owner, name in _PATCHED}
    try:
        yield
    finally:
        package_of_module.cache_clear()
        sys.path_hooks.remove(find)
        for place in [place for place in sys.path_importer_cache if place.startswith(str(folder))]:
            del sys.path_importer_cache[place]
        sys.path[:] = path
        os.chdir(where)
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
        torch.set_rng_state(state)
        _switch_back()
        for (owner, name), value in patched.items():
            setattr(owner, name, value)
        for name in _GLOBAL_HOOKS:
            vars(torch.nn.modules.module)[name].clear()
        with suppress(AttributeError):
            del torch.Tensor.doubled


_PATCHED = (
    (torch.nn.ReLU, "forward"),
    (torch.nn.GRU, "forward"),
    (torch.nn.functional, "relu"),
    (torch.nn.functional, "softmax"),
    (torch.optim.SGD, "step"),
)
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


def _switch_back() -> None:
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)
    torch.backends.mha.set_fastpath_enabled(True)
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_math_sdp(True)
    torch.backends.mkldnn.set_flags(True)
    torch.set_autocast_enabled("cpu", False)
