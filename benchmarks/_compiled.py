"""Run by ``step``: so many steps of the MLP by the ordinary loop under `torch.compile`."""

from __future__ import annotations

import logging
import sys

import torch

from benchmarks._measure import Skipped, serve
from benchmarks._models import StepMLP
from benchmarks._steps import compiled, repeat

torch._logging.set_logs(dynamo=logging.ERROR)  # it warns that it leaves a profiler's mark out of the optimizer's step
loop = compiled(StepMLP, (torch.rand(64, 64), torch.randint(10, (64,))))
try:
    loop.warm()
except torch._dynamo.exc.BackendCompilerFailed as error:  # no C++ compiler, for one
    serve(Skipped(f"torch.compile failed here: {str(error).splitlines()[0]}"))
else:
    serve(repeat(loop, int(sys.argv[1])))
