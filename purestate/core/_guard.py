"""The guard of purity: a step on a module that has stepped before does what it does on a new one.

What a step moves beside the tensors of a state (an attribute, a global variable, a generator with a seed of its own) is in no
record, so a resumed run would not have it. `Guard` looks at attributes and at what `_reach` finds before and after a step.
What moved is allowed if it does not build up: the step runs again on copies, its module with the attributes of a new one, and
has to leave there what it left before and to give the same bits. So a mask that is made once, or weights that
attention keeps for a look, pass; a counter does not. A global variable that the first step of a process sets for good is taken
for such a mask, whatever it was made from. Writes to frozen parameters are found by the step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from purestate.core._batch import owned
from purestate.core._hash import leaf_hash
from purestate.core._hidden import New, walk
from purestate.core._loss import tensors_in
from purestate.core._reach import Place, reached
from purestate.core._seeds import preserved_generators, seed_all
from purestate.core._step import PredictStep, Step
from purestate.errors import ImpurityError, SetupError

__all__ = ["FIRST", "Guard", "GuardMode", "check_guard", "exact", "guarded"]

GuardMode = Literal["first", "always", "off"]
FIRST = 3
"""Steps at the beginning of an op, and calls of each kind of batch, that are looked at."""

_T = TypeVar("_T")
_Answer = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def check_guard(guard: Any, op: str) -> GuardMode:
    """Return the mode of a guard that an op was given, or raise `SetupError` if it is none."""
    if guard not in get_args(GuardMode):
        raise SetupError(
            f"{op}: expected guard to be 'first', 'always' or 'off', got {guard!r}.",
            cause="'first' looks at the first steps, 'always' at each, which then runs uncaptured, and 'off' at none.",
            argument="guard",
        )
    return guard


def exact(*trees: Tensors) -> bool:
    """Return whether a step on these tensors gives the same bits twice: on the CPU, or with deterministic algorithms."""
    on_cpu = all(t.device.type == "cpu" for tree in trees for t in tree.values())
    return on_cpu or torch.are_deterministic_algorithms_enabled()


@dataclass(slots=True)
class _Look:
    """What can move, as it is at one moment: by place and path."""

    values: dict[str, Any]
    tensors: dict[str, tuple[Tensor, int]]
    outside: set[str]
    """Those that are no attributes of the module or the loss."""

    def moved_since(self, before: _Look) -> list[str]:
        """Return the paths of what is another value, tensor or version of it than before."""
        paths = [path for path in before.values | self.values if before.values.get(path) != self.values.get(path)]
        for path in before.tensors | self.tensors:
            (old, was), (new, version) = before.tensors.get(path, (None, 0)), self.tensors.get(path, (None, 0))
            if (old is not new or was != version) and path not in paths:
                paths.append(path)
        return paths


class Guard:
    """Looks at calls of one step.

    Args:
        step: The step, whose module has not been called yet. The guard binds attributes of it while it looks and puts them
            back.
        mode: As `train` takes it; for ``'off'`` there is no guard to be made.

    Example:
        >>> from purestate.core._loss import make_objective
        >>> from purestate.core._module import take_apart
        >>> from purestate.core._step import make_gradient_step
        >>> class Counts(nn.Linear):
        ...     calls = 0
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return super().forward(x)
        >>> template, *tensors = take_apart(Counts(2, 1))
        >>> step = make_gradient_step(template, make_objective(nn.MSELoss))
        >>> guard, batch = Guard(step, "first"), (torch.ones(3, 2), torch.zeros(3, 1))
        >>> def loss(output=None):
        ...     return {"loss": float((output or step(*tensors, batch)).loss)}
        >>> try:
        ...     for _ in range(2):
        ...         _ = guard(lambda: step(*tensors, batch), loss, loss)
        ... except ImpurityError as error:
        ...     print(error.problem)
        a step moved module.calls from 1 to 2, which is in no state.
    """

    def __init__(self, step: Step, mode: GuardMode) -> None:
        self.always = mode == "always"
        self.calls = 0
        self._step = step
        self._owed = False
        self._roots: list[tuple[str, nn.Module]] = [("module", step.module)]
        if step.objective is not None and step.objective.module is not None:
            self._roots.append(("loss", step.objective.module))
        self._new: New | None = None
        self._places: list[Place] = []

    def __call__(self, run: Callable[[], _T], answer: Callable[[_T], _Answer], again: Callable[[], _Answer | None]) -> _T:
        """Run a step and return what it returns.

        Args:
            run: The step, seeded.
            answer: Returns the bits of what the step returned and wrote, by leaf. Called at once, if at all.
            again: Runs the step once more with the same seed, on copies, and returns its bits; or None where that is not
                to be done this time.

        Raises:
            ImpurityError: The step moved what belongs to no state, or depends on such.
        """
        self.calls += 1
        if self._new is None:
            self._new, self._places = New(*(root for _, root in self._roots)), self._reached()
        before = self._look()
        output = run()
        after = self._look()
        moved = after.moved_since(before)
        due = self.always or self._owed or (self.calls == 2 and self._step.training)
        if self.calls > 1 and (moved or due):
            with preserved_generators():
                self._owed = not self._judge(self._new, before, after, moved, answer(output), again)
        return output

    def _reached(self) -> list[Place]:
        objective = self._step.objective
        roots: list[tuple[str, Any]] = list(self._roots)
        if objective is not None:
            roots += [("the loss", f) for f in (objective.loss, objective.loss_fn) if f is not None and f is not objective.module]
        return reached([*roots, *((f"the metric {m.name!r}", m.fn) for m in self._step.metrics)])

    def _look(self) -> _Look:
        look = _Look({}, {}, set())
        owned = {id(sub) for _, root in self._roots for sub in root.modules()}
        for name, root in self._roots:
            self._walk(look, root, name, set())
        inside = look.values.keys() | look.tensors.keys()
        for place in self._places:
            value = place.read()
            # a module that a closure holds may be the very one that is looked at already
            self._walk(look, value, place.name, set(owned))
            if isinstance(value, nn.Module) and id(value) not in owned:
                for key, t in [*value.named_parameters(), *value.named_buffers()]:
                    look.tensors[f"{place.name}.{key}"] = t, t._version
        look.outside = (look.values.keys() | look.tensors.keys()) - inside
        return look

    @staticmethod
    def _walk(look: _Look, value: Any, name: str, seen: set[int]) -> None:
        for path, item in walk(value, name, 0, seen):
            if isinstance(item, Tensor):
                look.tensors[path] = item, item._version
            else:
                look.values[path] = item

    def _judge(
        self,
        new: New,
        before: _Look,
        after: _Look,
        moved: list[str],
        expected: _Answer,
        again: Callable[[], _Answer | None],
    ) -> bool:
        """Compare with a step on a new module. Returns False where that could not be done."""
        left = {path: _content(after, path) for path in moved}
        with new.lent():
            fresh = self._look()
            actual = again()
            if actual is None:
                return False
            there = self._look()
        if grown := [path for path in moved if _content(there, path) != left[path]]:
            raise self._moved(grown, before, after)
        if actual == expected:
            return True
        # the copies lie elsewhere in memory, on which bits of some kernels depend: so on copies, too, as the module is now
        used = again()
        if used is not None and used != actual:
            leaf = next(leaf for leaf in [*actual, *used] if actual.get(leaf) != used.get(leaf))
            kept = [path for path in after.moved_since(fresh) if path not in after.outside and _differ(after, fresh, path)]
            raise _depends(leaf, kept)
        return True

    def _moved(self, paths: list[str], before: _Look, after: _Look) -> ImpurityError:
        path = paths[0]
        more = f" (and {', '.join(paths[1:3])}{' and more' if len(paths) > 3 else ''})" if len(paths) > 1 else ""
        if _is_generator(after.values.get(path)):
            return ImpurityError(
                f"a step drew from {path}{more}, a generator whose position is in no state.",
                cause="It goes on from step to step, and a resumed run would start it anew.",
                fix="Draw without generator=, from torch's own: the key of the op seeds it at each step. guard='off' lets it be.",
                path=path,
            )
        name = path.rpartition(".")[2]
        buffer = f": self.register_buffer({name!r}, torch.tensor(0))" if path not in after.outside and name.isidentifier() else ""
        return ImpurityError(
            f"a step moved {path}{_from_to(path, before, after)}{more}, which is in no state.",
            cause="It builds up from step to step, and a resumed run would start it anew.",
            fix=f"Keep it in a buffer{buffer or ' of the module'}. Or let it be with guard='off', if nothing depends on it.",
            path=path,
        )


def guarded(step: PredictStep, mode: GuardMode) -> Callable[..., Any]:
    """Return ``call(params, frozen, buffers, batch, seed)``, which seeds and predicts, its first calls under a guard.

    Args:
        step: A prediction step that has not been called yet.
        mode: As for `Guard`.
    """
    guard = None if mode == "off" else Guard(step, mode)

    def call(params: Tensors, frozen: Tensors, buffers: Tensors, batch: Any, seed: int) -> Any:
        def run(batch: Any) -> Any:
            seed_all(seed)
            return step(params, frozen, buffers, batch)

        if guard is None or (guard.calls >= FIRST and not guard.always):
            return run(batch)
        before = owned(batch)
        may_differ = not exact(params, frozen, buffers)
        return guard(lambda: run(batch), _outputs, lambda: None if may_differ else _outputs(run(owned(before))))

    return call


def _outputs(answer: Any) -> dict[str, Any]:
    return {f"output {i}": _bits(t) for i, t in enumerate(tensors_in(answer))}


def _depends(leaf: str, kept: list[str]) -> ImpurityError:
    if kept:
        names = f"{', '.join(kept[:3])}{' and more' if len(kept) > 3 else ''}"
        return ImpurityError(
            f"a step gave other bits in {leaf} than on a new module: it reads what an earlier step left in {names}.",
            cause="That is in no state, and a resumed run would not have it.",
            fix="Keep it in a buffer, which a state has: self.register_buffer(name, tensor). guard='off' lets it be.",
            path=kept[0],
        )
    return ImpurityError(
        f"a step gave other bits in {leaf} when it ran again on the same batch from the same key.",
        cause="Forward, loss or a metric depends on something else: the time, a file, a generator with a seed of its own.",
        fix="Take it from the batch or from a buffer, and random numbers from torch's own generator. guard='off' lets it be.",
        path=leaf,
    )


def _content(look: _Look, path: str) -> Any:
    """What is at a path, so that equal things compare equal."""
    if path not in look.tensors:
        return look.values.get(path)
    return _bits(look.tensors[path][0])


def _bits(tensor: Tensor) -> Any:
    kind = tensor.dtype, tensor.shape, tensor.layout, tensor.device
    if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
        return kind
    return *kind, leaf_hash(tensor.detach())


def _differ(one: _Look, other: _Look, path: str) -> bool:
    return _content(one, path) != _content(other, path)


def _is_generator(value: Any) -> bool:
    return isinstance(value, tuple) and value[:1] == ("generator",)


def _from_to(path: str, before: _Look, after: _Look) -> str:
    if path in before.tensors or path in after.tensors:
        return ""
    old, new = before.values.get(path), after.values.get(path)
    if isinstance(old, int) and isinstance(new, int):
        return f" from length {old} to {new}"
    if isinstance(new, str) and len(new) < 40 and (old is None or (isinstance(old, str) and len(old) < 40)):
        return f" from {old or 'nothing'} to {new}"
    return ""
