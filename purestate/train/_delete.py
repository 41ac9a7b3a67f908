"""What removes a model, and what it left for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from purestate.run import MemoryStore, Store
from purestate.run._answers import counted
from purestate.train._place import Place, here, word
from purestate.train._tensorboard import remove

__all__ = ["delete_model", "remove_runs"]


def delete_model(id: str, *, store: Store | MemoryStore | None = None, place: Place | None = None) -> None:
    """Remove a model and all its checkpoints, without building it: where its module has another structure now, for example.

    Args:
        id: Of the model.
        store: Where it is kept; as for `Model`, if left out.
        place: Where its TensorBoard files are; as for `Model`, if left out.

    Effects:
        Removes files; prints what. Parameters stay in the store, since other models may share them.
    """
    word(id, "the id of a model")
    place = place or here()
    store = store or Store(place.store)
    # names, and no logs: one that is damaged is removed like the others
    found = [name for name in store._backend.ids() if name == id or place.own(id, name) is not None]
    if not found:
        print(f"There is no model {id!r} to delete.")
    for name in found:
        store.delete(name)
        if (own := place.own(id, name)) is not None:
            remove_runs(place.runs / id, own)
    if found:
        print(f"Deleted model {id!r} and {counted(len([name for name in found if name != id]), 'checkpoint')}.")


def remove_runs(folder: Path, own: str) -> None:
    """Remove the TensorBoard files of a checkpoint, and the model's folder where that was all."""
    remove(folder / own)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
