"""How ``v1`` was written, with purestate 0.1.0. Kept for the reader; never run again: what it wrote is the test."""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).flatten(1))


def main(folder: str) -> None:
    torch.set_num_threads(1)
    images = torch.linspace(-1, 1, 12 * 16).reshape(12, 1, 4, 4)
    data = DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=4)
    s0 = ps.setup(
        ps.init(Net, seed=0).replace(extra={"note": (1, 2.5, float("inf")), "weights": torch.arange(3.0)}),
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=torch.optim.Adam,
        optimizer_args=dict(lr=1e-2),
        epoch_scheduler_cls=torch.optim.lr_scheduler.MultiStepLR,
        epoch_scheduler_args=dict(milestones=[1, 3]),
    )
    store = ps.Store(folder)
    ck = store.checkpoint("adam", description="format 1", echo=None)
    s1 = ck.train(s0, data, data, epochs=3, metrics=[ps.metric_accuracy])
    s2 = ck.train(ps.set_lr(s1, 1e-3), data, epochs=1)
    answer = ck.evaluate(s2, data)
    facts = {"head": ck.head, "states": [s1.hash, s2.hash], "evaluate": answer, "leaves": dict(s2.params.hashes)}
    Path(folder, "facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
