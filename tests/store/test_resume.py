"""Resume points: two generations, the newest that verifies wins."""

from __future__ import annotations

import shutil

import pytest
import torch

from purestate.errors import InvalidIdError, UnsupportedError
from purestate.store._layout import RESUME_META


def leaves(i: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "params": {"fc.weight": torch.full((300,), float(i)), "a/b": torch.tensor(i, dtype=torch.bfloat16)},
        "optimizer": {"fc.weight": torch.arange(3) + i, "none": torch.empty(0, 2)},
        "extra": {},
    }


def save(backend, i: int) -> None:
    backend.save_resume("a", {"epoch": i}, leaves(i)).result()


def loaded(backend) -> int:
    """Return which resume point is loaded, after a look at all of it."""
    body, found = backend.load_resume("a")
    expected = leaves(body["epoch"])
    assert {name: list(tree) for name, tree in found.items()} == {name: list(tree) for name, tree in expected.items()}
    for name, tree in expected.items():
        assert all(
            torch.equal(found[name][leaf], value) and found[name][leaf].dtype == value.dtype for leaf, value in tree.items()
        )
    return body["epoch"]


def generations(backend) -> list:
    return sorted(backend._layout.resume("a").iterdir())


def test_the_newest_is_loaded_and_two_are_kept(backend):
    assert backend.load_resume("a") is None
    for i in range(4):
        save(backend, i)
        assert loaded(backend) == i
    assert [path.name for path in generations(backend)] == ["00000003", "00000004"]
    assert backend.ids() == []  # a resume point is not a record


def test_one_is_written_in_the_background(backend, wait_until):
    tree = {"params": {"w": torch.ones(100)}}
    handle = backend.save_resume("a", {}, tree)
    tree["params"]["w"].zero_()
    wait_until(handle.done)
    handle.result()
    assert backend.load_resume("a")[1]["params"]["w"].sum() == 100


def test_several_may_be_on_their_way(backend):
    handles = [backend.save_resume("a", {"epoch": i}, leaves(i)) for i in range(3)]
    handles[-1].result()
    assert all(handle.done() for handle in handles)
    assert loaded(backend) == 2


@pytest.mark.parametrize("name", [RESUME_META, "manifest.ocdbt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_one_gives_way_to_the_one_before(backend, name, damage):
    save(backend, 0)
    save(backend, 1)
    path = generations(backend)[-1] / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert loaded(backend) == 0


def test_a_flipped_value_is_never_restored(backend):
    save(backend, 0)
    save(backend, 1)
    needle = b"\0\0\x80?" * 20
    [path] = [p for p in generations(backend)[-1].rglob("*") if p.is_file() and needle in p.read_bytes()]
    path.write_bytes(path.read_bytes().replace(needle, bytes(80)))
    assert loaded(backend) == 0
    shutil.rmtree(generations(backend)[0])
    assert backend.load_resume("a") is None


def test_an_unfinished_one_is_no_generation(backend):
    save(backend, 0)
    shutil.copytree(generations(backend)[0], backend._layout.resume("a") / "tmp-1234")
    assert loaded(backend) == 0


def test_memory_is_used_again_and_not_while_it_is_read(backend):
    trees = [{"params": {"w": torch.full((size,), float(size))}} for size in (10, 100_000, 1000, 200_000)]
    handles = [backend.save_resume("a", {"n": i}, tree) for i, tree in enumerate(trees)]
    for i, tree in enumerate(trees):
        handles[i].result()
        backend.save_resume("b", {"n": i}, tree).result()
        assert torch.equal(backend.load_resume("b")[1]["params"]["w"], tree["params"]["w"])
    assert torch.equal(backend.load_resume("a")[1]["params"]["w"], trees[-1]["params"]["w"])
    assert len(backend._writer._kept) == 1
    backend.clear_resume("a")
    assert backend._writer._kept == []


def test_cleared_ones_are_gone(backend):
    backend.clear_resume("a")
    save(backend, 0)
    handle = backend.save_resume("a", {"epoch": 1}, leaves(1))
    backend.clear_resume("a")
    assert handle.done()
    assert backend.load_resume("a") is None
    assert not backend._layout.resume("a").exists()
    save(backend, 2)
    assert loaded(backend) == 2


def test_what_cannot_be_written_is_refused_at_once(backend):
    with pytest.raises(UnsupportedError, match="body of a resume point"):
        backend.save_resume("a", {"t": (1, 2)}, {})
    with pytest.raises(InvalidIdError):
        backend.save_resume("../a", {}, {})
