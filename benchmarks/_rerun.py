"""Run by ``rerun``: a process that says where its time went.

``example STORE`` runs ``examples/digits.py``. ``write FOLDER`` makes the files that a framework of checkpoint files would have
made of the example's four trains; ``read FOLDER`` is its second run: for each of them build model and optimizer, load, fill.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"
mode, folder = sys.argv[1:]
seconds: dict[str, float] = {}
clock = time.perf_counter()


def lap(name: str) -> None:
    global clock
    now = time.perf_counter()
    seconds[name], clock = now - clock, now


import torch  # noqa: E402
import torch.utils.data  # noqa: E402

lap("torch")
from sklearn.datasets import load_digits  # noqa: E402, F401

lap("sklearn")
import purestate  # noqa: E402, F401

lap("purestate")
spec = importlib.util.spec_from_file_location("digits", EXAMPLE)
assert spec is not None
assert spec.loader is not None
example = importlib.util.module_from_spec(spec)
sys.modules["digits"] = example
spec.loader.exec_module(example)
loaders = example.loaders()
example.loaders = lambda: loaders
lap("data")

TRAINS = [("adam-1", example.MLP, torch.optim.Adam), ("adam-2", example.MLP, torch.optim.Adam)]
TRAINS += [("sgd-1", example.MLP, torch.optim.SGD), ("cnn-1", example.CNN, torch.optim.Adam)]
if mode == "example":
    example.main(folder, None)
for name, model_cls, optimizer_cls in TRAINS if mode != "example" else ():
    model = model_cls()
    optimizer = optimizer_cls(model.parameters(), lr=0.01)
    model_file, optimizer_file, history_file = (Path(folder) / f"{name}.{part}.pt" for part in ("model", "optimizer", "history"))
    if mode == "write":
        sum(p.sum() for p in model.parameters()).backward()
        optimizer.step()
        torch.save(model.state_dict(), model_file)
        torch.save(optimizer.state_dict(), optimizer_file)
        torch.save({"val_loss": [0.5] * 20, "val_accuracy": [0.5] * 20}, history_file)
    else:
        history = torch.load(history_file)
        model.load_state_dict(torch.load(model_file))
        optimizer.load_state_dict(torch.load(optimizer_file))
lap("main")
print(json.dumps(seconds))
