"""Run by ``training``: the same training by Lightning at its best, without logger, files, progress bar and sanity check."""

from __future__ import annotations

import itertools
import logging
import sys
from typing import Any

import lightning
import torch
from torch import nn

from benchmarks._measure import serve, timed
from benchmarks._models import MLP, digits
from benchmarks._settings import ADAM, DECAY

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.loss = MLP(), nn.CrossEntropyLoss()

    def _measured(self, stage: str, batch: Any) -> torch.Tensor:
        x, y = batch
        out = self.model(x)
        loss = self.loss(out, y)
        values = {f"{stage}_loss": loss.detach(), f"{stage}_accuracy": (out.argmax(1) == y).float().mean()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self._measured("train", batch)

    def validation_step(self, batch: Any, _: int) -> None:
        self._measured("val", batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), **ADAM)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, **DECAY)]


def train() -> None:
    torch.manual_seed(next(seeds))
    trainer = lightning.Trainer(
        max_epochs=int(sys.argv[1]),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Classifier(), train_dl, val_dl)


seeds = itertools.count()
train_dl, val_dl = digits()
serve(timed(train))
