"""What the fault tests share: the shim, the server, the cases, and how much is tried."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.faults import shim
from tests.faults.cases import Prepared
from tests.faults.server import PATIENCE, Server, until


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return the server; fail at the end if a process of its is left."""
    folder = tmp_path_factory.mktemp("faults")
    try:
        library = shim.build(folder)
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    server = Server(library, folder)
    try:
        yield server
        until(lambda: not server.left(), f"processes are left: {server.left()}", PATIENCE)
    finally:
        server.close()


@pytest.fixture(scope="session")
def prepared(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Prepared]]:
    """Return a function that prepares a case, once."""
    folder = tmp_path_factory.mktemp("cases")
    cases: dict[str, Prepared] = {}

    def prepared(name: str) -> Prepared:
        if name not in cases:
            cases[name] = Prepared(name, server, folder / name)
        return cases[name]

    yield prepared
    shutil.rmtree(folder)


@pytest.fixture
def failures() -> Iterator[list[str]]:
    """Return a list for what went wrong, which is shown with how to see it again."""
    found: list[str] = []
    yield found
    assert not found, f"{len(found)} went wrong:\n" + "\n".join(found[:60])
