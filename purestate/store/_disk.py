"""`DiskBackend`: a store in a folder. Joins the log, the items, the resume points, the locks and the journal.

What looks after the whole folder, and needs all of them, is in `_repair`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purestate.errors import CorruptLogError, FormatVersionError, StoreError, StoreWriteError
from purestate.store._backend import Handle, Leaf, Outlived, Point, not_found, taken_name
from purestate.store._files import (
    make_folder,
    must_be_inside,
    no_folder,
    read_errors,
    read_file,
    sync_folder,
    unique,
    write_errors,
    write_file,
)
from purestate.store._journal import Journal
from purestate.store._layout import FORMAT_FILE, FORMAT_VERSION, Layout, check_id, is_id
from purestate.store._locks import FileLock
from purestate.store._log import DiskLog
from purestate.store._mounts import warn_of_network
from purestate.store._placed import placed
from purestate.store._report import Finding

if TYPE_CHECKING:
    import torch

    from purestate.store._items import Items
    from purestate.store._report import GcReport, RepairReport
    from purestate.store._resume import Points
    from purestate.store._writer import Writer

__all__ = ["DiskBackend"]

_FORMAT = json.dumps({"purestate": FORMAT_VERSION})
_ANONYMOUS = json.dumps({"purestate": FORMAT_VERSION, "provenance": "minimal"})
"""What ``format.json`` says, and where nobody is to be told who writes it."""


class DiskBackend:
    """A store in a folder. See `purestate.store._backend.Backend` for what its methods mean.

    Args:
        path: The folder. It is created by the first write; a store that is only read is never written to, not even a lock.
        anonymous: Whether what is written says nothing of who writes it and where. As the store was created, if left out; a
            store that is created so stays so.

    Raises:
        FormatVersionError: The folder was written in a newer format.
        StoreWriteError: ``path``, or a folder above it, is a file.
        StoreError: ``format.json`` holds something else than a version.
    """

    def __init__(self, path: str | os.PathLike[str], *, anonymous: bool | None = None) -> None:
        self._path = placed(path)
        told = _check_format(Layout(self._path))
        self.anonymous = told == _MINIMAL if anonymous is None else anonymous
        self._layout = Layout(self._path, anonymous=self.anonymous)
        self._prepared = False
        self._journal = Journal(self._layout)
        self._shared = FileLock(self._layout.store_lock, f"the store {os.fspath(path)!r}", shared=True)

    # These three are imported when tensors are written or read: a re-run that finds its answers in the log does neither.

    @cached_property
    def _writer(self) -> Writer:
        from purestate.store._writer import shared_writer

        return shared_writer()

    @cached_property
    def _items(self) -> Items:
        from purestate.store._items import Items

        return Items(self._layout, self._writer)

    @cached_property
    def _resume(self) -> Points:
        from purestate.store._resume import Points

        return Points(self._layout, self._writer)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    # ---------------------------------------------------------------- logs

    def log(self, id: str, *, must_exist: bool = False) -> DiskLog:
        """Return the log of a checkpoint."""
        log = DiskLog(self._layout, check_id(id), self._prepare)
        if must_exist and not log.exists():
            raise not_found(id, self.ids(), f"the store {os.fspath(self._path)!r}")
        return log

    def ids(self) -> list[str]:
        """Return the ids of the checkpoints, sorted."""
        try:
            with read_errors(self._layout.checkpoints):
                names = os.listdir(self._layout.checkpoints)
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise no_folder(self._layout.checkpoints) from None
        return sorted(name for name in names if is_id(name) and self._layout.log(name).exists())

    def rename(self, old: str, new: str, timeout: float | None = 10.0) -> None:
        """Give a checkpoint another name.

        Effects:
            Its folder is renamed in one step; a line in the journal says so.
        """
        if check_id(old) not in (ids := self.ids()):
            raise not_found(old, ids, f"the store {os.fspath(self._path)!r}")
        with ExitStack() as held:
            held.enter_context(self.writing(timeout))  # a collection must not miss it between two names
            for id in sorted({old, check_id(new)}):
                held.enter_context(self._alone_in(id).hold(timeout))
            source, target = self._layout.checkpoint(old), self._layout.checkpoint(new)
            if os.path.lexists(target):
                raise taken_name(new, f"the store {os.fspath(self._path)!r}")
            head, _ = self._end(old)
            with write_errors(target, f"the new name of checkpoint {old!r}"):
                must_be_inside(source, self._path)
                source.rename(target)
                sync_folder(target.parent)
            self.journal("rename", checkpoint=old, to=new, head=head)

    def delete(self, id: str, timeout: float | None = 10.0) -> None:
        """Remove a checkpoint.

        Effects:
            Its folder goes to ``trash/`` in one step and is removed there; a line in the journal says so.
        """
        if check_id(id) not in (ids := self.ids()):
            raise not_found(id, ids, f"the store {os.fspath(self._path)!r}")
        with self._alone_in(id).hold(timeout):
            head, count = self._end(id)
            folder, away = self._layout.checkpoint(id), self._layout.trash / unique(id)
            with write_errors(folder, f"the removal of checkpoint {id!r}"):
                make_folder(away.parent)
                must_be_inside(away, self._path)
                folder.rename(away)
                sync_folder(folder.parent)
            self.journal("delete", checkpoint=id, head=head, records=count)
        if away.is_symlink():
            away.unlink()
        shutil.rmtree(away, ignore_errors=True)

    def _alone_in(self, id: str) -> FileLock:
        return FileLock(self._layout.checkpoint_lock(id), f"checkpoint {id!r}", anonymous=self._layout.anonymous)

    def _end(self, id: str) -> tuple[str | None, int | None]:
        """Return head and length of a log; unknown if it is damaged, which must not keep it from being deleted."""
        try:
            log = self.log(id)
        except CorruptLogError:
            return None, None
        return log.head, len(log.records)

    # ---------------------------------------------------------------- items

    def writing(self, timeout: float | None = 60.0) -> AbstractContextManager[None]:
        """Return a context in which no item disappears."""
        return self._shared.hold(timeout)

    def items(self) -> Iterator[str]:
        """Yield the digests of the items that are there."""
        yield from self._items

    def item_path(self, digest: str) -> Path:
        """Return the folder of an item, which may not be there."""
        return self._layout.item(digest)

    def has(self, digest: str) -> bool:
        """Return whether an item is there."""
        return self._items.has(digest)

    def put(self, items: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Write the items that are not there or are damaged, and return once they are durable.

        Effects:
            Folders under ``items/``. Starts the writer process. Reads items that are there and that this process has neither
            written nor read: a record is going to name them.
        """
        self._prepare()
        with self.writing():
            self._items.put(items)

    def get(self, digest: str, names: Iterable[str] | None = None, *, what: str = "an item") -> dict[str, torch.Tensor]:
        """Return an item, or some leaves of it, every one checked against its hash."""
        return self._items.get(digest, names, what)

    def describe(self, digest: str, *, what: str = "an item") -> dict[str, Leaf]:
        """Return what is noted of the leaves of an item, without reading a tensor."""
        found = self._items.describe(digest, what).leaves
        return {name: Leaf(leaf.dtype, tuple(leaf.shape), leaf.size, leaf.hash) for name, leaf in found.items()}

    def faults(self, digest: str, what: str, *, hashed: bool) -> Iterator[StoreError]:
        """Yield what is wrong with an item."""
        return self._items.faults(digest, what, hashed=hashed)

    def warm(self, size: int = 0) -> None:
        """Start the writer process and return at once; or get the memory of a resume point."""
        if size:
            self._writer.reserve(size)
        else:
            self._writer.warm()

    # ---------------------------------------------------------------- resume points

    def save_resume(self, id: str, body: dict[str, Any], leaves: Mapping[str, Mapping[str, torch.Tensor]]) -> Handle:
        """Start writing a resume point in the background.

        Effects:
            A folder under ``checkpoints/<id>/resume/``. Starts the writer process.
        """
        self._prepare()
        return self._resume.save(check_id(id), body, leaves)

    def load_resume(self, id: str, damaged: list[StoreError] | None = None) -> Point | None:
        """Return the newest resume point of which every byte verifies, or None."""
        return self._resume.load(check_id(id), damaged)

    def clear_resume(self, id: str) -> None:
        """Remove the resume points of a checkpoint."""
        self._resume.clear(check_id(id))

    # ---------------------------------------------------------------- the store as a whole

    def journal(self, act: str, **details: Any) -> None:
        """Note an act on the store.

        Effects:
            A line in ``journal.jsonl``.
        """
        self._prepare()
        self._journal.append(act, details, durable=act != "create")  # of that a log says itself that it is there

    def acts(self) -> list[dict[str, Any]]:
        """Return what `journal` noted, oldest first."""
        return self._journal.entries()

    def oddities(self) -> Iterator[Finding]:
        """Yield what is odd about the journal and the version of the store."""
        from purestate.store._repair import odd_lines

        if not self._layout.format.exists() and self.ids():
            text = _ANONYMOUS if self.anonymous else _FORMAT
            yield Finding("missing", FORMAT_FILE, "there are checkpoints, and no version of the store", _WRITE.format(text))
        yield from odd_lines(self._journal.bad_lines())

    def strays(self, named: Collection[str] | None, outlived: Outlived | None = None) -> Iterator[Finding]:
        """Yield what lies about in the folder."""
        from purestate.store._repair import outlived_points
        from purestate.store._sweep import strays

        yield from strays(self._layout, named)
        for id in outlived_points(self, self._layout, outlived):
            what = "the op that it belonged to is done, and its writer was killed before it removed it, or does so just now"
            yield Finding("rubbish", f"checkpoints/{id}/resume", what, "store.repair() removes it.")

    def repair(self, outlived: Outlived | None = None) -> RepairReport:
        """Mend what can be mended in one way only.

        Effects:
            See `purestate.store._repair.repair`.
        """
        from purestate.store._repair import repair

        return repair(self, self._layout, outlived)

    def collect(self, named: Callable[[], Collection[str]], *, dry_run: bool, timeout: float | None, **details: Any) -> GcReport:
        """Remove the items that ``named`` does not return.

        Effects:
            See `purestate.store._repair.collect`.
        """
        from purestate.store._repair import collect

        if not dry_run and self._layout.items.exists():
            self._prepare()  # which shares the lock that a collection has for itself
        return collect(self, self._layout, named, dry_run=dry_run, timeout=timeout, details=details)

    def close(self) -> None:
        """Wait for what is written in the background and end the writer process. A store that needs it starts it again."""
        if "_writer" in vars(self):
            self._writer.close()

    def _prepare(self) -> None:
        with write_errors(self._path, "a store"):
            told = self._layout.format.exists()
        if self._prepared and told:  # somebody may have removed or moved the folder since
            return
        warn_of_network(self._path)
        if not told:
            with write_errors(self._path, "a store"):
                make_folder(self._path)
                # The lock says to whoever repairs that a file of this name may be on its way.
                with self.writing():
                    text = _ANONYMOUS if self.anonymous else _FORMAT
                    write_file(self._layout.format, text.encode("ascii") + b"\n")
        with write_errors(self._path, "a store"):
            must_be_inside(self._layout.checkpoints, self._path)
            make_folder(self._layout.checkpoints)
            for folder in (self._path, self._path.parent):  # whoever made these names may have been killed before the sync
                sync_folder(folder)
        self._prepared = True

    def __repr__(self) -> str:
        return f"DiskBackend({os.fspath(self._path)!r})"


_FULL, _MINIMAL = "full", "minimal"
_WRITE = "Put back a copy of it, or write {} into it, as the next record does."


def _check_format(layout: Layout) -> str | None:
    """Return what of its writers a store says, if the folder is one of a format that is known."""
    for place in (layout.root, *layout.root.parents):
        if place.exists() and not place.is_dir():
            raise StoreWriteError(
                f"Expected a folder as a store, got {os.fspath(layout.root)!r}: {os.fspath(place)!r} is a file.",
                fix="Give another path, or move the file.",
                path=os.fspath(layout.root),
            )
        if place.exists():
            break
    try:
        told = json.loads(read_file(layout.format, layout.root, _LONGEST_FORMAT))
        version = told["purestate"]
        if type(version) is not int or version < 1:
            raise ValueError(f"{version!r} is no version")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"Expected the version of a store in {os.fspath(layout.format)!r}, got something else ({error!r}).",
            cause="The file was edited, or the folder belongs to another program.",
            fix=f"It should read {_FORMAT}.",
            path=os.fspath(layout.format),
        ) from None
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{os.fspath(layout.format)!r} says that the store has format {version!r}, and this version reads up to "
            f"{FORMAT_VERSION}.",
            cause="It was written by a newer version of purestate.",
            fix="Upgrade purestate, or use another folder.",
            path=os.fspath(layout.format),
            expected=FORMAT_VERSION,
            actual=version,
        )
    return _MINIMAL if told.get("provenance") == _MINIMAL else _FULL


_LONGEST_FORMAT = 4096
