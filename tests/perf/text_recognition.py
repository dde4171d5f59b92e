"""Compare text recognition networks in int8 with their float files; run by hand, some minutes a model.

    python tests/perf/text_recognition.py MODEL.onnx [MODEL.onnx ...] [--calibration 96] [--lines 300]

The models are recognition networks with a CTC output [N, T, classes] or [T, N, classes] and an input
[N, 1 or 3, height, width], for example of the packages `rapidocr`, `rapidocr-onnxruntime` and `ddddocr`.
The samples are rendered lines of letters, digits and punctuation in the fonts that matplotlib brings, with
rotation, blur, noise and uneven light. No line is both calibrated on and judged.

Each model is quantized by edgeproof and by the configurations of ONNX Runtime's `quantize_static` below. A
text agrees if the sequence of best classes, without repeats and blanks, equals that of the float file. All
models take turns on one thread; the ratio is CPU time against float: median, 10th and 90th percentile.
"""

from __future__ import annotations

import argparse
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image, ImageDraw, ImageFilter, ImageFont

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import exporter  # noqa: E402
from bench.metrics.parity import sqnr_db  # noqa: E402

HEIGHTS = {1: 64, 3: 48}
WIDTH = 320
ROUNDS = 30


def main() -> None:
    """Print one table for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--calibration", type=int, default=96)
    parser.add_argument("--lines", type=int, default=300)
    args = parser.parse_args()
    for model in args.models:
        compare(model, args.calibration, args.lines)


def compare(model: Path, calibration: int, lines: int) -> None:
    """Quantize one model in all ways and print agreement, SQNR and time."""
    given = session(model).get_inputs()[0]
    channels = given.shape[1]
    height = given.shape[2] if isinstance(given.shape[2], int) else HEIGHTS[channels]
    width = given.shape[3] if isinstance(given.shape[3], int) else WIDTH
    x = np.stack(list(text_lines(calibration + lines, channels, height, width)))
    print(f"{model.name}: {x.shape[1:]}, {calibration} lines to calibrate, {lines} to judge")
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Path] = {"float": model}
        for label, make in ways(model, given.name, x[:calibration], Path(folder)):
            path = Path(folder) / f"{len(made)}.onnx"
            start = time.monotonic()
            try:
                make(path)
            except Exception as error:  # noqa: BLE001 (any failure is a result)
                print(f"  {label:34} fails: {str(error).splitlines()[0][:120]}")
                continue
            print(f"  {label:34} made in {time.monotonic() - start:.0f} s", flush=True)
            made[label] = path
        sessions = {label: session(path) for label, path in made.items()}
        answers = {label: outputs(one, x[calibration:]) for label, one in sessions.items()}
        times = interleaved(list(sessions.values()), {given.name: x[-1:]})
    wanted = [decoded(one) for one in answers["float"]]
    for row, label in enumerate(made):
        same = np.mean([decoded(one) == text for one, text in zip(answers[label], wanted, strict=True)])
        low, middle, high = np.quantile(times[row] / times[0], [0.1, 0.5, 0.9])
        noise = sqnr_db(np.concatenate(answers["float"]), np.concatenate(answers[label]))
        print(f"  {label:34} texts {same:7.2%}  {noise:5.1f} dB  {middle:.3f} ({low:.3f} to {high:.3f})")


def ways(
    model: Path, name: str, x: np.ndarray, folder: Path
) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """The ways to quantize: edgeproof as it comes, and configurations of `quantize_static`."""
    data = folder / "data.npz"
    np.savez(data, **{name: x})
    yield "edgeproof", lambda path: exporter.quantize(model, path, data=data)
    prepared = folder / "prepared.onnx"
    try:
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    except Exception:  # noqa: BLE001 (it then quantizes the file as it is)
        prepared = model
    raised = folder / "raised.onnx"
    try:
        proto = onnx.load(prepared)
        if proto.opset_import[0].version < 13:
            proto = onnx.version_converter.convert_version(proto, 17)
        onnx.save(proto, raised)
    except Exception:  # noqa: BLE001 (it then quantizes the file as it is)
        raised = prepared

    def static(
        activations: QuantType, method: CalibrationMethod, only: list[str] | None
    ) -> Callable[[Path], None]:
        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.rows = iter([{name: x[row : row + 1]} for row in range(len(x))])

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.rows, None)

        return lambda path: quantize_static(
            str(raised),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            op_types_to_quantize=only,
        )

    yield "ORT U8S8 MinMax", static(QuantType.QUInt8, CalibrationMethod.MinMax, None)
    yield (
        "ORT U8S8 MinMax, products only",
        static(QuantType.QUInt8, CalibrationMethod.MinMax, ["Conv", "Gemm", "MatMul"]),
    )
    yield "ORT S8S8 MinMax", static(QuantType.QInt8, CalibrationMethod.MinMax, None)


def text_lines(count: int, channels: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Rendered lines of text [channels, height, width] in -1 to 1, or 0 to 1 for one channel."""
    import matplotlib

    rng = np.random.default_rng(0)
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts/ttf").glob("DejaVu*.ttf"))
    fonts = [font for font in fonts if "Display" not in font.name]
    letters = string.ascii_letters + string.digits + "  ..,-:%"
    for _ in range(count):
        size = int(height * rng.uniform(0.45, 0.75))
        font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), size)
        text = "".join(rng.choice(list(letters), rng.integers(3, 14))).strip() or "edge"
        ground, ink = int(rng.integers(170, 256)), int(rng.integers(0, 110))
        image = Image.new("L", (width, height), ground)
        ImageDraw.Draw(image).text((rng.integers(2, 12), height * 0.08), text, font=font, fill=ink)
        image = image.rotate(rng.uniform(-2, 2), fillcolor=ground, resample=Image.Resampling.BILINEAR)
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
        picture = np.asarray(image, np.float32) / 255
        picture = picture * np.linspace(*rng.uniform(0.8, 1.0, 2), width)  # uneven light
        picture += rng.normal(0, rng.uniform(0, 0.03), picture.shape)
        picture = picture.clip(0, 1).astype(np.float32)
        yield picture[None] if channels == 1 else np.repeat((picture[None] - 0.5) / 0.5, 3, axis=0)


def session(path: Path) -> ort.InferenceSession:
    """A session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(one: ort.InferenceSession, x: np.ndarray) -> list[np.ndarray]:
    """The scores [T, classes] of each line."""
    name = one.get_inputs()[0].name
    return [np.squeeze(one.run(None, {name: x[row : row + 1]})[0]) for row in range(len(x))]


def decoded(scores: np.ndarray) -> tuple[int, ...]:
    """The best classes without repeats and blanks (class 0)."""
    best = scores.argmax(-1)
    changed = np.concatenate([[True], best[1:] != best[:-1]])
    return tuple(int(label) for label in best[changed] if label)


def interleaved(sessions: list[ort.InferenceSession], feeds: dict[str, np.ndarray]) -> np.ndarray:
    """CPU seconds of one run, [sessions, rounds]."""
    for one in sessions:
        one.run(None, feeds)
    times = np.empty((len(sessions), ROUNDS))
    for turn in range(ROUNDS):
        for row, one in enumerate(sessions):
            start = time.thread_time()
            one.run(None, feeds)
            times[row, turn] = time.thread_time() - start
    return times


if __name__ == "__main__":
    main()
