"""Where pure ops meet a store: ask the log, compute what is missing, append.

* ``_store``       `Store`, `MemoryStore`, `NullStore`
* ``_checkpoint``  `Checkpoint`: the ops that are asked through it
* ``_logged``      what else a checkpoint is good for: looking, pruning, voiding
* ``_setup``       `setup`
* ``_ask``         from a call to its `Question` (``_question``)
* ``_training``    one call of train, answered from the log; ``_compute`` computes it, ``_resume`` writes its resume points,
                   ``_select`` picks from its trajectory
* ``_readers``     evaluate, find_lr, predict
* ``_mode``        whether ops record, only answer, or are audited (``_audit``)
* ``_chain``       records by meaning; ``_ledger`` is a chain with its log; ``_stale`` says what does not fit
* ``_snapshot``    a State at rest
* ``_answers``     `Summary`, `EpochView`, `Curve`; ``_progress`` the bar; ``_environment`` what is recorded beside
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purestate.run._answers import Curve as Curve
    from purestate.run._answers import EpochView as EpochView
    from purestate.run._answers import Summary as Summary
    from purestate.run._checkpoint import Checkpoint as Checkpoint
    from purestate.run._logged import plot_metrics as plot_metrics
    from purestate.run._setup import setup as setup
    from purestate.run._store import CheckpointInfo as CheckpointInfo
    from purestate.run._store import MemoryStore as MemoryStore
    from purestate.run._store import NullStore as NullStore
    from purestate.run._store import Store as Store

# Imported when it is first asked for: a log can be read without torch, through files of this room that do not need it.
_LATER = {
    "Checkpoint": "_checkpoint",
    "CheckpointInfo": "_store",
    "Curve": "_answers",
    "EpochView": "_answers",
    "MemoryStore": "_store",
    "NullStore": "_store",
    "Store": "_store",
    "Summary": "_answers",
    "plot_metrics": "_logged",
    "setup": "_setup",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'purestate.run' has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"purestate.run.{_LATER[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
