"""Try an installed edgeproof: `python smoke.py ROOT`, with the interpreter of its environment.

Run it outside the checkout, so that Python imports the installed package. It needs the base install alone.
ROOT is the checkout; the kept artifact in its `tests/data` serves as a model.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HEAVY = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "PIL", "matplotlib", "jinja2")


def run(*arguments: object, code: int = 0) -> str:
    """Run `edgeproof` of this environment; the standard output, or the error line if `code` is not 0."""
    command = [Path(sys.executable).parent / "edgeproof", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != code:
        sys.exit(f"{command} exited with {ran.returncode}, expected {code}:\n{ran.stdout}{ran.stderr}")
    return ran.stderr if code else ran.stdout


def check(fact: bool, message: str) -> None:
    """End with an error unless a fact holds."""
    if not fact:
        sys.exit(f"smoke test: {message}")


def main(root: Path) -> None:
    """Check what is installed, then run the commands that the base install has."""
    for name in ("bench", "exporter"):
        found = importlib.util.find_spec(name)
        place = Path(str(found and found.origin)).resolve()
        check(place.is_file() and not place.is_relative_to(root), f"{name} is imported from {place}")
    present = [name for name in HEAVY if importlib.util.find_spec(name)]
    check(not present, f"the base install must not bring {', '.join(present)}")
    check(version("edgeproof") in run("--version"), "--version does not print the installed version")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run("new", folder / "project")
        names = sorted(path.name for path in (folder / "project").iterdir())
        check(names == ["data.py", "model.py", "recipe.schema.json", "recipe.toml"], f"`new` wrote {names}")
        # Commands that need torch or onnx name the extra to install.
        error = run("build", folder / "project" / "recipe.toml", code=2)
        check("edgeproof[export]" in error, f"`build` without torch says: {error}")

    artifact = root / "tests" / "data" / "artifact-2"
    verified = json.loads(run("verify", artifact, "--json"))
    check(verified["files"] == 6, f"`verify` found {verified['files']} files")
    evaluation = artifact / "evaluation.npz"
    measured = json.loads(
        run("bench", artifact / "model.onnx", "--data", evaluation, "--blocks", 1, "--json")
    )
    (model,) = measured["models"]
    check(model["accuracy"] == 1.0, f"`bench` measures an accuracy of {model['accuracy']}")
    check(0 < model["latency_ns"]["p50"] <= model["latency_ns"]["p90"], "`bench` measures no latency")
    shown = json.loads(run("show", artifact / "result.json", "--json"))
    check(shown["verdict"] == "PASS", f"`show` gives the verdict {shown['verdict']}")
    print(f"smoke test passed: edgeproof {version('edgeproof')}, Python {platform.python_version()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
