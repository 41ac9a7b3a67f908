"""The ops, all of them: where the rooms above find what there is to compute."""

from __future__ import annotations

from purestate.core._evaluate import evaluate as evaluate
from purestate.core._evaluate import predict as predict
from purestate.core._find_lr import find_lr as find_lr
from purestate.core._train import Epoch as Epoch
from purestate.core._train import advanced as advanced
from purestate.core._train import begun as begun
from purestate.core._train import train as train
