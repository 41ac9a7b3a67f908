"""How a component is made: a class with arguments, or a function.

A `Factory` is checked when it is made, by binding the signature, and builds when it is asked. Making one builds nothing:
the first optimizer that anybody builds imports ``torch._dynamo``, which takes a second. What the built object is and how
its state is kept is for `_optim` and `_sched`; what code is, for the room that reads it (``describe``).
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from purestate.core._component import Json
from purestate.core._hash import canonical_json, leaf_hash, scalar_hash
from purestate.core._plain import encode
from purestate.errors import SetupError, UnsupportedError

__all__ = ["Factory", "is_plateau_factory", "needs_metric", "refuse_closure"]

_MAPPINGS = (dict, OrderedDict, Counter, defaultdict)
_GIVEN = {"optimizer": "params", "epoch_scheduler": "optimizer", "step_scheduler": "optimizer", "loss": None}
"""What a component is built on: the name of its positional argument in messages, if it has one."""


@dataclass(frozen=True, eq=False)
class Factory:
    """How a component (optimizer, scheduler, loss) is made. Use `Factory.make`.

    Attributes:
        kind: ``'optimizer'``, ``'epoch_scheduler'``, ``'step_scheduler'`` or ``'loss'``.
        cls: The class, or None if ``fn`` makes the component.
        args: Arguments of the class that differ from its defaults; copies of what was given.
        fn: The function, or None.
        description: JSON of all that decides what is built.
    """

    kind: str
    cls: type | None
    args: Mapping[str, Any]
    fn: Callable[..., Any] | None
    description: Json

    @cached_property
    def digest(self) -> str:
        """The hash of the description. Two factories are equal if kind and digest are."""
        return scalar_hash(self.description)

    @property
    def name(self) -> str:
        """What is called to build: ``'torch.optim.adam.Adam'``, or the function's qualified name."""
        made_by: Any = self.cls or self.fn
        named = made_by if hasattr(made_by, "__qualname__") else type(made_by)
        return f"{named.__module__}.{named.__qualname__}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Factory) and (self.kind, self.digest) == (other.kind, other.digest)

    def __hash__(self) -> int:
        return hash((self.kind, self.digest))

    @staticmethod
    def make(
        kind: str,
        cls: type | None = None,
        args: Mapping[str, Any] | None = None,
        fn: Callable[..., Any] | None = None,
        *,
        describe: Callable[[Any], Json],
    ) -> Factory:
        """Check and remember how a component is made. Builds nothing.

        Args:
            kind: ``'optimizer'``, ``'epoch_scheduler'``, ``'step_scheduler'`` or ``'loss'``.
            cls: Its class. Excludes ``fn``.
            args: Keyword arguments of the class, without parameters or optimizer. Copied, never modified.
            fn: Called with the list of parameters, the optimizer, or nothing (loss), and returns the component.
            describe: Returns the JSON of a class, a function, or an object among the arguments. Called for nothing else.

        Returns:
            The factory. An argument that equals its default is left out of it.

        Raises:
            SetupError: Both or neither of ``cls`` and ``fn``; something that is not a class; an argument that the class
                does not take, or one that it misses; an argument that cannot be copied.
            UnsupportedError: An optimizer whose ``step`` needs a closure.

        Example:
            >>> adam = Factory.make("optimizer", torch.optim.Adam, {"lr": 0.1, "eps": 1e-8}, describe=lambda c: c.__qualname__)
            >>> adam.description
            {'class': 'Adam', 'args': {'lr': 0.1}}
        """
        if (cls is None) == (fn is None):
            given = "both were" if cls is not None else "neither was" if args is None else f"only {kind}_args={dict(args)!r} was"
            raise SetupError(f"{kind} needs either {kind}_cls or {kind}_fn; {given} given.", argument=f"{kind}_cls")
        if fn is not None:
            _check_function(kind, fn, args)
            return Factory(kind, None, MappingProxyType({}), fn, {"function": describe(fn)})
        _check_class(kind, cls)
        assert cls is not None
        bound = _bind(kind, cls, dict(args or {}))
        kept = {name: _snapshot(kind, name, value) for name, value in bound.items()}
        description = {"class": describe(cls), "args": {name: _describe(kept[name], describe) for name in sorted(kept)}}
        return Factory(kind, cls, MappingProxyType(kept), None, description)

    def build(self, *positional: Any) -> Any:
        """Build the component on ``positional``: the parameters, the optimizer, or nothing.

        The arguments are copied again, so that nothing that the component does to them reaches the next one built.

        Raises:
            SetupError: The class or the function raised; the message names the arguments that it complained about.
        """
        made_by: Any = self.fn if self.cls is None else self.cls
        try:
            return made_by(*positional, **copy.deepcopy(dict(self.args)))
        except Exception as error:  # a user's class or function may raise anything
            # torch's own complaints about a value need no traceback; anything else may be a bug in the user's code
            raise self._error(error) from (None if self.cls is not None and isinstance(error, ValueError) else error)

    def _error(self, error: Exception) -> SetupError:
        complaint = str(error) or type(error).__name__
        named = {name: value for name, value in self.args.items() if name in complaint or repr(value) in complaint} or self.args
        with_args = ", ".join(f"{name}={value!r}" for name, value in named.items())
        by = f"{self.name}({with_args})" if self.cls is not None else f"{self.name}(...)"
        return SetupError(
            f"{self.kind} {by} cannot be built: {complaint}",
            argument=next(iter(named)) if len(named) == 1 else f"{self.kind}_{'fn' if self.cls is None else 'args'}",
        )


def refuse_closure(optimizer_cls: type) -> None:
    """Refuse an optimizer class whose ``step`` cannot be called without a closure.

    Raises:
        UnsupportedError: For LBFGS and the like.
    """
    required = [p.name for p in inspect.signature(optimizer_cls.step).parameters.values() if _is_required(p)][1:]
    if required:
        raise UnsupportedError(
            f"optimizer {optimizer_cls.__qualname__} cannot be used: its step needs {', '.join(map(repr, required))}.",
            cause="It evaluates the loss several times a step, each time at other parameters and with other random numbers, "
            "while a pure step evaluates it once.",
            fix="Use an optimizer whose step() works from the gradients alone.",
        )


def needs_metric(scheduler: Any) -> bool:
    """Whether ``scheduler.step`` has to be called with a metric, as that of ``ReduceLROnPlateau``.

    Args:
        scheduler: A scheduler or its class.

    Raises:
        UnsupportedError: ``step`` needs more than one argument.
    """
    if isinstance(scheduler, type):
        parameters = list(inspect.signature(scheduler.step).parameters.values())[1:]
    else:
        parameters = list(inspect.signature(scheduler.step).parameters.values())
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY and p.name in required for p in parameters):
        raise UnsupportedError(
            f"a scheduler's step must need no argument, or one metric; this one needs {', '.join(map(repr, required))}.",
            fix="Give the others a default value.",
        )
    cls = scheduler if isinstance(scheduler, type) else type(scheduler)
    return bool(required) or issubclass(cls, ReduceLROnPlateau)


def is_plateau_factory(factory: Factory) -> bool | None:
    """Whether the factory's schedulers step on a metric. Builds nothing; None if a function makes them, which may do either."""
    return None if factory.cls is None else needs_metric(factory.cls)


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variable


def _check_function(kind: str, fn: Any, args: Mapping[str, Any] | None) -> None:
    if args is not None:
        raise SetupError(
            f"{kind}_args={dict(args)!r} was given together with {kind}_fn.",
            cause=f"A function has its arguments inside; {kind}_args belong to {kind}_cls.",
            fix=f"Give {kind}_cls and {kind}_args, or a function alone.",
            argument=f"{kind}_args",
        )
    if not callable(fn) or isinstance(fn, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
        built_on = _GIVEN[kind] or ""
        raise SetupError(
            f"{kind}_fn must be a function that makes the {kind}, not a {type(fn).__qualname__}.",
            cause="An object that was built already is tied to the parameters that it was built on." if kind != "loss" else None,
            fix=f"{kind}_fn=lambda {built_on}: ...".replace("lambda :", "lambda:"),
            argument=f"{kind}_fn",
        )


def _check_class(kind: str, cls: Any) -> None:
    argument = f"{kind}_cls"
    if not isinstance(cls, type):
        name = type(cls).__qualname__
        if not isinstance(cls, torch.optim.Optimizer | nn.Module) and not hasattr(cls, "step"):
            raise SetupError(f"{argument} must be a class, not {cls!r}.", fix=f"Give a function as {kind}_fn.", argument=argument)
        raise SetupError(
            f"{argument} must be a class, not an instance of {name}.",
            cause="The library builds the component itself, on parameters of its own.",
            fix=f"Give {argument}={name}, and its arguments as {kind}_args.",
            argument=argument,
        )
    is_optimizer = issubclass(cls, torch.optim.Optimizer)
    if kind == "optimizer":
        if not is_optimizer:
            raise SetupError(
                f"{argument} must be a subclass of torch.optim.Optimizer, not {cls.__qualname__}.", argument=argument
            )
        refuse_closure(cls)
    if kind.endswith("scheduler") and (is_optimizer or not callable(getattr(cls, "step", None))):
        raise SetupError(
            f"{argument} must be a class of schedulers, with a method step, not {cls.__qualname__}.", argument=argument
        )


def _bind(kind: str, cls: type, args: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that differ from their defaults, or say which ones the class does not take or misses."""
    parameters = list(inspect.signature(cls).parameters.values())
    own = parameters
    if _GIVEN[kind] is not None:
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            problem = f"{kind} {cls.__qualname__} does not take {_GIVEN[kind]} as its first argument."
            raise SetupError(problem, argument=f"{kind}_cls")
        own = parameters if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else parameters[1:]
        if parameters[0].name in args and own is not parameters:
            raise SetupError(
                f"{kind}_args has {parameters[0].name!r}, which the library gives to {cls.__qualname__} itself.",
                fix=f"Leave it out of {kind}_args.",
                argument=parameters[0].name,
            )
    takes = {p.name: p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    is_open = any(p.kind is p.VAR_KEYWORD for p in own)
    for name in args:
        if name not in takes and not is_open:
            near = difflib.get_close_matches(str(name), takes, n=1)
            raise SetupError(
                f"{kind} {cls.__qualname__} takes no argument {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
                cause=f"It takes {', '.join(takes) or 'none'}.",
                argument=str(name),
            )
    missing = [p.name for p in own if _is_required(p) and p.name not in args]
    if missing:
        raise SetupError(
            f"{kind} {cls.__qualname__} needs {', '.join(map(repr, missing))}.",
            cause=f"{kind}_args has {', '.join(map(repr, args)) or 'nothing'}.",
            fix=f"Give {kind}_args=dict({missing[0]}=...).",
            argument=missing[0],
        )
    return {name: value for name, value in args.items() if name not in takes or not _same(value, takes[name].default)}


def _same(value: Any, default: Any) -> bool:
    """Whether a value is the default to the bit; 1, 1.0 and True are three values."""
    if value is default:
        return True
    try:
        return canonical_json(_describe(value, _refuse)) == canonical_json(_describe(default, _refuse))
    except UnsupportedError:
        return False


def _refuse(value: Any) -> Json:
    raise UnsupportedError(f"{value!r} cannot be compared.")


def _snapshot(kind: str, name: str, value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception as error:  # a user's __deepcopy__ may raise anything
        raise SetupError(
            f"{kind}_args[{name!r}] cannot be copied: {error}",
            cause=f"Arguments are remembered as they are at setup; a {type(value).__qualname__} cannot be.",
            fix=f"Make the component in a function and give that as {kind}_fn.",
            argument=name,
        ) from error


def _describe(value: Any, describe: Callable[[Any], Json]) -> Json:
    if isinstance(value, torch.Tensor):
        return {"~": "leaf", "v": leaf_hash(value)}
    if type(value) in (list, tuple):
        items = [_describe(item, describe) for item in value]
        return items if type(value) is list else {"~": "tuple", "v": items}
    if type(value) in _MAPPINGS:  # in their order: a constructor may go through them
        pairs = [[_describe(k, describe), _describe(v, describe)] for k, v in value.items()]
        made = {"default": describe(value.default_factory)} if type(value) is defaultdict else {}
        return {"~": type(value).__name__, "v": pairs, **made}
    try:
        return encode(value)
    except UnsupportedError:
        return {"~": "described", "v": describe(value)}
