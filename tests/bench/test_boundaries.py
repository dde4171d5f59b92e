"""A device needs numpy and ONNX Runtime, and none of the workstation's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import bench

HEAVY = {"torch", "onnx", "onnxruntime.quantization", "onnxscript", "matplotlib", "PIL", "exporter"}
ROOT = Path(bench.__file__).parent.parent


def imported(statement):
    """Return the modules that a fresh interpreter has loaded after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(ran.stdout))


def test_a_device_loads_no_library_of_the_workstation():
    loaded = imported(
        "import bench.cli, bench.judging.gate, bench.measuring.measure, bench.views.tables\n"
        "import bench.measuring.worker, bench.core.console\n"
        "import onnxruntime, rich.progress"
    )
    assert "bench.views.tables" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_measured_process_loads_little():
    loaded = imported("import bench.measuring.worker")
    assert {"numpy", "bench.inputs.session"} <= loaded
    assert loaded.isdisjoint(HEAVY | {"rich", "typer", "pydantic", "onnxruntime"})


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench").glob("[!_]*.py")))
def test_every_module_has_a_docstring(name):
    module = __import__(f"bench.{name}", fromlist=["__doc__"])
    assert module.__doc__.strip()
