"""Measure the gain of each accuracy repair on EfficientNet-Lite0 with ImageNet weights.

Run by hand: `python tests/perf/repair.py`. The pictures come from installed packages; `pip install
scikit-image` adds some. Crops of half of the pictures serve for calibration and repair, crops of the other
half for evaluation. The script prints the SQNR of the logits and the agreement with float, with one weight
scale per channel and, as a harder case, with one per tensor.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIDE = 224
PICTURES = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
    "skimage": tuple(
        f"data/{name}"
        for name in (
            "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "color.png",
            "motorcycle_left.png", "retina.jpg", "rocket.jpg",
        )
    ),
}  # fmt: skip
RECIPES = (
    (),
    ("equalize",),
    ("adaround",),
    ("bias",),
    ("adaround", "bias"),
    ("equalize", "adaround", "bias"),
)


def main() -> None:
    """Quantize with each list of repairs and print the table."""
    sys.path.insert(0, str(ROOT))
    from bench.core.progress import SILENT
    from bench.metrics.parity import parity
    from exporter.graphs.targets import find_target
    from exporter.quantization.int8 import Int8Settings, quantize_model
    from exporter.quantization.int8_repaired import RepairSettings, quantize_repaired
    from exporter.quantization.repair.held_out import hold_out
    from exporter.quantization.repair.score import outputs_of
    from exporter.sources.splits import ArraySamples
    from tests.perf.calibration import child_export

    pictures = [path for package in PICTURES for path in found(package)]
    fitting, judging = crops(pictures[::2], 128, 0), crops(pictures[1::2], 256, 1)
    print(f"{len(pictures)} pictures: 128 crops of {len(pictures[::2])} to repair, 256 of the rest to test")
    target = find_target("auto")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "float.onnx"
        child_export(str(path), str(SIDE))
        model = onnx.load(path)
        wanted = outputs_of(model, {"image": judging}, 8)
        for per_channel in (True, False):
            print(f"one weight scale per {'channel' if per_channel else 'tensor'}")
            for recipe in RECIPES:
                start = time.monotonic()
                out, inputs = Path(name) / "int8.onnx", {"image": fitting}
                settings = Int8Settings(dataclasses.replace(target, per_channel=per_channel))
                if recipe:
                    repairs = RepairSettings(recipe)  # type: ignore[arg-type]
                    samples = hold_out(inputs, None)
                    made = quantize_repaired(model, out, samples, settings, repairs, progress=SILENT)
                else:
                    made = quantize_model(model, out, ArraySamples(inputs), settings, progress=SILENT)
                seconds = time.monotonic() - start
                got = outputs_of(onnx.load(out), {"image": judging}, 8)
                seen = parity(wanted, got)
                kept = [report.repair for report in made.repairs or () if report.kept]
                print(
                    f"  {' '.join(recipe) or 'nothing':24} SQNR {seen.sqnr_db:5.1f} dB, agreement "
                    f"{seen.agreement:6.2%}, {seconds:5.1f} s, kept: {' '.join(kept) or 'nothing'}",
                    flush=True,
                )


def found(package: str) -> list[Path]:
    """Return the pictures of a package that are installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return []
    return [path for name in PICTURES[package] if (path := Path(spec.origin).parent / name).is_file()]


def crops(pictures: list[Path], count: int, seed: int) -> np.ndarray:
    """Draw square crops of random size and position, normalised as in training: [count, 3, 224, 224]."""
    generator = np.random.default_rng(seed)
    result = np.empty((count, 3, SIDE, SIDE), np.float32)
    for index in range(count):
        with Image.open(pictures[index % len(pictures)]) as source:
            picture = source.convert("RGB")
        side = int(min(picture.size) * generator.uniform(0.35, 1))
        left, top = (int(generator.integers(0, size - side + 1)) for size in picture.size)
        crop = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        values = np.asarray(crop, np.float32)[:, :: generator.choice((1, -1))]
        result[index] = ((values - 127) / 128).transpose(2, 0, 1)
    return result


if __name__ == "__main__":
    main()
