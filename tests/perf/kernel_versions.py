"""List the CPU kernels that each ONNX Runtime version added, for `exporter/graphs/kernels.py`.

Run by hand, some minutes.

    python tests/perf/kernel_versions.py 1.22.0 1.23.2 1.24.4 1.25.1 1.26.0 1.27.0 1.28.0 1.29.0 1.30.0 \
        1.31.0 1.32.0

The script installs each version into its own folder and reads its kernel registry. For each version it
prints the highest opset and IR version that it loads, and the operators and element types that the version
before it lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

Kernels = dict[tuple[str, str, str], set[str]]

_LIST = """
import json, sys
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state
from onnx import TensorProto, helper

def loads(opset, ir_version):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True

kernels = [
    [kernel.domain, kernel.op_name, name, types]
    for kernel in state.get_all_opkernel_def()
    if kernel.provider == "CPUExecutionProvider"
    for name, types in (kernel.type_constraints or {"": []}).items()
]
limits = [max(n for n in range(17, 40) if loads(n, 8)), max(n for n in range(8, 24) if loads(17, n))]
json.dump([limits, kernels], sys.stdout)
"""


def kernels_of(version: str, folder: Path) -> tuple[list[int], Kernels]:
    """Return the highest opset and IR version, and the kernels: (domain, operator, constraint) -> types."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / version]
    subprocess.run([*pip, f"onnxruntime=={version}"], check=True)
    alone = os.environ | {"PYTHONPATH": str(folder / version), "ORT_DISABLE_TELEMETRY": "1"}
    listed = subprocess.run(
        [sys.executable, "-c", _LIST], env=alone, capture_output=True, text=True, check=True
    )
    limits, rows = json.loads(listed.stdout)
    found: Kernels = {}
    for domain, operator, constraint, types in rows:
        found.setdefault((domain, operator, constraint), set()).update(types)
    return limits, found


def main() -> None:
    """Print the differences between consecutive versions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("versions", nargs="+")
    versions = parser.parse_args().versions
    with tempfile.TemporaryDirectory() as folder:
        before: Kernels | None = None
        for version in versions:
            limits, kernels = kernels_of(version, Path(folder))
            print(f"{version}: opset {limits[0]}, IR version {limits[1]}")
            known = {key[:2] for key in before or kernels}
            for key, types in sorted(kernels.items()):
                new = types - (before or kernels).get(key, set())
                if new or key[:2] not in known:
                    label = "new operator" if key[:2] not in known else "new types"
                    print(f"  {label}: {key[0] or 'ai.onnx'} {key[1]} {key[2]}: {' '.join(sorted(new))}")
            before = kernels


if __name__ == "__main__":
    main()
