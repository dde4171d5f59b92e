"""Environments like those on a device: only the base install, with one version of ONNX Runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
# Without PYTHONPATH, so the new environments cannot import the packages of this process.
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

GENERATED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "artifacts", "build", "dist")


@dataclass(frozen=True)
class Device:
    """An environment with the base install."""

    version: str
    folder: Path

    def run(self, *arguments: object, name: str = "edgeproof") -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, in the environment's folder."""
        return subprocess.run(
            [self.folder / name, *map(str, arguments)],
            env=ALONE,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel. An editable install would also find files that the wheel lacks."""
    folder = tmp_path_factory.mktemp("wheel")
    # setuptools builds inside the source tree, and the next wheel would contain the files left there.
    source = shutil.copytree(ROOT, folder / "source", ignore=GENERATED)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    subprocess.run(build, env=ALONE, capture_output=True, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def make_device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Device]:
    """Create an environment with the base install and one version of ONNX Runtime."""

    def make(version: str = PINNED["onnxruntime"]) -> Device:
        folder = tmp_path_factory.mktemp("device")
        venv.create(folder / "venv", with_pip=False)
        scripts = folder / "venv" / "bin"
        constraints = folder / "constraints.txt"
        others = [f"{name}=={pinned}" for name, pinned in PINNED.items() if name != "onnxruntime"]
        constraints.write_text("\n".join([*others, f"onnxruntime=={version}"]))
        pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--quiet"]
        installed = subprocess.run(
            [*pip, "--no-compile", "--disable-pip-version-check", "-c", constraints, wheel],
            env=ALONE,
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode:
            pytest.skip(f"no package index can be reached: {installed.stderr.strip().splitlines()[-1]}")
        return Device(version, scripts)

    return make
