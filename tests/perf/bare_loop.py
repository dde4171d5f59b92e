"""Whether `bench` measures what a loop written by hand does, and memory as others read it; some minutes.

    python tests/perf/bare_loop.py MODEL.onnx [--pairs 20]

- p50: a fresh process of `bench` and a fresh process with a bare loop take turns, each pinned to the same
  core, one thread, one feed, the same number of inferences. The ratio of their medians is that of the pair;
  printed are the Hodges-Lehmann estimate and the exact signed-rank bounds at 99 %.
- Peak memory: what the measured process says of itself, against what this process reads of it from outside
  (VmHWM in /proc/PID/status). Beside it, what the system counted of the bare processes when they had ended
  (ru_maxrss of wait4): the rest is what the measured process has to read requests and feeds with.
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

from bench.measure import WARM_LIMIT_NS  # noqa: E402
from bench.process import WorkerProcess  # noqa: E402
from bench.stats import signed_rank_interval  # noqa: E402

INFERENCES, WARM = 400, 100
ALPHA = 0.01
BARE = """
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[5])])
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = dict(np.load(sys.argv[2]))
for _ in range(int(sys.argv[4])):
    session.run(None, feeds)
times = []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter_ns()
    session.run(None, feeds)
    times.append(time.perf_counter_ns() - start)
print(sorted(times)[len(times) // 2])
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
    scores, inside, outside, ended = [], [], [], []
    for index in range(arguments.pairs):
        if index % 2:
            theirs, maximum = bare(arguments.model, feeds, core)
            ours, own, read = benched(arguments.model, feeds, core)
        else:
            ours, own, read = benched(arguments.model, feeds, core)
            theirs, maximum = bare(arguments.model, feeds, core)
        scores.append(math.log(ours / theirs))
        inside.append(own)
        outside.append(read)
        ended.append(maximum)
        print(f"{index + 1}: {ours / 1e6:.3f} ms by bench, {theirs / 1e6:.3f} ms bare", flush=True)
    found = signed_rank_interval(scores, ALPHA)
    low, middle, high = (math.exp(x) for x in (found.lower, found.estimate, found.upper))
    print(f"p50 by bench is {middle:.4f} x that of the bare loop (99 %: {low:.4f} ... {high:.4f})")
    gap = max(abs(a - b) for a, b in zip(inside, outside, strict=True))
    print(
        f"peak memory: {np.median(inside) / 2**20:.2f} MiB by bench; from outside at most "
        f"{gap / 2**20:.3f} MiB away"
    )
    print(f"bare processes, when they had ended: {np.median(ended) / 2**20:.2f} MiB")


def write_feeds(model: Path) -> Path:
    """One synthetic feed, in a file."""
    from bench.arrays import write_npz
    from bench.session import open_session, signature_of
    from bench.worker import synthetic_feeds

    path = ROOT / "build" / "bare-feeds.npz"
    path.parent.mkdir(exist_ok=True)
    write_npz(path, synthetic_feeds(model, signature_of(open_session(model))))
    return path


def benched(model: Path, feeds: Path, core: int) -> tuple[float, int, int]:
    """Median in ns, peak memory by the process itself, and as read from outside."""
    with WorkerProcess() as worker:
        worker.ask("open", model=str(model), feeds=str(feeds), threads=1, arena=True, cores=[core])
        worker.ask("first")
        worker.ask("warm", limit_ns=WARM_LIMIT_NS)
        times = worker.ask("burst", count=INFERENCES, untimed=WARM)["ns"]
        own = worker.ask("memory")["peak_rss_bytes"]
        status = Path(f"/proc/{worker._process.pid}/status").read_text()
    outside = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return float(np.median(times)), own, outside * 1024


def bare(model: Path, feeds: Path, core: int) -> tuple[float, int]:
    """Median in ns of the bare loop, and the peak that the system counted."""
    command = [sys.executable, "-c", BARE, str(model), str(feeds), str(INFERENCES), str(WARM), str(core)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the bare loop failed")
    return float(answer), usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
