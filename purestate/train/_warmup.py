"""A learning rate that rises from zero, as a torch scheduler. The ramp of ``train(warmup=...)`` is another: `core/_work.py`."""

from __future__ import annotations

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from purestate.errors import SetupError

__all__ = ["WarmUpLR"]


class WarmUpLR(LRScheduler):
    """Raise the learning rate linearly from zero to what the optimizer was given, and hold it there.

    After ``i`` steps the rate is ``lr * (i / total_iters)``, and from ``total_iters`` steps on it is exactly ``lr``. The
    older scheduler of this name went on rising behind ``total_iters``; this one holds.

    It is stepped after each step of the optimizer, so the first batch is trained at rate zero, which moves no
    parameter, and batch ``total_iters + 1`` is the first one at the full rate. ``train(warmup=1)`` has the same ramp one
    step earlier: batch ``i`` of ``n`` has ``lr * (i / n)``, so the first one counts and the last one has the full rate.
    It counts in epochs, begins anew with the call, and holds the schedulers of the state back meanwhile. `WarmUpLR` is
    itself the step scheduler, counts in steps, and goes on over calls.

    Args:
        optimizer: Its rates are changed, as by every scheduler.
        total_iters: After how many steps the rate is reached. At least 1.
        last_epoch: How many steps there were before; -1 begins. As in torch.

    Raises:
        SetupError: ``total_iters`` is not an integer of at least 1.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
        >>> scheduler = WarmUpLR(optimizer, total_iters=4)
        >>> rates = []
        >>> for _ in range(6):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.0, 0.1, 0.2, 0.30000000000000004, 0.4, 0.4]
    """

    def __init__(self, optimizer: Optimizer, total_iters: int, last_epoch: int = -1) -> None:
        if type(total_iters) is not int or total_iters < 1:
            raise SetupError(
                f"WarmUpLR: total_iters must be an integer of at least 1, got {total_iters!r}.",
                fix="One epoch is total_iters=len(train_dl).",
                argument="total_iters",
            )
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of each parameter group, new tensors where they were given as tensors."""
        factor = min(self.last_epoch / self.total_iters, 1.0)
        return [base * factor for base in self.base_lrs]
