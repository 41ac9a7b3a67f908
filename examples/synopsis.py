"""Train a classifier of handwritten digits with `train.Model`: three checkpoints, one of them a fork.

Run it twice: ``python examples/synopsis.py``. The second run trains nothing and ends on the same hashes, although nobody
seeds the weights: the first model of an id records them.

    python examples/synopsis.py --root out --plots out      # ckpts/ and runs/ in a folder of your own; pictures, as PNG
    python examples/synopsis.py --delete                    # and removes the model at the end
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from purestate import train


def model_builder() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))


def loaders() -> tuple[DataLoader, DataLoader]:
    """Return 1,438 scans to train on and 359 to test with."""
    pixels, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    train_dl = DataLoader(TensorDataset(x[:1438], y[:1438]), batch_size=32, shuffle=True)
    return train_dl, DataLoader(TensorDataset(x[1438:], y[1438:]), batch_size=256)


def main(root: str, plots: str | None, delete: bool) -> None:
    torch.set_num_threads(1)  # for models this small more threads only wait for each other; and the bits depend on it
    train_dl, test_dl = loaders()
    train.set_root_folder(root)
    figures: dict[str, Figure] = {}
    began = time.perf_counter()

    model = train.Model("synopsis", model_builder(), "Two layers, dropout between")

    # Train the model
    with model.checkpoint(id=1, description="Adam") as cp:
        cp.setup(
            loss_cls=torch.nn.CrossEntropyLoss,
            optimizer_cls=torch.optim.Adam,
            optimizer_args=dict(lr=2e-3, weight_decay=5e-4),
            epoch_scheduler_cls=torch.optim.lr_scheduler.StepLR,
            epoch_scheduler_args=dict(step_size=10, gamma=0.5),
        )
        cp.train(train_dl, test_dl, watch="accuracy", load_best=True, epochs=20, metrics=[train.metric_accuracy])
        figures["1-adam"] = cp.plot_metrics()

    # Before the next block: the loss over the learning rate, with another optimizer. It says which rates are too high,
    # and leaves the model as it is
    curve = model.cache(id=1).find_lr(train_dl, optimizer_cls=torch.optim.SGD, max_rate=10.0)
    figures["1-find_lr"] = curve.plot()

    # Train some more, with that optimizer
    with model.checkpoint(2, description="SGD from there") as cp:
        cp.setup(optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.01, momentum=0.9), clear_epoch_scheduler=True)
        cp.train(train_dl, test_dl, watch="accuracy", load_best=True, epochs=20, metrics=[train.metric_accuracy])
        figures["2-sgd"] = cp.plot_metrics()

    # Back to the end of checkpoint 1: parameters, Adam with its moments, scheduler
    model.load_checkpoint(id=1)

    # Another id makes a fork: 2 and 3 are two ways on from 1, and this one goes on exactly where 1 ended
    with model.checkpoint(3, description="more Adam instead") as cp:
        cp.train(train_dl, test_dl, watch="accuracy", load_best=True, epochs=40, metrics=[train.metric_accuracy])
        figures["3-adam"] = cp.plot_metrics()

    # Measure
    for id in (2, 3):
        measured = model.cache(id).evaluate(test_dl, metrics=[train.metric_accuracy])
        print(f"Checkpoint {id}: loss {measured['loss']:.4f}, accuracy {measured['accuracy']:.4f}.")

    print(f"All of it, without the imports and the data: {time.perf_counter() - began:.3f} s.")
    print(model)

    if plots is not None:
        out = Path(plots)
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.png")
        print(f"Wrote {', '.join(str(out / f'{name}.png') for name in figures)}.")

    if delete:
        model.delete_checkpoint(3)  # its log, and its files for TensorBoard
        model.delete()  # the model with all its checkpoints


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=".", help="the folder for ckpts/, which is kept, and runs/, which TensorBoard shows")
    parser.add_argument("--plots", help="a folder for PNG files")
    parser.add_argument("--delete", action="store_true", help="remove the model at the end, so that the next run begins anew")
    args = parser.parse_args()
    main(args.root, args.plots, args.delete)
