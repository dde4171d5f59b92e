"""Measure the gate's false-alarm rate and its detection rate of a 5 % slowdown; run by hand, two hours.

    python tests/perf/gate.py run --same 150 --slower 40 --busy
    python tests/perf/gate.py table

The model is EfficientNet-Lite0 with its ImageNet weights, int8, 96 px, batch 1, one thread. The evaluation
set is 300 pictures of digits, labelled with the predictions of the float model. `run` executes whole gate
runs with the policy `gate.toml` and appends the raw samples of each to `gate.jsonl.gz`. It can be stopped
at any time; the next call continues.

- same: the candidate is the same file or, in every other run, the same network in different bytes.
- slower: the candidate has an additional matrix product, sized to cost 5 % of the latency.

With `--busy`, another process keeps one core busy for random periods.

`table` prints the verdicts of the gate, and the verdicts of other tools on the same raw samples. Other
tools measure the baseline first and the candidate afterwards. Each is therefore applied twice: to the first
half of the baseline's blocks and the second half of the candidate's; and, to its advantage, to all
interleaved blocks.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("gate.jsonl.gz")
MODELS = ROOT / "build" / "gate"
POLICY = Path(__file__).with_name("gate.toml")
SIDE, SAMPLES = 96, 300
SLOWDOWN = 0.05
TIME_LIMIT_S = 85.0
WIDTH, PROBE_ROWS = 64, (128, 640)
SIZING_BLOCKS = 40
# Raw samples are stored in units of 0.1 microseconds, a thousandth of the latency.
TICK_NS = 100
Side = list[list[int]]  # samples of each process of one model


def main() -> None:
    """Measure gate runs, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "table", "keep-busy"])
    parser.add_argument("--same", type=int, default=150, help="runs with an unchanged model, in total")
    parser.add_argument("--slower", type=int, default=40, help="runs with a slower model, in total")
    parser.add_argument("--busy", action="store_true", help="keep one core busy for random periods")
    parser.add_argument("--max-load", type=float, help="wait while the one-minute load exceeds this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of raw samples")
    parser.add_argument(
        "--models", type=Path, default=MODELS, help="folder of models, reused by later calls"
    )
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.what == "keep-busy":
        keep_busy()
    elif arguments.what == "table":
        table(list(read(arguments.results)))
    else:
        wanted = {"same": arguments.same, "slower": arguments.slower}
        done = Counter(entry["kind"] for entry in read(arguments.results))
        with neighbour(arguments.busy):
            if not (arguments.models / "slower.onnx").is_file():
                build(arguments.models)
            for kind in plan(wanted, done):
                calm_down(arguments.max_load)
                about = {"kind": kind, "busy": arguments.busy, "load": os.getloadavg()[0]}
                entry = about | gate_run(arguments.models, kind, sum(done.values()))
                append(arguments.results, entry)
                done[kind] += 1
                print(f"{sum(done.values())}: {line(entry)}", flush=True)


def plan(wanted: dict[str, int], done: Counter[str]) -> Iterator[str]:
    """Yield the kind of the next run, evenly mixed, until all are done. The caller counts `done`."""
    while left := {kind: count - done[kind] for kind, count in wanted.items() if done[kind] < count}:
        yield max(left, key=lambda kind: left[kind] / wanted[kind])


def calm_down(max_load: float | None) -> None:
    """Wait until the load is low enough. The results of earlier runs do not influence this."""
    while max_load is not None and os.getloadavg()[0] > max_load:
        time.sleep(5)


def line(entry: dict[str, Any]) -> str:
    """Format a run as one line."""
    return (
        f"{entry['candidate']}: {entry['verdict']}, {entry['blocks']} + {entry['repeat_blocks']} pairs, "
        f"{entry['p50']:.3f} x, {entry['seconds']:.0f} s; {'; '.join(entry['reasons'])}"
    )


def gate_run(folder: Path, kind: str, index: int) -> dict[str, Any]:
    """Execute one gate run as a user's pipeline would. `index` is the seed of the order of models."""
    from bench.core.policy import read_policy
    from bench.inputs.artifact import Subject
    from bench.judging.gate import GateOptions, gate_subjects
    from bench.measuring.measure import MeasureConfig

    baseline = folder / "model.onnx"
    candidate = (
        folder / "slower.onnx" if kind == "slower" else (baseline, folder / "rebuilt.onnx")[index % 2]
    )
    start = time.monotonic()
    judgement = gate_subjects(
        Subject(candidate, None, folder / "evaluation.npz"),
        Subject(baseline, None, None),
        read_policy(POLICY),
        options=GateOptions(same=True),
        config=MeasureConfig(seed=index, time_limit_s=TIME_LIMIT_S),
    )
    first, second = judgement.result.models
    repeat = judgement.result.repeat
    return {
        "candidate": candidate.stem,
        "verdict": judgement.verdict.value,
        "metrics": {name: metric.verdict for name, metric in judgement.metrics.items()},
        "reasons": list(judgement.reasons),
        "p50": judgement.metrics["latency_p50"].ratio if judgement.metrics else math.nan,
        "blocks": judgement.blocks,
        "repeat_blocks": 0 if repeat is None else len(repeat.models[0].runs),
        "seconds": time.monotonic() - start,
        "started": judgement.result.started_utc,
        "rounds_ticks": [ticks(first), ticks(second)],
        "repeat_ticks": [] if repeat is None else [ticks(model) for model in repeat.models],
    }


def ticks(model: Any) -> list[list[list[int]]]:
    """Return the samples of a model in ticks, by process and round."""
    return [[[ns // TICK_NS for ns in burst] for burst in run.rounds_ns] for run in model.runs]


def build(folder: Path) -> None:
    """Build the int8 model, a copy in different bytes, the slower model, and the evaluation set."""
    from bench.core.arrays import write_npz
    from bench.inputs.session import open_session
    from bench.judging.degraded_models import rebuilt
    from exporter.pipeline.quantize_file import quantize_file
    from models.digits import load
    from tests.perf.calibration import child_export

    folder.mkdir(parents=True, exist_ok=True)
    float_model, model = folder / "float.onnx", folder / "model.onnx"
    child_export(str(float_model), str(SIDE))
    splits = load(size=SIDE, train=10, calibration=128, evaluation=SAMPLES)
    write_npz(folder / "calibration.npz", {"image": splits.calibration.inputs["image"]})
    quantize_file(float_model, folder / "calibration.npz", model)
    images = splits.evaluation.inputs["image"]
    labels = open_session(float_model).run(None, {"image": images})[0].argmax(axis=1)
    write_npz(folder / "evaluation.npz", {"image": images, "labels": labels})
    (folder / "rebuilt.onnx").write_bytes(rebuilt(model.read_bytes()))
    slow_down(model, folder / "slower.onnx", rows_for(model, folder))


def rows_for(model: Path, folder: Path) -> int:
    """Find the number of rows of the product that costs `SLOWDOWN`, from a line through two probes.

    The cost is that of the median, as in the gate, and with the same competing process as in the gate runs.
    Sized by the fastest tenth of every burst on an idle machine, the product cost 4.1 % instead of 5 %
    under competing load.
    """
    from bench.judging.verdicts import pair_scores
    from bench.measuring.measure import MeasureConfig, Measurement

    paths = [folder / f"probe-{rows}.onnx" for rows in PROBE_ROWS]
    for rows, path in zip(PROBE_ROWS, paths, strict=True):
        slow_down(model, path, rows)
    with Measurement([model, *paths], None, MeasureConfig()) as measurement:
        measurement.add_blocks(SIZING_BLOCKS)
        plain, *others = measurement.result().models
    costs = [math.expm1(np.median(pair_scores(plain.runs, other.runs, 0.5))) for other in others]
    slope, base = np.polyfit(PROBE_ROWS, costs, 1)
    rows = max(1, round((SLOWDOWN - base) / slope))
    print(
        f"{PROBE_ROWS} rows cost {[f'{cost:.1%}' for cost in costs]}: {rows} for {SLOWDOWN:.0%}", flush=True
    )
    return rows


def slow_down(model: Path, out: Path, rows: int) -> None:
    """Write a copy with one more matrix product, which depends on the input and is an output."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    proto = onnx.load(model)
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    proto.graph.node.extend(
        [
            helper.make_node(
                "Slice", [proto.graph.input[0].name, "slow_0", "slow_1", "slow_axis"], ["slow_row"]
            ),
            helper.make_node("Reshape", ["slow_row", "slow_flat"], ["slow_flatrow"]),
            helper.make_node("Slice", ["slow_flatrow", "slow_0", "slow_1"], ["slow_one"]),
            helper.make_node("Expand", ["slow_one", "slow_shape"], ["slow_left"]),
            helper.make_node("MatMul", ["slow_left", "slow_weight"], ["slow_product"]),
            helper.make_node("ReduceMax", ["slow_product"], ["slow_out"], keepdims=0),
        ]
    )
    constants = {
        "slow_0": np.array([0]),
        "slow_1": np.array([1]),
        "slow_axis": np.array([2]),
        "slow_flat": np.array([-1]),
        "slow_shape": np.array([rows, WIDTH]),
        "slow_weight": weight,
    }
    proto.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    proto.graph.output.append(helper.make_tensor_value_info("slow_out", TensorProto.FLOAT, []))
    onnx.checker.check_model(proto)
    onnx.save(proto, out)


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """Keep one core busy for random periods with another process, until the context ends."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, __file__, "keep-busy"], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def keep_busy() -> None:
    """Alternate between work and sleep of 0.05 to 2 s each, until the parent process ends."""
    parent, draw = os.getppid(), random.Random()
    while os.getppid() == parent:
        time.sleep(draw.uniform(0.05, 2))
        end = time.monotonic() + draw.uniform(0.05, 2)
        while time.monotonic() < end:
            pass


def append(path: Path, entry: dict[str, Any]) -> None:
    """Append a run as its own gzip member, so a kill can damage only the last run."""
    with path.open("ab") as stream:
        stream.write(gzip.compress(json.dumps(entry, separators=(",", ":")).encode() + b"\n", 9))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all stored runs; report a damaged last run on standard error."""
    if not path.is_file():
        return
    try:
        with gzip.open(path, "rt", encoding="ascii") as stream:
            for line in stream:
                yield json.loads(line)
    except (EOFError, zlib.error, json.JSONDecodeError) as error:
        print(f"{path}: the last run is incomplete and is ignored ({error})", file=sys.stderr)


def table(entries: Sequence[dict[str, Any]]) -> None:
    """Print how often each verdict occurred, with 95 % bounds (Clopper-Pearson)."""
    for kind in ("same", "slower"):
        runs = [entry for entry in entries if entry["kind"] == kind]
        if not runs:
            continue
        seconds = [entry["seconds"] for entry in runs]
        change = np.median([entry["p50"] for entry in runs])
        pairs = np.median([entry["blocks"] for entry in runs])
        print(
            f"\n{kind}: {len(runs)} gate runs, {sum(e['busy'] for e in runs)} with one core kept busy; "
            f"median change of p50 {change - 1:+.2%}; seconds per run: median {np.median(seconds):.0f}, "
            f"at most {max(seconds):.0f}; pairs: median {pairs:.0f}"
        )
        for verdict in ("PASS", "INCONCLUSIVE", "FAIL", "INVALID"):
            show(f"gate: {verdict}", [entry["verdict"] == verdict for entry in runs])
        show("gate: FAIL of latency_p50", [entry["metrics"].get("latency_p50") == "FAIL" for entry in runs])
        whole = [entry for entry in runs if entry["blocks"] >= 2]
        for name, alarm in PEERS.items():
            show(f"{name}, one after the other", [alarm(*halves(entry)) for entry in whole])
            show(f"{name}, interleaved", [alarm(*sides(entry)) for entry in whole])


def show(label: str, hits: Sequence[bool]) -> None:
    """Print one row: count, number of runs, and their ratio with its bounds."""
    from bench.core.statistics import proportion_interval

    share = proportion_interval(sum(hits), len(hits), 0.025)
    print(
        f"  {label:<64} {sum(hits):>4} of {len(hits):<4} {share.estimate:>7.1%} "
        f"[{share.lower:.1%}, {share.upper:.1%}]"
    )


def sides(entry: dict[str, Any]) -> tuple[Side, Side]:
    """Return all processes of the baseline and of the candidate, with the rounds of each joined."""
    first, second = entry["rounds_ticks"]
    return [list(chain(*process)) for process in first], [list(chain(*process)) for process in second]


def halves(entry: dict[str, Any]) -> tuple[Side, Side]:
    """Return the baseline's processes of the first half and the candidate's of the second half."""
    first, second = sides(entry)
    count = len(first) // 2
    return first[:count], second[-count:]


def mean_of_one_process(baseline: Side, candidate: Side) -> bool:
    """pytest-benchmark: one process of each model; an alarm if the mean is 5 % higher."""
    return bool(np.mean(candidate[-1]) > 1.05 * np.mean(baseline[0]))


def pyperf_compare(baseline: Side, candidate: Side) -> bool:
    """pyperf: its significance test on the kind of value it uses, three per process, each a loop's mean."""
    from pyperf._utils import is_significant

    values = [
        [float(np.mean(part)) for process in side for part in np.array_split(process, 3)]
        for side in (baseline, candidate)
    ]
    return bool(is_significant(*values)[0])


def mann_whitney(baseline: Side, candidate: Side) -> bool:
    """Mann-Whitney test on the pooled iterations of all processes."""
    from scipy.stats import mannwhitneyu

    return bool(mannwhitneyu(np.concatenate(baseline), np.concatenate(candidate)).pvalue < 0.05)


PEERS: dict[str, Callable[[Side, Side], bool]] = {
    "pytest-benchmark --benchmark-compare-fail=mean:5%": mean_of_one_process,
    "pyperf compare_to": pyperf_compare,
    "Mann-Whitney on pooled iterations, p < 0.05": mann_whitney,
}


if __name__ == "__main__":
    main()
