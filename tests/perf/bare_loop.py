"""Check `bench` against a plain timing loop and an external memory reading; run by hand, some minutes.

    python tests/perf/bare_loop.py MODEL.onnx [--pairs 20]

- p50: a pair is a fresh process of `bench` and a fresh process with a bare loop, on the same core, with one
  thread and one feed. The two take turns with the same number of inferences, so a slow minute of the
  machine affects both. The score of a pair is the ratio of their p50. The script prints the Hodges-Lehmann
  estimate and the exact signed-rank bounds at 99 %. Without turns, one process after the other, pairs
  differed by up to 60 % on a shared machine.
- Peak memory: the value that the measured process reports about itself, against the value that this script
  reads from /proc/PID/status (VmHWM). For comparison it also prints the peak memory of the bare process,
  which imports fewer libraries.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.core.statistics import signed_rank_interval  # noqa: E402
from bench.measuring.measure import WARM_LIMIT_NS  # noqa: E402
from bench.measuring.protocol import Burst, First, Memory, Open, Warm  # noqa: E402
from bench.measuring.worker_process import WorkerProcess  # noqa: E402

ROUNDS, INFERENCES, UNTIMED, WARM = 16, 25, 2, 100
ALPHA = 0.01
BARE = """
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[3])])
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = dict(np.load(sys.argv[2]))
for line in sys.stdin:
    untimed, count = map(int, line.split())
    for _ in range(untimed):
        session.run(None, feeds)
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        session.run(None, feeds)
        times.append(time.perf_counter_ns() - start)
    print(*times, flush=True)
"""


def main() -> None:
    """Measure all pairs and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="ONNX model to time")
    parser.add_argument("--pairs", type=int, default=20, help="number of pairs of processes")
    arguments = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    feeds = write_feeds(arguments.model)
    scores, inside, outside, barely = [], [], [], []
    for index in range(arguments.pairs):
        (ours, theirs), (own, read, other) = pair(arguments.model, feeds, core, first=index % 2)
        scores.append(math.log(ours / theirs))
        inside.append(own)
        outside.append(read)
        barely.append(other)
        print(f"{index + 1}: {ours / 1e6:.3f} ms by bench, {theirs / 1e6:.3f} ms bare", flush=True)
    found = signed_rank_interval(scores, ALPHA)
    low, middle, high = (math.exp(x) for x in (found.lower, found.estimate, found.upper))
    print(f"p50 by bench: {middle:.4f} x the p50 of the bare loop (99 %: {low:.4f} ... {high:.4f})")
    gap = max(abs(a - b) for a, b in zip(inside, outside, strict=True))
    print(
        f"peak memory: {np.median(inside) / 2**20:.2f} MiB by bench; largest difference from the external "
        f"reading {gap / 2**20:.3f} MiB"
    )
    print(f"peak memory of the bare process: {np.median(barely) / 2**20:.2f} MiB")


def write_feeds(model: Path) -> Path:
    """Write one synthetic feed to a file."""
    from bench.core.arrays import write_npz
    from bench.inputs.session import open_session, signature_of
    from bench.measuring.worker import synthetic_feeds

    path = ROOT / "build" / "bare-feeds.npz"
    path.parent.mkdir(exist_ok=True)
    write_npz(path, synthetic_feeds(model, signature_of(open_session(model))))
    return path


def pair(
    model: Path, feeds: Path, core: int, first: int
) -> tuple[tuple[float, float], tuple[int, int, int]]:
    """Measure one pair.

    Returns:
        The p50 of `bench` and of the bare loop, in ns; and three peaks of memory in bytes: of `bench` by
        its own reading, of `bench` by the external reading, and of the bare process by the external
        reading.
    """
    command = [sys.executable, "-c", BARE, str(model), str(feeds), str(core)]
    with (
        WorkerProcess() as worker,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bare,
    ):
        worker.ask(Open(str(model), feeds=str(feeds), threads=1, arena=True, cores=[core]))
        worker.ask(First())
        worker.ask(Warm(limit_ns=WARM_LIMIT_NS))
        loop(bare, WARM, 0)
        ours: list[int] = []
        theirs: list[int] = []
        for index in range(ROUNDS):
            for turn in (0, 1):
                if (index + turn + first) % 2:
                    theirs += loop(bare, UNTIMED, INFERENCES)
                else:
                    ours += worker.ask(Burst(count=INFERENCES, untimed=UNTIMED)).ns
        own = worker.ask(Memory()).peak_rss_bytes
        peaks = own, peak_bytes(worker.pid), peak_bytes(bare.pid)
    return (float(np.median(ours)), float(np.median(theirs))), peaks


def loop(bare: subprocess.Popen[str], untimed: int, count: int) -> list[int]:
    """Run one turn of the bare loop and return its times in ns."""
    assert bare.stdin is not None
    assert bare.stdout is not None
    bare.stdin.write(f"{untimed} {count}\n")
    bare.stdin.flush()
    return [int(ns) for ns in bare.stdout.readline().split()]


def peak_bytes(pid: int) -> int:
    """Read the peak resident memory of a process from /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
