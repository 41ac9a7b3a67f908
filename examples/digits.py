"""Train classifiers on scikit-learn's handwritten digits: a chain of two trains, a fork, a second model, plots.

Run it twice: ``python examples/digits.py``. The second run executes nothing and ends on the same hashes.

    python examples/digits.py --store ckpts/digits --plots out      # pictures too, as PNG
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x.unflatten(1, (1, 8, 8))).flatten(1))


def loaders() -> tuple[DataLoader, DataLoader]:
    """Return 1,438 scans to train on and 359 to validate."""
    pixels, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    train, val = TensorDataset(x[:1438], y[:1438]), TensorDataset(x[1438:], y[1438:])
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=256)


def main(folder: str, plots: str | None) -> None:
    torch.set_num_threads(1)  # for models this small more threads only wait for each other; and the bits depend on it
    train_dl, val_dl = loaders()
    began = time.perf_counter()
    store = ps.Store(folder)
    accuracy = dict(watch="accuracy", metrics=[ps.metric_accuracy])

    s0 = ps.setup(
        ps.init(MLP, seed=0),
        loss_cls=nn.CrossEntropyLoss,
        optimizer_cls=torch.optim.Adam,
        optimizer_args=dict(lr=2e-3, weight_decay=5e-4),
        epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR,
        epoch_scheduler_args=dict(step_size=10, gamma=0.7),
    )
    adam = store.checkpoint("adam", description="MLP, Adam, 20 + 20 epochs")
    curve = adam.find_lr(s0, train_dl, min_rate=1e-5, epochs=2)
    s1 = adam.train(s0, train_dl, val_dl, epochs=20, load_best=True, **accuracy)
    s2 = adam.train(s1, train_dl, val_dl, epochs=20, load_best=True, **accuracy)
    adam.evaluate(s2, val_dl, metrics=[ps.metric_accuracy])

    sgd = store.checkpoint("sgd", description="from adam's first train, with SGD")
    f0 = ps.setup(s1, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=1e-2, momentum=0.9), clear_epoch_scheduler=True)
    sgd.train(f0, train_dl, val_dl, epochs=20, **accuracy)

    cnn = store.checkpoint("cnn", description="small CNN with batch normalisation")
    c0 = ps.setup(
        ps.init(CNN, seed=0), loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=2e-3)
    )
    cnn.train(c0, train_dl, val_dl, epochs=10, load_best=True, **accuracy)

    print(f"all of it, without the imports and the data: {time.perf_counter() - began:.3f} s")

    if plots is not None:
        out = Path(plots)
        out.mkdir(parents=True, exist_ok=True)
        adam.plot_metrics().savefig(out / "adam.png")
        ps.plot_metrics([adam, sgd, cnn]).savefig(out / "all.png")
        curve.plot().savefig(out / "find_lr.png")
        print(f"wrote {', '.join(str(out / name) for name in ('adam.png', 'all.png', 'find_lr.png'))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", default="ckpts/digits", help="where records and snapshots are kept")
    parser.add_argument("--plots", help="a folder for PNG files")
    args = parser.parse_args()
    main(args.store, args.plots)
