"""Where pure ops meet a store: ask the log, compute what is missing, append.

* ``_store``       `Store`, `MemoryStore`, `NullStore`
* ``_checkpoint``  `Checkpoint`: the ops that are asked through it
* ``_setup``       `setup`
* ``_ask``         from a call to its `Question` (``_question``)
* ``_training``    one call of train, answered from the log; ``_compute`` computes it, ``_resume`` writes its resume points,
                   ``_select`` picks from its trajectory
* ``_readers``     evaluate, find_lr, predict
* ``_chain``       records by meaning; ``_ledger`` is a chain with its log; ``_stale`` says what does not fit
* ``_snapshot``    a State at rest
* ``_answers``     `Summary`, `EpochView`, `Curve`; ``_progress`` the bar; ``_environment`` what is recorded beside
"""

from purestate.run._answers import Curve, EpochView, Summary
from purestate.run._checkpoint import Checkpoint, plot_metrics
from purestate.run._setup import setup
from purestate.run._store import CheckpointInfo, MemoryStore, NullStore, Store

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "Curve",
    "EpochView",
    "MemoryStore",
    "NullStore",
    "Store",
    "Summary",
    "plot_metrics",
    "setup",
]
