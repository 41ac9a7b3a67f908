"""`setup`: decide how a state is trained. See also `set_lr`, `freeze` and `unfreeze` in core's ``_edit``.

It is no op, nothing is recorded, and nothing is built: a named component is marked as fresh, and its class, arguments and
code are the mark. The next `train` builds it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import nn

from purestate.code import describe
from purestate.core._factory import Factory
from purestate.core._loss import make_objective
from purestate.core._optim import require_rates
from purestate.core._recipe import COMPILERS, PRECISIONS, Clip, Recipe
from purestate.core._state import COMPONENTS, State, require
from purestate.errors import SetupError

__all__ = ["SetupOptions", "describe_loss", "setup"]

_Args = Mapping[str, Any] | None


class SetupOptions(TypedDict, total=False):
    """The arguments of `setup` behind the state, for those who hand them on."""

    loss_cls: type | None
    loss_args: _Args
    loss: Callable[[Any, Any], Any] | None
    loss_fn: Callable[[nn.Module, Any], Any] | None
    optimizer_cls: type | None
    optimizer_args: _Args
    optimizer_fn: Callable[[list[nn.Parameter]], Any] | None
    epoch_scheduler_cls: type | None
    epoch_scheduler_args: _Args
    epoch_scheduler_fn: Callable[[Any], Any] | None
    clear_epoch_scheduler: bool
    step_scheduler_cls: type | None
    step_scheduler_args: _Args
    step_scheduler_fn: Callable[[Any], Any] | None
    clear_step_scheduler: bool
    clip_grad_norm: float | None
    clip_grad_value: float | None
    precision: str | None
    deterministic: bool | None
    compile: str | None
    ema_decay: float | None
    clear_ema: bool


def setup(
    state: State,
    *,
    loss_cls: type | None = None,
    loss_args: _Args = None,
    loss: Callable[[Any, Any], Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], Any] | None = None,
    optimizer_cls: type | None = None,
    optimizer_args: _Args = None,
    optimizer_fn: Callable[[list[nn.Parameter]], Any] | None = None,
    epoch_scheduler_cls: type | None = None,
    epoch_scheduler_args: _Args = None,
    epoch_scheduler_fn: Callable[[Any], Any] | None = None,
    clear_epoch_scheduler: bool = False,
    step_scheduler_cls: type | None = None,
    step_scheduler_args: _Args = None,
    step_scheduler_fn: Callable[[Any], Any] | None = None,
    clear_step_scheduler: bool = False,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    precision: str | None = None,
    deterministic: bool | None = None,
    compile: str | None = None,
    ema_decay: float | None = None,
    clear_ema: bool = False,
) -> State:
    """Decide how a state is trained. What is named starts afresh; what is not named stays with its state.

    Args:
        state: Not modified.
        loss_cls: A loss class such as `torch.nn.CrossEntropyLoss`, called with ``(output, target)``.
        loss_args: Its arguments.
        loss: In place of a class, an instance or any function of ``(output, target)``.
        loss_fn: In place of both, ``(module, batch) -> loss`` or ``(loss, outputs)``, for batches that are not a tuple
            of inputs and a target.
        optimizer_cls: A class of `torch.optim`, or of yours.
        optimizer_args: Its arguments, without the parameters.
        optimizer_fn: In place of a class, a function of the list of parameters that returns an optimizer.
        epoch_scheduler_cls: A class of `torch.optim.lr_scheduler` that steps once an epoch.
        epoch_scheduler_args: Its arguments, without the optimizer.
        epoch_scheduler_fn: In place of a class, a function of the optimizer that returns a scheduler.
        clear_epoch_scheduler: Go on without one.
        step_scheduler_cls: The same for the scheduler that steps after every step of the optimizer.
        step_scheduler_args: Its arguments.
        step_scheduler_fn: In place of a class.
        clear_step_scheduler: Go on without one.
        clip_grad_norm: The largest 2-norm of all gradients together; 0 for none.
        clip_grad_value: The largest absolute value of a gradient's element; 0 for none.
        precision: ``'bfloat16'``: the forward pass and the loss run under `torch.autocast`; ``'float32'``: they do not.
        deterministic: Whether ops on an accelerator use deterministic algorithms only, which they do unless told otherwise
            here. On the CPU it changes nothing.
        compile: ``'inductor'``: `train` compiles the gradient step, which takes seconds once for each kind of batch and
            machine, and gives other last bits; random masks of tensors that are not contiguous are others, too. ``'none'``:
            it does not.
        ema_decay: From now on `train` keeps an average of the parameters: after every step this much of it stays, from 0 to 1,
            and the rest is the parameters. It begins with them; one that is there goes on with the new decay. See `averaged`.
        clear_ema: Go on without one.

    Returns:
        A new state. A scheduler that is kept while the optimizer is new is built again on it and stepped to where it was.

    Raises:
        SetupError: An argument does not fit; a class does not take an argument that was given for it.
        UnsupportedError: The class cannot be made pure, as `torch.optim.LBFGS`.

    Example:
        >>> import purestate as ps, torch
        >>> state = ps.init(lambda: torch.nn.Linear(2, 1), seed=0)
        >>> state = ps.setup(state, loss_cls=torch.nn.MSELoss, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=0.1))
        >>> ps.setup(state, optimizer_cls=torch.optim.SGD, optimizer_args=dict(learning_rate=0.1))
        Traceback (most recent call last):
        purestate.errors.SetupError: optimizer SGD takes no argument 'learning_rate'.
        It takes lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused.
    """
    before = require(state, "template", "setup")
    changed: dict[str, Any] = _loss(loss_cls, loss_args, loss, loss_fn)
    factories = {
        "optimizer": _factory("optimizer", optimizer_cls, optimizer_args, optimizer_fn),
        "epoch_scheduler": _factory("epoch_scheduler", epoch_scheduler_cls, epoch_scheduler_args, epoch_scheduler_fn),
        "step_scheduler": _factory("step_scheduler", step_scheduler_cls, step_scheduler_args, step_scheduler_fn),
    }
    fresh: dict[str, Any] = {}
    cleared = {"epoch_scheduler": clear_epoch_scheduler, "step_scheduler": clear_step_scheduler}
    for name in COMPONENTS:
        if factories[name] is not None and cleared.get(name):
            raise SetupError(
                f"setup: clear_{name} and {name}_cls were both given.", fix="Give one of them.", argument=f"clear_{name}"
            )
        if factories[name] is not None or cleared.get(name):
            changed[name], fresh[name] = factories[name], None
    changed |= _clip(before, clip_grad_norm, clip_grad_value) | _precision(precision)
    if deterministic is not None:
        changed["deterministic"] = bool(deterministic)
    if compile is not None:
        changed["compile"] = _compiler(compile)
    if ema_decay is not None or clear_ema:
        changed["ema_decay"] = decay = _decay(ema_decay, clear_ema)
        fresh["ema"] = None if decay is None else state.params if state.ema is None else state.ema
    recipe = before.replace(**changed)
    for name in ("epoch_scheduler", "step_scheduler"):
        if getattr(recipe, name) is not None:
            require_rates(recipe.optimizer, f"setup: there is a {name}", name)
    return state.derived({"setup": sorted(changed)}, recipe=recipe, **fresh)


def _factory(kind: str, cls: type | None, args: _Args, fn: Callable[..., Any] | None) -> Factory | None:
    if cls is None and args is None and fn is None:
        return None
    return Factory.make(kind, cls, args, fn, describe=describe)


def _loss(cls: type | None, args: _Args, loss: Callable[..., Any] | None, fn: Callable[..., Any] | None) -> dict[str, Any]:
    given = [name for name, value in (("loss_cls", cls), ("loss", loss), ("loss_fn", fn)) if value is not None]
    if len(given) > 1:
        raise SetupError(f"setup: {' and '.join(given)} were both given.", fix="Give one of them.", argument=given[1])
    if not given and args is None:
        return {}
    if fn is not None:
        if args is not None:
            raise SetupError(
                "setup: loss_args go with loss_cls.", fix="Bind them: functools.partial(loss_fn, ...).", argument="loss_args"
            )
        describe(fn)  # refuses here what no question could hold
        return {"loss": None, "loss_args": None, "loss_fn": fn}
    if loss is not None:
        if isinstance(loss, type):
            raise SetupError(f"setup: loss={loss.__name__} is a class.", fix=f"Write loss_cls={loss.__name__}.", argument="loss")
        if args is not None:
            raise SetupError("setup: loss_args go with loss_cls.", fix="Give them where the loss is made.", argument="loss_args")
        make_objective(loss)
        kept = copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
        describe(kept)
        return {"loss": kept, "loss_args": None, "loss_fn": None}
    factory = Factory.make("loss", cls, args, None, describe=describe)
    make_objective(cls, factory.args)
    return {"loss": cls, "loss_args": factory.args, "loss_fn": None}


def describe_loss(loss: Any, args: _Args, fn: Callable[..., Any] | None) -> Any:
    """Return what the loss of a recipe is, as plain JSON; None if there is none."""
    if fn is not None:
        return {"fn": describe(fn)}
    if isinstance(loss, type):
        return Factory.make("loss", loss, args, None, describe=describe).description
    return None if loss is None else {"value": describe(loss)}


def _clip(recipe: Recipe, norm: float | None, value: float | None) -> dict[str, Any]:
    if norm is None and value is None:
        return {}
    for name, bound in (("clip_grad_norm", norm), ("clip_grad_value", value)):
        if bound is not None and not (isinstance(bound, (int, float)) and bound >= 0):
            raise SetupError(f"setup: {name} must be a number of at least 0, got {bound!r}.", argument=name)
    new = (recipe.clip.norm if norm is None else norm or None, recipe.clip.value if value is None else value or None)
    return {"clip": Clip(*new)}


def _precision(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name != "float32" and name not in PRECISIONS:
        raise SetupError(
            f"setup: precision must be one of {', '.join(map(repr, ('float32', *PRECISIONS)))}, got {name!r}.",
            argument="precision",
        )
    return {"precision": None if name == "float32" else name}


def _compiler(name: str) -> str | None:
    if name != "none" and name not in COMPILERS:
        raise SetupError(
            f"setup: compile must be one of {', '.join(map(repr, ('none', *COMPILERS)))}, got {name!r}.", argument="compile"
        )
    return None if name == "none" else name


def _decay(decay: float | None, clear: bool) -> float | None:
    if decay is None:
        return None
    if clear:
        raise SetupError("setup: clear_ema and ema_decay were both given.", fix="Give one of them.", argument="clear_ema")
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay <= 1:
        raise SetupError(f"setup: ema_decay must be a number from 0 to 1, got {decay!r}.", argument="ema_decay")
    return float(decay)
