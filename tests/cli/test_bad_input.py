"""Every command on every kind of bad input: a finding or a typed error that says which, and never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import purestate as ps
from purestate.cli._group import _COMMANDS
from tests.cli.test_cli import LOG, ROOT, call, no_traceback
from tests.report.planted import GOLDEN, records_of, rewrite, write
from tests.run.tiny import Ask

COMMANDS = {
    "ls": "ls {store}",
    "log": "log {store}:adam",
    "show": "show {store}:adam",
    "show an op": "show {store}:adam@1",
    "diff": "diff {store}:adam {golden}:adam",
    "diff the other way": "diff {golden}:adam@0 {store}:adam@1",
    "diff with a file": "diff {store}:adam {file}",
    "hash": "hash {store}:adam",
    "check": "check {store}:adam --level bytes",
    "check a head": "check {store}:adam --expect-head {head}",
    "gc": "gc {store} --yes",
    "repair": "repair {store}",
    "export": "export {store}:adam {out}",
    "accept": "accept {store}:adam@0",
    "reset": "reset {store}:adam@1 --yes",
    "rm": "rm {store}:adam --yes",
    "audit": "audit {store}:adam --script {out}",
    "bisect": "bisect {store}:adam {golden}:adam --script {out}",
    "bisect the other way": "bisect {golden}:adam {store}:adam",
    "copy": "copy {store}:adam {out}",
    "rename": "rename {store}:adam eve",
}
READING = [name for name in COMMANDS if name not in ("gc", "repair", "rename", "accept", "reset", "rm", "audit", "bisect")]
EVERY, DAMAGED = "1111 111 1 11 111 111 111 11", "1111 111 1 11 101 110 111 10"
NO_STORE, NO_RUN = "2222 222 2 22 222 222 222 22", "0222 222 2 22 002 222 222 22"


def edit(store: Path, change: Callable[[bytes], bytes]) -> None:
    (store / LOG).write_bytes(change((store / LOG).read_bytes()))


def another_model(store: Path) -> None:
    """Another run of another module: other names, other shapes, another recipe."""
    shutil.rmtree(store)
    ask = Ask()
    with ps.Store(store) as written:
        ck = written.checkpoint("adam", echo=None)
        ck.train(ask.of(ck, epochs=1), ask.train_dl, epochs=1)


def without(*parts: str) -> Callable[[Path], None]:
    def remove(store: Path) -> None:
        for part in parts:
            for path in list(store.glob(part)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def strange_kinds(store: Path) -> None:
    rewrite(store / LOG, lambda bodies: [*bodies, ("hologram", {})])


def empty_bodies(store: Path) -> None:
    rewrite(store / LOG, lambda bodies: [(kind, {}) for kind, _ in bodies])


def a_file_in_the_place_of_a_folder(store: Path) -> None:
    shutil.rmtree(store / "checkpoints/adam")
    (store / "checkpoints/adam").write_text("hello")


def half_an_item(store: Path) -> None:
    for path in store.glob("items/*/*/d/*"):
        path.write_bytes(path.read_bytes()[:20])


CASES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "another model": (another_model, "0000 111 0 01 000 000 211 00", ""),
    "a newer format": (lambda store: (store / "format.json").write_text('{"purestate": 99}'), EVERY, "has format 99"),
    "a format of nobody": (lambda store: (store / "format.json").write_text('{"purestate": 0}'), EVERY, "format.json"),
    "a format that is rubbish": (lambda store: (store / "format.json").write_bytes(b"\xff" * 99), EVERY, "format.json"),
    "a record of a newer kind": (strange_kinds, "1011 111 1 11 101 110 211 10", "hologram"),
    "records without content": (empty_bodies, "1111 111 1 11 101 110 211 10", "record"),
    "no items": (without("items"), "0000 011 1 11 001 000 200 10", "not in the store"),
    "an item that is gone": (without("items/12"), "0000 011 1 11 001 000 200 10", "not in the store"),
    "items that were cut": (half_an_item, "0000 011 0 10 001 000 200 10", "damaged"),
    "no log": (without(LOG), NO_RUN, "adam"),
    "no logs at all": (without("checkpoints"), NO_RUN, "has no checkpoint"),
    "an empty folder of a checkpoint": (without("checkpoints/adam/*"), NO_RUN, "adam"),
    "a file in the place of a folder": (a_file_in_the_place_of_a_folder, NO_RUN, "adam"),
    "an empty log": (lambda store: (store / LOG).write_bytes(b""), "0002 112 2 01 001 220 211 00", "adam"),
    "a log of zeros": (lambda store: edit(store, lambda data: bytes(len(data))), "0002 112 2 01 001 220 211 00", "adam"),
    "a damaged line": (lambda store: edit(store, lambda data: data[:300] + b"?" + data[301:]), DAMAGED, "line 2"),
    "a log that is no text": (lambda store: edit(store, lambda data: b"\xfe\n" * 99), DAMAGED, "line 1"),
    "no store": (lambda store: shutil.rmtree(store), NO_STORE, "no store"),
    "a store that is a file": (lambda store: (shutil.rmtree(store), store.write_text("hello")), NO_STORE, "no store"),
}
"""What is done to the store, the exit status of each command, and what those say that fail."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the golden store."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "store"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights that are not those of the run."""
    path = tmp_path_factory.mktemp("bad") / "weights.pt"
    torch.save({"conv.bias": torch.ones(2)}, path)
    return path


def words(name: str, store: Path, file: Path, out: Path) -> list[str]:
    head = json.loads((GOLDEN / LOG).read_bytes().splitlines()[-1])["digest"]
    return COMMANDS[name].format(store=store, golden=GOLDEN, file=file, out=out, head=head).split()


def test_no_command_is_left_out():
    assert {words.split()[0] for words in COMMANDS.values()} == set(_COMMANDS)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_by_every_command(case, store, file, tmp_path):
    spoil, statuses, said = CASES[case]
    spoil(store)
    told: list[str] = []
    for number, name in enumerate(COMMANDS):
        here = store
        if name not in READING and store.is_dir():
            here = Path(shutil.copytree(store, tmp_path / f"copy{number}"))  # what writes has one of its own
        for more in ([], ["--json"]) if name in READING and name not in ("export", "copy") else ([],):
            result = call(*words(name, here, file, tmp_path / f"out{number}"), *more)
            assert no_traceback(result), (name, result.exception)
            assert "Traceback" not in result.output
            if (
                result.exit_code and not more and name not in ("check a head", "audit")
            ):  # which may say so of the head, the script
                assert said in result.output, (name, result.output)
        told.append(str(result.exit_code))
    assert dict(zip(COMMANDS, told, strict=True)) == dict(zip(COMMANDS, statuses.replace(" ", ""), strict=True))


@pytest.mark.parametrize("name", [name for name in READING if name not in ("export", "copy")])
def test_of_a_run_that_is_being_written_as_much_is_told_as_there_is(name, store, file, tmp_path):
    """The last line ends in the middle, as whoever writes it has it for a moment, and a train has no answer yet."""
    bodies = records_of(store / LOG)
    write(store / LOG, bodies[:9])
    with (store / LOG).open("ab") as log:
        log.write((GOLDEN / LOG).read_bytes().splitlines()[9][:400])
    result = call(*words(name, store, file, tmp_path / "out"))
    assert no_traceback(result), result.exception
    if name in ("ls", "log", "show", "hash", "check"):
        assert result.exit_code == 0, result.output
    else:  # two runs of which one is not done, a train without an answer, a head that is not there yet
        assert result.exit_code in (0, 1, 2)
        assert result.output.strip()


def test_reading_beside_a_writer_finds_nothing_wrong(store):
    bodies = records_of(store / LOG)
    write(store / LOG, bodies[:8])
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from purestate.store._disk import DiskBackend\n"
        "log, body = DiskBackend(sys.argv[1]).log('adam'), json.loads(sys.argv[2])\n"
        "with log.lock():\n"
        "    print('begun', flush=True)\n"
        "    for n in range(1, 100_000):\n"
        "        log.append('epoch', {**body, 'n': n})\n"
    )
    epoch = next(body for kind, body in reversed(bodies) if kind == "epoch")
    command = [sys.executable, "-c", code, str(store), json.dumps(epoch)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            for words in (
                "ls {0}",
                "log {0}:adam",
                "show {0}:adam",
                "check {0}",
                "hash {0}:adam",
                "diff {0} {0}",
                "gc {0} --dry-run",
            ):
                result = call(*words.format(store).split())
                assert (result.exit_code, no_traceback(result)) == (0, True), (words, result.output)
        finally:
            process.kill()
