"""Run by ``model``: a process that says how long the synopsis of the stateful face took, imports aside.

``ours FOLDER`` runs it on `purestate.train`, ``theirs FOLDER`` on ``pytorch_scripts.train``, whose calls are the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: F401

from benchmarks._models import MLP, digits

who, folder = sys.argv[1:]
if who == "ours":
    import matplotlib.figure

    import purestate.view._figure  # noqa: F401
    from purestate import train
else:
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its cache holds objects, which torch.load refuses by default
    from pytorch_scripts import train

EPOCHS = 20
train_dl, test_dl = digits()
train.set_root_folder(folder)
train.set_namespace("bench")


def synopsis() -> None:
    model = train.Model("model-id", MLP(), "Model description")
    options = dict(watch="accuracy", load_best=True, epochs=EPOCHS, metrics=[train.metric_accuracy])
    with model.checkpoint(1) as cp:
        cp.setup(
            loss_cls=torch.nn.CrossEntropyLoss,
            optimizer_cls=torch.optim.Adam,
            optimizer_args=dict(lr=5e-4, weight_decay=5e-4),
            epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR,
            epoch_scheduler_args=dict(step_size=10, gamma=0.2),
        )
        cp.train(train_dl, test_dl, **options)
        cp.plot_metrics()
    model.cache(1).find_lr(train_dl, optimizer_cls=torch.optim.SGD)
    with model.checkpoint(2) as cp:
        cp.setup(optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.001), clear_epoch_scheduler=True)
        cp.train(train_dl, test_dl, **options)
        cp.plot_metrics()
    model.load_checkpoint(1)
    with model.checkpoint(3) as cp:
        cp.train(train_dl, test_dl, **options)
        cp.plot_metrics()
    model.cache(3).evaluate(test_dl, metrics=[train.metric_accuracy])


began = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    synopsis()
print(json.dumps({"main": time.perf_counter() - began}))
