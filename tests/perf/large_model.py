"""Export, quantize and measure a model above 2 GB; run by hand, some minutes and 2.5 GB of disk space.

    python tests/perf/large_model.py [--layers 34] [--limit 8]

Every command runs in its own process, whose peak memory is printed. A process that exceeds `--limit`, in
GiB, is killed. The network is a chain of linear layers with 4,096 by 4,096 random weights, 64 MiB each, and
layer norms between them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 4096
SAMPLES = 64
EDGEPROOF = ("-c", "from exporter.cli import main; main()")


def main() -> None:
    """Run all commands and print their time and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--limit", type=float, default=8.0)
    parser.add_argument("--export-to", type=Path)
    arguments = parser.parse_args()
    if arguments.export_to is not None:
        export_chain(arguments.export_to, arguments.layers)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, int8, data = folder / "float.onnx", folder / "int8.onnx", folder / "data.npz"
        x = np.random.default_rng(0).standard_normal((SAMPLES, WIDTH), dtype=np.float32)
        np.savez(data, x=x, labels=np.zeros(SAMPLES, np.int64))
        steps = {
            "export": (str(Path(__file__)), "--layers", str(arguments.layers), "--export-to", str(model)),
            "quantize": (*EDGEPROOF, "quantize", str(model), "--data", str(data), "--out", str(int8)),
            "inspect float": (*EDGEPROOF, "inspect", str(model), "--data", str(data)),
            "inspect int8": (*EDGEPROOF, "inspect", str(int8), "--data", str(data), "--min-int8", "0.99"),
            "bench": (*EDGEPROOF, "bench", str(model), str(int8), "--data", str(data)),
        }
        for step, command in steps.items():
            run(step, command, int(arguments.limit * 2**30))
            if step in {"export", "quantize"}:
                print("  " + ", ".join(f"{f.name} {f.stat().st_size:,}" for f in sorted(folder.iterdir())))


def export_chain(path: Path, layers: int) -> None:
    """Export a chain of linear layers and layer norms."""
    import torch
    from torch import nn

    from exporter.onnx_export.export import export
    from exporter.recipes import ExportConfig
    from exporter.sources.splits import Split

    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))]
    x = np.random.default_rng(1).standard_normal((2, WIDTH), dtype=np.float32)
    network = nn.Sequential(*parts)
    export(network, Split({"x": x}, np.zeros(2, np.int64)), path, ExportConfig(), {})


def run(step: str, command: tuple[str, ...], limit_bytes: int) -> None:
    """Run a command; print its time, the peak memory of all its processes, and its last 24 lines."""
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            peak = max(peak, sum(map(resident_bytes, family(process.pid))))
            if peak > limit_bytes:
                process.kill()
            time.sleep(0.1)
        output.seek(0)
        text = output.read()
    seconds = time.monotonic() - start
    print(f"{step}: {seconds:.0f} s, {peak / 2**30:.2f} GiB, exit code {process.returncode}", flush=True)
    for line in text.splitlines()[-24:]:
        print(f"  {line}")


def family(pid: int) -> list[int]:
    """Return the ids of a process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def resident_bytes(pid: int) -> int:
    """Return the private memory of a process. Mapped files do not count, as the system can drop them."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


if __name__ == "__main__":
    main()
