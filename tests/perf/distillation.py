"""Measure how much of the accuracy lost to pruning distillation recovers; run by hand, 15 minutes.

    python tests/perf/distillation.py --pictures FOLDER [--sparsity 0.9] [--epochs 3] [--seeds 3]

For each seed, EfficientNet-Lite0 is fine-tuned from ImageNet weights and pruned. The pruned network is then
trained twice for the same number of epochs: by fine-tuning alone and by distillation from the dense
network.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import pictures

from exporter.networks.network import Network
from exporter.recipes import DistillConfig, FineTuneConfig, PruneConfig, PruneTarget
from exporter.training.stages.distill import distill
from exporter.training.stages.finetune import finetune
from exporter.training.stages.prune import prune
from exporter.training.stages.seed_interval import mean_interval

HEALING = {"batch_size": 32, "learning_rate": 1e-3}


def main() -> None:
    """Train all networks and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--dense-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--method", default="logits", choices=["logits", "decoupled"])
    parser.add_argument("--hard-weight", type=float, default=0.1)
    parser.add_argument("--temperature", type=float, default=4.0)
    arguments = parser.parse_args()
    data = pictures.load(arguments.pictures, arguments.size, train=arguments.train)
    classes = pictures.classes_of(data)
    rows = []
    for seed in range(arguments.seeds):
        start = time.monotonic()
        first = FineTuneConfig(kind="finetune", epochs=arguments.dense_epochs, **HEALING)
        dense, result = finetune(
            pictures.pretrained(classes), first, data, pictures.context("finetune", seed, classes)
        )
        whole = result.evaluation_accuracy
        config = PruneConfig(
            kind="prune", target=PruneTarget(sparsity=arguments.sparsity), exclude=("_conv_stem", "_fc")
        )
        pruned, result = prune(
            Network(copy.deepcopy(dense.module)), config, data, pictures.context("prune", seed, classes)
        )
        broken = result.evaluation_accuracy
        again = FineTuneConfig(kind="finetune", epochs=arguments.epochs, **HEALING)
        _, result = finetune(_copy(pruned), again, data, pictures.context("heal", seed, classes))
        tuned = result.evaluation_accuracy
        follow = DistillConfig(
            kind="distill",
            teacher="finetune",
            epochs=arguments.epochs,
            method=arguments.method,
            hard_weight=arguments.hard_weight,
            temperature=arguments.temperature,
            **HEALING,
        )
        _, result = distill(_copy(pruned), follow, data, pictures.context("heal", seed, classes, dense))
        taught = result.evaluation_accuracy
        rows.append((whole, broken, tuned, taught))
        print(
            f"seed {seed}: dense {whole:.2%}, pruned {broken:.2%}, fine-tuned {tuned:.2%}, distilled "
            f"{taught:.2%}; {time.monotonic() - start:.0f} s",
            flush=True,
        )
    whole, broken, tuned, taught = np.array(rows).T
    print(f"recovered: fine-tuning {np.mean((tuned - broken) / (whole - broken)):.1%}, ", end="")
    print(f"distillation {np.mean((taught - broken) / (whole - broken)):.1%} of the lost accuracy")
    gain = mean_interval(taught - tuned, 0.025)
    left = np.mean(whole - tuned)
    print(
        f"distillation beyond fine-tuning: {gain.estimate:+.2%} ({gain.lower:+.2%} … {gain.upper:+.2%}), "
        f"{gain.estimate / left:.0%} of the {left:.2%} that fine-tuning did not recover"
    )


def _copy(network: Network) -> Network:
    return Network(copy.deepcopy(network.module), dict(network.masks))


if __name__ == "__main__":
    main()
