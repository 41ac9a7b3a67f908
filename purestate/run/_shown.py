"""A log, or the checkpoints of a store, for people: as text, table, tree and figure. Reads records and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from purestate.core._hash import short
from purestate.core._plain import decode
from purestate.run._answers import History, as_history, counted, op_name
from purestate.run._chain import as_recorded
from purestate.run._ledger import Ledger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from purestate.run._store import CheckpointInfo

__all__ = ["as_figure", "as_html", "as_text", "history_of", "listing", "tree"]


def history_of(ledger: Ledger) -> History:
    """Return lists, an entry an epoch, over all trains."""
    return as_history([epoch for epoch, _, _ in _finished_epochs(ledger)])


def as_text(ledger: Ledger) -> str:
    """Return a line for each op."""
    chain = ledger.refresh()
    rows = [f"Checkpoint({ledger.id!r}{f', {ledger.description!r}' if ledger.description else ''})"]
    for op, train, record in chain.finished():
        body = record.body
        rows.append(
            f"  train {op}: {counted(body['last'], 'epoch')}, {counted(len(train.done), 'answer')}, {short(body['out']['hash'])}"
        )
    rows += [f"  {record.kind}: {short(record.body['input'])}" for record in chain.readers.values()]
    return "\n".join(rows)


def as_html(ledger: Ledger) -> str:
    """Return a table with a row for each op."""
    from purestate.view import html_table

    chain = ledger.refresh()
    rows: list[list[Any]] = []
    for op, train, record in chain.finished():
        body = record.body
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in train.history()[body["returned"]].items())
        rows.append([f"train {op}", body["last"], body["best"], metrics, short(body["out"]["hash"])])
    rows += [[record.kind, None, None, "", short(record.body["input"])] for record in chain.readers.values()]
    return f"<p><b>{ledger.id}</b></p>" + html_table(rows, ["op", "epochs", "best", "metrics", "state"])


def as_figure(ledgers: Sequence[Ledger]) -> Figure:
    """Return a figure of one or several histories: one chart a metric."""
    from purestate import view

    histories: list[dict[str, Any]] = []
    for ledger in ledgers:
        epochs = list(_finished_epochs(ledger))
        marks = {"op": [op for _, op, _ in epochs], "best": [best for _, _, best in epochs]}
        histories.append(as_history([epoch for epoch, _, _ in epochs]) | marks)
    return view.plot_metrics(histories, [ledger.id for ledger in ledgers])


def _finished_epochs(ledger: Ledger) -> Iterator[tuple[dict[str, Any], int, bool]]:
    """Yield ``(epoch, op, whether it is the op's best)`` for what the newest answer of each train covers."""
    for op, train, record in ledger.refresh().finished():
        for n in range(1, record.body["last"] + 1):
            with as_recorded(record):
                found = train.epochs[n]
            with as_recorded(found):
                epoch = {name: found.body[name] for name in ("epoch", "metrics", "lr", "seconds")}
                epoch["metrics"] = decode(epoch["metrics"])
                if type(epoch["metrics"]) is not dict or type(epoch["lr"]) is not list:
                    raise TypeError("metrics or learning rates are none")
            yield epoch, op, n == record.body["best"]


_Homes = Mapping[str, Sequence[str]]
"""Which checkpoints have a record, by its digest."""


def listing(infos: Sequence[CheckpointInfo], homes: _Homes) -> str:
    """Return checkpoints as a table."""
    from purestate.view import text_table

    rows = [
        [
            info.id,
            info.description or "",
            info.trains,
            info.epochs,
            ", ".join(f"{name} {value:.4f}" for name, value in info.metrics.items() if name.startswith("val_")),
            short(info.state) if info.state else "",
            f"{_home(info.parent, homes) or info.parent['checkpoint']}:{op_name(info.parent['op']).removeprefix('train ')}"
            if info.parent
            else "",
        ]
        for info in infos
    ]
    return text_table(rows, ["id", "description", "trains", "epochs", "metrics", "state", "from"])


def tree(infos: Sequence[CheckpointInfo], homes: _Homes) -> str:
    """Return which checkpoint was forked from which."""
    children: dict[str | None, list[CheckpointInfo]] = {}
    for info in infos:
        children.setdefault(_home(info.parent, homes), []).append(info)

    def lines(above: str | None, indent: str) -> list[str]:
        found: list[str] = []
        for i, info in enumerate(children.get(above, [])):
            last = i == len(children[above]) - 1
            branch = "" if above is None else "└─ " if last else "├─ "
            at = f" (from {op_name(info.parent['op'])})" if info.parent and above is not None else ""
            state = f", {short(info.state)}" if info.state else ""
            size = f"{counted(info.trains, 'train')}, {counted(info.epochs, 'epoch')}"
            found.append(f"{indent}{branch}{info.id}{at}: {size}{state}")
            found += lines(info.id, indent + ("" if above is None else "   " if last else "│  "))
        return found

    return "\n".join(lines(None, ""))


def _home(parent: Mapping[str, Any] | None, homes: _Homes) -> str | None:
    """Return the checkpoint that has the record of a parent: the one of the name that it had, or another."""
    found = homes.get(parent["record"], ()) if parent is not None else ()
    return next((id for id in found if parent is not None and id == parent["checkpoint"]), found[0] if found else None)
