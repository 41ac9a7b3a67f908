"""purestate: PyTorch training as pure operations on an immutable state, with a log that remembers the answers.

Import it as ``ps``::

    import purestate as ps

    store = ps.Store("ckpts/digits")
    s0 = ps.setup(ps.init(MyModule, seed=0), loss_cls=..., optimizer_cls=..., optimizer_args=...)
    s1 = store.checkpoint("adam").train(s0, train_dl, val_dl, epochs=20)

`README.md` in this package is the map of the code.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from purestate.core._version import VERSION as _VERSION

__version__ = _VERSION

if TYPE_CHECKING:
    from purestate import train as train
    from purestate.core._diff import LeafDiff as LeafDiff
    from purestate.core._diff import diff as diff
    from purestate.core._edit import freeze as freeze
    from purestate.core._edit import set_lr as set_lr
    from purestate.core._edit import unfreeze as unfreeze
    from purestate.core._ema import averaged as averaged
    from purestate.core._init import init as init
    from purestate.core._init import to_module as to_module
    from purestate.core._key import Key as Key
    from purestate.core._metrics import Metric as Metric
    from purestate.core._metrics import metric as metric
    from purestate.core._metrics import metric_accuracy as metric_accuracy
    from purestate.core._metrics import metric_binaccuracy as metric_binaccuracy
    from purestate.core._pure import make_loss as make_loss
    from purestate.core._pure import make_step as make_step
    from purestate.core._state import State as State
    from purestate.core._state import state_hash as state_hash
    from purestate.errors import PureStateError as PureStateError
    from purestate.errors import StaleRecordError as StaleRecordError
    from purestate.interop._flax import from_flax as from_flax
    from purestate.interop._flax import to_flax as to_flax
    from purestate.interop._jax import from_jax as from_jax
    from purestate.interop._jax import to_jax as to_jax
    from purestate.interop._jax_step import jax_step as jax_step
    from purestate.interop._names import flatten as flatten
    from purestate.interop._names import nest as nest
    from purestate.interop._optax import optax as optax
    from purestate.report._audit import audit as audit
    from purestate.report._bisect import bisect as bisect
    from purestate.report._compare import compare as compare
    from purestate.run import Checkpoint as Checkpoint
    from purestate.run import CheckpointInfo as CheckpointInfo
    from purestate.run import Curve as Curve
    from purestate.run import EpochView as EpochView
    from purestate.run import MemoryStore as MemoryStore
    from purestate.run import NullStore as NullStore
    from purestate.run import Store as Store
    from purestate.run import Summary as Summary
    from purestate.run import _policy
    from purestate.run import plot_metrics as plot_metrics
    from purestate.run import setup as setup
    from purestate.run._foreign import from_orbax as from_orbax
    from purestate.run._verify import verify_resume as verify_resume

    keep = _policy

# Whatever needs torch is imported when it is first asked for: the command line reads logs without it.
_LATER = {
    "Checkpoint": "purestate.run",
    "CheckpointInfo": "purestate.run",
    "Curve": "purestate.run",
    "EpochView": "purestate.run",
    "Key": "purestate.core._key",
    "LeafDiff": "purestate.core._diff",
    "MemoryStore": "purestate.run",
    "Metric": "purestate.core._metrics",
    "NullStore": "purestate.run",
    "PureStateError": "purestate.errors",
    "StaleRecordError": "purestate.errors",
    "State": "purestate.core._state",
    "Store": "purestate.run",
    "Summary": "purestate.run",
    "audit": "purestate.report._audit",
    "averaged": "purestate.core._ema",
    "bisect": "purestate.report._bisect",
    "compare": "purestate.report._compare",
    "diff": "purestate.core._diff",
    "flatten": "purestate.interop._names",
    "freeze": "purestate.core._edit",
    "from_flax": "purestate.interop._flax",
    "from_jax": "purestate.interop._jax",
    "from_orbax": "purestate.run._foreign",
    "init": "purestate.core._init",
    "jax_step": "purestate.interop._jax_step",
    "make_loss": "purestate.core._pure",
    "make_step": "purestate.core._pure",
    "metric": "purestate.core._metrics",
    "metric_accuracy": "purestate.core._metrics",
    "metric_binaccuracy": "purestate.core._metrics",
    "nest": "purestate.interop._names",
    "optax": "purestate.interop._optax",
    "plot_metrics": "purestate.run",
    "set_lr": "purestate.core._edit",
    "setup": "purestate.run",
    "state_hash": "purestate.core._state",
    "to_flax": "purestate.interop._flax",
    "to_jax": "purestate.interop._jax",
    "to_module": "purestate.core._init",
    "tree_hash": "purestate.core._arrays",
    "unfreeze": "purestate.core._edit",
    "verify_resume": "purestate.run._verify",
}
_MODULES = {"keep": "purestate.run._policy", "train": "purestate.train"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LATER:
        found = getattr(import_module(_LATER[name]), name)
    elif name in _MODULES:
        found = import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'purestate' has no attribute {name!r}")
    if sys.modules.get("jax"):  # whoever has it may give it states; who imports it later calls `to_jax` first
        from purestate.interop._load import load_jax

        load_jax(name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES})
