"""Show the layers of the import graph: `python -m tests.house.import_floors`.

The `layers` contracts in `pyproject.toml` list the rooms (subpackages and modules) of a package and their
order. The floor of a room is the length of the longest chain of imports that starts at it: a room on floor
0 imports no other room. A room may import only rooms below it in the contract; an import of a room above it
or at the same position is a forbidden import. A cycle is a set of rooms, or of modules, that import each
other directly or through others. Every import counts, including those inside functions and those for types
only. The exit code is 1 if there is a forbidden import or a cycle.
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
        container: Dotted name of the package; empty if the top-level packages themselves are the rooms.
        ranks: Position of each room in the contract, from the top. Rooms on the same line share a position.
        imports: Imports between modules of the package.
    """

    container: str
    ranks: Mapping[str, int]
    imports: Sequence[Import]

    def room(self, module: str) -> str | None:
        """Return the room of a module; None for the package itself."""
        room = _inside(self.container, module).partition(".")[0]
        return room if room in self.ranks else None

    def arrow(self, found: Import) -> tuple[str, str] | None:
        """Return the importing and the imported room; None if they are the same or unknown."""
        source, target = self.room(found.source), self.room(found.target)
        return (source, target) if source and target and source != target else None

    def back_arrows(self) -> list[str]:
        """Return the forbidden imports: those of a room above or at the same position."""
        return [
            f"{found.source}:{found.line} -> {found.target}"
            for found in self.imports
            if (arrow := self.arrow(found)) and self.ranks[arrow[0]] >= self.ranks[arrow[1]]
        ]

    def rooms(self) -> Graph:
        """Return the rooms that each room imports, in the contract's order."""
        arrows = {arrow for arrow in map(self.arrow, self.imports) if arrow}
        return {room: frozenset(to for source, to in arrows if source == room) for room in self.ranks}

    def modules(self) -> Graph:
        """Return the modules that each module imports."""
        sources = {found.source for found in self.imports}
        return {
            source: frozenset(found.target for found in self.imports if found.source == source)
            for source in sources
        }


def houses(root: Path) -> Iterator[House]:
    """Yield a `House` for each container of each `layers` contract, and one for the top-level packages."""
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
    """Return a module's name relative to its container; empty if the module is not in the container."""
    prefix = f"{container}." if container else ""
    return module.removeprefix(prefix) if module.startswith(prefix) else ""


def reachable(graph: Graph, start: str) -> frozenset[str]:
    """Return all nodes that a node leads to. The node itself is included only if it is in a cycle."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph.get(waiting.pop(), frozenset()) - found
        found |= fresh
        waiting += fresh
    return frozenset(found)


def circles(graph: Graph) -> list[str]:
    """Return the cycles (strongly connected components), one line each."""
    reach = {node: reachable(graph, node) for node in graph}
    found = {
        frozenset(other for other in reach[node] if node in reach[other])
        for node in graph
        if node in reach[node]
    }
    return sorted(" ".join(sorted(circle)) for circle in found)


def floors(graph: Graph) -> dict[str, int]:
    """Return the length of the longest path from each node. Edges inside a cycle do not count."""
    reach = {node: reachable(graph, node) for node in graph}

    @cache
    def floor(node: str) -> int:
        return 1 + max((floor(other) for other in graph[node] if node not in reach[other]), default=-1)

    return {node: floor(node) for node in graph}


def report(house: House) -> tuple[list[str], int]:
    """Return the report lines of one package, and its number of forbidden imports and cycles."""
    rooms = house.rooms()
    when = Counter(found.when for found in house.imports)
    faults = {
        "forbidden imports": house.back_arrows(),
        "cycles of rooms": circles(rooms),
        "cycles of modules": circles(house.modules()),
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
    """Print the report of each package and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of pyproject.toml")
    reports = [report(house) for house in houses(parser.parse_args().root)]
    print("\n\n".join("\n".join(lines) for lines, _ in reports))
    return int(any(faults for _, faults in reports))


if __name__ == "__main__":
    sys.exit(main())
