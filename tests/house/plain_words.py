"""Count words and phrases that make a text hard to read: `python -m tests.house.plain_words`.

`TELLS` lists words that this project used in place of the standard term, each with its replacement. The
script searches all tracked files that a person reads.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.house.modules import ROOT

SUFFIXES = {".py", ".md", ".toml", ".j2", ".json", ".yml", ".yaml"}
# These files contain the words on purpose.
LEFT_OUT = {"tests/house/plain_words.py", "tests/house/test_plain_words.py"}

_COMPARATIVE = r"(?:longer|more|less|fewer|better|worse|other|matter|further|need|way|doubt|\w+er than)\b"
# A sentence starts at the beginning of a docstring, comment, list entry, table cell or line of text, or
# after a full stop. A sentence that ends with a question mark is a question and may start with "What".
_START = r"(?:\"\"\"|#:? |[.:;] |\| |^[-*] |^)"
TELLS: dict[str, tuple[re.Pattern[str], str]] = {
    "is no X": (
        re.compile(rf"(?<!there )\b(?:is|are|was|were) no (?!{_COMPARATIVE})[a-z]", re.IGNORECASE),
        "is not a X",
    ),
    "behind": (re.compile(r"\bbehind\b", re.IGNORECASE), "after, below"),
    "anew": (re.compile(r"\banew\b", re.IGNORECASE), "again"),
    "mend": (re.compile(r"\bmend(?:s|ed|ing)?\b", re.IGNORECASE), "fix, correct"),
    "hang on": (re.compile(r"\bh(?:ang|angs|anging|ung) on\b", re.IGNORECASE), "depend on"),
    "What ...": (re.compile(rf"{_START}What (?![^.]*\?)"), "name the subject"),
}


@dataclass(frozen=True, order=True)
class Find:
    """A place that has one of the words."""

    path: str
    line: int
    tell: str
    text: str


def finds(texts: Iterable[tuple[str, str]]) -> Iterator[Find]:
    """Find the places that have one of the words.

    Args:
        texts: path and content of each file.
    """
    for path, text in texts:
        for number, line in enumerate(text.splitlines(), start=1):
            stripped = line.strip()
            for tell, (pattern, _) in TELLS.items():
                for _ in pattern.finditer(stripped):
                    yield Find(path, number, tell, stripped)


def tracked_texts(root: Path = ROOT, commit: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield path and content of each tracked file that a person reads, of `commit` if it is given."""
    listing = ["ls-tree", "-r", "--name-only", "-z", commit] if commit else ["ls-files", "-z"]
    for path in _git(root, *listing).split("\0"):
        if Path(path).suffix in SUFFIXES and path not in LEFT_OUT:
            if commit:
                yield path, _git(root, "show", f"{commit}:{path}")
            elif (root / path).is_file():
                yield path, (root / path).read_text(encoding="utf-8", errors="replace")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, errors="replace"
    ).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each place, or only the counts; return 1 if a count exceeds `--max`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max", type=int, help="fail if one of the words occurs more often than this")
    parser.add_argument("--commit", help="search this commit instead of the working tree")
    parser.add_argument(
        "--under",
        default="",
        help="search only files whose path starts with this; separate several with commas",
    )
    parser.add_argument("--counts", action="store_true", help="print only the counts")
    options = parser.parse_args(arguments)
    found = [
        find
        for find in finds(tracked_texts(commit=options.commit))
        if find.path.startswith(tuple(options.under.split(",")))
    ]
    if not options.counts:
        for find in sorted(found):
            print(f"{find.path}:{find.line}: {find.tell!r}: {find.text}")
    counts = {tell: sum(find.tell == tell for find in found) for tell in TELLS}
    for tell, count in counts.items():
        print(f"{count:5d}  {tell!r}: write {TELLS[tell][1]!r}")
    return int(options.max is not None and max(counts.values()) > options.max)


if __name__ == "__main__":
    sys.exit(main())
