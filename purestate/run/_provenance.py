"""Who computed an answer, when and from what: recorded beside it, and part of no question. Nothing here is read on a hit.

What an answer's bits may depend on is in `_environment`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from purestate.store._who import host, now, user

__all__ = ["commit_of", "provenance", "without_secrets"]

_PATIENCE = 2.0
"""Seconds that git may take to say whether the work tree has changes."""
_LONGEST = 200
"""How much of one argument is recorded: that of ``python -c`` may be a whole script."""
_SECRET = re.compile(r"(?i)(token|secret|passw|credential|api[-_]?key|access[-_]?key|private[-_]?key|auth)")
_TOKEN = re.compile(r"\b(?:hf_|gh[opsur]_|github_pat_|glpat-|sk-|xox[abp]-|AKIA|AIza|eyJ)[\w.-]{12,}|(?<=://)[^/\s@]+@")
"""How the tokens of well-known services begin; the user and password of an address."""
_HIDDEN = "***"
_OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def provenance(*, anonymous: bool) -> dict[str, Any]:
    """Return it as plain JSON.

    Args:
        anonymous: Leave out all that tells of user, machine and folders: the time alone.

    Effects:
        The first time in a process, reads what git keeps of the script's repository and runs ``git status``.
    """
    return {"time": now()} if anonymous else {"time": now(), **_of_process()}


@cache
def _of_process() -> dict[str, Any]:
    """What stays the same while a process lives: the code that it runs was loaded when it began."""
    here = Path.cwd() if _exists() else None
    script: str | None = getattr(sys.modules.get("__main__"), "__file__", None)
    found = _git(Path(script).absolute().parent if script else here)
    if found is None and script:
        found = _git(here)
    command = [argument if len(argument) <= _LONGEST else f"{argument[:_LONGEST]}..." for argument in sys.orig_argv[1:]]
    told = {"command": without_secrets(command), "cwd": None if here is None else str(here)}
    return {"user": user(), "host": host(), "git": found, **told}


def _exists() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:  # somebody removed the folder that this process is in
        return False
    return True


def without_secrets(command: Sequence[str]) -> list[str]:
    """Return a command line with ``***`` for what looks like a password or a token, by its name or by how it begins.

    That is a net with holes: a secret that looks like any other word is not known as one.

    Example:
        >>> without_secrets(["train.py", "--api-key", "1234", "--token=5678", "--lr=0.1"])
        ['train.py', '--api-key', '***', '--token=***', '--lr=0.1']
    """
    found: list[str] = []
    hide = False
    for argument in command:
        name, equals, _ = argument.partition("=")
        if hide and not argument.startswith("-"):
            found.append(_HIDDEN)
        elif equals and _SECRET.search(name):
            found.append(f"{name}={_HIDDEN}")
        else:
            found.append(_TOKEN.sub(_HIDDEN, argument))
        hide = argument.startswith("-") and not equals and _SECRET.search(argument) is not None
    return found


def _git(folder: Path | None) -> dict[str, Any] | None:
    """Return commit and whether tracked files differ from it; None outside of a repository."""
    root = next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None) if folder else None
    if root is None:
        return None
    status = _status(root)
    commit = commit_of(root) or next((line.split()[-1] for line in status or () if line.startswith("# branch.oid ")), None)
    dirty = None if status is None else any(not line.startswith("#") for line in status)
    return {"commit": commit if commit and _OBJECT.fullmatch(commit) else None, "dirty": dirty}


def commit_of(root: Path) -> str | None:
    """Return the commit that is checked out, as git's own files say it; None where they say it in another way.

    Args:
        root: The folder with ``.git``, which is a folder, or in a work tree a file that names one.

    Effects:
        Reads a few small files. Git need not be installed.
    """
    try:
        git = root / ".git"
        if git.is_file():
            git = root / git.read_text().removeprefix("gitdir:").strip()
        shared = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head if _OBJECT.fullmatch(head) else None
        name = head.removeprefix("ref: ").strip()
        for place in (git, shared):
            if (place / name).is_file():
                return (place / name).read_text().strip()
        packed = (shared / "packed-refs").read_text().splitlines() if (shared / "packed-refs").exists() else []
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except (OSError, UnicodeDecodeError):
        return None


def _status(root: Path) -> list[str] | None:
    """Return what git says of the tracked files; None where it is not installed, takes long, or refuses.

    Files that git does not know do not count: a folder of results beside the script would always be one.
    """
    # no lock for others to wait for, and no program that the repository names
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(root)]
    command += ["status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=all"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").splitlines() if done.returncode == 0 else None
