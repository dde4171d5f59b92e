"""Report the length of functions and files: `python -m tests.house.sizes`.

The length of a function is its number of lines from `def` to its end, with its docstring. Nested functions
are counted on their own too.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from statistics import quantiles

from tests.house.modules import ROOT, Module, modules

LISTED = 10


def functions(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the length of each function, with its file, line and name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield (
                node.end_lineno - node.lineno + 1,
                f"{module.path.relative_to(ROOT)}:{node.lineno} {node.name}",
            )


def files(known: dict[str, Module]) -> Iterator[tuple[int, str]]:
    """Yield the length of each file, with its path."""
    for module in known.values():
        yield module.path.read_text(encoding="utf-8").count("\n"), str(module.path.relative_to(ROOT))


def report(what: str, found: list[tuple[int, str]]) -> None:
    """Print the median, the 90th percentile and the maximum length, and list the longest."""
    deciles = quantiles([length for length, _ in found], n=10, method="inclusive")
    print(f"{len(found)} {what}: median {deciles[4]:.0f}, p90 {deciles[8]:.0f}, max {max(found)[0]} lines")
    for length, place in sorted(found, reverse=True)[:LISTED]:
        print(f"  {length:>4}  {place}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lengths and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--max-function", type=int, help="fail (exit code 1) if a function has more lines")
    limit = parser.parse_args(arguments).max_function
    known = modules()
    lengths = [one for module in known.values() for one in functions(module)]
    report("functions", lengths)
    report("files", list(files(known)))
    return int(limit is not None and max(lengths)[0] > limit)


if __name__ == "__main__":
    sys.exit(main())
