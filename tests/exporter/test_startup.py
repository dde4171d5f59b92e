"""Modules that the command imports: `--help` imports nothing heavy and works on a device."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.main import get_command

from bench.cli import app as device_app
from exporter.cli import app

HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx_ir",
    "safetensors",
    "PIL",
    "matplotlib",
    "jinja2",
    "pandas",
    "scipy",
    "sklearn",
    "exporter.pipeline.build",
}


def loaded_after(package, *command_lines):
    """The modules that a fresh interpreter has imported after running command lines."""
    script = (
        "import json, sys\n"
        f"from {package}.cli import app\n"
        f"for words in {list(command_lines)!r}:\n"
        "    app(words, standalone_mode=False)\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(f" {words[0]} [OPTIONS]" in ran.stdout for words in command_lines if len(words) > 1)
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("package", "application"), [("exporter", app), ("bench", device_app)])
def test_help_of_any_command_imports_nothing_heavy(package, application):
    commands = get_command(application).commands
    assert {"bench", "compare", "gate", "show", "verify"} <= commands.keys()
    loaded = loaded_after(package, ["--help"], *([name, "--help"] for name in commands))
    assert f"{package}.cli" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_version_imports_nothing_heavy():
    assert loaded_after("exporter", ["--version"]).isdisjoint(HEAVY)


def test_the_list_of_commands_imports_neither_numpy_nor_pydantic():
    """Importing either takes a third of the time that `--help` may take."""
    assert loaded_after("exporter", ["--help"]).isdisjoint({"numpy", "pydantic"})
