"""Check that a tag, the version and the changelog agree: `python -m tests.house.release v0.1.0`.

Prints the changelog's section of that version, which becomes the text of the release. It needs the standard
library alone.
"""

from __future__ import annotations

import re
import sys
import tomllib

from tests.house.modules import ROOT


def section(changelog: str, version: str) -> str | None:
    """The text below the heading `## version - date`; None if there is no such heading or text."""
    heading = rf"^## {re.escape(version)} - \d{{4}}-\d{{2}}-\d{{2}}$"
    found = re.search(rf"{heading}\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() or None if found else None


def problem(tag: str, version: str, changelog: str) -> str | None:
    """The reason why this tag must not be released, if there is one."""
    if tag != f"v{version}":
        return f"the tag is {tag!r}, but pyproject.toml has the version {version!r}: tag v{version}"
    if section(changelog, version) is None:
        return f"CHANGELOG.md has no section '## {version} - YYYY-MM-DD' with text: add it"
    return None


def main(tag: str) -> int:
    """Print the section, or the problem; the exit code."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if reason := problem(tag, version, changelog):
        print(f"error: {reason}", file=sys.stderr)
        return 1
    print(section(changelog, version))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
