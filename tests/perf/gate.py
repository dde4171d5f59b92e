"""How often the gate is wrong: unchanged and really slower models, while another process disturbs.

    python tests/perf/gate.py run --same 150 --slower 40      some two hours; stop and resume as you like
    python tests/perf/gate.py table                            what came out, and what other tools would say

The model is EfficientNet-Lite0 with its ImageNet weights, quantized by `edgeproof quantize`, on digits at
64 px, batch 1, one thread. Its labels are what the float model says. Every run is the command that a user
would give, `edgeproof gate`, with a budget of 2 % on p50. Unchanged candidates are in turn the file itself
and the same network in other bytes; the slower one carries an extra matrix product, sized until the model
takes 5 % longer. Meanwhile a child process spins on a core that it draws at random, again and again.

Every run is appended to the results file with its raw samples, so that nothing is lost by stopping. Models
and the size of the product are kept in the work folder; delete it to start from nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "perf")]

from bench.fragment import rebuilt  # noqa: E402
from bench.judge import pair_scores  # noqa: E402
from bench.measure import MeasureConfig, Session  # noqa: E402
from bench.result import Result, read_result  # noqa: E402
from bench.stats import proportion_interval, signed_rank_interval  # noqa: E402

RESULTS = Path(__file__).with_name("gate_results.jsonl.gz")
WORK = Path(tempfile.gettempdir()) / "edgeproof-perf-gate"
SIDE, SAMPLES = 64, 512
SLOWDOWN = 0.05
TIME_LIMIT_S = 85
POLICY = "[baseline]\nlatency_p50 = 0.02\n"
# Samples are kept in tenths of a microsecond, a few thousandths of an inference.
UNIT_NS = 100
SAME, REBUILT, SLOWER = "same", "rebuilt", "slower"

Bursts = list[list[list[int]]]
Record = dict[str, Any]


def main() -> None:
    """Run gates, or show what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--same", type=int, default=150, help="runs on unchanged models, in all sittings")
    run.add_argument("--slower", type=int, default=40, help="runs on the slower model, in all sittings")
    run.add_argument("--quiet", action="store_true", help="do not disturb")
    run.add_argument("--max-load", type=float, default=math.inf, help="wait while others load the machine")
    run.add_argument("--work", type=Path, default=WORK)
    table = commands.add_parser("table")
    for one in (run, table):
        one.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "run":
        models = prepare(arguments.work)
        wanted = Counter({SAME: arguments.same - arguments.same // 2, REBUILT: arguments.same // 2})
        wanted[SLOWER] = arguments.slower
        with contextlib.nullcontext() if arguments.quiet else disturbance():
            run_all(models, wanted, arguments.results, arguments.max_load, disturbed=not arguments.quiet)
    show(read_records(arguments.results))


# What is measured


def prepare(work: Path) -> dict[str, Path]:
    """Make the models, the data and the policy, where they are not there yet."""
    from calibration import child_export, digits

    from bench.evaluation import EvaluationSet, write_evaluation
    from exporter.data import Split
    from exporter.inference import run_model
    from exporter.standalone import quantize_file

    work.mkdir(parents=True, exist_ok=True)
    names = ("float", "int8", REBUILT, SLOWER)
    paths = {name: work / f"{name}.onnx" for name in names}
    paths |= {SAME: paths["int8"], "data": work / "evaluation.npz", "policy": work / "policy.toml"}
    paths["policy"].write_text(POLICY)
    if not paths["data"].is_file():
        child_export(str(paths["float"]), str(SIDE))
        with np.load(digits(work, SAMPLES, SIDE)) as arrays:
            feeds = {"image": arrays["image"]}
        labels = run_model(paths["float"], Split(feeds, np.zeros(SAMPLES, np.int64))).argmax(axis=1)
        write_evaluation(paths["data"], EvaluationSet(feeds, labels.astype(np.int64), None))
    if not paths["int8"].is_file():
        quantize_file(paths["float"], digits(work, 128, SIDE), paths["int8"], target="auto")
        paths[REBUILT].write_bytes(rebuilt(paths["int8"].read_bytes()))
    if not paths[SLOWER].is_file():
        make_slower(paths["int8"], paths[SLOWER], paths["data"])
    return paths


def make_slower(model: Path, slower: Path, data: Path) -> None:
    """Write a twin that takes `SLOWDOWN` longer: draw a line through two sizes, then through three."""
    rows, seen = [16, 128], []
    while len(seen) < 3:
        twin = write_twin(model, slower.with_suffix(".try"), rows[len(seen)])
        seen.append(slowdown_of(model, twin, data, blocks=16))
        if len(seen) > 1:
            slope, rest = np.polyfit(rows[: len(seen)], seen, 1)
            rows.append(max(1, round((math.log1p(SLOWDOWN) - rest) / slope)))
    write_twin(model, slower, rows[-1])
    costs = [f"{size} rows cost {math.expm1(cost):.1%}" for size, cost in zip(rows, seen, strict=False)]
    print(f"{', '.join(costs)}: {rows[-1]} taken", flush=True)


def write_twin(model: Path, twin: Path, rows: int) -> Path:
    """A copy of a model that also multiplies its input, [N, 3, H, W], by [rows, H] from the left."""
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.load(model)
    source = proto.graph.input[0]
    height, width = (axis.dim_value for axis in source.type.tensor_type.shape.dim[2:])
    weight = np.random.default_rng(0).standard_normal((rows, height)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "slower_weight"))
    proto.graph.node.append(helper.make_node("MatMul", ["slower_weight", source.name], ["slower"]))
    shape = ["N", 3, rows, width]
    proto.graph.output.append(helper.make_tensor_value_info("slower", onnx.TensorProto.FLOAT, shape))
    onnx.save(proto, twin)
    return twin


def slowdown_of(model: Path, twin: Path, data: Path, blocks: int) -> float:
    """log(twin / model) of the median latency."""
    with Session([model, twin], data, MeasureConfig()) as session:
        session.add_blocks(blocks)
        first, second = session.result().models
    return signed_rank_interval(pair_scores(first.runs, second.runs, 0.5), 0.05).estimate


@contextlib.contextmanager
def disturbance() -> Iterator[None]:
    """A child process that keeps a core busy, another one every half second or so."""
    child = subprocess.Popen([sys.executable, __file__, "disturb", str(os.getpid())])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def disturb(parent: int) -> None:
    """Spin on a core drawn at random, rest, and again, for as long as the parent lives."""
    cores = sorted(os.sched_getaffinity(0))
    while os.getppid() == parent:
        os.sched_setaffinity(0, [random.choice(cores)])
        end = time.monotonic() + random.expovariate(1 / 0.5)
        while time.monotonic() < end:
            pass
        time.sleep(random.expovariate(1 / 0.25))


# Running


def run_all(
    models: dict[str, Path], wanted: Counter[str], results: Path, max_load: float, *, disturbed: bool
) -> None:
    """Run what is still missing, kinds mixed, and append every run to the results."""
    done = Counter(record["kind"] for record in read_records(results))
    left = [kind for kind in wanted for _ in range(wanted[kind] - done[kind])]
    random.shuffle(left)
    for number, kind in enumerate(left, 1):
        while os.getloadavg()[0] > max_load:
            time.sleep(10)
        record = run_gate(models, kind) | {"disturbed": disturbed}
        with results.open("ab") as stream:  # a member of its own: what is written stays readable
            stream.write(gzip.compress(json.dumps(record, separators=(",", ":")).encode() + b"\n", 9))
        shown = {name: metric.get("verdict") for name, metric in record["metrics"].items()}
        print(
            f"{number}/{len(left)} {kind}: {record['verdict']} in {record['seconds']:.1f} s, "
            f"{record['blocks']} blocks, {shown}",
            flush=True,
        )


def run_gate(models: dict[str, Path], kind: str) -> Record:
    """One run of the command, as a user gives it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        arguments = [models[kind], "--baseline", models["int8"], "--data", models["data"]]
        arguments += ["--policy", models["policy"], "--time-limit", TIME_LIMIT_S, "--out", out, "--json"]
        start = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-m", "bench", "gate", *map(str, arguments), *["--same"] * (kind == SAME)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        seconds = time.monotonic() - start
        said, result = json.loads(ran.stdout), read_result(out)
    keys = ("ratio", "difference", "value", "lower", "upper", "budget", "verdict")
    loads = [state.load_1min for state in result.states() if state.load_1min is not None]
    return {
        "kind": kind,
        "started_utc": result.started_utc,
        "seconds": seconds,
        "verdict": said["verdict"],
        "reasons": said["reasons"],
        "metrics": {
            name: {key: metric[key] for key in keys if metric[key] is not None}
            for name, metric in said["metrics"].items()
        },
        "blocks": said["blocks"],
        "load_1min": max(loads, default=None),
        "cpu": result.host.cpu_model,
        "onnxruntime": result.host.onnxruntime,
        "samples": [bursts(result, model) for model in (0, -1)],
        "repeat": [] if result.repeat is None else [bursts(result.repeat, model) for model in (0, -1)],
    }


def bursts(result: Result, model: int) -> Bursts:
    """Timed samples of a model, [blocks][rounds][inferences], in units of `UNIT_NS`."""
    return [
        [[round(ns / UNIT_NS) for ns in burst] for burst in run.rounds_ns]
        for run in result.models[model].runs
    ]


def read_records(results: Path) -> list[Record]:
    """All runs so far."""
    if not results.is_file():
        return []
    with gzip.open(results, "rt") as lines:
        return [json.loads(line) for line in lines]


# What came out


def show(records: Sequence[Record]) -> None:
    """Print both tables."""
    for kinds, title in (((SAME, REBUILT), "unchanged"), ((SLOWER,), "slower")):
        chosen = [record for record in records if record["kind"] in kinds]
        if not chosen:
            continue
        seconds = [record["seconds"] for record in chosen]
        print(
            f"\n{title}: {len(chosen)} runs, {np.median(seconds):.1f} s each (at most {max(seconds):.1f}), "
            f"load {min(r['load_1min'] for r in chosen):.1f} to {max(r['load_1min'] for r in chosen):.1f}"
        )
        verdicts = Counter(record["verdict"] for record in chosen)
        for verdict in ("PASS", "FAIL", "INCONCLUSIVE", "INVALID"):
            print(f"  edgeproof gate: {verdict:<13}{rate(verdicts[verdict], len(chosen))}")
        for name, alarms in PEERS.items():
            print(f"  {name + ':':<42}{rate(sum(map(alarms, chosen)), len(chosen))}")
        scores = [score for record in chosen for score in (pair_scores_of(record["samples"]))]
        interval = signed_rank_interval(scores[:400], 0.005)
        print(
            f"  all pairs: {math.expm1(interval.estimate):+.2%} "
            f"({math.expm1(interval.lower):+.2%} ... {math.expm1(interval.upper):+.2%})"
        )


def rate(count: int, total: int) -> str:
    """A count, its share, and the Clopper-Pearson bounds of 95 % on either side."""
    interval = proportion_interval(count, total, 0.05)
    return f"{count:>4} of {total}  {count / total:6.1%}  ({interval.lower:.1%} ... {interval.upper:.1%})"


def pair_scores_of(samples: Sequence[Bursts]) -> list[float]:
    """Scores of all pairs, as the gate computes them."""
    return [
        float(np.median([math.log(np.median(b) / np.median(a)) for a, b in zip(one, two, strict=True)]))
        for one, two in zip(*samples, strict=True)
    ]


def pytest_benchmark_fails(record: Record) -> bool:
    """`--benchmark-compare-fail=mean:5%`: one process stored, one measured later: first and last block."""
    from pytest_benchmark.utils import parse_compare_fail

    before, after = record["samples"][0][0], record["samples"][1][-1]
    stored, current = ({"mean": float(np.mean(np.concatenate(one)))} for one in (before, after))
    return bool(parse_compare_fail("mean:5%").fails(current, stored))


def pyperf_says_slower(record: Record) -> bool:
    """`pyperf compare_to`: all processes of both, three values each, by its own test of significance."""
    import pyperf
    from pyperf._compare import is_significant_benchs

    def benchmark(model: Bursts) -> Any:
        runs = [
            pyperf.Run(
                [float(np.mean(np.concatenate(part))) * UNIT_NS / 1e9 for part in thirds(run)],
                metadata={"name": "model"},
                collect_metadata=False,
            )
            for run in model
        ]
        return pyperf.Benchmark(runs)

    before, after = (benchmark(model) for model in record["samples"])
    return bool(is_significant_benchs(before, after)[0] and after.mean() > before.mean())


def thirds(rounds: Sequence[list[int]]) -> list[Sequence[list[int]]]:
    """Rounds of a process in three parts."""
    cuts = [len(rounds) * k // 3 for k in range(4)]
    return [rounds[start:end] for start, end in pairwise(cuts)]


def mann_whitney_says_slower(record: Record) -> bool:
    """Mann-Whitney U of all iterations pooled, as if each were independent: p < 0.05, and slower."""
    from scipy.stats import mannwhitneyu

    before, after = (np.concatenate([np.concatenate(run) for run in model]) for model in record["samples"])
    return bool(mannwhitneyu(before, after).pvalue < 0.05 and np.median(after) > np.median(before))


PEERS: dict[str, Callable[[Record], bool]] = {
    "pytest-benchmark, compare-fail=mean:5%": pytest_benchmark_fails,
    "pyperf compare_to, significant and slower": pyperf_says_slower,
    "Mann-Whitney, pooled, p < 0.05, slower": mann_whitney_says_slower,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["disturb"]:
        disturb(int(sys.argv[2]))
    else:
        main()
