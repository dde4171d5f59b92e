"""Compare the time of a distillation teacher in PyTorch and in ONNX Runtime; run by hand, a minute.

    python tests/perf/teacher.py [--size 128] [--batch 32] [--pairs 15]

EfficientNet-Lite0 runs on batches of noise in both forms, taking turns, with the memory layout and the
number of threads of a training on the CPU. The script prints the median times, and their ratio with exact
signed-rank bounds at 99 %.
"""

from __future__ import annotations

import argparse
import math
from time import perf_counter

import numpy as np
import pictures
import torch

from bench.core.statistics import signed_rank_interval
from exporter.networks.memory_layout import laid_out, layout_for
from exporter.networks.network import call
from exporter.recipes import ExportConfig
from exporter.sources.splits import Split
from exporter.training.distillation.onnx_teacher import OnnxTeacher, as_graph

ALPHA = 0.01


def main() -> None:
    """Measure all pairs and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    network = pictures.pretrained(10).module.eval().requires_grad_(False)
    noise = np.random.default_rng(0).normal(size=(arguments.batch, 3, arguments.size, arguments.size))
    sample = Split({"image": noise.astype(np.float32)}, np.zeros(arguments.batch, np.int64))
    graph = as_graph(network, sample, ExportConfig(), "teacher")
    assert isinstance(graph, OnnxTeacher)
    inputs = {"image": torch.from_numpy(sample.inputs["image"])}
    layouts = {module: layout_for(module, inputs) for module in (network, graph)}

    def seconds(module: torch.nn.Module) -> float:
        start = perf_counter()
        with torch.no_grad():
            call(module, laid_out(inputs, layouts[module]))
        return perf_counter() - start

    times = [(seconds(network), seconds(graph)) for _ in range(arguments.pairs + 3)][3:]
    plain, fast = np.median(times, axis=0)
    scores = [math.log(ours / theirs) for theirs, ours in times]
    found = signed_rank_interval(scores, ALPHA)
    print(f"PyTorch {1e3 * plain:.0f} ms, graph {1e3 * fast:.0f} ms per batch of {arguments.batch}")
    ratio, low, high = map(math.exp, (found.estimate, found.lower, found.upper))
    print(f"ratio {ratio:.3f} ({low:.3f} … {high:.3f})")


if __name__ == "__main__":
    main()
