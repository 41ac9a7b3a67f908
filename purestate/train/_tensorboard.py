"""Scalars and the graph of a model for TensorBoard, written from plain data. Knows no model and no log.

TensorBoard shows one chart for a tag, with a line for each run that has it. So a folder becomes two runs, ``train`` and
``val``, that share their tags, and the folder itself is the run of the graph::

    <folder>/events.out.tfevents.*          the graph
    <folder>/train/events.out.tfevents.*    loss, accuracy, …, lr
    <folder>/val/events.out.tfevents.*      loss, accuracy, …

Files are written where they are asked for, and not on the thread of TensorBoard's own writer: flushing after each epoch
would wait for it anyway, and a process with threads cannot safely fork the workers of a loader. TensorBoard is an extra,
and costs 0.12 s to import, so it is imported with the first value that is written.
"""

from __future__ import annotations

import copy
import os
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from purestate.core._loss import inputs_of
from purestate.core._seeds import preserved_generators
from purestate.errors import MetricError, MissingExtraError

if TYPE_CHECKING:
    from tensorboard.summary.writer.record_writer import RecordWriter

__all__ = ["Scalars", "available", "remove", "require", "rewrite", "write_graph"]

_PHASES = ("train", "val")
_FILES = "events.out.tfevents.*"


def available() -> bool:
    """Return whether TensorBoard is installed, without importing it."""
    return find_spec("tensorboard") is not None


def require() -> None:
    """Raise `MissingExtraError` where TensorBoard is not installed.

    Raises:
        MissingExtraError: It is not.
    """
    if not available():
        raise MissingExtraError(
            "TensorBoard logs need the package 'tensorboard', and it is not installed.",
            cause="It is an extra: nothing else needs it.",
            fix="pip install 'purestate[tensorboard]'",
            extra="tensorboard",
        )


class Scalars:
    """The values of a training as it goes on. A TensorBoard that is running shows each epoch when it is added.

    Args:
        folder: The runs ``train`` and ``val`` are made in it. Files that are there stay; new ones are added.

    Raises:
        MissingExtraError: TensorBoard is not installed.

    Effects:
        The first value of a run makes its folder and a file in it. `close` closes the files.

    Example:
        >>> with Scalars(Path("runs/digits")) as scalars:
        ...     scalars.add(0, {"val_loss": 2.3}, lr=[])
        ...     scalars.add(1, {"train_loss": 1.9, "val_loss": 1.7}, lr=[0.1])
        >>> sorted(path.name for path in Path("runs/digits").iterdir())
        ['train', 'val']
    """

    def __init__(self, folder: Path) -> None:
        require()
        self._folder = folder
        self._files: dict[str, RecordWriter] = {}

    def add(self, epoch: int, metrics: Mapping[str, float], lr: Sequence[float]) -> None:
        """Write the values of one epoch.

        Args:
            epoch: Where they are on the axis. 0 is before training.
            metrics: By phase and name: ``train_loss`` is the value of ``loss`` in the run ``train``.
            lr: The learning rate of each parameter group; may be empty. One is ``lr`` in the run ``train``, several are
                ``lr/0``, ``lr/1``, ….

        Raises:
            MetricError: A metric has no phase in its name. Nothing is written then.

        Effects:
            Appends to the files of the two runs, and flushes them.
        """
        values: dict[str, dict[str, float]] = {phase: {} for phase in _PHASES}
        for name, value in metrics.items():
            phase, _, tag = name.partition("_")
            if phase not in values or not tag:
                raise MetricError(f"a metric of an epoch is called train_<name> or val_<name>, got {name!r}.", metric=name)
            values[phase][tag] = float(value)
        values["train"] |= {"lr" if len(lr) == 1 else f"lr/{i}": float(rate) for i, rate in enumerate(lr)}
        for phase, tags in values.items():
            if tags:
                self._write(phase, epoch, tags)

    def close(self) -> None:
        """Close the files. A second time does nothing."""
        while self._files:
            self._files.popitem()[1].close()

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _write(self, phase: str, epoch: int, tags: Mapping[str, float]) -> None:
        if phase not in self._files:
            self._files[phase] = _open(self._folder / phase)
        values = [{"tag": tag, "simple_value": value} for tag, value in tags.items()]
        _append(self._files[phase], step=epoch, summary={"value": values})


def rewrite(folder: Path, epochs: Sequence[tuple[int, Mapping[str, float], Sequence[float]]]) -> Scalars:
    """Write the values of a training anew, in place of those that are there. The graph stays.

    A TensorBoard that is running shows the new values; only one with ``--load_fast=false`` has to be started again.

    Args:
        folder: As for `Scalars`.
        epochs: The arguments of `Scalars.add`, an entry an epoch.

    Returns:
        Where the next epochs are added. To be closed.

    Raises:
        MissingExtraError: TensorBoard is not installed. Nothing is removed then.
        MetricError: A metric has no phase in its name.

    Effects:
        Removes TensorBoard's files in the folders of the runs ``train`` and ``val``, and no other file; writes new ones.

    Example:
        >>> history = [(1, {"train_loss": 1.9}, [0.1]), (2, {"train_loss": 1.2}, [0.1])]
        >>> rewrite(Path("runs/again"), history).close()
    """
    scalars = Scalars(folder)
    for phase in _PHASES:
        _remove_files(folder / phase)
    try:
        for epoch, metrics, lr in epochs:
            scalars.add(epoch, metrics, lr)
    except BaseException:
        scalars.close()
        raise
    return scalars


def write_graph(folder: Path, module: nn.Module, example: Any) -> str | None:
    """Write the graph of a module in evaluation mode, as the run that the folder itself is. An earlier graph is replaced.

    Args:
        folder: As for `Scalars`.
        module: A copy of it is called. Neither its tensors, nor its mode, nor a generator is moved.
        example: A batch as a loader gives it, on the device of the module; its inputs are told as for `predict`. Not
            modified.

    Returns:
        None, or why there is no graph: the module cannot be copied or called, or torch cannot trace it. An earlier graph
        stays then.

    Raises:
        MissingExtraError: TensorBoard is not installed.

    Effects:
        Removes TensorBoard's files in the folder, not below it, and writes one.

    Example:
        >>> write_graph(Path("runs/digits"), nn.Linear(3, 2), torch.zeros(1, 3))
        >>> write_graph(Path("runs/digits"), nn.Linear(3, 2), torch.zeros(1, 4))
        'Linear has no graph: RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)'
    """
    require()
    try:
        graph = _traced(module, example)
    except Exception as error:  # forward is the user's code and may raise anything; training goes on without a picture of it
        reason = str(error).strip().partition("\n")[0]
        return f"{type(module).__name__} has no graph: {type(error).__name__}: {reason}".removesuffix(": ")
    _remove_files(folder)
    file = _open(folder)
    try:
        _append(file, graph_def=graph)
    finally:
        file.close()
    return None


def remove(folder: Path) -> None:
    """Remove scalars and graph.

    Args:
        folder: As for `Scalars`. Need not exist.

    Effects:
        Removes TensorBoard's files and then the folders, where nothing else is in them. Other files stay.

    Example:
        >>> rewrite(Path("runs/gone"), [(1, {"train_loss": 0.1}, [])]).close()
        >>> remove(Path("runs/gone"))
        >>> Path("runs/gone").exists()
        False
    """
    for place in (*(folder / phase for phase in _PHASES), folder):
        _remove_files(place)
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _remove_files(folder: Path) -> None:
    for path in folder.glob(_FILES):
        path.unlink()


def _traced(module: nn.Module, example: Any) -> bytes:
    """Return the graph as TensorBoard keeps it. What torch has to say about tracing is not for whoever trains."""
    with warnings.catch_warnings(), preserved_generators():
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import _pytorch_graph

        module, (args, kwargs) = copy.deepcopy((module, inputs_of(example)))
        module.eval()
        # SummaryWriter.add_graph also calls the module three more times to compare, and imports for a second to do so
        trace: Any = torch.jit.trace(
            module, None if kwargs else args, example_kwarg_inputs=kwargs or None, strict=False, check_trace=False
        )
        graph = trace.graph
        torch._C._jit_pass_inline(graph)
        proto: Any = _pytorch_graph  # protobuf makes its classes while it is imported
        return proto.GraphDef(node=proto.parse(graph, trace), versions=proto.VersionDef(producer=22)).SerializeToString()


def _open(folder: Path) -> RecordWriter:
    """Start a file. TensorBoard reads the files of a run one after another by name, so a later one sorts behind."""
    _, record_writer = _imported()
    seconds, rest = divmod(time.time_ns(), 10**9)
    name = f"{_FILES[:-1]}{seconds:010d}.{rest:09d}.{socket.gethostname()}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    file = record_writer((folder / name).open("xb"))
    _append(file, file_version="brain.Event:2")
    return file


def _append(file: RecordWriter, **fields: Any) -> None:
    proto, _ = _imported()
    file.write(proto.Event(wall_time=time.time(), **fields).SerializeToString())
    file.flush()


def _imported() -> tuple[Any, type[RecordWriter]]:
    """Return what is used of TensorBoard, the module of its messages and the class of its files.

    Raises:
        MissingExtraError: It is there and cannot be imported.
    """
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except Exception as error:  # a protobuf that does not fit raises TypeError, for example
        raise MissingExtraError(
            f"TensorBoard is installed, and cannot be imported: {type(error).__name__}: {error}".partition("\n")[0],
            fix="pip install --force-reinstall 'purestate[tensorboard]'",
            extra="tensorboard",
        ) from error
    return event_pb2, RecordWriter
