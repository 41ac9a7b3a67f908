"""Loaded batches depend on the key alone: not on workers, on what was skipped, or on what is drawn in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate, get_worker_info

from purestate.core._key import Key, Tag
from purestate.core._seeds import preserved_generators, seed_all
from purestate.data._feed import feed
from purestate.data._loader import MapFeed
from purestate.data._stream import IterableFeed
from purestate.errors import BatchError, EmptyLoaderError, UnsupportedError

N = 14
KEY = Key.from_seed(3)


def draws() -> torch.Tensor:
    return torch.tensor([float(torch.rand(())), np.random.rand(), random.random()], dtype=torch.float64)


class Noisy(Dataset[Any]):
    """Draws from the three process-wide generators, and counts what was loaded in this process."""

    def __init__(self) -> None:
        self.loaded: list[Any] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: Any) -> Any:
        self.loaded.append(index)
        return (index, draws()) if isinstance(index, int) else (sum(map(ord, str(index))), draws())


class OwnGenerators(Noisy):
    """Draws from generators of its own, one of them in a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.torch = torch.Generator().manual_seed(0)
        self.parts = {"numpy": np.random.default_rng(0), "legacy": np.random.default_rng(1)}
        self.legacy = np.random.RandomState(0)
        python = random.Random(0)
        self.draw = python.random

    def __getitem__(self, index: int) -> Any:
        own = [float(torch.rand((), generator=self.torch)), self.parts["numpy"].random(), self.legacy.rand()]
        return index, torch.tensor([*own, self.draw()], dtype=torch.float64)


class Batched(Noisy):
    def __getitems__(self, indices: list[int]) -> Any:
        noise = draws()
        return [(index, noise) for index in indices]


def noisy_collate(samples: list[Any]) -> Any:
    return [*default_collate(samples), draws()]


class Pairs:
    """A sampler of tuples."""

    def __iter__(self) -> Iterator[Any]:
        return iter([("a", i) for i in range(9)])

    def __len__(self) -> int:
        return 9


class Stream(IterableDataset[Any]):
    """Shared among the workers; shuffles with `random`, and draws."""

    def __init__(self, size: int = N) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        order = list(range(first, self.size, step))
        random.shuffle(order)
        for index in order:
            yield index, draws()


class SizedStream(Stream):
    claims = N

    def __len__(self) -> int:
        return self.claims


MAPS: dict[str, Callable[[int], DataLoader[Any]]] = {
    "draws": lambda w: DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=w),
    "drop_last": lambda w: DataLoader(Noisy(), batch_size=4, shuffle=True, drop_last=True, num_workers=w),
    "own generators": lambda w: DataLoader(OwnGenerators(), batch_size=4, shuffle=True, num_workers=w),
    "batched": lambda w: DataLoader(Batched(), batch_size=4, shuffle=True, num_workers=w),
    "subset": lambda w: DataLoader(Subset(Noisy(), range(1, 12)), batch_size=4, shuffle=True, num_workers=w),
    "collate": lambda w: DataLoader(Noisy(), batch_size=4, collate_fn=noisy_collate, num_workers=w),
    "no batching": lambda w: DataLoader(Noisy(), batch_size=None, shuffle=True, num_workers=w),
    "tuples": lambda w: DataLoader(Noisy(), batch_size=4, sampler=Pairs(), num_workers=w),
    "persistent": lambda w: DataLoader(Noisy(), batch_size=4, num_workers=w, persistent_workers=w > 0),
}
STREAMS: dict[str, Callable[[int], DataLoader[Any]]] = {
    "stream": lambda w: DataLoader(Stream(), batch_size=4, num_workers=w),
    "stream, no batching": lambda w: DataLoader(Stream(), batch_size=None, num_workers=w),
    "stream, persistent": lambda w: DataLoader(Stream(), batch_size=4, num_workers=w, persistent_workers=w > 0),
    "stream, collate": lambda w: DataLoader(Stream(), batch_size=4, drop_last=True, collate_fn=noisy_collate, num_workers=w),
}


def plain(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    return [plain(part) for part in batch] if isinstance(batch, list | tuple) else batch


def epoch(loader: DataLoader[Any], key: Key = KEY, start: int = 0) -> list[Any]:
    batches = feed(loader)
    with closing(batches):
        return plain(list(batches.epoch(key, start)))


@pytest.mark.parametrize("name", MAPS)
def test_values_do_not_depend_on_workers(name: str) -> None:
    expected = epoch(MAPS[name](0))
    assert [epoch(MAPS[name](workers)) for workers in (1, 2)] == [expected] * 2
    assert epoch(MAPS[name](0), Key.from_seed(4)) != expected
    values = {str(sample) for batch in expected for sample in batch[1]}
    assert len(values) > 2, "every sample drew the same"


@pytest.mark.parametrize("name", [*MAPS, *STREAMS])
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_functions_of_their_key(name: str, workers: int) -> None:
    make = (MAPS | STREAMS)[name]
    batches = feed(make(workers))
    with closing(batches):
        keys = [KEY, Key.from_seed(4), KEY]
        first, second, third = [plain(list(batches.epoch(key))) for key in keys]
        assert first == third != second
        abandoned = batches.epoch(keys[1])
        next(abandoned)
        rest = batches.epoch(KEY, start=2)
        assert plain(list(rest)) == first[2:]
        assert len(first) == batches.batches


@pytest.mark.parametrize("name", [*MAPS, *STREAMS])
def test_draws_in_between_change_nothing_and_are_put_back(name: str) -> None:
    make = (MAPS | STREAMS)[name]
    expected = epoch(make(0))
    with preserved_generators():
        seed_all(9)
        before = draws()
        seed_all(9)
        got: list[Any] = []
        for step, batch in enumerate(feed(make(0)).epoch(KEY)):
            got.append(plain(batch))
            seed_all(step)
            draws()
        assert got == expected
        assert torch.equal(draws(), before)


@pytest.mark.parametrize("loader", [MAPS["own generators"](0), STREAMS["stream"](0)])
def test_generators_are_put_back_after_close_and_after_an_error(loader: DataLoader[Any]) -> None:
    def held() -> Any:
        own = [loader.dataset.torch.get_state().tolist()] if isinstance(loader.dataset, OwnGenerators) else []
        return [*own, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # pyright: ignore

    before = held()
    batches = feed(loader).epoch(KEY)
    next(batches)
    assert held() != before
    batches.close()
    assert held() == before
    assert list(batches) == []

    class Fails(Noisy):
        def __getitem__(self, index: int) -> Any:
            draws()
            raise KeyError(index)

    with pytest.raises(KeyError):
        list(feed(DataLoader(Fails())).epoch(KEY))
    assert held() == before


def test_seeds_are_those_of_the_position() -> None:
    for position, (_, noise) in enumerate(feed(DataLoader(Noisy(), batch_size=1)).epoch(KEY)):
        with preserved_generators():
            seed_all(KEY.derive(Tag.SAMPLE, position).seed)
            assert torch.equal(noise[0], draws())


def test_skipped_samples_are_not_loaded() -> None:
    data = Noisy()
    list(feed(DataLoader(data, batch_size=4)).epoch(KEY, start=2))
    assert data.loaded == list(range(8, N))


def test_a_second_epoch_ends_the_first() -> None:
    batches = feed(MAPS["draws"](0))
    first = batches.epoch(KEY)
    next(first)
    list(batches.epoch(KEY))
    with pytest.raises(BatchError, match="one epoch of a feed at a time"):
        next(first)


def test_worker_function_sees_the_users_dataset_and_seeds_from_the_key() -> None:
    class Reports(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        drawn = torch.zeros(0)

        def __getitem__(self, index: int) -> Any:
            return self.drawn

    def tell(worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        info.dataset.drawn = torch.cat([draws(), torch.tensor([worker, info.seed % 1000.0])])  # pyright: ignore

    def once(key: Key) -> Any:
        return epoch(DataLoader(Reports(), num_workers=2, worker_init_fn=tell), key)

    assert once(KEY) == once(KEY) != once(Key.from_seed(4))
    assert len({str(batch) for batch in once(KEY)}) == 2


def test_iterable_lengths() -> None:
    unsized = feed(DataLoader(Stream(), batch_size=4))
    assert isinstance(unsized, IterableFeed)
    assert (unsized.batches, unsized.samples) == (4, 16)
    assert feed(DataLoader(Stream(), batch_size=4), batches=4).batches == 4
    with pytest.raises(BatchError, match=r"Expected 3 batches.*gave at least 4"):
        list(feed(DataLoader(Stream(), batch_size=4), batches=3).epoch(KEY))
    sized = SizedStream()
    assert (feed(DataLoader(sized, batch_size=4)).batches, feed(DataLoader(sized, batch_size=4)).samples) == (4, N)
    assert feed(DataLoader(sized, batch_size=4, drop_last=True)).samples == 12
    for claims, message in ((20, "Expected 5 batches.*gave 4"), (8, "Expected 2 batches.*gave at least 3")):
        sized.claims = claims
        with pytest.raises(BatchError, match=message):
            list(feed(DataLoader(sized, batch_size=4)).epoch(KEY))
    with pytest.raises(EmptyLoaderError):
        list(feed(DataLoader(Stream(0), batch_size=4)).epoch(KEY))


def test_users_objects_reach_the_loader_as_they_are() -> None:
    data = Noisy()
    loader = DataLoader(data, batch_size=4, num_workers=1, timeout=7, prefetch_factor=3, multiprocessing_context="spawn")
    batches = feed(loader)
    assert isinstance(batches, MapFeed)
    ours = batches._loader  # pyright: ignore[reportPrivateUsage]
    assert ours.dataset.dataset is data  # pyright: ignore[reportAttributeAccessIssue]
    assert (ours.timeout, ours.prefetch_factor, ours.multiprocessing_context) == (7, 3, loader.multiprocessing_context)


def test_workers_outlive_signals_to_the_group_and_end_with_the_script(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys, time
        import torch
        from torch.utils.data import DataLoader, Dataset
        from purestate.core._key import Key
        from purestate.data._feed import feed

        class Slow(Dataset):
            def __len__(self): return 40
            def __getitem__(self, i):
                time.sleep(0.02)
                return torch.tensor(float(i))

        if __name__ == "__main__":
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            for persistent in (False, True):
                batches = feed(DataLoader(Slow(), batch_size=4, num_workers=2, persistent_workers=persistent))
                given = []
                for x in batches.epoch(Key(0, 0)):
                    given += x.tolist()
                    if len(given) == 8:
                        os.killpg(0, signal.SIGTERM)
                        os.killpg(0, signal.SIGINT)
                assert given == list(range(40)), given
            left_open = batches.epoch(Key(0, 0))
            next(left_open)
            print("done", flush=True)
        """)
    )
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"done\n")
    assert time.monotonic() - begun < 30
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the session leader's group: nobody is left in it


def test_data_pipes_are_refused() -> None:
    from torch.utils.data.datapipes.iter import IterableWrapper

    with pytest.raises(UnsupportedError, match="IterableWrapper"):
        feed(DataLoader(IterableWrapper(range(3))))
