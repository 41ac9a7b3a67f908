"""What is kept of a `train` beside its answers: what a policy wants of it, and the records that keep and drop epochs.

A `keep` record has the snapshot of one epoch; a `drop` record takes some back, and `Store.gc` then takes their bytes. Which
epochs those are follows from the records of the epochs (see `_policy`), so that a run which was killed goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from purestate.core._hash import short
from purestate.core._state import State
from purestate.errors import MetricError, ReplayError, SetupError
from purestate.run._chain import Chain, Trajectory
from purestate.run._ledger import Ledger
from purestate.run._policy import Policy
from purestate.run._snapshot import snapshot

__all__ = ["Retention", "checked", "lacking", "prune"]


class Retention:
    """What one call of `train` keeps.

    Args:
        ledger: Of its checkpoint, whose lock is held.
        train: The trajectory.
        policy: Which epochs.
        watch: What the call watches.
    """

    def __init__(self, ledger: Ledger, train: Trajectory, policy: Policy, watch: str) -> None:
        self._ledger, self._train = ledger, train
        self._policy, self._watch = policy, watch
        self._ours: set[int] = set()  # what this object kept: asking the records would take each of them apart, and keep that

    def after(self, n: int, state: State) -> None:
        """Keep the state after a recorded epoch if the policy wants it, and drop what it does not want any more.

        What another policy kept stays: only `prune` drops that.

        Effects:
            Items in the store and records, durable on return, where there is something to keep or to drop.
        """
        train, last = self._train, len(self._train.history()) - 1
        wanted = _wanted(train, self._policy, {(last, self._watch), *train.answered()})
        if n in wanted and n not in train.kept_epochs():
            self.keep(n, state)
        gone = train.keeps.keys() - wanted - train.in_answers()
        _drop(self._ledger, train, [m for m in gone if self._is_ours(m)], self._policy)

    def _is_ours(self, n: int) -> bool:
        return n in self._ours or self._train.keeps[n].body.get("policy") == repr(self._policy)

    def keep(self, n: int, state: State) -> None:
        """Keep the state after a recorded epoch.

        Raises:
            ReplayError: It is not the state that was recorded: the question was accepted for another input, for example.

        Effects:
            Items in the store and a record, durable on return.
        """
        recorded = self._train.epochs[n].body["hash"]
        if state.hash != recorded:
            raise ReplayError(
                f"checkpoint {self._ledger.id!r}: the state after epoch {n} was recorded as {short(recorded)}, and this one is "
                f"{short(state.hash)}.",
                cause="The train was accepted as the answer for another input.",
                fix="Keep epochs of the input that was recorded, or ask under another checkpoint id.",
                expected=recorded,
                actual=state.hash,
            )
        taken, items = snapshot(state)
        self._ledger.put(items)
        self._ledger.append("keep", {"of": self._train.start.seq, "n": n, "state": taken, "policy": repr(self._policy)})
        self._ours.add(n)


def lacking(train: Trajectory, policy: Policy, last: int, watch: str) -> set[int]:
    """Return the epochs up to ``last`` that a policy wants and that have no snapshot."""
    return _wanted(train, policy, {(last, watch)}) - train.kept_epochs()


def checked(keep: object, watch: str, computed: Collection[str]) -> Policy | None:
    """Return what was given as ``keep=`` of a train.

    Args:
        keep: A policy or None.
        watch: The metric that is watched.
        computed: The metrics that are computed on validation data.

    Raises:
        SetupError: It is something else.
        MetricError: It ranks by a metric that is not computed.
    """
    if keep is None:
        return None
    if not isinstance(keep, Policy):
        raise SetupError(f"train: expected a policy such as ps.keep.last(3), got keep={keep!r}.", argument="keep")
    _check_ranks(keep, watch, computed, "train")
    return keep


def prune(ledger: Ledger, policy: Policy, op: int | None) -> dict[int, list[int]]:
    """Drop what a policy does not want of finished trains. See `purestate.run._checkpoint.Checkpoint.prune`."""
    if not isinstance(policy, Policy):
        raise SetupError(f"prune: expected a policy such as ps.keep.last(3), got {policy!r}.", argument="keep")
    if not _gone(ledger.refresh(), policy, op):
        return {}  # a script that is run again drops nothing, and needs no lock for that
    with ledger.writing() as chain:
        gone = _gone(chain, policy, op)
        for number, epochs in gone.items():
            _drop(ledger, chain.trains[number], epochs, policy)
    return gone


def _gone(chain: Chain, policy: Policy, op: int | None) -> dict[int, list[int]]:
    """Return the epochs of finished trains that are kept and that a policy does not want, by train."""
    gone: dict[int, list[int]] = {}
    for number, train in [(number, train) for number, train, _ in chain.finished() if op is None or number == op]:
        answered = train.answered()
        names = {name.removeprefix("val_") for entry in train.history() for name in entry if name.startswith("val_")}
        for _, watch in answered:
            _check_ranks(policy, watch, names, f"prune: train {number}")
        gone[number] = sorted(train.keeps.keys() - _wanted(train, policy, answered) - train.in_answers())
    return {number: epochs for number, epochs in gone.items() if epochs}


def _wanted(train: Trajectory, policy: Policy, asked: Iterable[tuple[int, str]]) -> set[int]:
    """The epochs that a policy wants for any of several answers: how far each goes, and what it watches."""
    return set[int]().union(*(policy.kept(train.past(last, watch)) for last, watch in asked))


def _drop(ledger: Ledger, train: Trajectory, epochs: Collection[int], policy: Policy) -> None:
    if epochs:
        ledger.append("drop", {"of": train.start.seq, "epochs": sorted(epochs), "policy": repr(policy)})


def _check_ranks(policy: Policy, watch: str, computed: Collection[str], where: str) -> None:
    """Raise `MetricError` if a policy ranks by a metric that is not computed on validation data."""
    for metric in sorted(policy.ranks(watch) - {*computed}):
        there = f"there is {', '.join(map(repr, sorted(computed)))}" if computed else "there is no validation"
        raise MetricError(
            f"{where}: keep={policy!r} ranks by {metric!r}, which is not computed; {there}.",
            cause="What is best is decided by validation metrics.",
            fix="Name one that is computed, as in keep.best(2, 'loss'), or keep by number: keep.last(2), keep.every(5).",
            metric=metric,
        )
