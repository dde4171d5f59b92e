"""Run the code blocks of a Markdown page, in order, in one folder.

| block | what happens |
|---|---|
| `sh` | each block runs in bash and must end with exit code 0 |
| `python` | each block runs in a process of its own; one that defines tests is run by pytest |
| `toml` | a fragment of a recipe: it is added to a complete recipe, which must be valid |
| any with `title="FILE"` | the block is written to FILE in the page's folder |
| `text` | output or a formula: not run |

Any other language is an error. A block that cannot run here is preceded by a comment with the reason:
`<!-- skip: next "needs a second machine" -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import SkipTest

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from bench.core.errors import EdgeproofError
from exporter.recipes.reading import read_recipe

INFO = re.compile(r"(?P<language>\w+)(?:\s+title=\"(?P<title>[\w./-]+)\")?$")
SECONDS = 600
# The parts that a fragment of a recipe lacks.
COMPLETE = {
    "name": 'name = "complete"',
    "model": '[model]\nfactory = "model:build"\ncheckpoint = "weights.safetensors"',
    "data": '[data]\nfactory = "data:load"',
}


@dataclass
class Page:
    """The state of one page: its folder, and what happened to its blocks."""

    folder: Path
    ran: int = 0
    skipped: list[str] = field(default_factory=list)

    def parse(self, document: Document) -> Iterator[Region]:
        """All fenced blocks, whatever their language."""
        lexer = FencedCodeBlockLexer(language=".*", mapping={"language": "arguments", "source": "source"})
        for region in lexer(document):
            region.parsed, region.evaluator = region.lexemes["source"], self.evaluate
            yield region

    def evaluate(self, example: Example) -> None:
        """Run one block; raises AssertionError if it fails."""
        found = INFO.match(str(example.region.lexemes["arguments"]).strip())
        assert found, f"cannot read {example.region.lexemes['arguments']!r}"
        source = str(example.parsed)
        if found["title"]:
            path = (self.folder / found["title"]).resolve()
            assert path.is_relative_to(self.folder.resolve()), (
                f"{found['title']} is outside the page's folder"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        elif found["language"] != "text":
            assert found["language"] in RUNNERS, f"nothing runs {found['language']!r}"
            RUNNERS[found["language"]](source, self.folder)
            self.ran += 1


def environment(folder: Path) -> Mapping[str, str]:
    """Variables of the commands: the tested code, the command on the path, and a home of its own."""
    root = Path(__file__).parents[2]
    return {
        **os.environ,
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{root}{os.pathsep}{folder}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PAGER": "cat",
    }


def _run(arguments: list[str], folder: Path) -> None:
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout[-3000:]}"


def run_shell(source: str, folder: Path) -> None:
    """Run a block of shell commands; the first that fails ends it."""
    _run(["bash", "-euo", "pipefail", "-c", source], folder)


def run_python(source: str, folder: Path) -> None:
    """Run a block of Python, by pytest if it defines tests."""
    is_test = re.search(r"^def test_", source, re.MULTILINE)
    path = folder / ("test_block.py" if is_test else "block.py")
    path.write_text(source, encoding="utf-8")
    _run(
        [sys.executable, *(["-m", "pytest", "-q", "-p", "no:cacheprovider"] if is_test else []), path.name],
        folder,
    )
    path.unlink()


def check_toml(source: str, folder: Path) -> None:
    """Read a block as part of a recipe; tables that it leaves out are added."""
    present = tomllib.loads(source)
    absent = {name: text for name, text in COMPLETE.items() if name not in present}
    path = folder / "fragment.toml"
    parts = [absent.pop("name", ""), source, *absent.values()]
    path.write_text("\n".join(parts), encoding="utf-8")
    try:
        read_recipe(path)
    except EdgeproofError as error:
        raise AssertionError(str(error)) from error
    path.unlink()


RUNNERS: dict[str, Callable[[str, Path], None]] = {
    "sh": run_shell,
    "python": run_python,
    "toml": check_toml,
}


def run_page(path: Path, folder: Path) -> Page:
    """Run all blocks of a page in a folder; raises AssertionError that names the first that fails."""
    page = Page(folder)
    document: Document = Sybil([page.parse, SkipParser()]).parse(path)
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest as skip:
            page.skipped.append(str(skip))
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{example.line}: {error}") from error
    return page
