"""The module that the user holds, beside a state that does not change.

Nothing trains on it. It is filled with the state's tensors when somebody looks, and what the user does to it is noticed, so
that neither of the two is taken for the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from purestate.code import describe_module
from purestate.core._hash import leaf_hash
from purestate.core._init import init, to_module
from purestate.core._module import fresh_copy
from purestate.core._state import COMPONENTS, SUBTREES, State
from purestate.errors import MutatedStateError, TreeMismatchError

__all__ = ["LiveModule"]


class LiveModule:
    """A module and what is known of it.

    Args:
        module: The user's own, which is filled in place.
        state: What is in it.
        model: The id of the model, for messages.
    """

    def __init__(self, module: nn.Module, state: State, model: str) -> None:
        self._module, self._model = module, model
        self._seen = state.hash
        self._note(state)

    def look(self, state: State) -> nn.Module:
        """Return the module, holding a state. If that is another one than at the last look, it is in eval mode.

        So its mode does not depend on whether training has found better parameters than it had.
        """
        if self._holds != _tensors_of(state) or self._template is not _template_of(state):
            self.must_be_untouched(to_the_bit=False)
            self._fill(state)
        if self._seen != state.hash:
            self._module.eval()
            self._seen = state.hash
        return self._module

    def must_be_untouched(self, *, to_the_bit: bool = True) -> None:
        """Raise if user code changed the module since it was made, filled or adopted.

        Args:
            to_the_bit: Whether tensors are hashed, to find what torch does not count: changes through ``.data`` or a numpy
                view.

        Raises:
            MutatedStateError: A tensor or an attribute differs, and which.
        """
        if (what := self._changed() or (self._rewritten() if to_the_bit else None)) is not None:
            raise MutatedStateError(
                f"model {self._model!r}: {what} of the live module was changed since the model last knew it.",
                cause="Training goes on from model.state, which does not follow what is done to model.model.",
                fix="model.adopt() makes a new state of the module as it is; model.discard() drops what was done to it.",
                path=what,
            )

    def must_fit(self, state: State) -> None:
        """Raise if the module cannot hold a state.

        Raises:
            TreeMismatchError: Names, shapes or dtypes differ; the first is named.
        """
        mine, given = _leaves_of(self._module), _leaves_of(_template_of(state))
        for name in {**mine, **given}:
            has, wanted = mine.get(name), given.get(name)
            if has != wanted:
                raise TreeMismatchError(
                    f"model {self._model!r}: {name!r} is {_said(has)} in the model and {_said(wanted)} in the state.",
                    cause="The state is of a module of another structure.",
                    path=name,
                    expected=has,
                    actual=wanted,
                )

    def discard(self, state: State) -> None:
        """Drop whatever was done to the module: fill it again, or take another where not only its tensors were changed."""
        self._fill(state)
        self._module.eval()

    def adopt(self, state: State) -> State:
        """Return a state that holds what the module holds now, and goes on otherwise as another does.

        Where names, shapes and what is trainable are as they were, optimizer, schedulers and average stay; else they start
        afresh.

        Raises:
            MutatedStateError: The module was never filled with the state, so what is in it is older.
        """
        if self._holds != _tensors_of(state):
            raise MutatedStateError(
                f"model {self._model!r}: the live module holds an earlier state than the model, with changes of yours.",
                cause="It is filled when somebody looks at model.model, and nobody has since the model went on.",
                fix="model.discard() drops the changes; make them on model.model, and adopt that.",
            )
        new = init(self._module)
        assert state.recipe is not None
        assert new.recipe is not None
        parts: dict[str, Any] = {name: getattr(new, name) for name in SUBTREES}
        if any(_specs(parts[name]) != _specs(getattr(state, name)) for name in SUBTREES):
            parts |= dict.fromkeys((*COMPONENTS, "ema"))
        adopted = state.derived({"adopt": True}, recipe=state.recipe.replace(template=new.recipe.template), **parts)
        self._note(adopted)
        return adopted

    def _fill(self, state: State) -> None:
        template = _template_of(state)
        if _leaves_of(self._module) != _leaves_of(template) or describe_module(self._module) != describe_module(template):
            self._module = fresh_copy(template)
        to_module(state, self._module)
        self._note(state)

    def _note(self, state: State) -> None:
        self._holds, self._template = _tensors_of(state), _template_of(state)
        self._marks = self._marks_now()
        self._hashes = {name: digest for subtree in SUBTREES for name, digest in getattr(state, subtree).hashes.items()}

    def _marks_now(self) -> dict[str, tuple[int, int, bool]]:
        return {name: (id(t), t._version, t.requires_grad) for name, t in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}

    def _changed(self) -> str | None:
        now = self._marks_now()
        for name in {**self._marks, **now}:
            if self._marks.get(name) != now.get(name):
                return repr(name)
        known, described = describe_module(self._template), describe_module(self._module)
        return next((name for name in {**known, **described} if known.get(name) != described.get(name)), None)

    def _rewritten(self) -> str | None:
        tensors = self._tensors()
        return next((repr(name) for name, digest in self._hashes.items() if leaf_hash(tensors[name].detach()) != digest), None)


def _template_of(state: State) -> nn.Module:
    assert state.recipe is not None
    return state.recipe.template


def _tensors_of(state: State) -> tuple[str, ...]:
    return tuple(state.digests[name] for name in SUBTREES)


def _leaves_of(module: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (leaf.dtype, tuple(leaf.shape)) for name, leaf in (*module.named_parameters(), *module.named_buffers())}


def _said(leaf: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "not there" if leaf is None else f"{leaf[0]} {leaf[1]}".removeprefix("torch.")


def _specs(tensors: Any) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
