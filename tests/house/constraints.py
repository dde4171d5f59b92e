"""Write constraints.txt again: `make constraints`; `make constraints UPGRADE="ruff rich"` upgrades.

pip resolves the package with all extras, under the present pins less those of the packages to upgrade, and
installs nothing. The result replaces the pins: it has no package that nothing needs any more.
`UPGRADE=all` lifts every pin but that of torch, because a plain torch brings gigabytes of CUDA.
`UPGRADE=torch` lifts that one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Mapping

from tests.house.modules import ROOT

FILE = ROOT / "constraints.txt"
# The build of a wheel without isolation takes it from the environment.
ALSO = ("setuptools",)


def canonical(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def kept(content: str, upgrade: Collection[str]) -> str:
    """The file without the pins to lift."""
    wanted = {canonical(name) for name in upgrade}

    def stays(line: str) -> bool:
        name = canonical(line.partition("==")[0])
        lifted = name in wanted or ("all" in wanted and name != "torch")
        return "==" not in line or line.startswith("#") or not lifted

    return "".join(line for line in content.splitlines(keepends=True) if stays(line))


def resolved(constraints: str) -> dict[str, str]:
    """The version of each package that pip would install for all extras, by name."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(constraints)
        file.flush()
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--dry-run",
        ]
        pip += ["--ignore-installed", "--report", "-", "-c", file.name]
        ran = subprocess.run(
            [*pip, *ALSO, f"{ROOT}[{','.join(extras)}]"], stdout=subprocess.PIPE, text=True, check=True
        )
    found = [item["metadata"] for item in json.loads(ran.stdout)["install"]]
    # A local version, such as +cpu, names one build of the same release.
    return {one["name"]: one["version"].partition("+")[0] for one in found if one["name"] != "edgeproof"}


def rendered(content: str, versions: Mapping[str, str]) -> str:
    """The file with other pins: its comments first, then the packages in alphabetical order."""
    comments = [line for line in content.splitlines() if line.startswith("#")]
    pins = [f"{name}=={version}" for name, version in versions.items()]
    return "\n".join([*comments, *sorted(pins, key=str.lower)]) + "\n"


def main(upgrade: list[str]) -> None:
    """Write the file and print what changed."""
    before = FILE.read_text()
    after = rendered(before, resolved(kept(before, upgrade)))
    FILE.write_text(after)
    old, new = ({line for line in text.splitlines() if "==" in line} for text in (before, after))
    for line in sorted(old - new, key=str.lower):
        print(f"- {line}")
    for line in sorted(new - old, key=str.lower):
        print(f"+ {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
