"""Where pure ops meet a store: ask the log, compute what is missing, append.

* ``_store``       `Store`, `MemoryStore`, `NullStore`
* ``_checkpoint``  `Checkpoint`: the ops that are asked through it
* ``_setup``       `setup`
* ``_ask``         from a call to its `Question` (``_question``)
* ``_training``    one call of train; ``_select`` picks from a trajectory, ``_resume`` writes resume points
* ``_readers``     evaluate, find_lr, predict
* ``_chain``       records by meaning; ``_ledger`` is a chain with its log; ``_stale`` says what does not fit
* ``_snapshot``    a State at rest
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
