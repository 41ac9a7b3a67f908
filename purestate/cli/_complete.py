"""What the beginning of a run's name may become, and how bash is told: it takes the name apart at ``:`` and ``@``."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class

__all__ = ["completions"]

_BREAKS = (":", "@")


def completions(incomplete: str) -> list[str]:
    """Return what a beginning of a run's name may become: folders, checkpoints of a store, ops of a checkpoint."""
    from purestate.errors import PureStateError
    from purestate.report._name import RunName, is_store
    from purestate.report._opened import open_run, open_store

    store, colon, rest = incomplete.rpartition(":")
    try:
        if colon and is_store(Path(store)):
            id, at, _ = rest.partition("@")
            if at:
                run = open_run(RunName(Path(store), id))
                found = [f"{store}:{id}@{op}" for op in range(len(run.chain.binding()))]
            else:
                found = [f"{store}:{id}" for id in open_store(Path(store)).ids()]
        else:
            folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
            below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
            found = [text for path in below for text in ([f"{path}", f"{path}:"] if is_store(path) else [f"{path}/"])]
    except (PureStateError, OSError):
        return []
    return [text for text in found if text.startswith(incomplete.removeprefix("./"))]


class _Bash(BashComplete):
    """Bash, which hands ``store:adam`` over as three words and replaces the last of them."""

    _before = ""
    """What of the name bash holds already, and does not replace."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, last = super().get_completion_args()
        words = [*args, last]
        joined = words[:1]
        for before, word in pairwise(words):
            if word in _BREAKS or (before in _BREAKS and word):
                joined[-1] += word
            else:
                joined.append(word)
        self._before = joined[-1] if last in _BREAKS else joined[-1].removesuffix(last)
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value.removeprefix(self._before)}"


add_completion_class(_Bash)
