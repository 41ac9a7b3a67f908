"""The ops that only read: `evaluate`, `find_lr`, `predict`. Looked up by content, in any order, and never stale.

What computes is imported where something is computed: a re-run does without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from purestate.core._hash import leaf_hash, tree_hash
from purestate.core._metrics import Metric
from purestate.core._plain import decode, encode, join, split
from purestate.core._state import State, require
from purestate.errors import SetupError, UnsupportedError
from purestate.run._answers import Curve
from purestate.run._ask import ask_reader
from purestate.run._environment import environment, prepare
from purestate.run._ledger import Ledger
from purestate.run._question import Question
from purestate.run._setup import setup

__all__ = ["Reader", "ask_evaluate", "ask_find_lr", "ask_predict"]


@dataclass(frozen=True)
class Reader:
    """A question that reads a state.

    Args:
        name: The op.
        state: What it reads.
        question: What is asked.
        asked: The seconds that asking took.
        compute: Computes the answer: JSON, and tensors to keep.
        show: Makes of them what the caller gets.
    """

    name: str
    state: State
    question: Question
    asked: float
    compute: Callable[[], tuple[Any, dict[str, torch.Tensor]]]
    show: Callable[[Any, Mapping[str, torch.Tensor]], Any]

    def answer(self, ledger: Ledger) -> tuple[Any, bool]:
        """Return the answer, and whether it came from the log.

        Effects:
            A record, and an item for tensors, if it was computed.
        """
        if (found := self._recorded(ledger, ledger.refresh().readers)) is not None:
            return found, True
        prepare(self.state.device)
        with ledger.writing() as chain:
            if (found := self._recorded(ledger, chain.readers)) is not None:
                return found, True
            answer, tensors = self.compute()
            digest = tree_hash({name: leaf_hash(tensor) for name, tensor in tensors.items()}) if tensors else None
            if digest is not None:
                ledger.put({digest: tensors})
            ledger.append(
                self.name,
                {
                    "question": self.question.json(),
                    "input": self.state.hash,
                    "answer": answer,
                    "item": digest,
                    "environment": environment(self.state.device),
                },
            )
        return self.show(answer, tensors), False

    def _recorded(self, ledger: Ledger, readers: Mapping[str, Any]) -> Any:
        record = readers.get(self.question.digest)
        if record is None:
            return None
        item = record.body["item"]
        return self.show(record.body["answer"], ledger.backend.get(item, what=f"the answer of {self.name}") if item else {})

    def shown(self, value: Any) -> dict[str, float]:
        """Return the numbers of an answer that belong into a line."""
        if isinstance(value, dict) and self.name == "evaluate":
            return value
        return {"suggestion": value.suggestion} if isinstance(value, Curve) and value.suggestion is not None else {}


def ask_evaluate(state: State, loader: Any, metrics: Sequence[Metric]) -> Reader:
    """Ask for the loss and metrics of a state."""
    began = _begin(state, "loss", "evaluate")

    def compute() -> tuple[Any, dict[str, torch.Tensor]]:
        from purestate.core import _ops as ops
        from purestate.data._feed import feed

        return encode(ops.evaluate(state, feed(loader, device=state.device), metrics=metrics)), {}

    question = ask_reader("evaluate/1", state, loader, metrics=metrics)
    return Reader("evaluate", state, question, time.perf_counter() - began, compute, lambda json, _: decode(json))


def ask_find_lr(state: State, loader: Any, changes: Mapping[str, Any], epochs: int, min_rate: float, max_rate: float) -> Reader:
    """Ask for the losses of a learning rate sweep."""
    began = _begin(state, "template", "find_lr")
    if any(value is not None for value in changes.values()):
        state = setup(state, **changes)
    require(state, "loss", "find_lr")
    require(state, "optimizer", "find_lr")

    def compute() -> tuple[Any, dict[str, torch.Tensor]]:
        from purestate.core import _ops as ops
        from purestate.data._feed import feed

        found = ops.find_lr(state, feed(loader, device=state.device), min_rate=min_rate, max_rate=max_rate, epochs=epochs)
        return encode(list(found)), {}

    args = {"epochs": epochs, "min_rate": float(min_rate), "max_rate": float(max_rate)}
    question = ask_reader("find_lr/1", state, loader, args=args, whole=True)
    return Reader("find_lr", state, question, time.perf_counter() - began, compute, lambda json, _: Curve(*decode(json)))


def ask_predict(state: State, loader: Any) -> Reader:
    """Ask for the outputs of the module."""
    began = _begin(state, "template", "predict")

    def compute() -> tuple[Any, dict[str, torch.Tensor]]:
        from purestate.core import _ops as ops
        from purestate.data._feed import feed

        skeleton, leaves = split(_concatenate(ops.predict(state, feed(loader, device=state.device))), "the output")
        names = {path: path or "output" for path in leaves}
        return _renamed(skeleton, names), {names[path]: leaf.detach().cpu() for path, leaf in leaves.items()}

    question = ask_reader("predict/1", state, loader)
    return Reader("predict", state, question, time.perf_counter() - began, compute, join)


def _begin(state: State, part: str, op: str) -> float:
    began = time.perf_counter()
    if not isinstance(state, State):
        raise SetupError(f"{op}: expected a State first, got {type(state).__name__}.", argument="state")
    require(state, part, op)
    state.check()
    return began


def _renamed(skeleton: Any, names: Mapping[str, str]) -> Any:
    if isinstance(skeleton, dict) and skeleton.get("~") == "tensor":
        return {"~": "tensor", "v": names[skeleton["v"]]}
    return skeleton


def _concatenate(outputs: Sequence[Any]) -> Any:
    """Concatenate what the module returned for each batch, whatever its structure."""
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs)) if first.dim() else torch.stack(list(outputs))
    if isinstance(first, Mapping):
        return {key: _concatenate([output[key] for output in outputs]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_concatenate([output[i] for output in outputs]) for i in range(len(first)))
    if first is None:
        return None
    raise UnsupportedError(
        f"predict: the module returned a {type(first).__name__}, expected tensors in tuples, lists and mappings.",
        fix="Return tensors from forward, or wrap the module in one that does.",
    )
