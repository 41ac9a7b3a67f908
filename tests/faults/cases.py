"""The table of what is disturbed: a scenario, and the store that was there before."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from tests.faults.server import Child, Outcome, Server
from tests.faults.shim import ROLES, Call, Fault, read_log
from tests.faults.verify import acknowledged, files_of, whole

__all__ = ["CASES", "Case", "Prepared"]


@dataclasses.dataclass(frozen=True)
class Case:
    """Something that changes a store.

    Args:
        scenario: A function of `scenarios`.
        options: Its arguments.
        before: Scenarios that made the store that is there already, with their arguments.
        roles: The processes that write.
        may_go: Ids that are deleted.
    """

    scenario: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    before: tuple[tuple[str, dict[str, Any]], ...] = ()
    roles: tuple[str, ...] = ("main", "writer")
    may_go: tuple[str, ...] = ()


_A = ("train", dict(trains=2))
_B = ("train", dict(trains=1, id="b", seed=1))

CASES = {
    "create": Case("save", dict(records=1)),
    "save": Case("save", dict(records=3), before=(("save", dict(records=1)),)),
    "soon": Case("soon", roles=("main",)),
    "train": Case("train", dict(trains=2), before=(("train", dict(trains=1)),)),
    "keep": Case("keep"),
    "resume": Case("resume", before=(("save", dict(records=1)),)),
    "rename": Case("rename", before=(_A, _B), roles=("main",), may_go=("b",)),
    "gc": Case("gc", before=(_A, _B, ("acts", {})), roles=("main",)),
    "repair": Case("repair", before=(_A, ("mess", {})), roles=("main",)),
    "copy": Case("copy", before=(_A, _B)),
    "export": Case("export", before=(_A,)),
    "acts": Case("acts", before=(_B, _A), roles=("main",), may_go=("b",)),
}
_SPECIAL = {"rename", "fdatasync", "ftruncate", "truncate", "link"}


class Prepared:
    """A case with the store that was there before, and how it goes when nothing happens.

    Args:
        name: Its name in the table.
        server: Where its processes run.
        folder: For its stores.

    Attributes:
        before: What was acknowledged before.
        folder_before: The folder as it is before.
        calls: What its processes do when nothing happens.
        place: The folder that those name.
        expected: What is said when nothing happens.
    """

    def __init__(self, name: str, server: Server, folder: Path) -> None:
        self.name, self.case, self._server, self._folder = name, CASES[name], server, folder
        self._count = 0
        self.folder_before = folder / "before"
        self.folder_before.mkdir(parents=True)
        self.before: list[dict[str, Any]] = []
        for scenario, options in self.case.before:
            outcome = server.run(scenario, self.folder_before, **options)
            assert (outcome.status, outcome.errors) == (0, []), outcome.output
            self.before += outcome.said
        self.expected = ["nothing ran yet"]
        root, log = self.fresh(), folder / "calls"
        undisturbed = self.run(root, log=log)
        assert (undisturbed.status, undisturbed.errors) == (0, []), f"{undisturbed.errors}\n{undisturbed.output}"
        self.calls = list(read_log(log))
        self.place = str(root.resolve())
        self.expected = self.values(undisturbed.said)
        self.check(root, undisturbed.said)
        shutil.rmtree(root)

    def fresh(self) -> Path:
        """Return a new copy of the folder as it was before."""
        self._count += 1
        return Path(shutil.copytree(self.folder_before, self._folder / str(self._count)))

    def run(self, root: Path, fault: Fault | None = None, **options: Any) -> Outcome:
        """Run the scenario in a process of its own."""
        return self._server.run(self.case.scenario, root, fault, **self.case.options, **options)

    def start(self, root: Path) -> Child:
        """Start the scenario and do not wait."""
        return self._server.start(self.case.scenario, root, **self.case.options)

    def calls_of(self, role: str) -> list[Call]:
        """Return what a process does when nothing happens, in order: its call k is entry k - 1."""
        return [call for call in self.calls if call.role == ROLES[role] and call.name != "mark"]

    def points(self, role: str, most: int | None, kinds: frozenset[str] = frozenset()) -> list[int]:
        """Return numbers of calls to disturb: all, or ``most`` of them.

        A third of those are beside renames, commits and cuts, the others spread over the rest.
        """
        calls = self.calls_of(role)
        every = [k for k, call in enumerate(calls, 1) if not kinds or call.name in kinds]
        if most is None or len(every) <= most:
            return every
        special = [k for k in every if {calls[k - 1].name, calls[max(k - 2, 0)].name} & _SPECIAL]
        chosen = set(_spread(special, most // 3))
        return sorted(chosen | set(_spread([k for k in every if k not in chosen], most - len(chosen))))

    def check(self, root: Path, *said: list[dict[str, Any]]) -> None:
        """Assert that the store is whole and holds everything that was acknowledged."""
        known = [what for part in (self.before, *said) for what in part]
        gone = {what["gone"] for what in known if "gone" in what}
        for name in ("store", "copy"):
            if (root / name).exists():
                mine = [what for what in known if what.get("store", "store") == name]
                acknowledged(whole(root / name), mine, {*self.case.may_go, *gone})
        for what in known:
            if "exported" in what:
                assert files_of(root / what["exported"]) == what["files"], f"{what['exported']} is not what it was"

    def values(self, said: list[dict[str, Any]]) -> list[Any]:
        """Return what is the same in every run."""
        return [what["value"] for what in said]

    def finish(self, root: Path, *said: list[dict[str, Any]]) -> None:
        """Run the scenario again, undisturbed: it ends where it would have; then remove the folder."""
        last = self.run(root)
        assert last.status == 0, last.output
        assert last.errors == [], f"the next run met {last.errors}"
        assert self.values(last.said) == self.expected, f"the next run ended on {self.values(last.said)}, not {self.expected}"
        self.check(root, *said, last.said)
        shutil.rmtree(root)


def _spread(values: list[int], most: int) -> list[int]:
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / max(most - 1, 1))] for i in range(most)]
