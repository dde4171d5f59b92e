"""Measure the start-up time of the command; run by hand on an idle machine, under a minute.

    python tests/perf/startup.py [--processes 20]

For each command line, the script prints the CPU seconds (user and system) of fresh processes: median,
minimum and maximum. All files are in the page cache. The exit code is 1 if the median of `edgeproof --help`
exceeds 0.35 s, or if a command line loads torch, onnx or onnxruntime.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
HELP = ("exporter", "--help")
COMMAND_LINES = (HELP, ("exporter", "--version"), ("exporter", "bench", "--help"), ("bench", "--help"))
MAX_HELP_CPU_S = 0.35
WORKING = frozenset({"torch", "onnx", "onnxruntime"})


def cpu_seconds(words: tuple[str, ...]) -> float:
    """Return the user and system time of one fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loaded(words: tuple[str, ...]) -> frozenset[str]:
    """Return the top-level packages that a process imports."""
    command = [sys.executable, "-X", "importtime", "-m", *words]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = (line.rpartition("|")[2].strip() for line in ran.stderr.splitlines())
    return frozenset(name.partition(".")[0] for name in names)


def main() -> int:
    """Print the times and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("--processes", type=int, default=20, help="processes per command line")
    count = parser.parse_args().processes
    faults = []
    for words in COMMAND_LINES:
        cpu_seconds(words)  # brings the files into the page cache
        spent = [cpu_seconds(words) for _ in range(count)]
        print(f"{' '.join(words):<24} {median(spent):.3f} s of CPU ({min(spent):.3f} ... {max(spent):.3f})")
        if words == HELP and median(spent) > MAX_HELP_CPU_S:
            faults.append(f"--help takes {median(spent):.3f} s, more than {MAX_HELP_CPU_S} s")
        if found := loaded(words) & WORKING:
            faults.append(f"{' '.join(words)} loads {', '.join(sorted(found))}")
    print(*faults, sep="\n", end="\n" * bool(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
