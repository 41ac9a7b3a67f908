"""An audit: ops that the log answers are computed again from their recorded input states, and all that came is compared.

Nothing is recorded: no resume point is used or written, the log stays as it is, and the finding of an op is a line in the
store's journal. Which ops are audited is for whoever is asked (`_mode.Auditor`): `Raising` audits all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from purestate.core._diff import LeafDiff, diff, diff_leaf
from purestate.core._digest import canonical_json, short
from purestate.core._hash import leaf_hash
from purestate.core._plain import encode
from purestate.core._state import State
from purestate.core._train import Epoch
from purestate.core._work import combine
from purestate.errors import AuditError, CorruptLogError, MissingSnapshotError, NonFiniteLossError, StoreError
from purestate.run._again import recompute
from purestate.run._audited import Audited, AuditVerdict, Deviation
from purestate.run._chain import RecordLike, Trajectory, as_recorded
from purestate.run._envelope import contrast, elsewhere, envelope_of
from purestate.run._environment import environment, prepare
from purestate.run._ledger import Ledger
from purestate.run._readers import Reader, item_of
from purestate.run._select import Selection
from purestate.run._trace import trace_of
from purestate.run._tracer import leaves_by_part
from purestate.run._training import Training

__all__ = ["Raising", "audit_reader", "audit_train", "note", "to_error"]


class Raising:
    """Audits every op of a process, and raises what differs at the end of it. See `purestate.run._mode.Auditor`."""

    def train(self, call: Training, train: Trajectory | None) -> str | None:
        if train is None:
            return None
        answer = train.answer(call.selection.json())
        last = call.choose(train).last if answer is None else answer.body["last"]
        return self._said(call.ledger, audit_train(call, train, last))

    def reader(self, reader: Reader, ledger: Ledger, record: RecordLike | None) -> str | None:
        return None if record is None else self._said(ledger, audit_reader(reader, ledger, record))

    def missing(self, ledger: Ledger, op: str, why: str, train: Trajectory | None) -> NoReturn:
        name = op if train is None else ledger.chain.index(train)
        raise to_error(note(ledger, Audited(ledger.id, name, None, "unrecorded", (why,))))

    def _said(self, ledger: Ledger, audited: Audited) -> str:
        audited = note(ledger, audited)
        if audited.differences:
            raise to_error(audited)
        return f"{audited.said}, and not in the journal" if audited.noted else audited.said


def note(ledger: Ledger, audited: Audited) -> Audited:
    """Leave a finding in the store's journal, and return it; where that cannot be written, with the reason.

    Effects:
        A line in the journal.
    """
    told = {"op": audited.op, "record": audited.record, "verdict": audited.verdict, "head": ledger.log.head}
    if audited.verdict != "equal":
        told["finding"] = audited.finding
    try:
        ledger.backend.journal("audit", checkpoint=ledger.id, **told)
    except (StoreError, OSError) as error:
        return replace(audited, noted=str(error).splitlines()[0])
    return audited


_UNKNOWN = "It is unknown whether that matters: {}."


def to_error(audited: Audited) -> AuditError:
    """Return what is raised for a difference, or for an op that was never recorded."""
    if not audited.differences:
        fix = "Run it without PURESTATE_MODE, which computes and records it, or undo the change."
        return AuditError(audited.finding, fix=fix, checkpoint=audited.checkpoint, op=audited.op)
    first = audited.differences[0]
    lines = [
        *audited.details,
        f"It {audited.said}." if audited.verdict != "unknown" else _UNKNOWN.format("; ".join(audited.because)),
    ]
    if audited.noted:
        lines.append(f"This is not in the store's journal: {audited.noted}")
    return AuditError(
        audited.finding,
        cause="\n".join(lines),
        fix="For the step and the leaf, record it again under another id: purestate bisect A B --script SCRIPT.",
        checkpoint=audited.checkpoint,
        op=audited.op,
        epoch=first.epoch,
        expected=first.recorded,
        actual=first.now,
    )


# -------------------------------------------------------------------- trains


def audit_train(call: Training, train: Trajectory, last: int) -> Audited:
    """Compute a recorded train again and compare every epoch, and the answers that were made of them.

    Args:
        call: The call that asks for it, with the recorded input. Not modified.
        train: The trajectory.
        last: The last epoch that is computed.

    Effects:
        None on the store.
    """
    began, op = time.perf_counter(), call.ledger.chain.index(train)
    doubts = _doubts(train.question)
    found = _Found(call, train)
    if call.state.hash != train.input and call.question.digest != train.question["digest"]:
        doubts = ["it was accepted as the answer for another input than the one that it began from"]
    elif last > 0 or 0 in train.epochs:
        try:
            with closing(recompute(call, train, last)) as epochs:
                for epoch in epochs:
                    found.compare(epoch)
                    call.progress.update(epoch)
        except NonFiniteLossError as error:
            found.failed(error)
        except MissingSnapshotError as error:
            doubts = [error.problem]
    envelope = _Envelope()
    if found.differences:
        envelope.of_train(train, found.differences[0].epoch, _now(environment(call.state.device, *call.loaders), found.plan))
    verdict, because = _verdict(bool(found.differences), envelope, doubts)
    if verdict == "equal" and not train.done:
        verdict = "unfinished"
    return Audited(
        call.ledger.id,
        op,
        train.start.seq,
        verdict,
        because,
        epochs=found.epochs,
        differing=found.differing,
        differences=tuple(found.differences),
        leaves=tuple(found.leaves),
        leaves_epoch=found.leaves_epoch,
        seconds=time.perf_counter() - began,
    )


class _Found:
    """What the epochs of a train give, held against their records. Holds the best state besides, as `train` does."""

    def __init__(self, call: Training, train: Trajectory) -> None:
        self._call, self._train = call, train
        self._ledger = call.ledger
        self.epochs = self.differing = 0
        self.plan: Mapping[str, str] = {}
        self.differences: list[Deviation] = []
        self.leaves: list[LeafDiff] = []
        self.leaves_epoch: int | None = None
        self._kept = train.kept()
        self._history: list[dict[str, float]] = []
        self._best: tuple[int, State] | None = None
        watched = [record.body["selection"] for record in train.done if record.body["returned"] != record.body["last"]]
        self._own_best = any(selection["watch"] == call.selection.watch for selection in watched)

    def compare(self, epoch: Epoch) -> None:
        """Hold an epoch against its record, and the answers that end with it against theirs."""
        self.epochs, self.plan = self.epochs + (epoch.n > 0), epoch.plan or self.plan
        if epoch.n == 1 and not self._history:
            self._history.append({})
        self._history.append(epoch.metrics)
        if self._own_best:
            self._keep_best(epoch)
        if epoch.n in self._train.epochs:
            found = list(self._of_epoch(epoch, self._train.epochs[epoch.n]))
            if found and not self.differing:
                self.differences += found
            self.differing += bool(found)
        for record in self._train.done:
            if record.body["last"] == epoch.n:
                self.differences += self._of_answer(epoch, record)

    def failed(self, error: NonFiniteLossError) -> None:
        """Take it for a difference that an epoch which is recorded could not be computed."""
        n = len(self._history)
        self.differing += 1
        self.differences.append(Deviation(n, "training loss", "finite", error.value))

    def _of_epoch(self, epoch: Epoch, record: RecordLike) -> Iterator[Deviation]:
        with as_recorded(record):
            body = record.body
            if body["hash"] != epoch.state.hash:
                yield Deviation(epoch.n, "state", body["hash"], epoch.state.hash)
                self._find_leaves(epoch)
            yield from _told(body["metrics"], encode(epoch.metrics), "", epoch.n)
            yield from _told(body["lr"], encode(epoch.lr), "learning rates", epoch.n)
            yield from _told(body["epoch"], epoch.epoch, "epoch", epoch.n)

    def _of_answer(self, epoch: Epoch, record: RecordLike) -> Iterator[Deviation]:
        """Yield what differs between a recorded answer and the one that these epochs give."""
        with as_recorded(record):
            body = record.body
            selection = Selection(**body["selection"])
            choice = self._call.choose_of(self._history, selection)
            for what, now in (("last", choice.last), ("best", choice.best), ("returned", choice.returned(selection))):
                if body[what] != now:
                    yield Deviation(None, f"{what} epoch for {selection.epochs}", body[what], now)
            state = self._answer(epoch, choice.returned(selection))
            if state is not None and body["out"]["hash"] != state.hash:
                yield Deviation(None, f"answer for {selection.epochs} epochs", body["out"]["hash"], state.hash)

    def _answer(self, epoch: Epoch, returned: int) -> State | None:
        if returned == epoch.n:
            return epoch.state
        # another metric was watched: its own call compares that
        return combine(self._best[1], epoch.state) if self._best is not None and self._best[0] == returned else None

    def _keep_best(self, epoch: Epoch) -> None:
        best = self._call.choose_of(self._history).best
        if best == epoch.n:
            self._best = None  # or two of them would be in memory beside the one in work
            self._best = (epoch.n, epoch.state if epoch.n == 0 else epoch.state.own())  # at first it is the input

    def _find_leaves(self, epoch: Epoch) -> None:
        """Name the leaves that differ, once: where the recorded bytes are kept, or the train was traced."""
        if self.leaves_epoch is not None:
            return
        if epoch.n in self._kept:
            with suppress(MissingSnapshotError):
                kept = self._ledger.restore(self._kept[epoch.n], self._call.state.recipe, self._call.state.device)
                self.leaves, self.leaves_epoch = diff(kept, epoch.state), epoch.n
            return
        with suppress(CorruptLogError):  # a trace that contradicts the hash which is recorded beside it names nothing
            trace = trace_of(self._train.epochs[epoch.n])
            if trace is None:
                return
            parts, plain = leaves_by_part(epoch.state)
            now = {f"{part}[{name!r}]": digest for part, inside in parts.items() for name, digest in inside.items()} | plain
            differing = [path for path in {**trace.leaves, **now} if trace.leaves.get(path) != now.get(path)]
            self.leaves = [LeafDiff(path, _hash(trace.leaves.get(path)), _hash(now.get(path))) for path in differing]
            self.leaves_epoch = epoch.n


def _hash(digest: str | None) -> str:
    return "none" if digest is None else short(digest)


# -------------------------------------------------------------------- readers


def audit_reader(reader: Reader, ledger: Ledger, record: RecordLike) -> Audited:
    """Compute the recorded answer of an op that only reads again, and compare.

    Args:
        reader: The call that asks for it.
        ledger: Where it is recorded.
        record: Its record.

    Effects:
        None on the store.
    """
    began = time.perf_counter()
    prepare(reader.state.device)
    answer, tensors = reader.compute()
    leaves: list[LeafDiff] = []
    with as_recorded(record):
        body = record.body
        differences = list(_told(body["answer"], answer, "" if reader.name == "evaluate" else "answer", None))
        digest, recorded = item_of(tensors), body["item"]
        if digest != recorded:
            differences.append(Deviation(None, "outputs", recorded, digest))
            with suppress(MissingSnapshotError):
                kept = ledger.backend.get(recorded, what=f"the answer of {reader.name}") if recorded else {}
                names = [name for name in kept if name in tensors and leaf_hash(kept[name]) != leaf_hash(tensors[name])]
                leaves = [diff_leaf(name, kept[name], tensors[name]) for name in names]
        doubts = _doubts(body["question"])
        envelope = _Envelope()
        if differences:
            envelope.hold(envelope_of(record), _now(environment(reader.state.device), reader.plan))
        verdict, because = _verdict(bool(differences), envelope, doubts)
    return Audited(
        ledger.id,
        reader.name,
        record.seq,
        verdict,
        because,
        differences=tuple(differences),
        leaves=tuple(leaves),
        seconds=time.perf_counter() - began,
    )


# -------------------------------------------------------------------- both


def _told(recorded: Any, now: Any, what: str, epoch: int | None) -> Iterator[Deviation]:
    """Yield what differs between two plain values: an entry of an object, the first of a list. JSON holds floats to the bit."""
    if canonical_json(recorded) == canonical_json(now):
        return
    both = recorded, now
    if all(isinstance(value, Mapping) and "~" not in value for value in both):
        for name in dict.fromkeys([*recorded, *now]):
            yield from _told(recorded.get(name), now.get(name), f"{what}.{name}" if what else name, epoch)
    elif all(isinstance(value, list) for value in both) and len(recorded) == len(now):
        i = next(i for i, (x, y) in enumerate(zip(recorded, now, strict=True)) if canonical_json(x) != canonical_json(y))
        yield from _told(recorded[i], now[i], f"{what}[{i}]", epoch)
    else:
        yield Deviation(epoch, what, _plain(recorded), _plain(now))


def _plain(value: Any) -> Any:
    return value["v"] if isinstance(value, Mapping) and value.get("~") == "float" else value


def _doubts(question: Mapping[str, Any]) -> list[str]:
    probed = any(question["parts"].get(f"{data}.kind") == "probed" for data in ("train_data", "val_data", "data"))
    return ["the data was only probed: what lies between the samples may differ"] if probed else []


@dataclass
class _Envelope:
    """What is another than it was recorded of what the bits may depend on, and what is not known of that."""

    differing: list[str] = field(default_factory=list[str])
    doubts: list[str] = field(default_factory=list[str])

    def hold(self, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Compare two envelopes."""
        found = contrast(recorded, now)
        self.differing += [f"{name} ({a}, now {b})" for name, a, b in found.differing]
        if found.missing:
            self.doubts.append("the record does not say in what environment it was computed")
        elif found.untold:
            self.doubts.append(f"either the record or this version does not say: {', '.join(found.untold)}")

    def of_train(self, train: Trajectory, last: int | None, now: Mapping[str, Any]) -> None:
        """Compare that of a train, up to an epoch: some may have been computed elsewhere than where it began."""
        recorded = {**envelope_of(train.start), **(envelope_of(train.done[0]) if train.done else {})}
        planned = any(name.startswith(_PLAN) for name in recorded)
        self.hold(recorded, now if planned else {name: now[name] for name in now if not name.startswith(_PLAN)})
        for n, facts in elsewhere(train, last):
            others = [name for name in facts if now.get(name) != facts[name]]
            self.differing += [f"{name} of epoch {n} ({facts[name]}, now {now.get(name)})" for name in others]


_PLAN = "plan "


def _now(environment: Mapping[str, Any], plan: Mapping[str, str]) -> dict[str, Any]:
    """Return the envelope of what was just computed, as `envelope_of` returns that of a record."""
    return {**environment, **{f"{_PLAN}{name}": value for name, value in {**plan, "world_size": 1}.items()}}


def _verdict(differs: bool, envelope: _Envelope, doubts: list[str]) -> tuple[AuditVerdict, tuple[str, ...]]:
    if differs and envelope.differing:
        return "expected", tuple(envelope.differing)
    doubts = [*doubts, *envelope.doubts]
    if doubts:
        return "unknown", tuple(doubts)
    return ("unexplained" if differs else "equal"), ()
