"""Measure the accuracy gain from ImageNet weights with few pictures; run by hand, 15 minutes.

    python tests/perf/few_shot.py --pictures FOLDER [--images 10 30 100] [--seeds 3] [--epochs 15]

The script trains EfficientNet-Lite0 from ImageNet weights and from random weights, with the same pictures,
batches and epochs. The exit code is 1 if the interval of the gain at the smallest number of pictures does
not lie above zero.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pictures

from exporter.recipes import FewShotConfig, FineTuneConfig
from exporter.training.stages.few_shot import few_shot_curve
from exporter.training.stages.labelled_loss import cross_entropy


def main() -> int:
    """Train all networks, print the results and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    data = pictures.load(arguments.pictures, arguments.size, train=max(arguments.images) * 20)
    classes = pictures.classes_of(data)
    config = FineTuneConfig(kind="finetune", batch_size=16, learning_rate=2e-3)
    network = pictures.pretrained(classes)
    excludes_zero = []
    for images in sorted(arguments.images):
        start = time.monotonic()
        few = FewShotConfig(images=(images,), seeds=arguments.seeds, epochs=arguments.epochs)
        context = pictures.context("few", 0, classes)
        (point,) = few_shot_curve(network, config, data, context, few=few, loss=cross_entropy())
        gain = point.gain
        excludes_zero.append(gain.lower > 0)
        print(
            f"{images:4} a class: pretrained {_shown(point.transfer)}, from scratch "
            f"{_shown(point.from_scratch)}, gain {gain.estimate:+.1%} "
            f"({gain.lower:+.1%} … {gain.upper:+.1%}), {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return 0 if excludes_zero[0] else 1


def _shown(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.1%}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
