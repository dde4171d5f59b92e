"""Measure the figures of docs/techniques.md and print its tables; run by hand, 15 minutes.

    python tests/perf/techniques.py [--seeds 3] [--pairs 30] [SECTION ...]

Each section builds recipes of models/simplenet/ once per seed, up to the int8 file. ONNX Runtime evaluates
that file on held-out digits. The recipes' cache keeps finished stages. The section `mistakes` changes the
weights of the dense network in a few lines of torch. Accuracies are means over the seeds, with the lowest
and the highest.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
SIMPLENET = ROOT / "models" / "simplenet"
# Recipe and overrides of each row of the table of pruning rules.
PRUNINGS = (
    ("threshold", ()),
    ("threshold", ("stage.prune.target.threshold=1.5",)),
    ("sparsity", ()),
    ("sparsity", ("stage.prune.scope=layer",)),
    ("sparsity", ('stage.prune.target={ pattern = "2:4" }',)),
    ("sparsity", ("stage.finetune-2.epochs=20",)),
    ("gradual", ()),
    ("gradual", ("stage.prune.method=movement", "stage.prune.gradual.begin=0.3")),
)


@dataclass(frozen=True)
class Built:
    """The result of a build: metrics by stage, the output folder, and the evaluation split."""

    stages: dict[str, dict[str, Any]]
    folder: Path
    evaluation: Any


@dataclass(frozen=True)
class Bench:
    """The folder to build in, the seeds, and the number of pairs of a comparison of times."""

    folder: Path
    seeds: range
    pairs: int

    def build(self, recipe: str, seed: int = 0, until: str = "quantize", *, overrides: Sequence[str] = ()):
        """Build a recipe up to a step."""
        from exporter.pipeline.build import build
        from exporter.recipes import read_recipe
        from models.digits import load

        path, chosen = SIMPLENET / f"{recipe}.toml", [f"seed={seed}", *overrides]
        out = Path(tempfile.mkdtemp(dir=self.folder)) / until
        steps = build(path, until=until, out=out, overrides=chosen).steps
        stages = {name: found.as_json() for name, found in steps.items()}
        return Built(stages, out, load(**read_recipe(path, chosen).data.args).evaluation)

    def each(self, recipe: str, until: str = "quantize", *, overrides: Sequence[str] = ()) -> list[Built]:
        """Build a recipe once per seed."""
        return [self.build(recipe, seed, until, overrides=overrides) for seed in self.seeds]

    def dense(self, seed: int) -> tuple[nn.Module, Any]:
        """Return the dense network that most recipes start from, and its evaluation split."""
        from exporter import load_trained
        from models.simplenet import SimpleNet

        built = self.build("techniques/int8", seed, "finetune")
        return load_trained(SimpleNet(), built.folder), built.evaluation


def main() -> None:
    """Print the requested sections."""
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), range(arguments.seeds), arguments.pairs)
        for name in arguments.sections or SECTIONS:
            print(f"\n{name}\n", flush=True)
            SECTIONS[name](bench)


def fine_tuning(bench: Bench) -> None:
    """Print the accuracy on all digits, and the gain of transfer to the digits 5 to 9."""
    dense = bench.each("techniques/int8", "finetune")
    print("all ten digits:", shown(b.stages["finetune"]["evaluation_accuracy"] for b in dense), "\n")
    tuned = [b.stages["finetune"] for b in bench.each("digits", "finetune")]
    header("pictures of 5 to 9", "transfer", "from scratch", "gain in points")
    found = [[t["evaluation_accuracy"] for t in tuned]]
    found.append([t["from_scratch"]["evaluation_accuracy"] for t in tuned])
    for line in tuned[0]["few_shot"]:
        gain = gained(line["transfer"], line["from_scratch"])
        row(f"{line['images']} per class", shown(line["transfer"]), shown(line["from_scratch"]), gain)
    row("200 in all", *map(shown, found), gained(*found))


def pruning(bench: Bench) -> None:
    """Print the accuracy of each pruning rule: directly after pruning, after training, and in int8."""
    header("recipe", "zeros", "accuracy after pruning", "accuracy after training", "accuracy in int8")
    for more in ((), ("stage.finetune.epochs=32",)):
        dense = bench.each("techniques/int8", overrides=more)
        trained = shown(b.stages["finetune"]["evaluation_accuracy"] for b in dense)
        row(called("int8", more), "0 %", "", trained, shown(map(int8_accuracy, dense)))
    for recipe, overrides in PRUNINGS:
        built = bench.each(f"techniques/{recipe}", overrides=overrides)
        cut = [b.stages["prune"] for b in built]
        trained = shown(b.stages.get("finetune-2", b.stages["prune"])["evaluation_accuracy"] for b in built)
        row(
            called(recipe, overrides),
            percent(float(np.mean([c["sparsity"] for c in cut])), 0),
            "" if recipe == "gradual" else shown(c["evaluation_accuracy"] for c in cut),
            trained,
            shown(map(int8_accuracy, built)),
        )


def zeros(bench: Bench) -> None:
    """Print the effect of zeros and of fewer channels on file size and time."""
    header("", "float", "compressed", "int8", "compressed")
    chosen = {
        "dense": "techniques/int8",
        "65 % zeros": "techniques/threshold",
        "90 % zeros": "techniques/sparsity",
        "half the multiply-adds": "techniques/shrink",
    }
    files = {}
    for label, recipe in chosen.items():
        files[label] = [
            bench.build(recipe, until="export").folder / "model.fp32.onnx",
            bench.build(recipe).folder / "model.onnx",
        ]
        row(label, *(kilobytes(size) for path in files[label] for size in sizes(path)))
    print()
    header(
        "baseline, candidate",
        "precision",
        "p50 of the baseline",
        "p50 of the candidate",
        "ratio of times (99 %)",
        "blocks",
    )
    for label in list(chosen)[2:]:
        for form, index in (("float", 0), ("int8", 1)):
            row(f"dense, {label}", form, *timed(files["dense"][index], files[label][index], bench.pairs))
    row("float, int8", "", *timed(*files["dense"], bench.pairs))


def shrinking(bench: Bench) -> None:
    """Print the widths, costs and accuracies after structured pruning."""
    header(
        "seed",
        "widths left",
        "multiply-adds",
        "parameters",
        "accuracy after pruning",
        "accuracy after training",
    )
    for seed in bench.seeds:
        metrics = bench.build("techniques/shrink", seed, "shrink").stages["shrink"]
        row(
            str(seed),
            ", ".join(f"{name} {width}" for name, width in metrics["widths"].items()),
            *(f"{metrics['after'][key] / metrics['before'][key]:.2f} ×" for key in ("macs", "params")),
            percent(metrics["rounds"][-1]["accuracy_cut"]),
            percent(metrics["evaluation_accuracy"]),
        )


def bits(bench: Bench) -> None:
    """Print the accuracy with weights rounded to few bits, then of the int8, 4-bit and `qat` files."""
    header("bits", "levels", "SQNR of the weights", "accuracy")
    for count in (8, 6, 5, 4, 3, 2):
        noise, found = [], []
        for module, evaluation in map(bench.dense, bench.seeds):
            before = torch.cat([w.detach().flatten() for w in weights(module)]).numpy()
            found.append(bent(module, evaluation, functools.partial(rounded, bits=count)))
            after = torch.cat([rounded(w.detach(), count).flatten() for w in weights(module)]).numpy()
            noise.append(decibels(before, after))
        row(str(count), str(2**count - 1), f"{np.mean(noise):.1f} dB", shown(found))
    print()
    header("recipe", "float", "quantized, in ONNX Runtime", "file")
    for recipe, overrides in (("int8", ()), ("int8", ("quantize.bits=4",)), ("qat", ())):
        built = bench.each(f"techniques/{recipe}", overrides=overrides)
        row(
            called(recipe, overrides),
            shown(b.stages["finetune"]["evaluation_accuracy"] for b in built),
            shown(map(int8_accuracy, built)),
            kilobytes((built[0].folder / "model.onnx").stat().st_size),
        )


def distillation(bench: Bench) -> None:
    """Print the accuracy with and without the teacher; weights, pictures, order and epochs are the same."""
    plenty = ["data.args.train=2000", "data.args.calibration=300", "stage.distill.epochs=10"]
    header("pictures", "dense", "pruned", "labels alone", "with the teacher", "gain in points")
    for label, overrides in (("200", []), ("2,000", plenty)):
        taught, alone = (
            [
                b.stages["distill"]
                for b in bench.each(
                    "techniques/distill",
                    "distill",
                    overrides=[*overrides, f"stage.distill.hard_weight={w}"],
                )
            ]
            for w in (0.1, 1.0)
        )
        first = [[t[key] for t in taught] for key in ("teacher_accuracy", "accuracy_before")]
        last = [[t["evaluation_accuracy"] for t in found] for found in (alone, taught)]
        row(label, *map(shown, first), *map(shown, last), gained(last[1], last[0]))


def combination(bench: Bench) -> None:
    """Print the accuracy after each stage of the combined recipe."""
    built = bench.each("techniques/combined")
    header("after", "accuracy")
    for name in ("finetune", "prune", "distill", "qat"):
        row(f"`{name}`", shown(b.stages[name]["evaluation_accuracy"] for b in built))
    row("the int8 file, in ONNX Runtime", shown(map(int8_accuracy, built)))
    float_file = bench.build("techniques/combined", until="export").folder / "model.fp32.onnx"
    print(
        "\nfloat, int8:",
        *(kilobytes(s) for f in (float_file, built[0].folder / "model.onnx") for s in sizes(f)),
    )


def mistakes(bench: Bench) -> None:
    """Print the effect of two mistakes: zeroing the largest weights, and casting weights to bytes."""
    from exporter.training.sparsity.masks import lowest_masks

    header("zeroed", "the smallest weights", "the largest weights")
    for share in (0.05, 0.1, 0.3, 0.5, 0.7, 0.9):
        found: dict[int, list[float]] = {1: [], -1: []}
        for module, evaluation in map(bench.dense, bench.seeds):
            names = {str(i): w.detach().abs() for i, w in enumerate(weights(module))}
            for sign, accuracies in found.items():
                masks = iter(lowest_masks({n: sign * w for n, w in names.items()}, share).values())
                accuracies.append(bent(module, evaluation, lambda w, masks=masks: w * next(masks)))
        row(percent(share, 0), *map(shown, found.values()))
    print()
    header("", "weights other than zero", "accuracy")
    for label, cast in (
        ("`w.to(torch.int8)`", lambda w: w.to(torch.int8).float()),
        ("`torch.round(w / scale)`, times `scale`", functools.partial(rounded, bits=8)),
    ):
        left, found_ = [], []
        for module, evaluation in map(bench.dense, bench.seeds):
            flat = torch.cat([cast(w.detach()).flatten() for w in weights(module)])
            left.append(float((flat != 0).float().mean()))
            found_.append(bent(module, evaluation, cast))
        row(label, percent(float(np.mean(left)), 2), shown(found_))


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "fine-tuning": fine_tuning,
    "pruning": pruning,
    "shrinking": shrinking,
    "bits": bits,
    "distillation": distillation,
    "combination": combination,
    "mistakes": mistakes,
    "zeros": zeros,
}


def weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of convolutions and linear layers, [out, in, ...]."""
    return [parameter for parameter in module.parameters() if parameter.ndim > 1]


def bent(module: nn.Module, evaluation: Any, change: Callable[[Tensor], Tensor]) -> float:
    """Return the accuracy of a network after changing each of its weights."""
    from exporter.networks.network import accuracy

    module = copy.deepcopy(module)
    with torch.no_grad():
        for weight in weights(module):
            weight.copy_(change(weight))
    return accuracy(module, evaluation)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Round symmetrically, with one scale per output channel."""
    limit = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / limit
    return torch.round(weight / scale) * scale


def decibels(before: np.ndarray, after: np.ndarray) -> float:
    from bench.metrics.parity import sqnr_db

    return sqnr_db(before, after)


def int8_accuracy(built: Built) -> float:
    """Return the accuracy of a build's int8 file in ONNX Runtime."""
    from exporter.graphs.inference import run_model

    outputs = run_model(built.folder / "model.onnx", built.evaluation)
    return float((outputs.argmax(axis=1) == built.evaluation.labels).mean())


def sizes(path: Path) -> tuple[int, int]:
    """Return the size of a file in bytes, and its size compressed by zlib."""
    from exporter.training.sparsity.sizes import compressed_size

    return path.stat().st_size, compressed_size([path])


def timed(baseline: Path, candidate: Path, pairs: int) -> list[str]:
    """Compare the times of two models: both p50, their ratio with its bounds, and the number of blocks."""
    from bench.judging.gate import GateOptions, compare

    judged = compare(baseline, candidate, options=GateOptions(pairs=pairs, any_order=True))
    metric = judged.metrics["latency_p50"]
    p50 = [f"{model.latency().p50 / 1000:.1f} µs" for model in judged.result.models]
    return [*p50, f"{metric.ratio:.3f} ({metric.lower:.3f} … {metric.upper:.3f})", str(judged.blocks)]


def gained(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Format the mean difference of pairs in points, with its 95 % interval of Student's t."""
    from exporter.training.stages.seed_interval import mean_interval

    found = mean_interval([100 * (a - b) for a, b in zip(ours, theirs, strict=True)], 0.025)
    return f"{found.estimate:+.2f} ({found.lower:+.2f} … {found.upper:+.2f})"


def called(recipe: str, overrides: Sequence[str]) -> str:
    return ", ".join(f"`{text}`" for text in (f"{recipe}.toml", *overrides))


def header(*names: str) -> None:
    row(*names)
    row(*("---" for _ in names))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def shown(values: Iterable[float]) -> str:
    """Format the mean, the lowest and the highest value in percent."""
    found = [100 * value for value in values]
    return f"{np.mean(found):.1f} % ({min(found):.1f} … {max(found):.1f})"


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def kilobytes(size: int) -> str:
    return f"{size / 1000:.1f} kB"


if __name__ == "__main__":
    main()
