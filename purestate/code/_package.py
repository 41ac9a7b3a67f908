"""Whose code it is: the user's, which is fingerprinted line by line, or an installed package's, known by its version.

Installed is what lies in a ``site-packages`` folder or in the standard library, and purestate itself. Scripts, notebooks
and editable installs are the user's.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache, lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Package", "importable_name", "module_file", "package_of_file", "package_of_module"]

Package = tuple[str, str]
"""Distribution and version, such as ``('torch', '2.13.0')``."""

_PYTHON: Package = ("python", f"{sys.version_info[0]}.{sys.version_info[1]}")
_OURS = str(Path(__file__).resolve().parents[1]) + os.sep
_SITE = re.compile(r"^(.*[/\\](?:site|dist)-packages)[/\\]([^/\\]+)")
_STDLIB = os.path.join(os.path.dirname(os.__file__), "")


@cache
def package_of_file(filename: str) -> Package | None:
    """Return the installed package that a source or extension file belongs to, or None if it is the user's.

    Effects:
        Lists a ``site-packages`` folder, once.
    """
    if filename.startswith("<frozen "):
        return _PYTHON
    if os.path.realpath(filename).startswith(_OURS):
        return ("purestate", _version("purestate") or "source")
    site = _SITE.match(filename)
    if site:
        return _installed(site[1], re.split(r"[.]", site[2], maxsplit=1)[0])
    return _PYTHON if filename.startswith(_STDLIB) else None


@lru_cache(maxsize=4096)
def package_of_module(name: str) -> Package | None:
    """Return the installed package that a module belongs to, or None if it is the user's. See `package_of_file`."""
    top = name.partition(".")[0]
    if top == "__main__":
        return None
    if top in sys.stdlib_module_names:
        return _PYTHON
    while name:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            return package_of_file(file)
        name = name.rpartition(".")[0]
    return None


def importable_name(obj: Any) -> str | None:
    """Return ``module.name`` of an object, but a class or module, that is to be found under that name; else None."""
    try:
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    except Exception:  # a user's __getattr__ may raise anything, as a dict with attributes does
        return None
    if not (isinstance(module, str) and isinstance(name, str)) or isinstance(obj, ModuleType):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}.{name}" if found is obj else None


def module_file(name: str) -> str | None:
    """Return the file of a module without importing anything."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    search: list[str] | None = None
    at = ""
    spec = None
    for part in name.split("."):
        at = f"{at}.{part}" if at else part
        spec = PathFinder.find_spec(at, search)
        if spec is None:
            return None
        search = spec.submodule_search_locations
        if search is None and at != name:
            return None
    return spec.origin if spec else None


def _installed(folder: str, top: str) -> Package | None:
    found = _distributions(folder).get(_normal(top))
    if found:
        return found
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str):
        return (top, version)
    from importlib import metadata  # 40 ms, and only for the odd package

    names = sorted(set(metadata.packages_distributions().get(top, ())))
    return ("+".join(names), "+".join(map(metadata.version, names))) if names else None


@cache
def _distributions(folder: str) -> dict[str, Package]:
    """Read names and versions off the names of the ``*.dist-info`` folders: opening them costs milliseconds."""
    entries = (entry.removesuffix(".dist-info").partition("-") for entry in os.listdir(folder) if entry.endswith(".dist-info"))
    return {_normal(name): (name, version) for name, _, version in entries}


def _version(name: str) -> str | None:
    return getattr(sys.modules.get(name), "__version__", None)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
