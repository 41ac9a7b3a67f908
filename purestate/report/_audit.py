"""An audit of a run: its ops computed again by the user's script, in a fresh process. What ``purestate audit`` prints."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from purestate.errors import ScriptError, SetupError, UsageError
from purestate.report._compare import name_of
from purestate.report._name import RunName
from purestate.report._opened import Run, open_run
from purestate.report._report import Report, fragment, seconds
from purestate.run._audited import Audited, Deviation
from purestate.run._chain import READERS
from purestate.view import html_table, text_table

if TYPE_CHECKING:
    from purestate.run import Checkpoint, Store
    from purestate.run._script import Target

__all__ = ["AuditReport", "audit"]


@dataclass(frozen=True)
class AuditReport(Report):
    """What an audit found.

    Args:
        run: What was audited.
        script: By what.
        ops: A finding for each op that was chosen, and for those that the script asks for and that were never recorded.
        notes: What else is to be known, a sentence each.
    """

    run: str
    script: str
    ops: tuple[Audited, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that was computed again differs, and all that the script asks for was recorded."""
        return all(one.ok for one in self.ops)

    def __str__(self) -> str:
        findings = ["\n".join([one.finding, *(f"  {line}" for line in one.details)]) for one in self.ops if not one.ok]
        blocks = [self._title(), text_table(self._rows(), _HEADER), *findings]
        if any(one.differences for one in self.ops):
            blocks.append(_NEXT.format(self))
        return "\n\n".join([*blocks, *(["\n".join(self.notes)] if self.notes else [])])

    def to_html(self) -> str:
        """Return the ops as a table, and what differs below it: a fragment for a page."""
        lines = [line for one in self.ops if not one.ok for line in (one.finding, *one.details)]
        return fragment(self._title(), ("", html_table(self._rows(), _HEADER)), *lines, *self.notes)

    def _title(self) -> str:
        again = [one for one in self.ops if one.record is not None and one.verdict != "unasked"]
        same = sum(one.verdict in ("equal", "unfinished") for one in again)
        return f"{self.run} by {self.script}: {same} of {len(again)} ops that were computed again are equal."

    def _rows(self) -> list[list[Any]]:
        return [
            [
                _op(one.op),
                one.record,
                one.epochs,
                one.said.partition(":")[0] if one.record is None else one.said,
                seconds(one.seconds),
            ]
            for one in self.ops
        ]


_HEADER = ["op", "record", "epochs", "verdict", "time"]
_NEXT = "For the step and the leaf, record it again under another id: purestate bisect {0.run} OTHER --script {0.script}"


def audit(
    run: str | os.PathLike[str] | RunName | Checkpoint | Store,
    script: Any,
    *,
    args: Sequence[str] = (),
    op: int | str | None = None,
    sample: int | None = None,
    seed: int = 0,
    timeout: float | None = None,
) -> AuditReport:
    """Compute ops of a recorded run again, in a fresh process, and compare every hash, metric and answer with its record.

    The script runs as it does without a log, but only the chosen ops are computed, each from its recorded input state; all
    others are answered from the log. Nothing is recorded.

    Args:
        run: ``STORE[:CHECKPOINT[@OP]]``: a checkpoint, or a train of it;
            or a `Checkpoint` of a `Store`, or one that has a single one.
        script: The path of the script that recorded it; ``'package.module'``, which runs as by ``python -m``; or a function that
            takes a `Store`, by itself or as ``'package.module:name'``.
        args: Arguments for the script, as on a command line.
        op: Audit only this one: the number of a train, or ``'evaluate'``, ``'find_lr'`` or ``'predict'`` for all of these.
        sample: Audit so many of the ops, which the seed picks.
        seed: Picks them.
        timeout: Seconds that the script may take; None for as long as it takes.

    Returns:
        The report: ``report.ok``, ``report.ops``; its text says all of it.

    Raises:
        UsageError: There is no such run or op, or the script does not ask for it.
        ScriptError: There is no such script, or it fails.

    Effects:
        Runs the script, with whatever it does, in the current folder; what it prints goes to stderr. A line in the journal of
        the store for each op, where that can be written.

    Example:
        A test with pytest is one line::

            def test_the_paper_can_be_computed_again():
                assert ps.audit("ckpts/paper:table1", "train.py").ok
    """
    from purestate.run._script import target

    name = name_of(run, "audit")
    opened = open_run(name)
    what = target(script, args, "audit")
    chosen = _chosen(opened, op, sample, seed)
    with TemporaryDirectory(prefix="purestate-") as folder:
        orders = {
            "store": os.path.abspath(opened.name.store),
            "checkpoint": opened.id,
            "head": opened.log.head,
            "chosen": list(chosen),
            "whole": op is None and sample is None and name.op is None,
        }
        code, events = _run(what, orders, Path(folder), timeout)
    return _report(opened, what.name, chosen, code, events)


def _chosen(run: Run, op: int | str | None, sample: int | None, seed: int) -> dict[int, int | str]:
    """Return the ops to audit, by the numbers of their records."""
    there: dict[int, int | str] = {train.start.seq: number for number, train in enumerate(run.chain.binding())}
    there |= {record.seq: record.kind for record in run.chain.readers.values()}
    if op is not None and run.name.op not in (None, op):
        raise UsageError(f"{run.name} names train {run.name.op}, and op={op!r} another one.", fix="Give one of them.")
    op = run.name.op if op is None else op
    found = {seq: name for seq, name in sorted(there.items()) if op is None or (type(name) is type(op) and name == op)}
    if not found:
        numbers = ", ".join(dict.fromkeys(map(str, there.values())))
        raise UsageError(
            f"Checkpoint {run.id!r} has no op {op!r}." if op is not None else f"Nothing is recorded in checkpoint {run.id!r}.",
            cause=f"It has {numbers}." if numbers else None,
            fix=f"An op is the number of a train, from 0, or one of {', '.join(READERS)}.",
            available=tuple(map(str, there.values())),
        )
    if sample is None:
        return found
    if type(sample) is not int or sample < 1:
        raise SetupError(f"audit: expected sample to be a whole number from 1 on, got {sample!r}.", argument="sample")
    return {seq: found[seq] for seq in sorted(random.Random(seed).sample(sorted(found), min(sample, len(found))))}


def _run(what: Target, orders: dict[str, Any], folder: Path, timeout: float | None) -> tuple[int, list[dict[str, Any]]]:
    """Run the script, and return how it ended and what it told."""
    from purestate.run._mode import VARIABLE
    from purestate.run._script import command

    events = folder / "events"
    events.touch()
    orders["events"] = os.fspath(events)
    # what the script starts is no part of the audit, and writes nothing either
    environment = {**os.environ, VARIABLE: "offline"}
    call = command("_audit_script", what, orders, folder / "orders.json")
    sys.stderr.flush()
    try:
        code = subprocess.run(
            call, stdin=subprocess.DEVNULL, stdout=_STDERR, env=environment, timeout=timeout, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        raise ScriptError(
            f"audit: {what.name} did not end within {timeout:g} s.",
            fix="Give it longer (timeout=None waits for ever), or less to do: sample=1.",
            script=what.name,
        ) from None
    return code, [json.loads(line) for line in events.read_text().splitlines()]


_STDERR = 2


def _report(
    run: Run, script: str, chosen: Mapping[int, int | str], code: int, events: Sequence[Mapping[str, Any]]
) -> AuditReport:
    ops = [_audited(event["audited"]) for event in events if "audited" in event]
    seen = {one.record for one in ops}
    notes = list(_notes(run, events))
    error = next((event for event in events if "error" in event), None)
    failed = "" if code == 0 else f"ended with the status {code}"
    if error is not None:
        failed = " ".join(filter(None, [f"fails with {error['error']}", f"({error['where']})" if error["where"] else ""]))
    if failed and all(one.ok for one in ops):
        again = ", ".join(f"{_op(one.op)}: {one.said}" for one in ops)
        raise ScriptError(f"audit: {script} {failed}", cause=f"Before that: {again}." if again else None, script=script)
    if failed:
        notes.append(f"{script} {failed}")
    left = [(seq, op) for seq, op in chosen.items() if seq not in seen]
    if not ops or (left and run.name.op is not None):
        raise UsageError(
            f"{script} does not ask for {_op(left[0][1])} of {run.name}."
            if left
            else f"{script} asks for nothing of {run.name}.",
            cause="\n".join(notes) or None,
            fix="Give the script that recorded it, with its arguments.",
        )
    ended = any(one.record is None for one in ops) or any("stopped" in event or "unfinished" in event for event in events)
    why = "the script ended before it" if ended else "the script does not ask for it"
    ops += [Audited(run.id, op, seq, "unasked", (why,)) for seq, op in left]
    notes += [f"This is not in the store's journal: {reason}" for reason in dict.fromkeys(one.noted for one in ops) if reason]
    return AuditReport(str(run.name), script, tuple(sorted(ops, key=_order)), tuple(notes))


def _notes(run: Run, events: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    found: list[str] = []
    for event in events:
        because = event.get("because")
        if "mapped" in event:
            found.append(
                f"The script names the store {event['mapped']!r}, which {because}: {str(run.name.store)!r} was read for it."
            )
        elif "other" in event:
            found.append(f"The script names another store, {event['other']!r}: {because}.")
        elif "stopped" in event:
            found.append(f"The script ended at {event['stopped']}, which is not recorded: {because}.")
        elif "unfinished" in event:
            found.append(f"The script ended at {_op(event['unfinished'])}, which is not finished: {because}.")
    return found


def _audited(json: dict[str, Any]) -> Audited:
    from purestate.core._diff import LeafDiff

    json["because"] = tuple(json["because"])
    json["differences"] = tuple(Deviation(**one) for one in json["differences"])
    json["leaves"] = tuple(LeafDiff(**one) for one in json["leaves"])
    return Audited(**json)


def _op(op: int | str) -> str:
    return op if isinstance(op, str) else f"train {op}"


def _order(one: Audited) -> tuple[bool, int]:
    return one.record is None, one.record or 0
