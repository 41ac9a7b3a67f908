"""The ops that only read: `evaluate`, `find_lr`, `predict`. Looked up by content, in any order, and never stale.

What computes is imported where something is computed: a re-run does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from purestate.core._guard import GuardMode
from purestate.core._hash import leaf_hash, tree_hash
from purestate.core._metrics import Metric
from purestate.core._plain import decode, encode, join, split
from purestate.core._state import State, require
from purestate.errors import UnsupportedError
from purestate.run._answers import Asked, Curve
from purestate.run._ask import ask_reader
from purestate.run._chain import RecordLike
from purestate.run._environment import environment, prepare
from purestate.run._explain import why
from purestate.run._ledger import Ledger
from purestate.run._mode import auditor, mode_of, refuse
from purestate.run._question import Question
from purestate.run._setup import setup

if TYPE_CHECKING:
    from purestate.core._batch import Feed

__all__ = ["Reader", "ask_evaluate", "ask_find_lr", "ask_predict", "item_of"]


@dataclass(frozen=True)
class Reader:
    """A question that reads a state.

    Args:
        name: The op.
        state: What it reads.
        question: What is asked.
        compute: Computes the answer: JSON, and tensors to keep.
        unpack: Makes of them what the caller gets.
        plan: What ran the last step is noted in it when the answer is computed.
    """

    name: str
    state: State
    question: Question
    compute: Callable[[], tuple[Any, dict[str, torch.Tensor]]]
    unpack: Callable[[Any, Mapping[str, torch.Tensor]], Any]
    plan: dict[str, str] = field(default_factory=dict[str, str])

    def answer(self, ledger: Ledger) -> tuple[Any, bool, str | None]:
        """Return the answer, whether it came from the log, and what an audit said of it.

        Raises:
            OfflineError: It is not in the log, and the mode is ``offline``.
            AuditError: The mode is ``audit``, and it differs, or is not in the log.

        Effects:
            A record, and an item for tensors, if it was computed.
        """
        audit: str | None = None
        record, asked = ledger.refresh().readers.get(self.question.digest), mode_of(ledger.backend)
        if asked == "audit":
            audit = auditor().reader(self, ledger, record)
        if record is not None:
            ledger.note(Asked(self.name, "reused", record=record.seq), self.question.digest)
            return self._recorded(ledger, record), True, audit
        if asked != "record":
            refuse(ledger, self.name, why(self.question, ledger.chain))
        prepare(self.state.device)
        with ledger.writing() as chain:
            if (record := chain.readers.get(self.question.digest)) is not None:  # made while we waited for the lock
                return self._recorded(ledger, record), True, None
            answer, tensors = self.compute()
            digest = item_of(tensors)
            if digest is not None:
                ledger.put({digest: tensors})
            question = self.question.json()
            body = {
                "question": question,
                "input": self.state.hash,
                "answer": answer,
                "item": digest,
                "environment": environment(self.state.device),
                "plan": {**self.plan, "world_size": 1},
            }
            from purestate.run._code import of_reader

            record = ledger.append(self.name, body | of_reader(ledger, question))
            ledger.note(Asked(self.name, "computed", record=record.seq), self.question.digest)  # `explain` says why
        return self.unpack(answer, tensors), False, None

    def _recorded(self, ledger: Ledger, record: RecordLike) -> Any:
        item = record.body["item"]
        return self.unpack(record.body["answer"], ledger.backend.get(item, what=f"the answer of {self.name}") if item else {})

    def metrics(self, value: Any) -> dict[str, float]:
        """Return the numbers of an answer that its `Summary` shows."""
        if isinstance(value, dict) and self.name == "evaluate":
            return value
        return {"suggestion": value.suggestion} if isinstance(value, Curve) and value.suggestion is not None else {}


def item_of(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the item that holds the tensors of an answer; None for an answer without."""
    return tree_hash({name: leaf_hash(tensor) for name, tensor in tensors.items()}) if tensors else None


def ask_evaluate(state: State, loader: Any, metrics: Sequence[Metric], guard: GuardMode) -> Reader:
    """Ask for the loss and metrics of a state."""
    require(state, "loss", "evaluate")
    state.check()
    plan: dict[str, str] = {}

    def compute() -> tuple[Any, dict[str, torch.Tensor]]:
        from purestate.core import _ops as ops

        with _feed(state, loader) as batches:
            return encode(ops.evaluate(state, batches, metrics=metrics, guard=guard, plan=plan)), {}

    question = ask_reader("evaluate/1", state, loader, metrics=metrics)
    return Reader("evaluate", state, question, compute, lambda json, _: decode(json), plan)


def ask_find_lr(
    state: State, loader: Any, changes: Mapping[str, Any], epochs: int, min_rate: float, max_rate: float, guard: GuardMode
) -> Reader:
    """Ask for the losses of a learning rate sweep."""
    require(state, "template", "find_lr")
    state.check()
    if any(value is not None for value in changes.values()):
        state = setup(state, **changes)
    require(state, "loss", "find_lr")
    require(state, "optimizer", "find_lr")
    plan: dict[str, str] = {}

    def compute() -> tuple[Any, dict[str, torch.Tensor]]:
        from purestate.core import _ops as ops

        with _feed(state, loader) as batches:
            rates = {"min_rate": min_rate, "max_rate": max_rate}
            found = ops.find_lr(state, batches, **rates, epochs=epochs, guard=guard, plan=plan)
            return encode(list(found)), {}

    args = {"epochs": epochs, "min_rate": float(min_rate), "max_rate": float(max_rate)}
    question = ask_reader("find_lr/1", state, loader, args=args, whole=True)
    return Reader("find_lr", state, question, compute, lambda json, _: Curve(*decode(json)), plan)


def ask_predict(state: State, loader: Any, guard: GuardMode) -> Reader:
    """Ask for the outputs of the module."""
    require(state, "template", "predict")
    state.check()

    def compute() -> tuple[Any, dict[str, torch.Tensor]]:
        from purestate.core import _ops as ops

        with _feed(state, loader) as batches:
            skeleton, leaves = split(_concatenate(ops.predict(state, batches, guard=guard)), "the output")
        names = {path: path or "output" for path in leaves}
        return _renamed(skeleton, names), {names[path]: leaf.detach().cpu() for path, leaf in leaves.items()}

    question = ask_reader("predict/1", state, loader)
    return Reader("predict", state, question, compute, join, {"step": "uncaptured"})


def _feed(state: State, loader: Any) -> closing[Feed]:
    from purestate.data._feed import feed

    return closing(feed(loader, device=state.device))


def _renamed(skeleton: Any, names: Mapping[str, str]) -> Any:
    """Give an output that is one tensor, whose path is empty, the name that its item needs."""
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
