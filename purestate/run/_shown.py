"""A log for people: its history, as text, as a table, as a figure. Reads records and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from purestate.core._hash import short
from purestate.core._plain import decode
from purestate.run._answers import History, as_history
from purestate.run._ledger import Ledger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_figure", "as_html", "as_text", "history_of"]


def history_of(ledger: Ledger) -> History:
    """Return lists, an entry an epoch, over all trains."""
    return as_history([epoch for epoch, _, _ in _finished_epochs(ledger)])


def as_text(ledger: Ledger) -> str:
    """Return a line for each op."""
    chain = ledger.refresh()
    rows = [f"Checkpoint({ledger.id!r}{f', {ledger.description!r}' if ledger.description else ''})"]
    for op, train, record in chain.finished():
        body = record.body
        rows.append(f"  train {op}: {body['last']} epochs, {len(train.done)} answers, {short(body['out']['hash'])}")
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
            body = train.epochs[n].body
            yield body | {"metrics": decode(body["metrics"])}, op, n == record.body["best"]
