"""Run by ``training``: the first two trains of a fresh process, by the library (``ours``) or by hand."""

from __future__ import annotations

import json
import sys
import time

import torch

import purestate as ps
from benchmarks._models import MLP, adam_state, by_hand, digits

train_dl, val_dl = digits()
seconds = []
for seed in range(2):
    began = time.perf_counter()
    if sys.argv[1] == "hand":
        torch.manual_seed(seed)
        by_hand(MLP(), train_dl, val_dl, [(n, range(len(train_dl))) for n in range(2)])
    else:
        state, metrics = adam_state(MLP, seed, decay=True), [ps.metric_accuracy]
        ps.NullStore().checkpoint("a", echo=None).train(state, train_dl, val_dl, epochs=2, watch="accuracy", metrics=metrics)
    seconds.append(time.perf_counter() - began)
print(json.dumps({"first": seconds[0], "second": seconds[1]}))
