"""The stateful face: a model that holds its state, and checkpoints as ``with`` blocks.

For people who know ``with model.checkpoint(id=1) as cp:``::

    from purestate import train

    model = train.Model("model-id", model_builder())
    with model.checkpoint(1) as cp:
        cp.setup(loss_cls=..., optimizer_cls=..., optimizer_args=...)
        cp.train(train_dl, val_dl, watch="accuracy", epochs=20, metrics=[train.metric_accuracy])

It holds one state and one store, and asks the ops of `purestate.run`; no algorithm lives here.

* ``_model``       `Model`; ``_checkpoint`` its `ModelCheckpoint` and `Cache`; ``_ops`` what they can do
* ``_entrance``    which state a block begins with
* ``_live``        the module that the user holds
* ``_place``       folders and names; ``_delete`` removes them; ``_states`` makes states of others
* ``_said``        the printed lines; ``_params``, ``_plot``, ``_tensorboard``, ``_board`` other ways to look
* ``_warmup``      `WarmUpLR`
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from purestate.core._metrics import metric, metric_accuracy, metric_binaccuracy
from purestate.errors import SetupError
from purestate.run import _policy
from purestate.train._checkpoint import Cache, ModelCheckpoint
from purestate.train._delete import delete_model
from purestate.train._model import Model
from purestate.train._place import set_model_checkpoint_sep, set_namespace, set_root_folder
from purestate.train._plot import plot_lr_vs_loss, plot_metrics
from purestate.train._said import TrainHistory
from purestate.train._warmup import WarmUpLR

keep = _policy

__all__ = [
    "Cache",
    "Model",
    "ModelCheckpoint",
    "TrainHistory",
    "WarmUpLR",
    "delete_model",
    "keep",
    "metric",
    "metric_accuracy",
    "metric_binaccuracy",
    "plot_lr_vs_loss",
    "plot_metrics",
    "set_model_checkpoint_sep",
    "set_namespace",
    "set_root_folder",
]


class _NotAFunction(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise SetupError(
            "purestate.train is a module, the stateful face, and no function.",
            fix="Ask a checkpoint: ps.Store(path).checkpoint(id).train(state, ...); or a model: train.Model(id, module).",
        )


sys.modules[__name__].__class__ = _NotAFunction
