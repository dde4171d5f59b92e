"""The floors of the import graph: `python -m tests.house.import_floors`.

The rooms and their order are those of the `layers` contracts in `pyproject.toml`. A room's floor is the
longest way down from it: a room on floor 0 imports no other. An import from a room to one above it, or to
one beside it, is a back arrow. A circle is a set of rooms, or of modules, that import each other, however
long the way round. Every import counts: local ones and those for types alone too. Exits with 1 if there is
a back arrow or a circle.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.house.modules import ROOT, Import, When, imports, modules

Graph = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class House:
    """A package, its rooms and the imports inside it.

    Attributes:
        container: The package's dotted name; empty for the packages themselves.
        ranks: The rooms' places in the contract, counted from the top; rooms beside each other share one.
        imports: The imports between modules of the package.
    """

    container: str
    ranks: Mapping[str, int]
    imports: Sequence[Import]

    def room(self, module: str) -> str | None:
        """The room that a module is in; the package itself is in none."""
        room = _inside(self.container, module).partition(".")[0]
        return room if room in self.ranks else None

    def arrow(self, found: Import) -> tuple[str, str] | None:
        """The rooms that an import leads from and to, if these are two."""
        source, target = self.room(found.source), self.room(found.target)
        return (source, target) if source and target and source != target else None

    def back_arrows(self) -> list[str]:
        """The imports of a room above or beside."""
        return [
            f"{found.source}:{found.line} -> {found.target}"
            for found in self.imports
            if (arrow := self.arrow(found)) and self.ranks[arrow[0]] >= self.ranks[arrow[1]]
        ]

    def rooms(self) -> Graph:
        """The rooms that each room imports, in the contract's order."""
        arrows = {arrow for arrow in map(self.arrow, self.imports) if arrow}
        return {room: frozenset(to for source, to in arrows if source == room) for room in self.ranks}

    def modules(self) -> Graph:
        """The modules that each module imports."""
        sources = {found.source for found in self.imports}
        return {
            source: frozenset(found.target for found in self.imports if found.source == source)
            for source in sources
        }


def houses(root: Path) -> Iterator[House]:
    """One for each container of each `layers` contract, and one for the packages."""
    tool = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    known = modules(root, tuple(tool["root_packages"]))
    found = [one for module in known.values() for one in imports(module, known)]
    for contract in tool["contracts"]:
        if contract["type"] != "layers":
            continue
        ranks = {
            room.strip(): rank for rank, layer in enumerate(contract["layers"]) for room in layer.split("|")
        }
        for container in contract.get("containers", [""]):
            inside = [
                one for one in found if _inside(container, one.source) and _inside(container, one.target)
            ]
            yield House(container, ranks, inside)


def _inside(container: str, module: str) -> str:
    """A module's name from its container on; empty if it is not in it."""
    prefix = f"{container}." if container else ""
    return module.removeprefix(prefix) if module.startswith(prefix) else ""


def reachable(graph: Graph, start: str) -> frozenset[str]:
    """Everything that a node leads to; itself only if it lies on a circle."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph.get(waiting.pop(), frozenset()) - found
        found |= fresh
        waiting += fresh
    return frozenset(found)


def circles(graph: Graph) -> list[str]:
    """Sets of nodes that all lead to each other, one line each."""
    reach = {node: reachable(graph, node) for node in graph}
    found = {
        frozenset(other for other in reach[node] if node in reach[other])
        for node in graph
        if node in reach[node]
    }
    return sorted(" ".join(sorted(circle)) for circle in found)


def floors(graph: Graph) -> dict[str, int]:
    """The length of the longest way down from each node; a way round a circle has no length."""
    reach = {node: reachable(graph, node) for node in graph}

    @cache
    def floor(node: str) -> int:
        return 1 + max((floor(other) for other in graph[node] if node not in reach[other]), default=-1)

    return {node: floor(node) for node in graph}


def report(house: House) -> tuple[list[str], int]:
    """Lines about one package, and the number of its faults."""
    rooms = house.rooms()
    when = Counter(found.when for found in house.imports)
    faults = {
        "back arrows": house.back_arrows(),
        "circles of rooms": circles(rooms),
        "circles of modules": circles(house.modules()),
    }
    count = max(floors(rooms).values()) + 1
    lines = [f"{house.container or 'the packages'}: {len(rooms)} rooms on {count} floors"]
    lines += [
        f"{floor:>4}  {room:<14} {' '.join(to for to in rooms if to in rooms[room])}".rstrip()
        for room, floor in floors(rooms).items()
    ]
    lines.append("  imports: " + ", ".join(f"{when[kind]} {kind.value}" for kind in When))
    for kind, found in faults.items():
        lines += [f"  {kind}: {len(found)}", *(f"    {fault}" for fault in found)]
    return lines, sum(map(len, faults.values()))


def main() -> int:
    """Print the floors; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of pyproject.toml")
    reports = [report(house) for house in houses(parser.parse_args().root)]
    print("\n\n".join("\n".join(lines) for lines, _ in reports))
    return int(any(faults for _, faults in reports))


if __name__ == "__main__":
    sys.exit(main())
