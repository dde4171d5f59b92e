"""How often the gate cries wolf, and how often it catches a real slowdown of 5 %; by hand, two hours.

    python tests/perf/gate.py run --same 150 --slower 40 --busy
    python tests/perf/gate.py table

EfficientNet-Lite0 with its ImageNet weights, int8, 96 px, batch 1, one thread; evaluated on 300 pictures of
digits whose labels are what the float model takes them for. `run` measures whole gate runs by `gate.toml`
and appends the raw samples of each to `gate.jsonl.gz`, so that it can be stopped and run again over several
sittings.

- same: the candidate is the same file, or (every other run) the same network in other bytes.
- slower: the candidate has one more operator, a product of matrices, sized to cost 5 % of the latency.

With `--busy`, another process keeps one core busy, in stretches of random length.

`table` judges by the raw samples: what the gate said, and what other tools would have said. Those run the
baseline first and the candidate afterwards; so each is given the first half of the blocks for the baseline
and the second half for the candidate, and, more kindly, all blocks, interleaved as ours are.
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
# Raw samples are kept in tenths of a microsecond: a thousandth of what is timed.
TICK_NS = 100
Side = list[list[int]]  # the samples of each process


def main() -> None:
    """Measure, or print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "table", "keep-busy"])
    parser.add_argument("--same", type=int, default=150, help="runs on an unchanged model, in all")
    parser.add_argument("--slower", type=int, default=40, help="runs on a slower model, in all")
    parser.add_argument("--busy", action="store_true", help="keep one core busy at random")
    parser.add_argument("--max-load", type=float, help="begin no run while the load of a minute is above")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--models", type=Path, default=MODELS, help="kept from one run to the next")
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
    """What to measure next, kinds evenly mixed, until nothing is lacking; `done` is counted elsewhere."""
    while left := {kind: count - done[kind] for kind, count in wanted.items() if done[kind] < count}:
        yield max(left, key=lambda kind: left[kind] / wanted[kind])


def calm_down(max_load: float | None) -> None:
    """Wait until others leave the machine alone; what a run says plays no part in it."""
    while max_load is not None and os.getloadavg()[0] > max_load:
        time.sleep(5)


def line(entry: dict[str, Any]) -> str:
    """A run in one line."""
    return (
        f"{entry['candidate']}: {entry['verdict']}, {entry['blocks']} + {entry['repeat_blocks']} pairs, "
        f"{entry['p50']:.3f} x, {entry['seconds']:.0f} s; {'; '.join(entry['reasons'])}"
    )


def gate_run(folder: Path, kind: str, index: int) -> dict[str, Any]:
    """One gate run, as a user's pipeline would do it, in a fresh order."""
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
    """The samples of a model: process by process, round by round."""
    return [[[ns // TICK_NS for ns in burst] for burst in run.rounds_ns] for run in model.runs]


def build(folder: Path) -> None:
    """The int8 model, the same in other bytes, the slower one, and samples to evaluate by."""
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
    """How many rows of the product cost `SLOWDOWN`, on the line through the costs of two probes.

    By the median, as the gate judges, and beside the same neighbour: sized by the fastest tenth of every
    burst on an idle machine, it cost 4.1 % beside one and not 5.
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
    """A copy that multiplies two matrices more; the product hangs on the input, and is an output."""
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
    """Another process that keeps one core busy at random, as long as this lasts."""
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
    """Work and rest in turns of 0.05 to 2 s, until the process that started this one is gone."""
    parent, draw = os.getppid(), random.Random()
    while os.getppid() == parent:
        time.sleep(draw.uniform(0.05, 2))
        end = time.monotonic() + draw.uniform(0.05, 2)
        while time.monotonic() < end:
            pass


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a run; each is a gzip member of its own, so that a kill can harm none but the last."""
    with path.open("ab") as stream:
        stream.write(gzip.compress(json.dumps(entry, separators=(",", ":")).encode() + b"\n", 9))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All runs of all sittings."""
    if not path.is_file():
        return
    try:
        with gzip.open(path, "rt", encoding="ascii") as stream:
            for line in stream:
                yield json.loads(line)
    except (EOFError, zlib.error, json.JSONDecodeError) as error:
        print(f"{path}: the last run is cut off ({error})", file=sys.stderr)


def table(entries: Sequence[dict[str, Any]]) -> None:
    """What was said how often, with 95 % bounds (Clopper-Pearson)."""
    for kind in ("same", "slower"):
        runs = [entry for entry in entries if entry["kind"] == kind]
        if not runs:
            continue
        seconds = [entry["seconds"] for entry in runs]
        change = np.median([entry["p50"] for entry in runs])
        pairs = np.median([entry["blocks"] for entry in runs])
        print(
            f"\n{kind}: {len(runs)} gate runs, {sum(e['busy'] for e in runs)} beside a busy neighbour; "
            f"median change of p50 {change - 1:+.2%}; seconds a run: median {np.median(seconds):.0f}, "
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
    """One row: how many of how many, and what share that stands for."""
    from bench.core.statistics import proportion_interval

    share = proportion_interval(sum(hits), len(hits), 0.025)
    print(
        f"  {label:<64} {sum(hits):>4} of {len(hits):<4} {share.estimate:>7.1%} "
        f"[{share.lower:.1%}, {share.upper:.1%}]"
    )


def sides(entry: dict[str, Any]) -> tuple[Side, Side]:
    """All processes of the baseline, and all of the candidate."""
    first, second = entry["rounds_ticks"]
    return [list(chain(*process)) for process in first], [list(chain(*process)) for process in second]


def halves(entry: dict[str, Any]) -> tuple[Side, Side]:
    """The baseline's processes of the first half of the time, as many of the candidate's of the second."""
    first, second = sides(entry)
    count = len(first) // 2
    return first[:count], second[-count:]


def mean_of_one_process(baseline: Side, candidate: Side) -> bool:
    """pytest-benchmark: one process each; an alarm where the mean is 5 % higher."""
    return bool(np.mean(candidate[-1]) > 1.05 * np.mean(baseline[0]))


def pyperf_compare(baseline: Side, candidate: Side) -> bool:
    """pyperf's own test on its own kind of value: three a process, each the mean of a loop."""
    from pyperf._utils import is_significant

    values = [
        [float(np.mean(part)) for process in side for part in np.array_split(process, 3)]
        for side in (baseline, candidate)
    ]
    return bool(is_significant(*values)[0])


def mann_whitney(baseline: Side, candidate: Side) -> bool:
    """The usual test on all iterations of all processes in one heap."""
    from scipy.stats import mannwhitneyu

    return bool(mannwhitneyu(np.concatenate(baseline), np.concatenate(candidate)).pvalue < 0.05)


PEERS: dict[str, Callable[[Side, Side], bool]] = {
    "pytest-benchmark --benchmark-compare-fail=mean:5%": mean_of_one_process,
    "pyperf compare_to": pyperf_compare,
    "Mann-Whitney on pooled iterations, p < 0.05": mann_whitney,
}


if __name__ == "__main__":
    main()
