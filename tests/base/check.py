"""Test the base install on the supported Python versions: `python tests/base/check.py`.

For each version that is present: a fresh virtual environment with the wheel and the extra `test`, which
bring neither torch nor onnx; the smoke test outside the checkout; the tests of `bench`. Interpreters are
found on PATH and under `~/.pyenv/versions`. With `--tests newest`, the tests run on the newest version
alone, and the others get the base install and the smoke test. This script needs only pip.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
GENERATED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "artifacts", "build", "dist")
# The environment must not find packages of this process.
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
# Those marked `long` measure for many seconds; the full suite runs them.
TESTS = ["-q", "-n", "auto", "--dist", "worksteal", "-p", "no:cacheprovider"]
TESTS += ["-m", "not slow and not perf and not long", "tests/bench"]


def interpreter(version: str) -> Path | None:
    """The first interpreter of a version that starts."""
    for path in _candidates(version):
        ask = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        # A shim of pyenv exists for versions that are not active, and then fails.
        if subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() == version:
            return path
    return None


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    for folder in os.get_exec_path():
        if (Path(folder) / name).is_file():
            yield Path(folder) / name
    yield from sorted(Path.home().glob(f".pyenv/versions/*/bin/{name}"), reverse=True)


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy, because setuptools adds files to the source folder."""
    source = shutil.copytree(ROOT, folder / "source", ignore=GENERATED)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*build, "--wheel-dir", folder, source], env=ALONE, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check(version: str, python: Path, wheel: Path, folder: Path, *, tests: bool) -> None:
    """Install the wheel for one interpreter and run its tests; a failure raises `CalledProcessError`."""
    begin = time.monotonic()
    subprocess.run([python, "-m", "venv", folder], env=ALONE, check=True)
    inside = folder / "bin" / "python"
    install = [inside, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run(
        [*install, "-c", ROOT / "constraints.txt", f"{wheel}[test]" if tests else wheel],
        env=ALONE,
        check=True,
    )
    subprocess.run([inside, ROOT / "tests" / "base" / "smoke.py", ROOT], env=ALONE, cwd=folder, check=True)
    if tests:
        subprocess.run([inside, "-m", "pytest", *TESTS], env=ALONE, cwd=ROOT, check=True)
    what = "base install and tests" if tests else "base install"
    print(f"{what} on Python {version}: passed in {time.monotonic() - begin:.0f} s", flush=True)


def main(versions: Sequence[str], *, newest: bool) -> int:
    """Check the versions; the exit code."""
    found = {version: interpreter(version) for version in versions}
    present = [version for version, path in found.items() if path is not None]
    absent = [version for version, path in found.items() if path is None]
    if absent:
        print(f"no interpreter here, skipped: Python {', '.join(absent)}", flush=True)
    if not present:
        print("error: none of these Python versions is present; install one", file=sys.stderr)
        return 1
    failed = []
    with tempfile.TemporaryDirectory() as name:
        wheel = build_wheel(Path(name))
        for version, path in found.items():
            if path is None:
                continue
            try:
                tests = not newest or version == present[-1]
                check(version, path, wheel, Path(name) / version, tests=tests)
            except subprocess.CalledProcessError as error:
                failed.append(version)
                print(f"base install on Python {version}: FAILED ({error})", file=sys.stderr, flush=True)
    return bool(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Test the base install on the supported Python versions.")
    parser.add_argument(
        "versions", nargs="*", default=SUPPORTED, help="such as 3.12; default: all supported"
    )
    parser.add_argument("--tests", choices=("all", "newest"), default="all", help="where the tests run")
    arguments = parser.parse_args()
    sys.exit(main(arguments.versions, newest=arguments.tests == "newest"))
