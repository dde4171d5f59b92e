"""Kill a build with SIGKILL at random times, rerun it and compare the bytes; run by hand, a few minutes.

    python tests/perf/kill_and_resume.py [--kills 20] [--seed 0]

Each trial starts with an empty cache. It kills the build at a random time within the duration of a whole
build, then runs it to the end. The script prints one line per trial; the exit code is 1 if any result
differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Run all trials and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([sys.executable, "-m", "exporter", "new", str(folder / "project")])
        recipe = folder / "project" / "recipe.toml"
        start = time.monotonic()
        expected = build(recipe, folder / "cache-0", folder / "out-0")
        whole_s = time.monotonic() - start
        print(f"undisturbed: {whole_s:.1f} s, model.onnx {expected[:12]}")
        different = 0
        for trial in range(1, arguments.kills + 1):
            cache, out = folder / f"cache-{trial}", folder / f"out-{trial}"
            instant = generator.uniform(0, whole_s)
            kill_build(recipe, cache, out, instant)
            halves = list(cache.rglob(".tmp-*"))
            found = build(recipe, cache, out)
            left = [*cache.rglob(".tmp-*"), *out.parent.glob(".tmp-*")]
            same = found == expected and not left
            different += not same
            outcome = "same bytes" if same else f"DIFFERENT: {found[:12]}, temporary files left: {left}"
            print(
                f"trial {trial:2}: killed at {instant:5.1f} s, {len(halves)} temporary files, {outcome}",
                flush=True,
            )
        print(f"{arguments.kills - different} of {arguments.kills} ended with the same bytes")
        return 1 if different else 0


def command(recipe: Path, out: Path) -> list[str]:
    """Return the command line of the build."""
    return [sys.executable, "-m", "exporter", "build", str(recipe), "--out", str(out)]


def build(recipe: Path, cache: Path, out: Path) -> str:
    """Build to the end and return the hash of the model. The verdict of the gate does not matter."""
    done = subprocess.run(
        command(recipe, out),
        env={**os.environ, "EDGEPROOF_CACHE": str(cache)},
        capture_output=True,
        check=False,
    )
    if done.returncode not in (0, 1, 3):
        raise SystemExit(done.stderr.decode())
    return hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()


def kill_build(recipe: Path, cache: Path, out: Path, instant: float) -> None:
    """Start a build; after `instant` seconds, kill it and all its child processes."""
    process = subprocess.Popen(
        command(recipe, out),
        env={**os.environ, "EDGEPROOF_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(timeout=instant)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(line: list[str]) -> None:
    """Run a command that must succeed."""
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
