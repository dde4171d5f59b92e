"""Whether `bench` measures what a loop written by hand does, and memory as others read it; some minutes.

    python tests/perf/bare_loop.py MODEL.onnx [--pairs 20]

- p50: a fresh process of `bench` and a fresh process with a bare loop, pinned to the same core, one thread,
  one feed, take turns of as many inferences, so that a slow minute of the machine meets both. The ratio of
  their p50 is that of the pair; printed are the Hodges-Lehmann estimate and the exact signed-rank bounds at
  99 %. One after the other instead, pairs differed by up to 60 % on a shared machine.
- Peak memory: what the measured process says of itself, against what this process reads of it from outside
  (VmHWM in /proc/PID/status). Beside it, the same of the bare process, which imports less.
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
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
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
    print(f"p50 by bench is {middle:.4f} x that of the bare loop (99 %: {low:.4f} ... {high:.4f})")
    gap = max(abs(a - b) for a, b in zip(inside, outside, strict=True))
    print(
        f"peak memory: {np.median(inside) / 2**20:.2f} MiB by bench; from outside at most "
        f"{gap / 2**20:.3f} MiB away"
    )
    print(f"bare processes: {np.median(barely) / 2**20:.2f} MiB")


def write_feeds(model: Path) -> Path:
    """One synthetic feed, in a file."""
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
    """The p50 of both in ns; our peak memory by itself and as read from outside, and the bare one's."""
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
    """One turn of the bare loop, in ns."""
    assert bare.stdin is not None
    assert bare.stdout is not None
    bare.stdin.write(f"{untimed} {count}\n")
    bare.stdin.flush()
    return [int(ns) for ns in bare.stdout.readline().split()]


def peak_bytes(pid: int) -> int:
    """The peak of a process's resident memory, as the system tells others."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
